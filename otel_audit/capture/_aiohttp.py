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
from otel_audit.capture.corrections import note_closes, outcome_of_closed, set_status, status_of
from otel_audit.capture.processor import Calls

__all__ = ["audit_aiohttp", "audit_begun_responses"]

_Handler = Callable[[Any], Awaitable[Any]]


class _Answer:
    """What became of a call; put on its record.

    `fallback` is the status that aiohttp answers after an exception; `sent` the one that the handler has sent itself;
    `closed` the WebSocket that has ended; each None when there is none. `gone` is whether the client went away and the
    handler failed over that.
    """

    __slots__ = ("closed", "fallback", "gone", "sent")

    def __init__(self) -> None:
        self.fallback: int | None = None
        self.sent: int | None = None
        self.closed: Any = None
        self.gone = False

    def __call__(self, said: dict[str, Any], span: ReadableSpan) -> None:  # noqa: ARG002 - as `Call.correct` is called
        if self.sent is not None:
            set_status(said, self.sent)
        elif self.fallback is not None and status_of(said) is None:
            set_status(said, self.fallback)
        if self.gone:
            said[names.OUTCOME] = "unknown"
        elif self.closed is not None:
            said[names.OUTCOME] = outcome_of_closed(self.closed)


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
        @functools.wraps(traced)
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
    note_closes(web.WebSocketResponse)


async def _serve(call: Call, request: Any, handler: _Handler) -> Any:
    """Run the handler with the call in its context, and note what aiohttp is going to answer."""
    answer = call.correct = _Answer()
    if request.headers.get("Upgrade", "").lower() == "websocket":
        call.usual_action = "connect"
    token = attach(set_value(CALL_KEY, call))
    try:
        response = await handler(request)
    except TimeoutError:
        answer.fallback = 504
        raise
    except Exception as e:
        answer.fallback = 500  # of an HTTPException the span says its own
        answer.gone = isinstance(e, ConnectionError) and (request.transport is None or request.transport.is_closing())
        raise
    finally:
        detach(token)
    answer.closed = response if getattr(response, "close_code", None) is not None else None
    return response


def audit_begun_responses(calls: Calls, module: Any) -> None:
    """Note what a handler sends itself, and record its call before it ends the response.

    Args:
        calls: the calls.
        module: `aiohttp.web_response`.
    """
    response = module.StreamResponse
    prepare, write_eof = response.prepare, response.write_eof

    @functools.wraps(prepare)
    async def noting_prepare(self: Any, *args: Any, **more: Any) -> Any:
        writer = await prepare(self, *args, **more)
        call = current_call()  # none where aiohttp itself sends what the handler returned
        if call is not None and isinstance(call.correct, _Answer):
            call.correct.sent = self.status
        return writer

    @functools.wraps(write_eof)
    async def recording_write_eof(self: Any, *args: Any, **more: Any) -> None:
        call = current_call()
        if call is not None and not call.recorded and isinstance(call.correct, _Answer) and self.prepared:
            calls.answered(call)
            await calls.sync_held(call)
        await write_eof(self, *args, **more)

    response.prepare, response.write_eof = noting_prepare, recording_write_eof
