"""aiohttp server: the status it answers an exception with, responses that a handler ends itself, and WebSockets.

OpenTelemetry's middleware ends the span when the handler returns, before aiohttp sends what it returned; only a handler
that calls `write_eof` itself answers earlier. It does not put the context of the request in place for the handler, so the
`Call` is put there here.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.context import attach, detach, set_value
from opentelemetry.sdk.trace import ReadableSpan

from otel_audit import names
from otel_audit.capture.call import CALL_KEY, Call, current_call
from otel_audit.capture.corrections import close_outcome, set_status, status_of
from otel_audit.capture.processor import Calls

__all__ = ["audit_aiohttp", "audit_ended_responses"]

_Handler = Callable[[Any], Awaitable[Any]]


class _Answer:
    """What became of a call; put on its record.

    Args:
        status: what is answered unless the span says otherwise; None when that is not known.
        close_code: how the WebSocket was closed; None when it was none or is open.
        final: whether `status` counts more than the span's.
    """

    __slots__ = ("close_code", "final", "status")

    def __init__(self) -> None:
        self.status: int | None = None
        self.close_code: int | None = None
        self.final = False

    def __call__(self, said: dict[str, Any], span: ReadableSpan) -> None:  # noqa: ARG002 - as `Call.correct` is called
        if self.status is not None and (self.final or status_of(said) is None):
            set_status(said, self.status)
        if self.close_code is not None:
            said[names.OUTCOME] = close_outcome(self.close_code, by_client=False)


def audit_aiohttp(calls: Calls, module: Any) -> None:
    """Change the middleware that OpenTelemetry puts into each application.

    Args:
        calls: the calls.
        module: `opentelemetry.instrumentation.aiohttp_server`.
    """
    from aiohttp import web

    original = module.create_aiohttp_middleware

    @functools.wraps(original)
    def create(*args: Any, **more: Any) -> Any:
        traced = original(*args, **more)

        @web.middleware
        async def audited(request: Any, handler: _Handler) -> Any:
            call: Call | None = None

            async def within(request: Any) -> Any:
                nonlocal call
                call = calls.hold(trace.get_current_span())  # type: ignore[arg-type]  # any span has an id
                return await (handler(request) if call is None else _serve(call, request, handler))

            try:
                return await traced(request, within)
            finally:
                await calls.sync_held(call)

        return audited

    module.create_aiohttp_middleware = create


async def _serve(call: Call, request: Any, handler: _Handler) -> Any:
    """Run the handler with the call in its context, and note what aiohttp is going to answer."""
    answer = call.correct = _Answer()
    if request.headers.get("Upgrade", "").lower() == "websocket":
        call.usual_action = "connect"
    token = attach(set_value(CALL_KEY, call))
    try:
        response = await handler(request)
    except TimeoutError:
        answer.status = 504
        raise
    except Exception:
        answer.status = 500  # of an HTTPException the span says its own
        raise
    finally:
        detach(token)
    answer.close_code = getattr(response, "close_code", None)
    return response


def audit_ended_responses(calls: Calls, module: Any) -> None:
    """Record a call before its handler ends the response itself.

    Args:
        calls: the calls.
        module: `aiohttp.web_response`.
    """
    original = module.StreamResponse.write_eof

    @functools.wraps(original)
    async def write_eof(self: Any, *args: Any, **more: Any) -> None:
        call = current_call()
        if call is not None and not call.recorded and isinstance(call.correct, _Answer) and self.prepared:
            call.correct.status, call.correct.final = self.status, True
            calls.answered(call)
            await calls.sync_held(call)
        await original(self, *args, **more)

    module.StreamResponse.write_eof = write_eof
