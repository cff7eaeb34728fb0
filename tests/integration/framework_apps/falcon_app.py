"""A Falcon service that knows nothing of auditing."""

import time
from collections.abc import Iterator

import falcon


class Thing:
    def on_get(self, req: falcon.Request, resp: falcon.Response, thing_id: str) -> None:
        resp.media = {"id": thing_id}

    on_head = on_get


class Things:
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.status = falcon.HTTP_201


class Refused:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        raise falcon.HTTPForbidden


class Broken:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        raise RuntimeError("out of order")


def _chunks() -> Iterator[bytes]:
    for _ in range(3):
        yield b"chunk"
        time.sleep(0.1)


class Stream:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.stream = _chunks()


def sink(req: falcon.Request, resp: falcon.Response, **captured: str | None) -> None:
    resp.text = "swallowed"


app = falcon.App()
app.add_route("/things/{thing_id}", Thing())
app.add_route("/things", Things())
app.add_route("/refused", Refused())
app.add_route("/broken", Broken())
app.add_route("/stream", Stream())
app.add_sink(sink, "/sink")
