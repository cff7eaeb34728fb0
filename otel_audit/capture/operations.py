"""What the framework calls the handler of a call: an OpenAPI operation id, an endpoint, route or view name.

It is asked for when the call ends, since most frameworks choose the handler after the span has started, and read from the
request that the instrumentation handed on. Where that is not the framework's own request (Django's environ, Pyramid's,
and aiohttp's on its way), the instrumentation is watched for it.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from otel_audit import names
from otel_audit.capture._hooks import when_imported
from otel_audit.capture.call import current_call
from otel_audit.capture.carriers import CURRENT_SCOPE

__all__ = ["operation_of", "watch_requests"]

_log = logging.getLogger("otel_audit.capture")

_CHARS_MAX: Final = 256


def operation_of(request: object, said: Mapping[str, Any]) -> str | None:
    """The name of the operation that served `request`; None where none did, or the framework has no name for it.

    Args:
        request: the framework's request, or the carrier its instrumentation handed on.
        said: the span's attributes at its end.
    """
    try:
        name = _of_dict(request) if isinstance(request, dict) else _of_object(request)
        name = name or _of_class(said)
    except Exception:  # a framework that has changed
        _log.debug("find the operation of a call", exc_info=True)
        return None
    return name[:_CHARS_MAX] if isinstance(name, str) and name else None


def _of_dict(request: dict[str, Any]) -> object:
    """FastAPI and Starlette: the ASGI scope. Flask: the request that Werkzeug puts into the environ."""
    flask = request.get("werkzeug.request")
    if flask is not None:
        return getattr(flask, "endpoint", None)
    route = request.get("route")
    name = getattr(route, "operation_id", None) or getattr(route, "name", None)
    return name or _name_of(request.get("endpoint"))


def _of_object(request: object) -> object:
    match = getattr(request, "resolver_match", None)  # Django
    if match is not None:
        return match.view_name
    match = getattr(request, "match_info", None)  # aiohttp
    if match is not None:
        if match.http_exception is not None:
            return None
        return getattr(match.route.resource, "name", None) or _name_of(match.handler)
    route = getattr(request, "matched_route", None)  # Pyramid, by URL dispatch
    if route is not None:
        return route.name
    if hasattr(request, "raw"):  # Starlette's headers, from FastAPI's own telemetry
        scope = CURRENT_SCOPE.get()
        return _of_dict(scope) if isinstance(scope, dict) and scope.get("headers") == request.raw else None
    return getattr(request, "view_name", None)  # Pyramid, by traversal


def _of_class(said: Mapping[str, Any]) -> str | None:
    """Falcon and Tornado: their instrumentations name the class; the method is the request's."""
    resource, handler = said.get("falcon.resource"), said.get("tornado.handler")
    if resource is None and handler is None:
        return None
    method = next((str(said[k]).lower() for k in names.HTTP_METHOD if k in said), "")
    return f"{resource}.on_{method}" if handler is None else f"{handler.rpartition('.')[2]}.{method}"


def _name_of(endpoint: object) -> str | None:
    return None if endpoint is None else getattr(endpoint, "__name__", None) or type(endpoint).__name__


# --- requests that instrumentations keep to themselves --------------------------------------------------------------------
def watch_requests() -> None:
    """Have instrumentations tell the request of each call, now or when they are imported; never raises for their sake."""
    instrumentation = "opentelemetry.instrumentation."
    gap = "its calls are recorded without audit.operation"
    when_imported(instrumentation + "django.middleware.otel_middleware", gap, _watch_django)
    when_imported(instrumentation + "pyramid.callbacks", gap, _watch_pyramid)
    when_imported(instrumentation + "aiohttp_server", gap, _watch_aiohttp)


def _watch_django(module: Any) -> None:
    middleware = module._DjangoMiddleware  # noqa: SLF001 - no hook sees the view, and the two there are the user's
    _after(middleware, "process_view", lambda args: args[1])


def _watch_pyramid(module: Any) -> None:
    _after(module, "_before_traversal", lambda args: args[0].request)


def _watch_aiohttp(module: Any) -> None:
    _after(module, "collect_request_headers_attributes", lambda args: args[0])


def _after(owner: Any, name: str, request_in: Callable[[tuple[Any, ...]], object]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        try:
            call = current_call()
            if call is not None:
                call.request = request_in(args)
        except Exception:
            _log.debug("note the request of a call", exc_info=True)
        return result

    setattr(owner, name, watched)
