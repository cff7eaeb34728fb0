"""A FastAPI and a Flask service that ask a database and other services, all of it instrumented; `python busy.py` calls them.

At the end it prints what its own exporter saw, one span name a line.
"""

import asyncio
import contextvars
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import otel_audit

if not otel_audit.install():
    sys.exit("not installed")

import httpx
import sqlalchemy
from fastapi import BackgroundTasks, FastAPI
from fastapi.testclient import TestClient
from flask import Flask
from opentelemetry import trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("app")
SQLite3Instrumentor().instrument()  # before SQLAlchemy looks for it
SQLAlchemyInstrumentor().instrument()
HTTPXClientInstrumentor().instrument()

app = FastAPI()
flask_app = Flask(__name__)
FlaskInstrumentor().instrument_app(flask_app)  # type: ignore[no-untyped-call]
engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.pool.StaticPool)
address = ""


def ask(times: int = 1) -> None:
    connection = sqlite3.connect(":memory:")
    for _ in range(times):
        connection.cursor().execute("SELECT 1")  # its instrumentation sees cursors alone
    connection.close()


@app.get("/sqlalchemy")
def with_sqlalchemy() -> None:
    """SQLAlchemy over sqlite3: two spans of each statement."""
    with engine.connect() as connection:
        for _ in range(3):
            connection.execute(sqlalchemy.text("SELECT 1"))


@app.get("/sqlite")
def with_sqlite() -> None:
    ask(2)
    with tracer.start_as_current_span("inner"):
        ask(1)


@app.get("/http")
async def with_http() -> None:
    async with httpx.AsyncClient() as client:
        await client.get(address)
        await asyncio.gather(*(client.get(address) for _ in range(5)))


@app.get("/threads")
def with_threads() -> None:
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(contextvars.copy_context().run, ask, 2) for _ in range(3)]:
            done.result()


@app.get("/background")
def with_background(tasks: BackgroundTasks) -> None:
    ask(1)
    tasks.add_task(ask, 5)


@app.get("/elsewhere")
def elsewhere() -> None:
    """Asks nobody."""


@app.get("/many/{thing_id}")
async def many(thing_id: int) -> None:
    say_much()


@flask_app.get("/many/<int:thing_id>")
def many_too(thing_id: int) -> str:
    say_much()
    return ""


def say_much() -> None:
    otel_audit.annotate("approve", "7", reason="r" * 50, note="n")
    for n in range(300):
        trace.get_current_span().set_attribute(f"app.{n}", n)


@contextmanager
def other_service() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    FastAPIInstrumentor.instrument_app(app)
    who = {"X-API-Key": "secret", "Authorization": "Basic d2ViLXNob3AtYmFja2VuZDpw"}
    with other_service() as address, TestClient(app) as client:
        for path in ("/sqlalchemy", "/sqlite", "/http", "/threads", "/background", "/elsewhere"):
            client.get(path, headers=who).raise_for_status()
        client.get("/many/7", headers=who).raise_for_status()
    assert flask_app.test_client().get("/many/7", headers=who).status_code == 200
    print(*(span.name for span in exporter.get_finished_spans()), sep="\n")
