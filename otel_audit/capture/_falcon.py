"""Falcon: the status that is answered. OpenTelemetry says 404 of whatever no resource serves, sinks among it."""

import functools
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from otel_audit.capture.corrections import set_status
from otel_audit.capture.processor import Calls

__all__ = ["audit_falcon"]


def audit_falcon(calls: Calls, module: Any) -> None:
    """Change the application class that OpenTelemetry puts in the place of Falcon's.

    Args:
        calls: the calls.
        module: `opentelemetry.instrumentation.falcon`.
    """
    application = module._InstrumentedFalconAPI  # noqa: SLF001 - no hook exists for this
    span_key = module._ENVIRON_SPAN_KEY  # noqa: SLF001
    original = application.__call__

    @functools.wraps(original)
    def serve(self: Any, env: Any, start_response: Any) -> Any:
        def start(status: str, *args: Any, **more: Any) -> Any:
            span = env.get(span_key)
            call = None if span is None else calls.of(span)
            if call is not None and status[:3].isdigit():
                call.correct = functools.partial(_set, int(status[:3]))
            return start_response(status, *args, **more)

        return original(self, env, start)

    application.__call__ = serve


def _set(status: int, said: dict[str, Any], span: ReadableSpan) -> None:  # noqa: ARG001 - as `Call.correct` is called
    set_status(said, status)
