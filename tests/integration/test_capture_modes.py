"""What each mode promises, with real servers that are killed at the worst moment, or have no room left."""

import contextlib
import os
import signal
import threading
import urllib.error
from pathlib import Path

import pytest

from otel_audit.otlp import Decoder
from tests.capture_support import environment, free_port, grpc_sink, service, wait_until
from tests.spool_support import MIB

HTTP_SERVERS = ["uvicorn", "flask"]


def path_of(span: object) -> str:
    return str(span.attributes["http.target"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["uvicorn", "uvicorn-workers", "flask", "gunicorn", "gunicorn-gthread", "hypercorn"])
@pytest.mark.parametrize("mode", ["async", "durable"])
def test_no_answered_call_is_lost_when_everything_is_killed_at_once(kind: str, mode: str, tmp_path: Path) -> None:
    port = free_port()
    env = environment(OTEL_AUDIT_ENDPOINT=f"http://127.0.0.1:{port}", OTEL_AUDIT_MODE=mode)
    rounds = 3
    for n in range(rounds):
        with service(kind, tmp_path, env) as s:
            wait_until(lambda s=s: s.get("/things/404") == 404)  # type: ignore[misc]
            for i in range(10):
                assert s.get(f"/things/{n * 10 + i}") == 200
            s.kill_all()
    with grpc_sink(port) as sink, service("flask", tmp_path, env) as s:
        s.get("/things/1000")
        wait_until(lambda: sum(path_of(x) != "/things/404" for x in sink.spans) >= rounds * 10 + 1)
        s.stop()
    paths = [path_of(x) for x in sink.spans if path_of(x) != "/things/404"]
    assert sorted(paths) == sorted(f"/things/{i}" for i in [*range(rounds * 10), 1000])


@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_fail_closed_tells_of_a_call_whose_end_nobody_saw(kind: str, tmp_path: Path) -> None:
    port, started = free_port(), tmp_path / "started"
    env = environment(
        OTEL_AUDIT_ENDPOINT=f"http://127.0.0.1:{port}", OTEL_AUDIT_MODE="fail-closed", STARTED=str(started)
    )
    with service(kind, tmp_path, env) as s:
        assert s.get("/things/1") == 200
        hanging = threading.Thread(target=lambda: _ignore(s.get, "/hang"), daemon=True)
        hanging.start()
        wait_until(started.exists)
        s.kill_all()
        hanging.join(20)
    with grpc_sink(port) as sink, service(kind, tmp_path, env) as s:
        assert s.get("/things/2") == 200
        spans = sink.wait(3)
        s.stop()
    found = {path_of(x): x.attributes.get("audit.incomplete") for x in spans}
    assert found == {"/things/1": None, "/hang": True, "/things/2": None}
    hung = next(x for x in spans if path_of(x) == "/hang")
    assert hung.attributes["audit.outcome"] == "unknown"
    assert sorted(x.attributes["audit.source.seq"] for x in spans if x is not hung) == [2, 2]
    records = [r for body in sink.bodies for r in Decoder().decode(body).records.to_pylist()]
    durations = {r["target"]: r["duration_ns"] for r in records if r["target"]}
    assert {target for target, ns in durations.items() if ns is None} == {"/hang"}


def _ignore(get: object, path: str) -> None:
    with contextlib.suppress(urllib.error.URLError, ConnectionError):
        get(path)  # type: ignore[operator]


@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_fail_closed_refuses_before_anything_happens_and_others_serve(
    kind: str, tmp_path: Path, small_disk: Path
) -> None:
    port, started = free_port(), tmp_path / "started"
    ballast = small_disk / "ballast"
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nroute = "/done"\nmode = "fail-closed"\n')
    env = environment(
        OTEL_AUDIT_ENDPOINT=f"http://127.0.0.1:{port}",
        OTEL_AUDIT_RULES=str(rules),
        OTEL_AUDIT_SPOOL_DIR=str(small_disk),
        OTEL_AUDIT_BLOCK_TIMEOUT="0",
        STARTED=str(started),
    )
    with grpc_sink(port) as sink, service(kind, tmp_path, env) as s:
        assert s.get("/things/1") == 200
        _fill(ballast)
        assert s.get("/done") == 500
        assert not started.exists(), "a call that cannot be audited must not happen"
        assert s.get("/things/2") == 200, "other routes serve"
        assert "lost so far" in s.output()
        ballast.unlink()
        assert s.get("/done") == 200
        assert started.exists()
        (loss,) = sink.wait_about("otel_audit.loss")
        s.stop(signal.SIGTERM)
        recorded = sorted(map(path_of, sink.spans))
        # The disk may have room for one more small record in a block that the spool has already.
        assert loss.attributes["audit.loss.count"] == 1 + ("/things/2" not in recorded)
        assert {"/done", "/things/1"} <= set(recorded)


def _fill(ballast: Path) -> None:
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, b"x" * size)
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["uvicorn-workers", "gunicorn", "gunicorn-preload"])
def test_several_processes_share_one_local_log(kind: str, tmp_path: Path) -> None:
    from tests.support import calls_of, check_log

    folder = tmp_path / "log"
    with service(kind, tmp_path, environment(OTEL_AUDIT_ENDPOINT=f"file:{folder}")) as s:
        wait_until(lambda: s.get("/things/404") == 404)
        made = 0

        def both_served() -> bool:  # which of them does is the kernel's choice
            nonlocal made
            for _ in range(60):
                assert s.get(f"/things/{made}") == 200
                made += 1
            written = (folder / "log.json").exists()
            return written and len({r["source_id"] for r in calls_of(folder)}) == 2

        wait_until(both_served)
        s.stop()
    check_log(folder)
    calls = [r for r in calls_of(folder) if r["target"] != "/things/404"]
    assert sorted(r["target"] for r in calls) == sorted(f"/things/{n}" for n in range(made))
    assert list((tmp_path / "spool").rglob("*.spool")) == []
