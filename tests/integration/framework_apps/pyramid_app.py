"""A Pyramid service that knows nothing of auditing."""

import time
from collections.abc import Iterator
from typing import Any

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPForbidden
from pyramid.response import Response


def read_thing(request: Any) -> Response:
    return Response(json={"id": request.matchdict["thing_id"]})


def create_thing(request: Any) -> Response:
    return Response(status=201)


def refused(request: Any) -> Response:
    raise HTTPForbidden


def broken(request: Any) -> Response:
    raise RuntimeError("out of order")


def _chunks() -> Iterator[bytes]:
    for _ in range(3):
        yield b"chunk"
        time.sleep(0.1)


def stream(request: Any) -> Response:
    return Response(app_iter=_chunks())


def make() -> Any:
    with Configurator() as config:
        views = {
            "/things/{thing_id}": (read_thing, ("GET", "HEAD")),
            "/things": (create_thing, "POST"),
            "/refused": (refused, "GET"),
            "/broken": (broken, "GET"),
            "/stream": (stream, "GET"),
        }
        for pattern, (view, method) in views.items():
            config.add_route(pattern, pattern)
            config.add_view(view, route_name=pattern, request_method=method)
        return config.make_wsgi_app()


app = make()
