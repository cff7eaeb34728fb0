// OpenTelemetry for a Node.js service, with the request headers that any-language.yaml looks at.
//   node --require ./audit.js service.js
const { getNodeAutoInstrumentations } = require("@opentelemetry/auto-instrumentations-node");
const { NodeSDK } = require("@opentelemetry/sdk-node");

const requestHeaders = ["authorization", "x-api-key", "x-client-id", "x-forwarded-for"];
const sdk = new NodeSDK({
  instrumentations: [
    getNodeAutoInstrumentations({
      "@opentelemetry/instrumentation-http": { headersToSpanAttributes: { server: { requestHeaders } } },
    }),
  ],
});
sdk.start();
// What was not sent yet is sent before the process ends.
process.once("SIGTERM", () => sdk.shutdown().finally(() => process.exit(0)));
