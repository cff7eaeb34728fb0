"""The applications of a process and their routes, for `report`: seen when they are made.

Nothing is imported: a framework that the process has not imported has no application in it. Everything here looks at
other people's objects, so each look may fail; what cannot be seen is left out.
"""

import contextlib
import functools
import gc
import itertools
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

__all__ = ["FRAMEWORKS", "UNKNOWN", "App", "Framework", "Route", "Seen", "sample_path"]

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
            name = getattr(route.resource, "name", None) or getattr(route.handler, "__name__", None)
            yield Route(method, route.resource.canonical, name)


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
                yield Route(method, node.uri_template, f"{type(node.resource).__name__}.on_{method.lower()}")


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
"""By name."""

UNKNOWN: Final = ("sanic", "litestar", "quart", "bottle", "cherrypy", "blacksheep", "robyn", "web2py")
"""Frameworks that have no instrumentation of OpenTelemetry's own, by module."""

_MIDDLEWARE: Final = {_OTEL + "asgi": "asgi", _OTEL + "wsgi": "wsgi"}
_NOT_BY_HAND: Final = ("opentelemetry.", "starlette.", "fastapi.")


class Seen:
    """The applications that this process makes, from now on; and those that are there already.

    Nothing but their constructors tells: walking the objects of the garbage collector while other threads run can break
    those (CPython refuses to finish a tuple that somebody else has got hold of).
    """

    def __init__(self) -> None:
        self._apps: list[tuple[str, Callable[[], Any]]] = []  # added to by whoever makes an application
        self.middleware: list[str] = []
        """Which of OpenTelemetry's own middlewares (`asgi`, `wsgi`) the application has put around something by hand."""
        earlier = any(path.rpartition(".")[0] in sys.modules for f in FRAMEWORKS.values() for path in f.classes)
        for name, framework in FRAMEWORKS.items():
            for path in framework.classes:
                self._watch(path, functools.partial(self._add, name))
        for module, kind in _MIDDLEWARE.items():
            self._watch(f"{module}.OpenTelemetryMiddleware", functools.partial(self._add_middleware, kind))
        if earlier:  # `install()` came late; this is the thread that called it
            self._look_back()

    def apps(self) -> list[App]:
        """The applications that are alive, but for those that are mounted in others: their routes are listed there."""
        alive = [(name, app) for name, ref in self._apps if (app := ref()) is not None]
        unique = list({id(app): (name, app) for name, app in alive}.values())
        mounted = _mounted(unique)
        return [_app(name, app) for name, app in unique if id(app) not in mounted]

    def _watch(self, path: str, made: Callable[[Any], None]) -> None:
        import wrapt

        module_name, _, class_name = path.rpartition(".")

        def watch(module: Any) -> None:
            kind = getattr(module, class_name, None)
            if kind is None:
                return
            original = kind.__init__

            @functools.wraps(original)
            def init(self: Any, *args: Any, **kwargs: Any) -> None:
                original(self, *args, **kwargs)
                with contextlib.suppress(Exception):
                    made(self)

            with contextlib.suppress(TypeError):  # a class written in C
                kind.__init__ = init

        wrapt.register_post_import_hook(watch, module_name)

    def _add(self, name: str, app: Any) -> None:
        if _framework_of(type(app)) != name:
            return  # FastAPI's constructor calls Starlette's
        try:
            self._apps.append((name, weakref.ref(app)))
        except TypeError:
            self._apps.append((name, lambda: app))

    def _add_middleware(self, kind: str, _: Any) -> None:
        frame = sys._getframe(3)  # noqa: SLF001 - who calls the constructor: partial, `init` and this are in between
        while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
            frame = frame.f_back
        if kind not in self.middleware and not str(frame.f_globals.get("__name__")).startswith(_NOT_BY_HAND):
            self.middleware.append(kind)

    def _look_back(self) -> None:
        for candidate in gc.get_objects():
            with contextlib.suppress(Exception):
                name = _framework_of(type(candidate))
                if name is not None:
                    self._add(name, candidate)


_BY_CLASS: Final = {path: name for name, framework in FRAMEWORKS.items() for path in framework.classes}


def _framework_of(kind: type) -> str | None:
    """The nearest of its classes counts, so FastAPI's is not Starlette's."""
    paths = (f"{c.__module__}.{c.__qualname__}" for c in kind.__mro__)
    return next((_BY_CLASS[path] for path in paths if path in _BY_CLASS), None)


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


_PLACEHOLDER: Final = re.compile(r"\{[^}]*\}|<[^>]*>|\([^)]*\)")


def sample_path(route: str) -> str:
    """A path that `route` could match, to try patterns of excluded URLs on."""
    path = _PLACEHOLDER.sub("1", route)
    return path if path.startswith("/") else "/" + path
