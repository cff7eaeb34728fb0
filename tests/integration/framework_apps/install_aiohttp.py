"""An aiohttp service that installs auditing itself."""

import sys

import otel_audit

otel_audit.install()

from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor

AioHttpServerInstrumentor().instrument()

import aiohttp_app
from aiohttp import web

if __name__ == "__main__":
    web.run_app(aiohttp_app.make(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
