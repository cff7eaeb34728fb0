package main

import (
	"context"
	"net/http"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// The request headers that any-language.yaml looks at.
var headers = []string{"authorization", "x-api-key", "x-client-id", "x-forwarded-for"}

// startTelemetry sends spans by the usual variables: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER.
func startTelemetry(ctx context.Context) (func(context.Context) error, error) {
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, err
	}
	from, err := resource.New(ctx, resource.WithFromEnv(), resource.WithTelemetrySDK(), resource.WithHost())
	if err != nil {
		return nil, err
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(from))
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	return provider.Shutdown, nil
}

// audited makes a span of every call of a service, with its route (for a ServeMux of Go 1.22 or newer) and those headers.
func audited(service http.Handler) http.Handler {
	return otelhttp.NewHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		span := trace.SpanFromContext(r.Context())
		for _, name := range headers {
			if values := r.Header.Values(name); len(values) > 0 {
				span.SetAttributes(attribute.StringSlice("http.request.header."+name, values))
			}
		}
		defer func() { // the pattern is known once a ServeMux has found it
			if at := strings.IndexByte(r.Pattern, '/'); at >= 0 {
				span.SetAttributes(attribute.String("http.route", r.Pattern[at:]))
			}
		}()
		service.ServeHTTP(w, r)
	}), "call")
}
