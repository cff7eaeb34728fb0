"""`otel-audit demo`: a CRM that knows nothing of auditing, the programs that use it, and the audit log of their calls.

Two processes are started: the service (`otel-audit serve`) and the example CRM under plain `opentelemetry-instrument`. The
traffic runs in this process. Standard output is the log and the summary; standard error is what is going on.
"""

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final, TypeVar

from otel_audit import _demo_report as report
from otel_audit._cli_common import say
from otel_audit._cli_text import count_text, safe
from otel_audit.errors import AuditError, NotFoundError
from otel_audit.names import ACTION_OWN_PREFIX
from otel_audit.query import Query
from otel_audit.reader import LogReader

__all__ = ["DEFAULT_DIRECTORY", "run"]

_T = TypeVar("_T")

DEFAULT_DIRECTORY: Final = "audit-log-demo"
_HOST: Final = "127.0.0.1"
_PORTS: Final = {"OTLP/gRPC": 4317, "OTLP/HTTP": 4318, "CRM": 8000}
_NEEDED: Final = (
    "fastapi",
    "httpx",
    "sqlalchemy",
    "uvicorn",
    "rich",
    "opentelemetry.distro",
    "opentelemetry.instrumentation.fastapi",
)
_START_S: Final = 60.0
_ARRIVE_S: Final = 60.0
_STOP_S: Final = 15.0
_POLL_S: Final = 0.05
_LOG_TAIL_CHARS: Final = 2000
_HINT: Final = "pip install 'otel-audit[demo]'"


def run(*, seconds: float = 15.0, directory: str | os.PathLike[str] | None = None) -> int:
    """Run the demo; gives the exit code, 0 when every call that was made is in the log exactly once.

    Args:
        seconds: length of the traffic.
        directory: folder of the log, appended to; by default `./audit-log-demo`.

    Raises:
        AuditError: a package is missing, or the service or the CRM does not start; everything started is stopped.
    """
    examples = _examples()
    folder = Path(directory or DEFAULT_DIRECTORY)
    with _Signals.caught(), tempfile.TemporaryDirectory(prefix="otel-audit-demo-") as scratch:
        before = _last_seq(folder)
        tally, arrived = _play(examples, folder, before, seconds, Path(scratch))
    made, recorded = tally.calls, _calls_after(folder, before)
    report.print_report(folder, before, made)
    if not arrived or recorded != made or tally.unanswered:
        say(f"{count_text(made, 'call')} answered, {recorded:,} recorded, {tally.unanswered:,} unanswered")
        return 1
    return 0


def _play(examples: Path, folder: Path, before: int, seconds: float, scratch: Path) -> tuple[Any, bool]:
    """Start everything, drive the traffic, wait until it has arrived, stop everything."""
    say("starting the audit service, and a CRM that knows nothing of auditing ...")
    with contextlib.ExitStack() as stack:
        server, addresses = _start_service(folder, scratch, stack)
        crm, port = _start_crm(examples, addresses["grpc"], scratch, stack)
        _say_where(addresses, port)
        say(f"{'log':<10} {safe(str(folder))}{f'  (goes on after record {before:,})' if before else ''}")
        traffic = _load(examples / "crm" / "traffic.py")
        with report.Progress(seconds) as progress:
            tally = asyncio.run(
                traffic.drive(f"http://{_HOST}:{port}", seconds=seconds, seed=before + 1, on_call=progress.call)
            )
            arrived = progress.wait(lambda: _calls_after(folder, before), tally.calls, (server, crm), _ARRIVE_S)
        return tally, arrived


# --- what it needs ------------------------------------------------------------------------------------------------------
def _examples() -> Path:
    """The folder that holds `crm`: in the source tree, or installed with the package."""
    for name in _NEEDED:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise AuditError("run the demo with", sys.executable, f"{name} is not installed", f"install it: {_HINT}")
    package = Path(__file__).parent
    for folder in (package / "_examples", package.parent / "examples"):
        if (folder / "crm" / "main.py").is_file():
            return folder.resolve()
    raise NotFoundError("find the example CRM in", package, "it was not installed", f"reinstall otel-audit: {_HINT}")


def _instrument() -> str:
    """The `opentelemetry-instrument` of this environment."""
    beside = Path(sys.executable).parent / "opentelemetry-instrument"
    found = str(beside) if beside.is_file() else shutil.which("opentelemetry-instrument")
    if found is None:
        raise NotFoundError("run", "opentelemetry-instrument", "no such command", f"install it: {_HINT}")
    return found


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("otel_audit_demo_traffic", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _last_seq(folder: Path) -> int:
    """Number of the last record of the log; 0 when there is no log yet."""
    try:
        return LogReader.open(folder).snapshot().last_seq
    except NotFoundError:
        return 0


def _calls_after(folder: Path, seq: int) -> int:
    """How many calls the log holds after record `seq`; what capture records about itself is none."""
    if _last_seq(folder) <= seq:
        return 0
    with Query(LogReader.open(folder).snapshot()) as query:
        batches = list(query.iter_batches(after_seq=seq, columns=("seq", "action")))
    actions = (action for batch in batches for action in batch.column("action").to_pylist())
    return sum(not action.startswith(ACTION_OWN_PREFIX) for action in actions)


# --- ports --------------------------------------------------------------------------------------------------------------
def _usual_port(name: str) -> int:
    """The usual port when nobody listens there, else 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, _PORTS[name]))
        except OSError:
            return 0
    return _PORTS[name]


def _say_where(addresses: dict[str, str], crm_port: int) -> None:
    taken = {"OTLP/gRPC": addresses["grpc"], "OTLP/HTTP": addresses["http"], "CRM": f"{_HOST}:{crm_port}"}
    for name, address in taken.items():
        usual = _PORTS[name]
        other = "" if address.endswith(f":{usual}") else f"  (port {usual} is taken)"
        say(f"{name:<10} {address}{other}")


# --- processes ----------------------------------------------------------------------------------------------------------
@dataclass
class _Process:
    """A process that was started, and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        """What it has written so far."""
        return self.output.read_text(errors="replace")

    def check(self) -> None:
        """Raise `AuditError` when it has ended."""
        code = self.process.poll()
        if code is not None:
            raise self._failed(f"it ended with exit code {code}")

    def wait_for(self, sign: Callable[[str], Any]) -> Any:
        """What `sign` makes of its output, as soon as that is not None."""
        deadline = time.monotonic() + _START_S
        while (found := sign(self.said())) is None:
            self.check()
            if time.monotonic() > deadline:
                raise self._failed(f"not ready after {_START_S:g} s")
            time.sleep(_POLL_S)
        return found

    def _failed(self, reason: str) -> AuditError:
        said = self.said().strip()[-_LOG_TAIL_CHARS:]
        return AuditError("start", f"the {self.name}", reason, f"it said: {said}" if said else "it said nothing")


def _start(name: str, words: list[str], env: dict[str, str], scratch: Path, stack: contextlib.ExitStack) -> _Process:
    """A process in a session of its own, so that a Ctrl-C reaches only us; `stack` stops it, whatever happens."""
    output = scratch / f"{name}.log"
    with output.open("wb") as file, _Signals.held():
        process = subprocess.Popen(  # noqa: S603 - our own programs
            words, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        stack.callback(_stop, process)
    return _Process(name, process, output)


def _start_service(folder: Path, scratch: Path, stack: contextlib.ExitStack) -> tuple[_Process, dict[str, str]]:
    """`otel-audit serve`, and where it listens."""

    def start(ports: dict[str, int]) -> tuple[_Process, dict[str, str]]:
        words = _serve_command(folder, ports["OTLP/gRPC"], ports["OTLP/HTTP"])
        process = _start("service", words, _plain_environment(), scratch, stack)
        return process, process.wait_for(_listening)

    return _on_usual_ports(start)


def _start_crm(examples: Path, endpoint: str, scratch: Path, stack: contextlib.ExitStack) -> tuple[_Process, int]:
    """The CRM under `opentelemetry-instrument`, and its port."""

    def start(ports: dict[str, int]) -> tuple[_Process, int]:
        words = _crm_command(examples, ports["CRM"])
        process = _start("CRM", words, _crm_environment(examples, endpoint, scratch), scratch, stack)
        return process, process.wait_for(_running)

    return _on_usual_ports(start)


def _on_usual_ports(start: Callable[[dict[str, int]], _T]) -> _T:
    """What `start` gives with the usual ports, where they are free; else, or when somebody was faster, with others."""
    usual = {name: _usual_port(name) for name in _PORTS}
    try:
        return start(usual)
    except AuditError as e:
        if "in use" not in str(e) or not any(usual.values()):
            raise
    return start(dict.fromkeys(_PORTS, 0))


def _stop(process: subprocess.Popen[bytes]) -> None:
    with _Signals.held():
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Signals:
    """Signals that end the demo do so by an exception, so that what was started is stopped; never in between.

    Between the start of a process and the note that it must be stopped, and while one is stopped, they wait.
    """

    # Of the main thread alone, which is where Python runs signal handlers.
    _depth = 0
    _waiting: int | None = None

    @classmethod
    def _handle(cls, number: int, _: FrameType | None) -> None:
        if cls._depth:
            cls._waiting = number
        else:
            cls._end(number)

    @staticmethod
    def _end(number: int) -> None:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    @classmethod
    @contextlib.contextmanager
    def caught(cls) -> Iterator[None]:
        """Within, SIGINT, SIGTERM and SIGHUP end the demo by an exception."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, cls._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @classmethod
    @contextlib.contextmanager
    def held(cls) -> Iterator[None]:
        """Within, they wait."""
        cls._depth += 1
        try:
            yield
        finally:
            cls._depth -= 1
            if not cls._depth and cls._waiting is not None:
                number, cls._waiting = cls._waiting, None
                cls._end(number)


def _plain_environment() -> dict[str, str]:
    """This environment without settings of OpenTelemetry and of ours: the demo is the same for everyone."""
    return {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}


def _serve_command(folder: Path, grpc: int, http: int) -> list[str]:
    words = [sys.executable, "-m", "otel_audit", "serve", "--dir", str(folder)]
    return [*words, "--grpc", f"{_HOST}:{grpc}", "--http", f"{_HOST}:{http}"]


def _listening(said: str) -> dict[str, str] | None:
    """The addresses in the line `listening grpc=HOST:PORT http=HOST:PORT dir=...`, once it is there."""
    for line in said.splitlines(keepends=True):
        if line.startswith("listening ") and line.endswith("\n"):
            grpc, http = line.split()[1:3]
            return {"grpc": grpc.removeprefix("grpc="), "http": http.removeprefix("http=")}
    return None


def _running(said: str) -> int | None:
    """The port in the line with which uvicorn says that it is ready, once it is there."""
    found = re.search(r"Uvicorn running on http://[^ ]*:(\d+) ", said)
    return int(found[1]) if found else None


def _crm_command(examples: Path, port: int) -> list[str]:
    app = ["crm.main:app", "--app-dir", str(examples), "--host", _HOST, "--port", str(port), "--no-access-log"]
    return [_instrument(), sys.executable, "-m", "uvicorn", *app]


def _crm_environment(examples: Path, endpoint: str, scratch: Path) -> dict[str, str]:
    return {
        **_plain_environment(),
        "OTEL_SERVICE_NAME": "crm",
        "OTEL_RESOURCE_ATTRIBUTES": "service.version=2.0,deployment.environment.name=demo",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_AUDIT_ENDPOINT": f"http://{endpoint}",
        "OTEL_AUDIT_SPOOL_DIR": str(scratch / "spool"),
        "OTEL_AUDIT_CLIENTS": str(examples / "crm" / "clients.json"),
        "OTEL_AUDIT_TRUSTED_PROXIES": f"{_HOST}/32",
    }
