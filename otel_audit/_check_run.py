"""Runs the command of a check: starts it, waits until it serves, calls it, ends it with all its processes.

What it is given to ship to is a receiver of the check's own, on loopback.
"""

import contextlib
import http.client
import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from otel_audit import names
from otel_audit.capture.report import SINK

__all__ = ["Called", "Ran", "Record", "run"]

_POLL_S: Final = 0.1
_SETTLE_S: Final = 1.2
_NO_APP_S: Final = 6.0
_RECORD_S: Final = 5.0
_END_S: Final = 5.0
_OUTPUT_BYTES: Final = 64 * 1024
_LISTENING: Final = "0A"
_LAUNCHERS: Final = frozenset({"opentelemetry-instrument", "ddtrace-run"})


@dataclass
class Record:
    """A record that arrived at the check's receiver."""

    attributes: dict[str, Any]
    service: str | None


@dataclass
class Called:
    """A call that the check made.

    Args:
        url: of the request.
        status: of the response; None: there was none.
        problem: why there was none.
        record: that arrived of it; None: none did.
    """

    url: str
    status: int | None = None
    problem: str = ""
    record: Record | None = None


@dataclass
class Ran:
    """What a command did.

    Args:
        findings: of each process in which capture was loaded.
        exit_code: when it ended by itself; None: the check ended it.
        listens: addresses on which it served.
        interpreter: command line of its first Python process, as far as one was seen.
        output: the end of what it printed.
        calls: that were made.
        records: how many records arrived, those that capture makes about itself included.
    """

    findings: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    listens: list[str] = field(default_factory=list)
    interpreter: list[str] = field(default_factory=list)
    output: str = ""
    calls: list[Called] = field(default_factory=list)
    records: int = 0


# --- the receiver -----------------------------------------------------------------------------------------------------------
class _Sink:
    """Takes OTLP/HTTP, and remembers it."""

    def __init__(self) -> None:
        self.records: list[Record] = []  # added to by the server's threads
        self.arrived = threading.Condition()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:  # the base class's name
                sink.take(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        found = []
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _plain(resource.resource.attributes).get(names.SERVICE_NAME)
            found += [Record(_plain(s.attributes), service) for scope in resource.scope_spans for s in scope.spans]
        with self.arrived:
            self.records += found
            self.arrived.notify_all()

    def record_of(self, path: str, since: int) -> Record | None:
        """The first record of a call of `path` from number `since` on, when it comes in time."""

        def find() -> Record | None:
            return next((r for r in self.records[since:] if _path_of(r.attributes) == path), None)

        with self.arrived:
            return self.arrived.wait_for(find, _RECORD_S)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _plain(attributes: Any) -> dict[str, Any]:
    found = {}
    for attribute in attributes:
        which = attribute.value.WhichOneof("value")
        found[attribute.key] = getattr(attribute.value, which) if which else None
    return found


def _path_of(attributes: dict[str, Any]) -> str | None:
    for name in (*names.URL_PATH, *names.HTTP_TARGET, *names.HTTP_URL):
        value = attributes.get(name)
        if isinstance(value, str):
            return urlsplit(value).path
    return None


# --- processes --------------------------------------------------------------------------------------------------------------
def _members(session: int) -> list[int]:
    """The processes of a session; none where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(state[3]) == session and state[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def _sockets(pids: list[int]) -> set[str]:
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(entry.readlink())
                    if target.startswith("socket:["):
                        found.add(target[8:-1])
    return found


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    raw = bytes.fromhex(host)
    ip = ipaddress.ip_address(b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4)))
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_unspecified:
        ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
    return f"{ip}:{int(port, 16)}" if ip.version == 4 else f"[{ip}]:{int(port, 16)}"


def _listening(pids: list[int]) -> list[str]:
    """Addresses on which these processes listen: `host:port`, or the path of a Unix socket."""
    owned = _sockets(pids) if pids else set()
    found = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pids[0] if pids else 'self'}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTENING and words[9] in owned:
                    found.append(_address(words[1]))
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            words = line.split()
            if len(words) > 7 and words[6] in owned and words[3] == "00010000":
                found.append(words[7])
    return list(dict.fromkeys(found))


def _interpreter(pids: list[int]) -> list[str]:
    """The command line of the first of these processes that runs Python, and is not about to become another."""
    for pid in pids:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            names_of = [Path(word).name for word in words[:3]]
            if words and re.match(r"(python|pypy)[\d.]*$", names_of[0]) and _LAUNCHERS.isdisjoint(names_of):
                return words
    return []


# --- the run ----------------------------------------------------------------------------------------------------------------
class _Run:
    """One command under check."""

    def __init__(self, command: list[str], folder: Path, timeout_s: float) -> None:
        self.folder = folder
        self.ran = Ran()
        self._deadline_s = time.monotonic() + timeout_s
        self._output = (folder / "output").open("w+b")
        environment = {**os.environ, names.ENV_CHECK: str(folder), "PYTHONUNBUFFERED": "1"}
        try:
            self.process = subprocess.Popen(  # noqa: S603 - the developer's own command
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            self._output.close()
            raise

    def findings(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.folder.glob("findings-*.json")):
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
        return found

    def wait(self) -> None:
        """Until it has ended, or has begun to serve and come to rest, or the time is over."""
        rested_since = served_since = 0.0
        seen: object = None
        while time.monotonic() < self._deadline_s and self.process.poll() is None:
            pids = _members(self.process.pid)
            self.ran.interpreter = _interpreter(pids) or self.ran.interpreter
            self.ran.listens = _listening(pids)
            now = time.monotonic()
            found = self.findings()
            state = (self.ran.listens, [(f["pid"], f["modules"], len(f["apps"])) for f in found])
            if state != seen:
                seen, rested_since = state, now
            if self.ran.listens:
                served_since = served_since or now
                # Prefork servers listen first and import the application then.
                patience_s = _SETTLE_S if any(f["apps"] for f in found) else _NO_APP_S
                if now - max(rested_since, served_since) > patience_s:
                    return
            time.sleep(_POLL_S)

    def end(self) -> None:
        """Stop it and everything it has started."""
        self.ran.exit_code = self.process.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + _END_S
        while (self.process.poll() is None or _members(self.process.pid)) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        for pid in _members(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.ran.findings = self.findings()
        self._output.seek(max(self._output.seek(0, os.SEEK_END) - _OUTPUT_BYTES, 0))
        self.ran.output = self._output.read().decode(errors="replace")
        self._output.close()


def _call(url: str, sink: _Sink) -> Called:
    called = Called(url)
    parts = urlsplit(url)
    since = len(sink.records)
    try:
        connection = http.client.HTTPConnection(parts.netloc, timeout=10)
        with contextlib.closing(connection):
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"User-Agent": "otel-audit-check"})
            response = connection.getresponse()
            response.read()
            called.status = response.status
    except http.client.RemoteDisconnected:
        called.problem = "it closed the connection"
    except http.client.HTTPException:
        called.problem = "what came back is not HTTP"
    except OSError as e:
        called.problem = str(e) or type(e).__name__
    else:
        called.record = sink.record_of(parts.path, since)
    return called


def _urls(wanted: list[str], listens: list[str]) -> Iterator[str]:
    base = next((f"http://{address}" for address in listens if not address.startswith(("/", "@"))), None)
    for text in wanted:
        if text.startswith("http://"):
            parts = urlsplit(text)
            yield text if parts.path else text + "/"
        else:
            yield (base or "http://127.0.0.1:0") + ("" if text.startswith("/") else "/") + text


def run(command: list[str], *, timeout_s: float, urls: list[str]) -> Ran:
    """Run `command` until it serves, at most `timeout_s`; call `urls` (GET; paths, or whole addresses); end it.

    Raises:
        OSError: it cannot be started.
    """
    folder = Path(tempfile.mkdtemp(prefix="otel-audit-check-"))
    sink = _Sink()
    try:
        (folder / SINK).write_text(sink.address)
        under_check = _Run(command, folder, timeout_s)
        try:
            under_check.wait()
            if under_check.process.poll() is None:
                under_check.ran.calls = [_call(url, sink) for url in _urls(urls, under_check.ran.listens)]
        finally:
            under_check.end()
        under_check.ran.records = len(sink.records)
        return under_check.ran
    finally:
        sink.close()
        shutil.rmtree(folder, ignore_errors=True)
