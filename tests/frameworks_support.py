"""All frameworks as running services at once, and the records of their calls, for `test_capture_frameworks.py`."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc

from otel_audit.otlp import Decoder
from tests.capture_support import BIN, Sink, free_port, wait_until

APPS = Path(__file__).parent / "integration" / "framework_apps"
SERVICE = "crm.v1.Things"

PY: list[str] = [sys.executable]
_WSGI = ["-m", "gunicorn", "--workers", "1", "--threads", "2"]


def _uvicorn(app: str) -> Callable[[int], list[str]]:
    return lambda port: ["-m", "uvicorn", app, "--port", str(port), "--log-level", "warning"]


def _gunicorn(app: str) -> Callable[[int], list[str]]:
    return lambda port: [*_WSGI, "--bind", f"127.0.0.1:{port}", app]


COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "fastapi": _uvicorn("fastapi_app:app"),
    "starlette": _uvicorn("starlette_app:app"),
    "flask": lambda port: ["-m", "flask", "--app", "flask_app", "run", "--port", str(port)],
    "django-wsgi": _gunicorn("django_app:application"),
    "django-asgi": _uvicorn("django_app:asgi"),
    "aiohttp": lambda port: ["aiohttp_app.py", str(port)],
    "tornado": lambda port: ["tornado_app.py", str(port)],
    "falcon": _gunicorn("falcon_app:app"),
    "falcon-asgi": _uvicorn("falcon_asgi_app:app"),
    "pyramid": _gunicorn("pyramid_app:app"),
    "grpc": lambda port: ["grpc_app.py", str(port)],
    "grpc-aio": lambda port: ["grpc_aio_app.py", str(port)],
    # a span of the application's own around each request
    "flask-within": _gunicorn("within_app:wsgi"),
    "fastapi-within": _uvicorn("within_app:asgi"),
    # auditing installed by the application
    "install-fastapi": lambda port: ["install_fastapi.py", str(port)],
    "install-flask": lambda port: ["install_flask.py", str(port)],
    "install-grpc": lambda port: ["install_grpc.py", str(port)],
    "install-aiohttp": lambda port: ["install_aiohttp.py", str(port)],
    "install-tornado": lambda port: ["install_tornado.py", str(port)],
    "install-django-wsgi": _gunicorn("install_django:application"),
    "install-django-asgi": _uvicorn("install_django:asgi"),
    "install-starlette": _uvicorn("install_others:app"),
    "install-falcon": _gunicorn("install_others:app"),
    "install-pyramid": _gunicorn("install_others:app"),
}
"""Arguments of Python by name of the service."""


@dataclass
class Running:
    """A running service; its spans have its name as `service.name`."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    sink: Sink | None = None
    decoder: Decoder = field(default_factory=Decoder)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def count(self) -> int:
        assert self.sink is not None
        return sum(s.resource["service.name"] == self.name for s in self.sink.spans)

    def record(self, do: Callable[[], Any]) -> dict[str, Any]:
        """Do something that is one call, and give its record as the log would have it, without what is absent."""
        found = self.records(1, do)
        assert len(found) == 1, found
        return found[0]

    def records(self, count: int, do: Callable[[], Any]) -> list[dict[str, Any]]:
        """Do something that is `count` calls, and give their records."""
        sink, before, bodies = self.sink, self.count(), 0
        assert sink is not None
        bodies = len(sink.bodies)
        do()
        with sink.changed:
            arrived = sink.changed.wait_for(lambda: self.count() >= before + count, 30)
            assert arrived, f"no record: {self.output()}"
            new = sink.bodies[bodies:]
        rows = [row for body in new for row in self.decoder.decode(body).records.to_pylist()]
        return [
            {k: v for k, v in row.items() if v is not None}
            for row in rows
            if row["service"] == self.name and not row["action"].startswith("otel_audit.")
        ]

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, *, body: bytes | None = None
    ) -> int:
        """The status of a request, its response read to the end; a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def rpc(self, name: str, headers: Mapping[str, str] | None = None) -> Any:
        """The status code of a gRPC call, all its messages read."""
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            return rpc(channel, name, headers)

    def answer(
        self, method: str, path: str = "", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and record of one call: of a request, or without a path of the gRPC method `method`."""
        statuses: list[int] = []
        body = b"" if method == "POST" else None

        def call() -> None:
            if path:
                statuses.append(self.request(method, path, headers, body=body))
            else:
                statuses.append(self.rpc(method, headers).value[0])

        record = self.record(call)
        return statuses[0], record


def rpc(channel: grpc.Channel, name: str, headers: Mapping[str, str] | None = None) -> Any:
    """The status code of a call of the method `name`, all its messages read."""
    method: Any = channel.unary_stream(f"/{SERVICE}/{name}")
    call = method(b"", metadata=tuple((headers or {}).items()), timeout=20)
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        pass
    return call.code()


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def services(
    names: list[str],
    folder: Path,
    env: Mapping[str, str],
    *,
    sink: Sink | None = None,
    before: tuple[str, ...] = (),
    instrument: bool = True,
) -> Iterator[dict[str, Running]]:
    """Services of these names, started side by side, ready to serve.

    Args:
        names: keys of `COMMANDS`.
        folder: for their logs and the spool.
        env: their environment.
        sink: where their records arrive.
        before: a script and its arguments that run the command.
        instrument: whether `opentelemetry-instrument` starts them.
    """
    path = os.pathsep.join([str(BIN), env.get("PATH", "")])
    start = [str(BIN / "opentelemetry-instrument"), *PY] if instrument else PY
    running: dict[str, Running] = {}
    for name in names:
        port = free_port()
        log = folder / f"{name}.log"
        own = {"OTEL_SERVICE_NAME": name, "OTEL_AUDIT_SPOOL_DIR": str(folder / "spool")}
        if name.startswith("install-"):
            own["SERVICE"] = f"{name.removeprefix('install-')}_app"
        if name.startswith("django"):  # OpenTelemetry's instrumentation reads it before the application can set it
            own["DJANGO_SETTINGS_MODULE"] = "django_settings"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*start, *before, *COMMANDS[name](port)],
                cwd=APPS,
                env={**env, **own, "PATH": path},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        running[name] = Running(name, process, port, log, sink)
    try:
        for one in running.values():
            wait_until(lambda one=one: _listens(one.port) or one.process.poll() is not None)  # type: ignore[misc]
            assert one.process.poll() is None, one.output()
        yield running
    finally:
        for one in running.values():
            if one.process.poll() is None:
                one.process.terminate()
        for one in running.values():
            try:
                one.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
