"""What a record must say of a call although its span does not: the whole route, the status after an exception.

Instrumentations see a call from where they sit. What they get wrong for one framework only is put right in the module of
that framework; here is what holds for HTTP in general, and how WebSocket calls end.
"""

import functools
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan

from otel_audit import names
from otel_audit.capture.call import Call

__all__ = [
    "INNER_KEY",
    "MOUNT_KEY",
    "close_outcome",
    "correct_http",
    "note_closes",
    "outcome_of_closed",
    "set_status",
    "status_of",
]

MOUNT_KEY: Final = "otel_audit.mount"
"""ASGI scope key: the routes of the mounts that the request went through, as one text; see `_starlette`."""
INNER_KEY: Final = "otel_audit.inner"
"""ASGI scope key: what a mounted application's own instrumentation says: the mounts before it, and its route."""

_ROUTE: Final = names.HTTP_ROUTE[0]
_METHOD, _METHOD_OLD = names.HTTP_METHOD
_STATUS, _STATUS_OLD = names.HTTP_STATUS

_CLOSED_WITH: Final = "_otel_audit_closed_with"
"""Attribute of a WebSocket: the code that the service closed it with."""
_CLOSED_WELL: Final = frozenset({1000, 1001, 1005})
_BROKEN: Final = 1006
_CLOSED_ERROR: Final = frozenset({1011, 1012, 1013, 1014})
_CLOSED_DENIED: Final = frozenset({1008, 3000, 3003, 4401, 4403})
"""Policy violation; Unauthorized and Forbidden (RFC 6455 registry), and how applications write 401 and 403."""


def correct_http(said: MutableMapping[str, Any], call: Call, span: ReadableSpan) -> None:
    """Put right what `said` says of an HTTP call; leaves other calls alone.

    Args:
        said: attributes of its record.
        call: the call.
        span: its span.
    """
    carrier = call.carrier
    route = said.get(_ROUTE)
    if type(carrier) is dict:
        if MOUNT_KEY in carrier:
            said[_ROUTE] = _mounted_route(carrier)
        elif route and carrier.get("SCRIPT_NAME"):  # an application within an application, or below a prefix
            said[_ROUTE] = f"{carrier['SCRIPT_NAME'].rstrip('/')}/{route.removeprefix('/')}"
    if route == "":
        del said[_ROUTE]
    is_http = _METHOD_OLD in said or _METHOD in said
    if is_http and status_of(said) is None and any(event.name == names.EXCEPTION_EVENT for event in span.events):
        set_status(said, 500)  # whoever catches it, outside of the instrumentation, answers this


def _mounted_route(scope: Mapping[str, Any]) -> str:
    """The route of a request that went through mounts: theirs, and that of the application behind them."""
    mounts: str = scope[MOUNT_KEY]
    before, inner = scope.get(INNER_KEY, ("", None))
    if inner is not None and before == mounts:
        return f"{mounts}{inner}"
    route = scope.get("route")
    path = getattr(route, "path", None)
    if not isinstance(path, str) or hasattr(route, "routes"):  # nothing matched behind the last mount
        return mounts or "/"
    return f"{mounts}{path}"


def status_of(said: Mapping[str, Any]) -> object:
    """The HTTP status that `said` names; None when there is none."""
    return said.get(_STATUS, said.get(_STATUS_OLD))


def set_status(said: MutableMapping[str, Any], status: int) -> None:
    """Have `said` name this HTTP status, in the conventions it is written in."""
    if _STATUS_OLD in said or (_METHOD_OLD in said and _METHOD not in said):
        said[_STATUS_OLD] = status
    if _STATUS in said or _METHOD in said or _STATUS_OLD not in said:
        said[_STATUS] = status


def close_outcome(code: int | None, *, by_client: bool) -> str:
    """The outcome of a WebSocket call that was closed with `code` (RFC 6455, section 7.4); None: with none.

    Args:
        code: the code that it was closed with.
        by_client: whether the client closed it; False also where nobody can tell.
    """
    if code is None or code in _CLOSED_WELL:
        return "success"
    if code == _BROKEN:
        return "unknown"
    if by_client:
        return "failure"
    if code in _CLOSED_DENIED:
        return "denied"
    return "error" if code in _CLOSED_ERROR else "failure"


def note_closes(connection: Any) -> None:
    """Have a WebSocket class note the code that the service closes with: what the client answers is its own choice.

    Args:
        connection: the class, with a method `close` and an attribute `close_code`.
    """
    original = connection.close

    @functools.wraps(original)
    def close(self: Any, *args: Any, **more: Any) -> Any:
        if self.close_code is None and not hasattr(
            self, _CLOSED_WITH
        ):  # else the other side, or an earlier close, was first
            code = more.get("code", args[0] if args else None)
            setattr(self, _CLOSED_WITH, 1000 if code is None else code)
        return original(self, *args, **more)

    connection.close = close


def outcome_of_closed(connection: Any) -> str:
    """The outcome of a WebSocket call whose connection has ended, by whoever ended it."""
    code = getattr(connection, _CLOSED_WITH, None)
    return close_outcome(connection.close_code if code is None else code, by_client=code is None)
