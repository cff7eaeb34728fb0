"""`otel-audit demo`: whatever is in its way, it shows the log, tells the truth, and leaves no process behind."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from otel_audit import demo
from otel_audit.errors import AuditError
from otel_audit.reader import LogReader
from tests.capture_support import wait_until
from tests.support import calls_of

TITLES = [
    "API Client ID",
    "API Client Name",
    "Service",
    "Action",
    "Duration",
    "Client IP Address",
    "Execution Time",
]
CRM = Path(__file__).parents[2] / "examples" / "crm"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def taken_ports() -> Iterator[None]:
    """Somebody else listens on the usual ports."""
    with contextlib.ExitStack() as stack:
        for port in (4317, 4318, 8000):
            with contextlib.suppress(OSError):  # taken by something else already, which is as good
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def command(folder: Path, seconds: float = 3.0) -> list[str]:
    return [sys.executable, "-m", "otel_audit", "demo", "--seconds", str(seconds), "--dir", str(folder)]


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "TERM": "xterm-256color", **extra}


def left_behind(root: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(root.children(recursive=True))
    return []


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


@pytest.mark.usefixtures("taken_ports")
def test_it_works_twice_in_a_row_with_the_usual_ports_taken(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    recorded = last_seq = 0
    for attempt in (1, 2):
        done = subprocess.run(
            command(folder, 4.0), env=environment(), capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        for name in ("OTLP/gRPC", "OTLP/HTTP", "CRM"):
            line = next(x for x in done.stderr.splitlines() if x.startswith(name))
            assert "is taken" in line
            assert re.search(r"127\.0\.0\.1:\d+", line)
        header = done.stdout.splitlines()[0]
        assert [t for t in TITLES if t not in header] == []
        match = re.search(r"^([\d,]+) calls made, ([\d,]+) recorded: each exactly once$", done.stdout, re.MULTILINE)
        assert match is not None, done.stdout
        assert match[1] == match[2]
        made = int(match[1].replace(",", ""))
        assert made > 50
        recorded += made
        assert len(calls_of(folder)) == recorded, "the second run appends to the first"
        assert "\x1b" not in done.stdout + done.stderr, "plain output where there is no terminal"
        assert (f"goes on after record {last_seq:,}" in done.stderr) == (attempt == 2)
        last_seq = LogReader.open(folder).snapshot().last_seq
        for client in json.loads((CRM / "clients.json").read_text()):
            assert client["name"] in done.stdout
        assert "Misbehaving: plugin-03 (QuickLeads plug-in)" in done.stdout
        for word in ("find", "show", "tail", "stats", "export"):
            assert re.search(rf"otel-audit {word} --dir {re.escape(str(folder))}", done.stdout)


def test_the_commands_it_suggests_work(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    done = subprocess.run(command(folder), env=environment(), capture_output=True, text=True, timeout=200, check=True)
    suggested = re.findall(r"^ *(\S*otel-audit .*?)(?: +#.*)?$", done.stdout, re.MULTILINE)
    assert len(suggested) == 6
    # Exactly as they are printed, from the folder in which the demo ran.
    (tmp_path / "calls.csv").unlink(missing_ok=True)
    for typed in suggested:
        if " tail " in typed:
            continue  # never ends
        line = typed.replace("calls.csv", str(tmp_path / "calls.csv"))
        ran = subprocess.run(line, shell=True, env=environment(), capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "calls.csv").stat().st_size > 1000


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["starting", "calling"])
def test_when_interrupted_it_leaves_no_process_behind(
    signum: signal.Signals, code: int, moment: str, tmp_path: Path
) -> None:
    errors = tmp_path / "stderr"
    with errors.open("wb") as file:
        process = subprocess.Popen(
            command(tmp_path / "log", 60), env=environment(), stdout=subprocess.DEVNULL, stderr=file
        )
    root = psutil.Process(process.pid)
    sign = {"starting": lambda: bool(left_behind(root)), "calling": lambda: b"making calls" in errors.read_bytes()}
    wait_until(sign[moment])
    children = left_behind(root)
    assert children
    process.send_signal(signum)
    assert process.wait(60) == code
    assert_gone(children)


def on_terminal(words: list[str], columns: int, env: dict[str, str]) -> str:
    """What a program writes to a terminal of this width, all of it."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(words, env=env, stdin=child, stdout=child, stderr=child)
    os.close(child)
    output = b""
    with contextlib.suppress(OSError):  # how a pty says that nobody writes any more
        while part := os.read(parent, 65536):
            output += part
    os.close(parent)
    assert process.wait(60) == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize(("columns", "color"), [(80, True), (160, False)])
def test_on_a_terminal_it_fits_and_has_progress(columns: int, color: bool, tmp_path: Path) -> None:
    env = environment() if color else environment(NO_COLOR="1")
    output = on_terminal(command(tmp_path / "short"), columns, env)
    assert "recorded: each exactly once" in output
    assert re.search(r"calls: ", output), "a progress display"
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", output)) == color, "NO_COLOR is honoured"
    lines = ESCAPE.sub("", output).replace("\r\n", "\n").splitlines()
    table = lines[next(i for i, line in enumerate(lines) if "The audit log" in line) :]
    listed = table[: table.index("Try next")]
    assert [line for line in listed if len(line) > columns] == []


# --- what can go wrong ----------------------------------------------------------------------------------------------------
def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "_NEEDED", ("json", "no_such_package.inner"))
    with pytest.raises(AuditError) as e:
        demo.run(seconds=1, directory=tmp_path)
    assert "no_such_package.inner is not installed" in str(e.value)
    assert "pip install 'otel-audit[demo]'" in e.value.hint


def test_somebody_who_takes_a_port_in_the_last_moment_is_evaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = dict(zip(demo._PORTS, (s.getsockname()[1] for s in taken), strict=True))
        monkeypatch.setattr(demo, "_PORTS", ports)
        monkeypatch.setattr(demo, "_usual_port", ports.__getitem__)  # looked free a moment ago
        assert demo.run(seconds=1, directory=tmp_path / "log") == 0
    assert capsys.readouterr().err.count("is taken)") == 3


@pytest.mark.parametrize("broken", ["_serve_command", "_crm_command"])
def test_a_program_that_does_not_start_is_quoted_and_the_other_stopped(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing = [sys.executable, "-c", "raise SystemExit('no luck today')"]
    monkeypatch.setattr(demo, broken, lambda *_: failing)
    with pytest.raises(AuditError) as e:
        demo.run(seconds=1, directory=tmp_path / "log")
    assert "no luck today" in str(e.value)
    assert_gone(left_behind(psutil.Process()))


def test_a_signal_while_a_process_is_being_started_waits_until_it_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[psutil.Process] = []
    popen = subprocess.Popen

    def interrupted(*args: object, **kwargs: object) -> object:
        process = popen(*args, **kwargs)  # type: ignore[call-overload]
        started.append(psutil.Process(process.pid))
        signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(demo.subprocess, "Popen", interrupted)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        demo.run(seconds=1, directory=tmp_path / "log")
    assert len(started) == 1
    assert_gone(started)


def test_a_folder_that_is_in_use_is_said(tmp_path: Path) -> None:
    from otel_audit.auditlog import AuditLog

    with AuditLog.open(tmp_path / "log"), pytest.raises(AuditError) as e:
        demo.run(seconds=1, directory=tmp_path / "log")
    assert str(os.getpid()) in str(e.value), "it says who holds it"


# --- the example ----------------------------------------------------------------------------------------------------------
def test_the_crm_contains_no_line_about_auditing() -> None:
    for path in CRM.glob("*.py"):
        assert not re.search("audit|opentelemetry|otel", path.read_text(), re.IGNORECASE), path


def test_the_client_directory_names_the_accounts_of_the_crm() -> None:
    accounts = {a["id"]: a["secret_sha256"] for a in json.loads((CRM / "accounts.json").read_text())}
    clients = json.loads((CRM / "clients.json").read_text())
    assert len(clients) >= 6
    for client in clients:
        assert client.get("key_sha256", accounts[client["id"]]) == accounts[client["id"]]
