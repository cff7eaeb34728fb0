"""Under ASGI, a response's last bytes leave only when the call's record is spooled; and how a WebSocket call ended.

OpenTelemetry's ASGI middleware sends a message first and ends the span afterwards: a process that is killed in between
has answered a call that nobody recorded. Here each message goes out after the middleware has done its bookkeeping for
it; with the last one that is the end of the span, and with it the record. Where the client has the whole response before
the last message (`Content-Length` bytes, or a response without a body), the call is recorded then. In modes durable and
fail-closed the record is synced, off the event loop, before the message goes. WSGI instrumentations end the span before
the server writes.
"""

import functools
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan

from otel_audit import names
from otel_audit.capture.call import Call, current_call
from otel_audit.capture.corrections import INNER_KEY, MOUNT_KEY, close_outcome, set_status
from otel_audit.capture.processor import Calls

__all__ = ["hold_asgi_responses"]

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_Receive = Callable[[], Awaitable[_Message]]

_NO_BODY: Final = frozenset({204, 304})


def hold_asgi_responses(calls: Calls, module: Any) -> None:
    """Change OpenTelemetry's ASGI middleware.

    Args:
        calls: tells which calls are to be synced, and records those that are answered before their span ends.
        module: `opentelemetry.instrumentation.asgi`.
    """
    _hold_messages(calls, module.OpenTelemetryMiddleware)
    _watch_disconnects(module.OpenTelemetryMiddleware)


def _hold_messages(calls: Calls, middleware: Any) -> None:
    original = middleware._get_otel_send  # noqa: SLF001 - no hook exists for this

    @functools.wraps(original)
    def get_send(self: Any, server_span: Any, name: str, scope: Any, send: _Send, *args: Any, **more: Any) -> Any:
        call = calls.hold(server_span) if server_span.is_recording() else None
        if call is None:
            _note_inner_route(scope, args[0] if args else more.get("duration_attrs"))
            return original(self, server_span, name, scope, send, *args, **more)
        held: list[_Message] = []

        async def hold_back(message: _Message) -> None:
            held.append(message)

        account = original(self, server_span, name, scope, hold_back, *args, **more)
        answer = _WebSocket(call) if scope["type"] == "websocket" else _Answer(scope)

        async def audited_send(message: _Message) -> None:
            try:
                await account(message)
            finally:
                if answer.complete_with(message):
                    calls.answered(call)
                if call.sync_wanted:
                    await calls.sync_held(call)
                while held:
                    await send(held.pop(0))

        return audited_send

    middleware._get_otel_send = get_send  # noqa: SLF001


def _watch_disconnects(middleware: Any) -> None:
    original = middleware._get_otel_receive  # noqa: SLF001

    @functools.wraps(original)
    def get_receive(self: Any, name: str, scope: Any, receive: _Receive, *args: Any, **more: Any) -> Any:
        inner = original(self, name, scope, receive, *args, **more)
        call = current_call() if scope["type"] == "websocket" else None
        if call is None or call.carrier is not scope:
            return inner

        async def audited_receive() -> _Message:
            message: _Message = await inner()
            if message["type"] == "websocket.disconnect" and isinstance(call.correct, _WebSocket):
                call.correct.disconnected(message.get("code"))
            return message

        return audited_receive

    middleware._get_otel_receive = get_receive  # noqa: SLF001


def _note_inner_route(scope: Any, attributes: Any) -> None:
    """An application within an application: its own instrumentation knows its part of the route."""
    if MOUNT_KEY in scope and isinstance(attributes, Mapping):
        scope[INNER_KEY] = scope[MOUNT_KEY], attributes.get(names.HTTP_ROUTE[0])


class _Answer:
    """How much of an HTTP response is still to come; used by the one task that sends it.

    Args:
        scope: the request.
    """

    __slots__ = ("_head", "_left_bytes")

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._head = scope.get("method") == "HEAD"
        self._left_bytes = -1

    def complete_with(self, message: Mapping[str, Any]) -> bool:
        """Whether the client has the whole response with this message, although it is not the last one."""
        kind = message["type"]
        if kind == "http.response.start":
            if self._head or message["status"] in _NO_BODY:
                return True
            for name, value in message.get("headers") or ():
                if name.lower() == b"content-length" and value.isdigit():
                    self._left_bytes = int(value)
        elif kind == "http.response.body" and self._left_bytes >= 0:
            self._left_bytes -= len(message.get("body") or b"")
            return self._left_bytes <= 0 and bool(message.get("more_body"))
        return False


class _WebSocket:
    """What becomes of a WebSocket call; used by the task that serves it. Its record is made when its span ends.

    Args:
        call: the call.
    """

    __slots__ = ("_method", "_outcome", "_status")

    def __init__(self, call: Call) -> None:
        self._method = "CONNECT" if call.carrier is not None and call.carrier.get("http_version") == "2" else "GET"
        self._status: int | None = None
        self._outcome: str | None = None
        call.usual_action = "connect"
        call.correct = self

    def complete_with(self, message: Mapping[str, Any]) -> bool:
        """Never: what the service says is noted."""
        kind = message["type"]
        if kind == "websocket.accept":
            self._status = 101
        elif kind == "websocket.http.response.start":
            self._status = message["status"]
        elif kind == "websocket.close":
            if self._status is None:
                self._status = 403
            elif self._outcome is None:
                self._outcome = close_outcome(message.get("code", 1000), by_client=False)
        return False

    def disconnected(self, code: int | None) -> None:
        """The client closed the connection, or it broke."""
        if self._outcome is None:
            self._outcome = close_outcome(code, by_client=True)

    def __call__(self, said: dict[str, Any], span: ReadableSpan) -> None:
        """Put right what the record says: the method of the handshake, its answer, and how the connection ended."""
        if not any(name in said for name in names.HTTP_METHOD):
            said[names.HTTP_METHOD[0]] = self._method
        if self._status is not None:
            set_status(said, self._status)
        if self._outcome is not None and self._status == 101 and not any(map(_is_fault, span.events)):
            said[names.OUTCOME] = self._outcome


def _is_fault(event: Any) -> bool:
    """Whether an event is an exception that is more than the client's going away."""
    if event.name != names.EXCEPTION_EVENT:
        return False
    kind = str((event.attributes or {}).get("exception.type", "")).rpartition(".")[2]
    return "Disconnect" not in kind and "ConnectionClosed" not in kind
