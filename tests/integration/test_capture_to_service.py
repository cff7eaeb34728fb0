"""From a call to a record: a real server under `opentelemetry-instrument`, the real service, the log read back."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from otel_audit import config
from otel_audit.numbers import read_notes
from otel_audit.query import Query
from otel_audit.reader import LogReader
from otel_audit.server import Server
from otel_audit.sources import survey
from tests.capture_support import environment, service, wait_until
from tests.support import calls_of


@contextmanager
def audit_service(folder: Path, grpc: str = "127.0.0.1:0") -> Iterator[Server]:
    settings = config.load(None, {"dir": str(folder), "grpc": grpc, "http": "127.0.0.1:0"})
    with Server(settings) as server:
        yield server


@pytest.mark.parametrize("kind", ["uvicorn", "flask"])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_each_call_is_one_record(kind: str, protocol: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with audit_service(folder) as server:
        address = server.addresses.grpc if protocol == "grpc" else server.addresses.http
        env = environment(OTEL_AUDIT_ENDPOINT=f"http://{address}", OTEL_AUDIT_PROTOCOL=protocol)
        with service(kind, tmp_path, env) as s:
            for n in range(20):
                s.get(f"/things/{n}", {"X-API-Key": "k"})
            s.get("/things/404")
            s.get("/broken")
            s.stop()
        found = calls_of(folder)
    assert [r["source_seq"] for r in found] == list(range(2, 24)), "1 is the start of the source"
    assert [r["outcome"] for r in found] == ["success"] * 20 + ["failure", "error"]
    assert [r["target"] for r in found[:2]] == ["/things/0", "/things/1"]
    assert {r["client_auth"] for r in found} == {"api_key (unverified)", "none"}


def test_the_users_own_exporter_to_the_same_service_doubles_nothing(tmp_path: Path) -> None:
    """The default of `opentelemetry-distro` exports to the port where the service listens."""
    folder = tmp_path / "log"
    with audit_service(folder) as server:
        env = environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{server.addresses.grpc}",
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_BSP_SCHEDULE_DELAY="1000",
        )
        with service("uvicorn", tmp_path, env) as s:
            for n in range(20):
                s.get(f"/things/{n}")
            wait_until(lambda: server.stats().duplicates >= 20)
            s.stop()
        found = calls_of(folder)
        with Query(LogReader.open(folder).snapshot()) as query:
            (source,) = survey(query, read_notes(folder))
    assert sorted(r["target"] for r in found) == sorted(f"/things/{n}" for n in range(20))
    theirs = sum(r["source_seq"] is None for r in found)
    assert (source.missing_count, source.copies, source.records) == (0, theirs, 22 - theirs), "whoever was first"


def test_calls_made_while_the_service_is_down_are_recorded_when_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with ExitStack() as stack:
        with audit_service(folder) as server:
            address = server.addresses.grpc
            assert address is not None
            s = stack.enter_context(service("uvicorn", tmp_path, environment(OTEL_AUDIT_ENDPOINT=f"http://{address}")))
            s.get("/things/1")
            wait_until(lambda: len(calls_of(folder)) == 1)
        for n in range(2, 50):
            assert s.get(f"/things/{n}") == 200
        with audit_service(folder, address):
            wait_until(lambda: len(calls_of(folder)) >= 49)
            s.stop()
    found = calls_of(folder)
    assert sorted(r["source_seq"] for r in found) == list(range(2, 51))
    assert len({r["source_id"] for r in found}) == 1
