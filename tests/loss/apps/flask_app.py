"""A WSGI service that knows nothing of auditing."""

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from flask import Flask
from opentelemetry import trace

LOADED = uuid.uuid4().hex
app = Flask(__name__)


def started(n: int) -> None:
    (Path(os.environ["STARTED"]) / str(n)).touch()


@app.get("/call/<int:n>")
def call(n: int) -> str:
    return f"{os.getpid()} {LOADED}"


@app.get("/late/<int:n>")
def late(n: int) -> str:
    trace.get_current_span().set_attribute("app.late", n)
    return "late"


@app.get("/broken/<int:n>")
def broken(n: int) -> str:
    raise RuntimeError(f"out of order {n}")


@app.get("/stream/<int:n>")
def stream(n: int) -> Iterator[str]:
    def parts() -> Iterator[str]:
        for part in range(5):
            time.sleep(0.01)
            yield f"{part} {n}\n"

    return parts()


@app.get("/slow/<int:n>")
def slow(n: int) -> str:
    started(n)
    time.sleep(0.2)
    return "slow"


@app.get("/endless/<int:n>")
def endless(n: int) -> Iterator[str]:
    def parts() -> Iterator[str]:
        started(n)
        for _ in range(300):
            yield "x" * 65536
            time.sleep(0.01)

    return parts()


@app.get("/exit/<int:n>")
def leave(n: int) -> str:
    os._exit(n)
