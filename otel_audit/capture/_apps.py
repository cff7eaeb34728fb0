"""The applications of a process and their routes, for `report`: found among its live objects, by their classes' names.

Nothing is imported: a framework that the process has not imported has no application in it. Everything here looks at
other people's objects, so each look may fail; what cannot be seen is left out.
"""

import contextlib
import gc
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

__all__ = ["FRAMEWORKS", "UNKNOWN", "App", "Framework", "Route", "find_apps", "find_middleware", "sample_path"]

_ROUTES_MAX: Final = 500
_DEPTH_MAX: Final = 8


class Route(NamedTuple):
    """A route as its instrumentation names it; `method` is empty for an rpc and for a route that takes any."""

    method: str
    path: str
    operation: str | None = None


class App(NamedTuple):
    """An application, server or router that takes calls."""

    framework: str
    name: str
    instrumented: bool | None
    """None: only the instrumentor of the whole framework knows."""
    routes: tuple[Route, ...]


class Framework(NamedTuple):
    """A framework and who instruments it.

    Args:
        distribution: its package.
        classes: `module.Class` of its applications.
        entry_points: of its instrumentors; empty: there is none.
        package: that brings the instrumentors.
        instrumentors: `module:Class`, in the order of `classes`, or one for all.
        excluded: the part of `OTEL_PYTHON_<part>_EXCLUDED_URLS`; None: it has no such setting.
        routes: gives an application's routes.
        instrumented: whether an application is instrumented; None: the instrumentor knows.
    """

    distribution: str
    classes: tuple[str, ...]
    entry_points: tuple[str, ...] = ()
    package: str | None = None
    instrumentors: tuple[str, ...] = ()
    excluded: str | None = None
    routes: Callable[[Any], Iterator[Route]] = lambda _: iter(())
    instrumented: Callable[[Any], bool] | None = None


# --- routes -----------------------------------------------------------------------------------------------------------------
def _flattened(routes: Any) -> Iterator[Any]:
    """Routes one by one; recent FastAPI nests those of its routers."""
    fastapi_routing = sys.modules.get("fastapi.routing")
    contexts = getattr(fastapi_routing, "iter_route_contexts", None)
    if contexts is not None:
        yield from contexts(routes)
        return
    for route in routes:
        nested = getattr(route, "effective_route_contexts", None)
        yield from nested() if nested is not None else (route,)


def _starlette_routes(app: Any, prefix: str = "", depth: int = 0) -> Iterator[Route]:
    for found in _flattened(getattr(app, "routes", None) or ()):
        # A context of FastAPI stands for its route; both may be asked.
        route = getattr(found, "original_route", None) or getattr(found, "route", None) or found
        path = getattr(found, "path", None) or getattr(route, "path", None)
        if path is None:
            continue
        methods = getattr(found, "methods", None) or getattr(route, "methods", None)
        if methods is None and hasattr(route, "app") and hasattr(route, "routes") and depth < _DEPTH_MAX:
            yield from _starlette_routes(route, prefix + path, depth + 1)
            continue
        operation = getattr(route, "operation_id", None) or getattr(route, "name", None)
        for method in sorted(set(methods or ("",)) - {"HEAD"}):
            yield Route(method, prefix + path, operation)


def _flask_routes(app: Any) -> Iterator[Route]:
    for rule in app.url_map.iter_rules():
        for method in sorted(set(rule.methods or ("",)) - {"HEAD", "OPTIONS"}):
            yield Route(method, rule.rule, rule.endpoint)


def _django_routes(_: Any) -> Iterator[Route]:
    resolvers = sys.modules.get("django.urls")
    if resolvers is not None:
        yield from _django_patterns(resolvers.get_resolver().url_patterns, "", 0)


def _django_patterns(patterns: Any, prefix: str, depth: int) -> Iterator[Route]:
    for pattern in patterns:
        path = prefix + str(pattern.pattern)
        nested = getattr(pattern, "url_patterns", None)
        if nested is not None and depth < _DEPTH_MAX:
            yield from _django_patterns(nested, path, depth + 1)
        else:
            yield Route("", path, getattr(pattern, "name", None))


def _aiohttp_routes(app: Any) -> Iterator[Route]:
    for route in app.router.routes():
        if route.method != "HEAD" and route.resource is not None:
            method = "" if route.method == "*" else route.method
            yield Route(method, route.resource.canonical, getattr(route.handler, "__name__", None))


def _tornado_routes(app: Any) -> Iterator[Route]:
    for rule in app.wildcard_router.rules:
        pattern = getattr(getattr(rule, "matcher", None), "regex", None)
        if pattern is not None:
            yield Route("", str(pattern.pattern).rstrip("$"), getattr(rule.target, "__name__", None))


def _falcon_routes(app: Any) -> Iterator[Route]:
    waiting = list(app._router._roots)  # noqa: SLF001 - it has no public list
    while waiting:
        node = waiting.pop(0)
        waiting += node.children
        for method, responder in (node.method_map or {}).items():
            if getattr(responder, "__self__", None) is node.resource:
                yield Route(method, node.uri_template, type(node.resource).__name__)


def _pyramid_routes(app: Any) -> Iterator[Route]:
    for item in app.registry.introspector.get_category("routes") or ():
        methods = item["introspectable"].get("request_methods")
        for method in methods or ("",):
            yield Route(method, item["introspectable"]["pattern"], item["introspectable"]["name"])


def _grpc_routes(server: Any) -> Iterator[Route]:
    state = getattr(server, "_state", None)
    for handler in getattr(state, "generic_handlers", ()):
        for name in getattr(handler, "_method_handlers", ()):
            yield Route("", str(name).lstrip("/"))


# --- frameworks -------------------------------------------------------------------------------------------------------------
def _marked(app: Any) -> bool:
    return bool(getattr(app, "_is_instrumented_by_opentelemetry", False))


def _fastapi_instrumented(app: Any) -> bool:
    native = getattr(app, "_native_telemetry", None)  # recent versions can trace themselves
    if _marked(app) or native is None:
        return _marked(app)
    # Under uvicorn, capture sees to it that a tracer provider is there before FastAPI looks for one.
    return bool(native.enabled() or (native.config["tracing"] and "uvicorn" in sys.modules))


def _starlette_instrumented(app: Any) -> bool:
    added = [getattr(m.cls, "__name__", "") for m in getattr(app, "user_middleware", ())]
    return _marked(app) or "OpenTelemetryMiddleware" in added


def _django_instrumented(_: Any) -> bool:
    settings = sys.modules["django.conf"].settings
    return any("opentelemetry" in name for name in getattr(settings, "MIDDLEWARE", None) or ())


def _aiohttp_instrumented(app: Any) -> bool:
    own = [getattr(m, "__module__", "") or "" for m in getattr(app, "middlewares", ())]
    return any("opentelemetry" in module for module in own)


_OTEL: Final = "opentelemetry.instrumentation."
FRAMEWORKS: Final = {
    "fastapi": Framework(
        "fastapi",
        ("fastapi.applications.FastAPI",),
        ("fastapi",),
        "opentelemetry-instrumentation-fastapi",
        (_OTEL + "fastapi:FastAPIInstrumentor",),
        "FASTAPI",
        _starlette_routes,
        _fastapi_instrumented,
    ),
    "starlette": Framework(
        "starlette",
        ("starlette.applications.Starlette",),
        ("starlette",),
        "opentelemetry-instrumentation-starlette",
        (_OTEL + "starlette:StarletteInstrumentor",),
        "STARLETTE",
        _starlette_routes,
        _starlette_instrumented,
    ),
    "flask": Framework(
        "flask",
        ("flask.app.Flask",),
        ("flask",),
        "opentelemetry-instrumentation-flask",
        (_OTEL + "flask:FlaskInstrumentor",),
        "FLASK",
        _flask_routes,
        _marked,
    ),
    "django": Framework(
        "django",
        ("django.core.handlers.base.BaseHandler",),
        ("django",),
        "opentelemetry-instrumentation-django",
        (_OTEL + "django:DjangoInstrumentor",),
        "DJANGO",
        _django_routes,
        _django_instrumented,
    ),
    "aiohttp": Framework(
        "aiohttp",
        ("aiohttp.web_app.Application",),
        ("aiohttp-server",),
        "opentelemetry-instrumentation-aiohttp-server",
        (_OTEL + "aiohttp_server:AioHttpServerInstrumentor",),
        "AIOHTTP_SERVER",
        _aiohttp_routes,
        _aiohttp_instrumented,
    ),
    "tornado": Framework(
        "tornado",
        ("tornado.web.Application",),
        ("tornado",),
        "opentelemetry-instrumentation-tornado",
        (_OTEL + "tornado:TornadoInstrumentor",),
        "TORNADO",
        _tornado_routes,
    ),
    "falcon.asgi": Framework("falcon", ("falcon.asgi.app.App",), routes=_falcon_routes),
    "falcon": Framework(
        "falcon",
        ("falcon.app.App", "falcon.api.API"),
        ("falcon",),
        "opentelemetry-instrumentation-falcon",
        (_OTEL + "falcon:FalconInstrumentor",),
        "FALCON",
        _falcon_routes,
        _marked,
    ),
    "pyramid": Framework(
        "pyramid",
        ("pyramid.router.Router",),
        ("pyramid",),
        "opentelemetry-instrumentation-pyramid",
        (_OTEL + "pyramid:PyramidInstrumentor",),
        "PYRAMID",
        _pyramid_routes,
    ),
    "grpc": Framework(
        "grpcio",
        ("grpc._server._Server",),
        ("grpc_server",),
        "opentelemetry-instrumentation-grpc",
        (_OTEL + "grpc:GrpcInstrumentorServer",),
        None,
        _grpc_routes,
    ),
    "grpc.aio": Framework(
        "grpcio",
        ("grpc.aio._server.Server",),
        ("grpc_aio_server",),
        "opentelemetry-instrumentation-grpc",
        (_OTEL + "grpc:GrpcAioInstrumentorServer",),
    ),
}
"""By name; of an application's classes the nearest counts, so FastAPI's is not Starlette's."""

UNKNOWN: Final = ("sanic", "litestar", "quart", "bottle", "cherrypy", "blacksheep", "robyn", "web2py")
"""Frameworks that have no instrumentation of OpenTelemetry's own, by module."""

_BY_CLASS: Final = {path: name for name, framework in FRAMEWORKS.items() for path in framework.classes}


def _framework_of(kind: type, known: dict[type, str | None]) -> str | None:
    if kind not in known:
        paths = (f"{c.__module__}.{c.__qualname__}" for c in kind.__mro__)
        known[kind] = next((_BY_CLASS[path] for path in paths if path in _BY_CLASS), None)
    return known[kind]


def find_apps(known: dict[type, str | None]) -> list[App]:
    """The applications that are alive in this process.

    Args:
        known: what was found out about classes; keep it from call to call.
    """
    found = []
    for candidate in gc.get_objects():
        try:
            framework = _framework_of(type(candidate), known)
        except Exception:  # noqa: S112 - a class that cannot be asked
            continue
        if framework is not None:
            found.append((framework, candidate))
    mounted = _mounted(found)
    return [_app(framework, app) for framework, app in found if id(app) not in mounted]


def _mounted(found: list[tuple[str, Any]]) -> set[int]:
    """Applications within others: their routes are listed there."""
    inner = set()
    for _, app in found:
        for route in getattr(app, "routes", None) or () if hasattr(app, "user_middleware") else ():
            inner.add(id(getattr(route, "app", None)))
        inner.update(map(id, getattr(app, "_subapps", ())))  # aiohttp
    return inner - {id(None)}


def _app(name: str, app: Any) -> App:
    framework = FRAMEWORKS[name]
    routes: list[Route] = []
    with contextlib.suppress(Exception):  # those seen so far are listed
        routes.extend(itertools.islice(framework.routes(app), _ROUTES_MAX))
    try:
        instrumented = None if framework.instrumented is None else framework.instrumented(app)
    except Exception:
        instrumented = None
    title = next((t for t in (getattr(app, a, None) for a in ("import_name", "title")) if isinstance(t, str)), "")
    return App(name, title, instrumented, tuple(dict.fromkeys(routes)))


def find_middleware() -> list[str]:
    """Which of OpenTelemetry's own middlewares (`asgi`, `wsgi`) wrap something here; put there by hand, maybe."""
    found = set()
    for kind in ("asgi", "wsgi"):
        module = sys.modules.get(_OTEL + kind)
        middleware = getattr(module, "OpenTelemetryMiddleware", None)
        if middleware is not None and any(type(o) is middleware for o in gc.get_objects()):
            found.add(kind)
    return sorted(found)


_PLACEHOLDER: Final = re.compile(r"\{[^}]*\}|<[^>]*>|\([^)]*\)")


def sample_path(route: str) -> str:
    """A path that `route` could match, to try patterns of excluded URLs on."""
    path = _PLACEHOLDER.sub("1", route)
    return path if path.startswith("/") else "/" + path
