"""An application of each framework in one process, none of which is served."""

import asyncio
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import aiohttp.web
import django
import falcon
import falcon.asgi
import fastapi
import flask
import grpc
import grpc.aio
import pyramid.config
import starlette.applications
import starlette.routing
import tornado.web
from django.conf import settings

KEPT: list[Any] = []


def view(*_: Any, **__: Any) -> Any:
    return None


def of_fastapi() -> None:
    app, router, inner = (
        fastapi.FastAPI(title="api", openapi_url=None),
        fastapi.APIRouter(prefix="/v1"),
        fastapi.FastAPI(),
    )
    router.add_api_route("/fastapi/{thing_id}", view, methods=["GET"], operation_id="readThing")
    app.include_router(router)
    inner.add_api_route("/inner", view, methods=["POST"])
    app.mount("/sub", inner)
    KEPT.append(app)


def of_django() -> None:
    urls = ModuleType("urls")
    from django.urls import include, path

    urls.urlpatterns = [path("django/", include([path("<int:pk>", view, name="thing")]))]  # type: ignore[attr-defined]
    sys.modules["urls"] = urls
    from django.core.handlers.wsgi import WSGIHandler

    django.setup()
    KEPT.append(WSGIHandler())


class Resource:
    def on_get(self, *_: Any) -> None:
        """Answers."""


def of_the_others() -> None:
    route = starlette.routing.Route("/starlette/{x}", view, methods=["DELETE"])
    KEPT.append(starlette.applications.Starlette(routes=[route]))
    site = flask.Flask("site")
    site.add_url_rule("/flask/<x>", "flask-thing", view, methods=["PUT"])
    KEPT.append(site)
    web = aiohttp.web.Application()
    web.router.add_patch("/aiohttp/{x}", view)
    KEPT.append(web)
    KEPT.append(tornado.web.Application([(r"/tornado/(\d+)", tornado.web.RequestHandler)]))
    for kind in (falcon.App, falcon.asgi.App):
        app: Any = kind()
        if kind is falcon.App:
            app.add_route("/falcon/{x}", Resource())
        KEPT.append(app)
    with pyramid.config.Configurator() as config:
        config.add_route("pyramid-thing", "/pyramid/{x}", request_method="GET")
        KEPT.append(config.make_wsgi_app())
    server = grpc.server(ThreadPoolExecutor(1))
    handlers: dict[str, Any] = {"Read": grpc.unary_unary_rpc_method_handler(view)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("things.Things", handlers),))
    KEPT.append(server)


async def of_grpc_aio() -> None:
    KEPT.append(grpc.aio.server())


if __name__ == "__main__":
    settings.ROOT_URLCONF = "urls"  # configured by the instrumentation, as no settings module is named
    of_fastapi()
    of_django()
    of_the_others()
    asyncio.run(of_grpc_aio())
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
        time.sleep(600)
