"""A Tornado service that installs auditing itself."""

import asyncio
import sys

import otel_audit

otel_audit.install()

from opentelemetry.instrumentation.tornado import TornadoInstrumentor

TornadoInstrumentor().instrument()

import tornado_app

if __name__ == "__main__":
    asyncio.run(tornado_app.main(int(sys.argv[1])))
