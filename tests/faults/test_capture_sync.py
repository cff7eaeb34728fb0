"""Modes durable and fail-closed: nothing goes on before the disk has it.

The call that syncs is held up. What must wait for it waits: the answer in both modes, the handler in fail-closed.
"""

import contextlib
import socket
import time
from pathlib import Path

import pytest

from tests.capture_support import APPS, environment, free_port, grpc_sink, service, wait_until

HELD_UP = """
import os, sys, time
from pathlib import Path
from otel_audit.capture import spool

sys.path.insert(0, {apps!r})
folder, sync = Path({folder!r}), spool._sync_data

def held_up(fd):
    n = 1 + sum(path.name.startswith("syncing-") for path in folder.iterdir())
    (folder / f"syncing-{{n}}").touch()
    while not any((folder / name).exists() for name in (f"synced-{{n}}", "go on")):
        time.sleep(0.005)
    sync(fd)

spool._sync_data = held_up
from {app} import app
"""
SERVERS = {"uvicorn": "fastapi_app", "hypercorn": "fastapi_app", "flask": "flask_app", "gunicorn-gthread": "flask_app"}


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server whose application holds each sync up: a file says that it came so far, another lets it go on."""
    name = str(request.param)
    apps, held = tmp_path / "apps", tmp_path / "held"
    apps.mkdir()
    held.mkdir()
    program = HELD_UP.format(apps=str(APPS), folder=str(held), app=SERVERS[name])
    (apps / f"held_up_{SERVERS[name]}.py").write_text(program)
    monkeypatch.setattr("tests.capture_support.APPS", apps)
    commands = __import__("tests.capture_support", fromlist=["COMMANDS"]).COMMANDS
    original = commands[name]

    def command(port: int) -> list[str]:
        words: list[str] = [w.replace(SERVERS[name], f"held_up_{SERVERS[name]}") for w in original(port)]
        return [w if w != "2" else "1" for w in words]  # one worker

    monkeypatch.setitem(commands, name, command)
    return name


def _answered(connection: socket.socket, within_s: float) -> bool:
    """Whether the whole answer is there; its head may leave before its record is made."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        with contextlib.suppress(TimeoutError):
            if b"done" in connection.recv(65536, socket.MSG_PEEK):
                return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("mode", ["durable", "fail-closed"])
def test_the_answer_waits_until_its_record_is_on_the_disk(kind: str, mode: str, tmp_path: Path) -> None:
    held, started = tmp_path / "held", tmp_path / "started"
    with grpc_sink(free_port()) as sink:
        env = environment(OTEL_AUDIT_ENDPOINT=sink.address, OTEL_AUDIT_MODE=mode, STARTED=str(started))
        with (
            service(kind, tmp_path, env) as s,
            socket.create_connection(("127.0.0.1", s.port)) as connection,
        ):
            connection.sendall(b"GET /done HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            steps = ["record"] if mode == "durable" else ["start", "record"]
            for n, step in enumerate(steps, 1):
                wait_until((held / f"syncing-{n}").exists, 30)
                assert not _answered(connection, 0.5), f"answered before the {step} was on the disk"
                assert started.exists() == (step == "record"), "the handler runs after the start is on the disk"
                (held / f"synced-{n}").touch()
            (held / "go on").touch()
            assert _answered(connection, 30)
            sink.wait(1)


def test_mode_async_waits_for_no_disk(kind: str, tmp_path: Path) -> None:
    started = tmp_path / "started"
    with grpc_sink(free_port()) as sink:
        env = environment(OTEL_AUDIT_ENDPOINT=sink.address, STARTED=str(started))
        with service(kind, tmp_path, env) as s:
            assert s.get("/done") == 200
            sink.wait(1)
            assert not list((tmp_path / "held").iterdir())
