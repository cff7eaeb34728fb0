"""The files of collector-config/ that stand alone: a real Collector takes them, and they carry calls into a real log."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tests.collector.pipeline import EXPORT, Place, arrived, bodies, call, check_complete, post, send
from tests.collector.support import CONFIGS, Service, validate_with_collector, wait_for
from tests.otlp_support import encoded, request

FILES = ["agent.yaml", "fan-out.yaml", "gateway.yaml", "redaction.yaml"]
OPEN = ["agent.yaml", "fan-out.yaml", "redaction.yaml"]
"""Those that run without certificates."""


@pytest.mark.parametrize("name", FILES)
def test_the_collector_finds_nothing_wrong(name: str) -> None:
    assert validate_with_collector([CONFIGS / name]) == ""


@pytest.mark.parametrize("name", OPEN)
def test_calls_arrive_complete_and_once(name: str, tmp_path: Path) -> None:
    with Service(tmp_path / "log") as service:
        place = Place(tmp_path, service.grpc)
        with place.start(name) as collector:
            send(place.grpc, bodies(300, each=30))
            last = next(bodies(10, each=10))
            assert post(place.http, last) == 200  # again, over HTTP: no second records
            check_complete(arrived(service, 300), range(300))
            said = collector.said()
    assert "deprecat" not in said.lower()
    assert "Dropping data" not in said


@pytest.mark.parametrize("name", OPEN)
def test_what_was_answered_survives_a_kill_while_the_log_is_away(name: str, tmp_path: Path) -> None:
    with Service(tmp_path / "log") as service:
        address = service.grpc
    place = Place(tmp_path, address)
    with place.start(name) as collector:
        send(place.grpc, bodies(200, each=10))
        collector.kill()
    with place.start(name), Service(tmp_path / "log", grpc=address) as service:
        check_complete(arrived(service, 200), range(200))


def test_a_full_queue_makes_senders_wait_and_loses_nothing(tmp_path: Path) -> None:
    with Service(tmp_path / "log") as service:
        address = service.grpc
    place = Place(tmp_path, address)
    with place.start("agent.yaml", AUDIT_QUEUE_BYTES="20000"):
        taken = _taken(place, bodies(1000, each=10))
        assert 0 < taken < 100  # it took some, and made the rest wait
        with Service(tmp_path / "log", grpc=address) as service:
            send(
                place.grpc, bodies(1000, each=10)
            )  # as the senders do: once more, from the one that was not taken or earlier
            check_complete(arrived(service, 1000), range(1000))


def _taken(place: Place, requests: Iterator[bytes]) -> int:
    """How many requests are answered with success until one is not."""
    count = 0
    try:
        for body in requests:
            send(place.grpc, iter([body]), timeout_s=3)
            count += 1
    except grpc.RpcError:
        return count
    raise AssertionError("all were taken")


def test_a_batch_of_ten_megabytes_goes_through(tmp_path: Path) -> None:
    body = encoded(request(*(call(n, **{"app.note": "x" * 20_000}) for n in range(500))))
    assert len(body) > 10_000_000
    with Service(tmp_path / "log") as service:
        place = Place(tmp_path, service.grpc)
        with place.start("agent.yaml"):
            send(place.grpc, iter([body]))
            assert post(place.http, body) == 200
            check_complete(arrived(service, 500), range(500))


def test_the_collector_tells_of_its_queue(tmp_path: Path) -> None:
    """The metrics that the alert rules and the dashboard ask for."""
    with Service(tmp_path / "log") as service:
        place = Place(tmp_path, service.grpc)
        with place.start("agent.yaml"):
            send(place.grpc, bodies(20, each=10))
            arrived(service, 20)
            names = {re.split(r"[{ ]", series)[0].removesuffix("_total") for series in place.metrics()}
    late = {"otelcol_exporter_send_failed_spans", "otelcol_exporter_enqueue_failed_spans"}  # only once one failed
    asked = _asked_of_the_collector()
    assert late < asked
    assert asked - late <= names


def test_what_is_refused_for_good_is_dropped_and_counted_as_the_alert_asks(tmp_path: Path) -> None:
    """The one way in which these files lose data; the log itself gives no such answer to a Collector that it knows."""

    def refuse(_: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
        return b""

    handler: Any = grpc.unary_unary_rpc_method_handler(refuse)
    path, _, method = EXPORT.lstrip("/").partition("/")
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(path, {method: handler}),))
    place = Place(tmp_path, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    server.start()

    def dropped() -> dict[str, float]:
        return {s: v for s, v in place.metrics().items() if s.startswith("otelcol_exporter_send_failed_spans")}

    try:
        with place.start("agent.yaml") as collector:
            send(place.grpc, bodies(10, each=10))
            wait_for(dropped, "the drop is counted")
            ((series, value),) = dropped().items()
            assert 'exporter="otlp_grpc/audit"' in series
            assert 'error_permanent="true"' in series
            assert value == 10
            assert "Dropping data" in collector.said()
    finally:
        server.stop(None).wait()


def test_a_collector_that_is_stopped_keeps_what_it_could_not_deliver(tmp_path: Path) -> None:
    with Service(tmp_path / "log") as service:
        address = service.grpc
    place = Place(tmp_path, address)
    with place.start("agent.yaml") as collector:
        send(place.grpc, bodies(100, each=10))
        collector.terminate()
    with place.start("agent.yaml"), Service(tmp_path / "log", grpc=address) as service:
        check_complete(arrived(service, 100), range(100))


def _asked_of_the_collector() -> set[str]:
    text = " ".join((CONFIGS / name).read_text() for name in ("grafana/otel-audit.json", "prometheus/rules.yaml"))
    asked = set()
    for before, choice, after in re.findall(r"(otelcol_[a-z_]+)(?:\(([a-z]+\|[a-z|]+)\)([a-z_]+))?", text):
        asked |= {before + one + after for one in choice.split("|")}
    return asked


@pytest.mark.parametrize("name", FILES)
def test_the_audit_branch_has_what_keeps_data(name: str) -> None:
    """The promises of the table in the README, on the text of each file."""
    config = yaml.safe_load((CONFIGS / name).read_text())
    exporter = config["exporters"]["otlp_grpc/audit"]
    queue = exporter["sending_queue"]
    storage = config["extensions"][queue["storage"]]
    assert (storage["fsync"], storage["create_directory"]) == (True, True)
    assert storage["compaction"]["directory"] == storage["directory"]
    assert "recreate" not in storage
    assert queue["enabled"] in (True, "${env:AUDIT_QUEUE:-true}")
    assert (queue["block_on_overflow"], queue["sizer"]) == (True, "bytes")
    assert "batch" not in queue
    assert exporter["retry_on_failure"] == {"enabled": True, "max_elapsed_time": 0}
    branch = config["service"]["pipelines"]["traces/audit"]
    assert branch["exporters"] == ["otlp_grpc/audit"]
    assert branch["processors"][0] == "memory_limiter"
    assert set(branch["processors"]) <= {"memory_limiter", "transform/redact"}
