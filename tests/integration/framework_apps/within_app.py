"""Services that have a span of their own around each request, so that OpenTelemetry's instrumentation stands back."""

from collections.abc import Iterable
from typing import Any

import fastapi_app
import flask_app
from opentelemetry import trace

_tracer = trace.get_tracer("mine")


def wsgi(environ: Any, start_response: Any) -> Iterable[bytes]:
    with _tracer.start_as_current_span("around"):
        return flask_app.app(environ, start_response)


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    with _tracer.start_as_current_span("around"):
        await fastapi_app.app(scope, receive, send)
