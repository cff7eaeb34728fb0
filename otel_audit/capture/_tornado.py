"""Tornado: the peer behind the headers, the route, and the end of the span before the end of the response.

OpenTelemetry ends the span in `on_finish`, when the response has gone. Here it ends when the handler has said all, before
the last bytes are written. A WebSocket call ends when the connection does.
"""

import functools
import logging
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan

from otel_audit import names
from otel_audit.capture.carriers import CURRENT_HANDLER
from otel_audit.capture.corrections import note_closes, outcome_of_closed, set_status
from otel_audit.capture.processor import Calls

__all__ = ["audit_tornado"]

_log = logging.getLogger("otel_audit.capture")

_ROUTE: Final = names.HTTP_ROUTE[0]
_SWITCHING: Final = 101
_TRACED: Final = "_otel_audit_traced"
"""Attribute of a handler: what its span was started with, which also ends it."""


class _Handled:
    """What the handler knows of its call; put on its record.

    Args:
        handler: the `tornado.web.RequestHandler`.
    """

    __slots__ = ("handler",)

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def __call__(self, said: dict[str, Any], span: ReadableSpan) -> None:
        route = (span.name or "").partition(" ")[2]  # "GET /things/{id}"; nothing else names it
        if route.startswith("/"):
            for name in self.handler.path_kwargs or () if "%s" in route else ():
                route = route.replace("%s", f"{{{name}}}", 1)
            said.setdefault(_ROUTE, route)
        status = self.handler.get_status()
        if getattr(self.handler, "_headers_written", False):  # whatever happened then, this is what was answered
            set_status(said, status)
        if status == _SWITCHING and not span.events:
            said[names.OUTCOME] = outcome_of_closed(self.handler)
        elif span.events and all(map(_is_client_gone, span.events)):
            said[names.OUTCOME] = "unknown"


def _is_client_gone(event: Any) -> bool:
    return str((event.attributes or {}).get("exception.type", "")).endswith("StreamClosedError")


def audit_tornado(calls: Calls, module: Any) -> None:
    """Change OpenTelemetry's instrumentation, and the end of each response.

    Args:
        calls: the calls.
        module: `opentelemetry.instrumentation.tornado`.
    """
    _show_handler(calls, module)
    _name_routes_of_any_method(module)
    _end_span_before_response(module)
    import tornado.websocket

    note_closes(tornado.websocket.WebSocketHandler)


def _show_handler(calls: Calls, module: Any) -> None:
    original = module._start_span  # noqa: SLF001 - no hook exists for this

    @functools.wraps(original)
    def start_span(tracer: Any, handler: Any, *conventions: Any) -> Any:
        setattr(handler, _TRACED, (tracer, conventions))
        token = CURRENT_HANDLER.set(handler)
        try:
            traced = original(tracer, handler, *conventions)
        finally:
            CURRENT_HANDLER.reset(token)
        call = calls.of(traced.span)
        if call is not None:
            call.carrier = handler
            call.correct = _Handled(handler)
            if hasattr(handler, "ws_connection"):
                call.usual_action = "connect"
        return traced

    module._start_span = start_span  # noqa: SLF001


def _name_routes_of_any_method(module: Any) -> None:
    """Keep a method that HTTP does not define from failing in the instrumentation, which would leave no record."""
    original = module.route_from_rule

    @functools.wraps(original)
    def route_from_rule(rule: Any, handler: Any) -> Any:
        return original(rule, handler) if hasattr(handler, handler.request.method.lower()) else None

    module.route_from_rule = route_from_rule


def _end_span_before_response(module: Any) -> None:
    import tornado.web

    original = tornado.web.RequestHandler.flush
    key = module._HANDLER_CONTEXT_KEY  # noqa: SLF001

    @functools.wraps(original)
    def flush(self: Any, include_footers: bool = False) -> Any:
        if include_footers and getattr(self, key, None) is not None and self.get_status() != _SWITCHING:
            try:
                tracer, conventions = getattr(self, _TRACED)
                module._finish_span(tracer, self, None, *conventions)  # noqa: SLF001
            except Exception:
                _log.exception("end the span of a call: a fault in otel-audit; it ends after the response")
        return original(self, include_footers)

    tornado.web.RequestHandler.flush = flush  # type: ignore[method-assign]
