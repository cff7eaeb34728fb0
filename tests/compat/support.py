"""Services in environments of other people's versions."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.capture_support import Service, Sink, Span, free_port, wait_until
from tests.capture_support import environment as plain_environment
from tests.compat.environments import environment, install_checkout

INTEGRATION_APPS = Path(__file__).parents[1] / "integration" / "capture_apps"
OWN_APPS = Path(__file__).parent / "apps"
CLIENTS = [{"id": "web", "name": "Web front end", "key": "web-key"}]
NAMED = {"X-API-Key": "web-key"}
UNSAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
CALLS = 12


@contextmanager
def served(name: str, words: list[str], folder: Path, env: Mapping[str, str]) -> Iterator[Service]:
    """A service in the environment `name`; `{port}` in `words` is a free port."""
    home = environment(name)
    port = free_port()
    clients = folder / "clients.json"
    clients.write_text(json.dumps(CLIENTS))
    path = [str(install_checkout(folder)), str(INTEGRATION_APPS), str(OWN_APPS)]
    whole = {
        **plain_environment(
            OTEL_AUDIT_CLIENTS=str(clients), OTEL_AUDIT_SPOOL_DIR=str(folder / "spool"), STARTED=str(folder / "started")
        ),
        "PATH": os.pathsep.join([str(home / "bin"), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(path),
        **env,
    }
    log = folder / "output.log"
    first, *rest = [word.format(port=port) for word in words]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(home / "bin" / first), *rest],
            cwd=folder,
            env=whole,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    running = Service(process, port, log)
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None, 90)
        assert process.poll() is None, running.output()
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _listens(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def call(service: Service, count: int = CALLS) -> None:
    """That many calls by a client that is known, one of them with a caller's wish not to be traced."""
    for n in range(count - 1):
        assert service.get(f"/things/{n}", NAMED) == 200, service.output()
    assert service.get("/things/1", {**NAMED, **UNSAMPLED}) == 200


def assert_all_arrived(service: Service, sink: Sink, count: int = CALLS) -> list[Span]:
    """Every call is there exactly once, named and numbered, and nothing else is, when the service has ended."""
    sink.wait(count)
    service.stop()
    sink.wait_about("otel_audit.stop")
    spans = list(sink.spans)
    assert len(spans) == count, f"{[(s.name, s.kind) for s in spans]}\n{service.output()}"
    assert {s.attributes.get("audit.client.id") for s in spans} == {"web"}, service.output()
    assert {s.attributes["audit.client.ip"] for s in spans} == {"127.0.0.1"}
    assert {s.kind for s in spans} == {2}
    assert sorted(s.attributes["audit.source.seq"] for s in (*spans, *sink.about)) == list(range(1, count + 3))
    return spans


@contextmanager
def datadog_agent() -> Iterator[tuple[str, list[bytes]]]:
    """A stand-in for the agent of ddtrace: its address, and the trace payloads it was sent."""
    payloads: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "/traces" in self.path and len(body) > 1:
                payloads.append(body)
            said = b'{"endpoints":["/v0.4/traces","/v0.5/traces"],"rate_by_service":{}}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_PUT = do_POST = answer  # noqa: N815 - the base class's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", payloads
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
