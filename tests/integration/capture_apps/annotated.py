"""One service for each framework, whose handlers say more about their calls; `python annotated.py NAME` calls it and ends.

Each is called twice: as a part of a trace that its caller sampled, and of one that it did not.
"""

import asyncio
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Annotated, Any

import otel_audit

if not otel_audit.install():
    sys.exit("not installed")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
tracer = trace.get_tracer("app")

TRACEPARENTS = (f"00-{'a1' * 16}-{'b2' * 8}-01", f"00-{'c3' * 16}-{'d4' * 8}-00")
HEADERS = tuple({"traceparent": one} for one in TRACEPARENTS)


def say(thing_id: Any) -> str:
    """What every handler says: half of it below a span of the application's own."""
    said = otel_audit.annotate("approve", str(thing_id), reason="ticket 7")
    with tracer.start_as_current_span("inner"):
        said = otel_audit.annotate(note="from within") and said
    return str(said)


def with_fastapi() -> None:
    from fastapi import BackgroundTasks, Depends, FastAPI
    from fastapi.testclient import TestClient
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    app = FastAPI()

    @app.get("/async/{thing_id}")
    async def read_async(thing_id: int) -> str:
        return say(thing_id)

    @app.get("/sync/{thing_id}")
    def read_sync(thing_id: int) -> str:
        return say(thing_id)

    def depended(thing_id: int) -> str:
        return say(thing_id)

    async def depended_async(thing_id: int) -> str:
        return say(thing_id)

    @app.get("/dependency/{thing_id}", operation_id="readByDependency")
    async def read_dependency(said: Annotated[str, Depends(depended)]) -> str:
        return said

    @app.get("/async-dependency/{thing_id}", name="named")
    async def read_async_dependency(said: Annotated[str, Depends(depended_async)]) -> str:
        return said

    late: list[bool] = []

    def after() -> None:
        late.append(otel_audit.annotate("too late"))

    @app.get("/background/{thing_id}")
    async def read_background(thing_id: int, tasks: BackgroundTasks) -> str:
        tasks.add_task(after)
        return say(thing_id)

    FastAPIInstrumentor.instrument_app(app)
    with TestClient(app) as client:
        for kind in ("async", "sync", "dependency", "async-dependency", "background"):
            for headers in HEADERS:
                check(client.get(f"/{kind}/7", headers=headers).json())
    assert late == [False, False]


def with_starlette() -> None:
    from opentelemetry.instrumentation.starlette import StarletteInstrumentor
    from starlette.applications import Starlette
    from starlette.endpoints import HTTPEndpoint
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route
    from starlette.testclient import TestClient

    async def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(say(request.path_params["thing_id"]))

    class Things(HTTPEndpoint):
        def get(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse(say(request.path_params["thing_id"]))

    sub = Starlette(routes=[Route("/{thing_id}", Things)])
    app = Starlette(routes=[Route("/things/{thing_id}", read), Mount("/sub", sub)])
    StarletteInstrumentor.instrument_app(app)
    client = TestClient(app)
    for path in ("/things/7", "/sub/7"):
        for headers in HEADERS:
            check(client.get(path, headers=headers).text)


def with_flask() -> None:
    from flask import Blueprint, Flask
    from opentelemetry.instrumentation.flask import FlaskInstrumentor

    app = Flask(__name__)
    FlaskInstrumentor().instrument_app(app)  # type: ignore[no-untyped-call]
    things = Blueprint("things", __name__)

    @things.get("/things/<int:thing_id>")
    def read_thing(thing_id: int) -> str:
        return say(thing_id)

    app.register_blueprint(things)
    for headers in HEADERS:
        check(app.test_client().get("/things/7", headers=headers).text)


def with_django(*, use_async: bool = False) -> None:
    import django
    from django.conf import settings

    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[],
        SECRET_KEY="x",
        DATABASES={},
        LOGGING_CONFIG=None,
    )
    from opentelemetry.instrumentation.django import DjangoInstrumentor

    DjangoInstrumentor().instrument()
    django.setup()
    from django.http import HttpRequest, HttpResponse
    from django.test import AsyncClient, Client
    from django.urls import path

    def read_thing(request: HttpRequest, thing_id: int) -> HttpResponse:
        return HttpResponse(say(thing_id))

    async def read_async(request: HttpRequest, thing_id: int) -> HttpResponse:
        return HttpResponse(say(thing_id))

    global urlpatterns  # noqa: PLW0603 - where Django looks for it
    urlpatterns = [
        path("things/<int:thing_id>", read_thing, name="thing"),
        path("async/<int:thing_id>", read_async),
    ]
    for traceparent in TRACEPARENTS:
        if use_async:
            check(asyncio.run(AsyncClient().get("/async/7", headers={"traceparent": traceparent})).text)
        else:
            check(Client().get("/things/7", headers={"traceparent": traceparent}).text)


urlpatterns: list[Any] = []


def with_aiohttp() -> None:
    import aiohttp
    from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor

    AioHttpServerInstrumentor().instrument()
    from aiohttp import web

    async def read_thing(request: web.Request) -> web.Response:
        return web.Response(text=say(request.match_info["thing_id"]))

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/things/{thing_id}", read_thing)
        app.router.add_get("/named/{thing_id}", read_thing, name="a-thing")
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession() as session:
            for path in ("things", "named"):
                for headers in HEADERS:
                    async with session.get(f"http://127.0.0.1:{port}/{path}/7", headers=headers) as response:
                        check(await response.text())
        await runner.cleanup()

    asyncio.run(run())


def with_tornado() -> None:
    from opentelemetry.instrumentation.tornado import TornadoInstrumentor

    TornadoInstrumentor().instrument()  # type: ignore[no-untyped-call]
    from tornado import web
    from tornado.httpserver import HTTPServer
    from tornado.testing import bind_unused_port

    class Thing(web.RequestHandler):
        def get(self, thing_id: str) -> None:
            self.write(say(thing_id))

    async def run() -> None:
        server = HTTPServer(web.Application([(r"/things/([0-9]+)", Thing)]))
        socket, port = bind_unused_port()
        server.add_socket(socket)
        for headers in HEADERS:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/things/7", headers=headers)
            check(await asyncio.to_thread(lambda it: urllib.request.urlopen(it, timeout=20).read().decode(), request))
        server.stop()
        await server.close_all_connections()

    asyncio.run(run())


def with_falcon() -> None:
    import falcon
    from falcon import testing
    from opentelemetry.instrumentation.falcon import FalconInstrumentor

    FalconInstrumentor().instrument()

    class Thing:
        def on_get(self, request: Any, response: Any, thing_id: str) -> None:
            response.text = say(thing_id)

    app = falcon.App()
    app.add_route("/things/{thing_id}", Thing())
    for headers in HEADERS:
        check(testing.TestClient(app).simulate_get("/things/7", headers=headers).text)


def with_pyramid() -> None:
    from opentelemetry.instrumentation.pyramid import PyramidInstrumentor

    PyramidInstrumentor().instrument()
    import webob
    from pyramid.config import Configurator

    with Configurator() as config:
        config.add_route("thing", "/things/{thing_id}")
        config.add_view(lambda request: webob.Response(say(request.matchdict["thing_id"])), route_name="thing")
        config.add_view(lambda request: webob.Response(say(7)), name="traversed")
        app = config.make_wsgi_app()
    for path in ("/things/7", "/traversed"):
        for headers in HEADERS:
            check(webob.Request.blank(path, headers=headers).get_response(app).text)


def with_grpc() -> None:
    import grpc
    from opentelemetry.instrumentation.grpc import GrpcInstrumentorServer

    GrpcInstrumentorServer().instrument()  # type: ignore[no-untyped-call]

    def get(request: bytes, context: grpc.ServicerContext) -> bytes:
        return say(request.decode()).encode()

    def each(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield say(request.decode()).encode()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc_handlers(get, each),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    call_grpc(port)
    server.stop(None).wait()


def with_grpc_aio() -> None:
    import grpc
    from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer

    GrpcAioInstrumentorServer().instrument()  # type: ignore[no-untyped-call]

    async def get(request: bytes, context: Any) -> bytes:
        return say(request.decode()).encode()

    async def each(request: bytes, context: Any) -> Any:
        yield say(request.decode()).encode()

    async def run() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc_handlers(get, each),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await asyncio.to_thread(call_grpc, port)
        await server.stop(None)

    asyncio.run(run())


def grpc_handlers(get: Callable[..., Any], each: Callable[..., Any]) -> Any:
    import grpc

    return grpc.method_handlers_generic_handler(
        "crm.v1.Things",
        {"Get": grpc.unary_unary_rpc_method_handler(get), "Each": grpc.unary_stream_rpc_method_handler(each)},
    )


def call_grpc(port: int) -> None:
    import grpc

    connected: Any = grpc.insecure_channel(f"127.0.0.1:{port}")
    with connected as channel:
        for traceparent in TRACEPARENTS:
            metadata = (("traceparent", traceparent),)
            check(channel.unary_unary("/crm.v1.Things/Get")(b"7", metadata=metadata, timeout=20).decode())
            for answer in channel.unary_stream("/crm.v1.Things/Each")(b"7", metadata=metadata, timeout=20):
                check(answer.decode())


def check(said: str) -> None:
    assert said == "True", f"a handler could not annotate its call: {said!r}"


if __name__ == "__main__":
    name = sys.argv[1]
    if name == "django-async":
        with_django(use_async=True)
    else:
        globals()[f"with_{name.replace('-', '_')}"]()
