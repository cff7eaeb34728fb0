"""A receiver that remembers what it was sent, and services under `opentelemetry-instrument`, for the capture tests."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

APPS = Path(__file__).parent / "integration" / "capture_apps"
BIN = Path(sys.executable).parent
METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass
class Span:
    """A received span in plain values."""

    name: str
    kind: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[str]
    trace_id: str
    span_id: str


def _value(value: Any) -> Any:
    which = value.WhichOneof("value")
    return None if which is None else getattr(value, which)


def spans_of(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        Span(
            span.name,
            span.kind,
            {a.key: _value(a.value) for a in span.attributes},
            {a.key: _value(a.value) for a in resource.resource.attributes},
            [event.name for event in span.events],
            span.trace_id.hex(),
            span.span_id.hex(),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


@dataclass
class Sink:
    """What arrived, in order; `refuse` may give an answer other than success for a request."""

    address: str = ""
    bodies: list[bytes] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    """Calls."""
    about: list[Span] = field(default_factory=list)
    """Records that capture makes about itself: start, stop, loss."""
    attempts: int = 0
    metadata: list[dict[str, Any]] = field(default_factory=list)
    refuse: Callable[[int], Any] | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, body: bytes, metadata: dict[str, Any]) -> Any:
        with self.changed:
            self.attempts += 1
            self.metadata.append(metadata)
            answer = self.refuse(self.attempts) if self.refuse else None
            if answer is None:
                self.bodies.append(body)
                for span in spans_of(body):
                    own = str(span.attributes.get("audit.action", "")).startswith("otel_audit.")
                    (self.about if own else self.spans).append(span)
            self.changed.notify_all()
            return answer

    def wait(self, count: int, timeout_s: float = 30.0) -> list[Span]:
        with self.changed:
            arrived = self.changed.wait_for(lambda: len(self.spans) >= count, timeout_s)
            assert arrived, f"{len(self.spans)} of {count} spans arrived in {timeout_s} s"
            return list(self.spans)

    def wait_about(self, action: str, count: int = 1, timeout_s: float = 30.0) -> list[Span]:
        with self.changed:

            def found() -> list[Span]:
                return [span for span in self.about if span.attributes["audit.action"] == action]

            assert self.changed.wait_for(lambda: len(found()) >= count, timeout_s), f"{len(found())} {action}"
            return found()

    def wait_attempts(self, count: int, timeout_s: float = 30.0) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.attempts >= count, timeout_s), f"{self.attempts} attempts"


@contextmanager
def grpc_sink(port: int = 0) -> Iterator[Sink]:
    """An OTLP/gRPC receiver; `refuse` gives (code, details, trailers) to answer otherwise."""
    sink = Sink()

    def export(body: bytes, context: Any) -> bytes:
        answer = sink.take(body, dict(context.invocation_metadata()))
        if answer is not None:
            code, details, trailers = answer
            context.set_trailing_metadata(trailers)
            context.abort(code, details)
        return b""

    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        {"Export": grpc.unary_unary_rpc_method_handler(export)},
    )
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    sink.address = f"http://127.0.0.1:{port}"
    try:
        yield sink
    finally:
        server.stop(None).wait()


@contextmanager
def http_sink(port: int = 0) -> Iterator[Sink]:
    """An OTLP/HTTP receiver; `refuse` gives (status, headers) to answer otherwise."""
    sink = Sink()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = sink.take(body, {"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
            status, headers = answer or (200, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    sink.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield sink
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait_until(true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for a condition; fails when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> int:
        """The status of a GET; a connection of its own each time."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                response.read()
                return int(response.status)
        except urllib.error.HTTPError as e:
            with e:
                return e.code

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send `signum`, wait, and give the return code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(timeout=30)

    def kill_all(self) -> None:
        """SIGKILL the whole process group at once: supervisor and workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without any OpenTelemetry setting, with `extra`, and no exporter of the user's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    quiet = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    return {**kept, **quiet, "OTEL_SERVICE_NAME": "things", "PYTHONUNBUFFERED": "1", **extra}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "uvicorn": lambda port: ["uvicorn", "fastapi_app:app", "--port", str(port)],
    "uvicorn-workers": lambda port: [
        "uvicorn",
        "fastapi_app:app",
        "--port",
        str(port),
        "--workers",
        "2",
        "--timeout-worker-healthcheck",  # by default a worker that starts slowly is killed, again and again
        "120",
    ],
    "gunicorn": lambda port: ["gunicorn", "flask_app:app", "--bind", f"127.0.0.1:{port}", "--workers", "2"],
    "gunicorn-gthread": lambda port: [
        "gunicorn",
        "flask_app:app",
        "--bind",
        f"127.0.0.1:{port}",
        "--workers",
        "2",
        "--threads",
        "4",
    ],
    "gunicorn-preload": lambda port: [
        "gunicorn",
        "flask_app:app",
        "--bind",
        f"127.0.0.1:{port}",
        "--workers",
        "2",
        "--preload",
    ],
    "gunicorn-uvicorn": lambda port: [
        "gunicorn",
        "fastapi_app:app",
        "--bind",
        f"127.0.0.1:{port}",
        "--workers",
        "2",
        "--worker-class",
        "uvicorn_worker.UvicornWorker",
    ],
    "hypercorn": lambda port: ["hypercorn", "fastapi_app:app", "--bind", f"127.0.0.1:{port}"],
    "flask": lambda port: ["flask", "--app", "flask_app", "run", "--port", str(port)],
}


@contextmanager
def service(kind: str, log_dir: Path, env: Mapping[str, str], instrument: bool = True) -> Iterator[Service]:
    """A test application on an ephemeral port, under `opentelemetry-instrument`, ready to serve."""
    port = free_port()
    command, *arguments = COMMANDS[kind](port)
    words = [str(BIN / command), *arguments]
    if instrument:
        words = [str(BIN / "opentelemetry-instrument"), *words]
    log = log_dir / f"{kind}-{port}.log"
    env = {"OTEL_AUDIT_SPOOL_DIR": str(log_dir / "spool"), **env}
    path = os.pathsep.join([str(BIN), env.get("PATH", "")])
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, cwd=APPS, env={**env, "PATH": path}, stdout=output, stderr=output, start_new_session=True
        )
    running = Service(process, port, log)
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None, running.output()
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def jwt(**claims: object) -> str:
    """A signed-looking token with these claims."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.c2lnbmF0dXJl"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
