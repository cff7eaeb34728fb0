"""`otel-audit spool` finds what dead processes have left, and hands it over."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from otel_audit.capture.leftovers import left_for_others, waiting
from otel_audit.capture.settings import Destination
from otel_audit.capture.spool import folder_of
from tests.capture_support import environment, free_port, grpc_sink, service, wait_until
from tests.spool_support import fill, spool


def command(*words: str, folder: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "otel_audit", "spool", *words, "--spool-dir", str(folder)],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def kill_with_calls_waiting(tmp_path: Path, endpoint: str) -> Path:
    with service("uvicorn", tmp_path, environment(OTEL_AUDIT_ENDPOINT=endpoint)) as s:
        assert [s.get(f"/things/{n}") for n in range(5)] == [200] * 5
        s.kill_all()
    return tmp_path / "spool"


def test_records_for_an_endpoint_of_yesterday_are_told_of_listed_and_shipped(tmp_path: Path) -> None:
    old = f"http://127.0.0.1:{free_port()}"
    folder = kill_with_calls_waiting(tmp_path, old)
    with grpc_sink() as sink, service("uvicorn", tmp_path, environment(OTEL_AUDIT_ENDPOINT=sink.address)) as s:
        s.get("/things/5")
        sink.wait(1)
        wait_until(lambda: "otel-audit spool ship" in s.output())
        s.stop()
        assert len(sink.spans) == 1, "what was meant for one destination is not sent to another unasked"
        listed = command("--json", folder=folder)
        (left,) = map(json.loads, listed.stdout.splitlines())
        assert left["records"] == 6, "five calls, and the start of their source"
        assert left["destination"].endswith(old.rpartition("/")[2])
        assert left["process"] == "dead"
        done = command("ship", folder=folder, OTEL_AUDIT_ENDPOINT=sink.address)
        assert done.returncode == 0, done.stderr
        assert "6 records shipped" in done.stderr
        assert len(sink.spans) == 6
        assert "nothing waits" in command(folder=folder).stderr


def test_what_cannot_be_shipped_stays(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    folder = kill_with_calls_waiting(tmp_path, endpoint)
    done = command("ship", "--timeout", "0.5", folder=folder, OTEL_AUDIT_ENDPOINT=endpoint)
    assert done.returncode == 1
    assert "6 still wait" in done.stderr
    assert [one.records for one in waiting(folder)] == [6]


def test_what_a_living_process_spools_is_left_to_it(tmp_path: Path) -> None:
    destination = Destination("grpc", "audit:1")
    alive = spool(folder_of(tmp_path, destination), destination="OTLP/gRPC audit:1")
    fill(alive, "a", "b")
    (one,) = waiting(tmp_path)
    assert (one.alive, one.records, one.destination) == (True, 2, "OTLP/gRPC audit:1")
    with grpc_sink() as sink:
        done = command("ship", folder=tmp_path, OTEL_AUDIT_ENDPOINT=sink.address)
        assert done.returncode == 0
        assert sink.attempts == 0
    assert left_for_others(folder_of(tmp_path, Destination("grpc", "other:1"))) == {}
    alive.let_go()
    assert left_for_others(folder_of(tmp_path, Destination("grpc", "other:1"))) == {"OTLP/gRPC audit:1": 1}


@pytest.mark.parametrize("words", [["bury"], ["--timeout", "soon"]])
def test_what_cannot_be_meant_is_a_usage_error(words: list[str], tmp_path: Path) -> None:
    assert command(*words, folder=tmp_path).returncode == 2
