"""A Flask service that knows nothing of auditing."""

import time
from collections.abc import Iterator

from flask import Flask, Response, abort
from werkzeug.middleware.dispatcher import DispatcherMiddleware

app = Flask(__name__)
sub = Flask("sub")


@app.get("/things/<int:thing_id>")
def read_thing(thing_id: int) -> dict[str, int]:
    return {"id": thing_id}


@app.post("/things")
def create_thing() -> Response:
    return Response(status=201)


@app.get("/refused")
def refused() -> str:
    abort(403)


@app.get("/broken")
def broken() -> str:
    raise RuntimeError("out of order")


def _chunks() -> Iterator[bytes]:
    for _ in range(3):
        yield b"chunk"
        time.sleep(0.1)


@app.get("/stream")
def stream() -> Response:
    return Response(_chunks())


@sub.get("/items/<int:item_id>")
def read_item(item_id: int) -> dict[str, int]:
    return {"id": item_id}


app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/sub": sub})  # type: ignore[method-assign]
