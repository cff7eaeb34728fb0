"""What a real service tells: to who scrapes it, to a real Collector, to systemd, and in its log."""

import json
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from otel_audit.config import load
from otel_audit.server import Server
from otel_audit.telemetry import INSTRUMENTS
from tests.collector.support import Collector, Service, free_port, wait_for
from tests.otlp_support import encoded, request, span
from tests.receiver_support import NOT_OTLP, body, export_to

PROTOBUF = {"content-type": "application/x-protobuf"}
PROMETHEUS = (
    "service: {telemetry: {metrics: {readers: [{pull: {exporter: {prometheus: {host: 127.0.0.1, port: 0}}}}]}}}\n"
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(url: str) -> Samples:
    """Every sample by its name and labels, as Prometheus reads them."""
    response = httpx.get(url, trust_env=False, timeout=30)
    assert response.status_code == 200
    families = text_string_to_metric_families(response.text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"otel_audit_{name}", tuple(sorted(labels.items()))]


def metrics_url(service: Service) -> str:
    found = re.search(r"metrics are at (http://\S+)", service.said())
    assert found, service.said()
    return found[1]


def post(service: Service, content: bytes, headers: Mapping[str, str] = PROTOBUF) -> int:
    url = f"http://{service.http}/v1/traces"
    return httpx.post(url, content=content, headers=headers, trust_env=False, timeout=30).status_code


def test_what_is_scraped_under_traffic_is_what_was_sent(tmp_path: Path) -> None:
    config = tmp_path / "audit.yaml"
    config.write_text(PROMETHEUS + "log: {segment_age: 1h}\n")
    senders, requests, spans = 3, 20, 10
    with Service(tmp_path / "log", "--config", config) as service:
        url = metrics_url(service)
        over = threading.Event()
        seen: list[float] = []

        def scrape() -> None:
            while not over.is_set():
                seen.append(value(samples(url), "log_records_total"))

        def send(sender: int) -> None:
            with export_to(service.grpc) as export:
                for number in range(requests):
                    own = [
                        span(
                            trace_id=(1 + sender * requests + number).to_bytes(8, "big") * 2,
                            span_id=(n + 1).to_bytes(8, "big"),
                        )
                        for n in range(spans)
                    ]
                    export(encoded(request(*own)), timeout=60)

        scraper = threading.Thread(target=scrape)
        workers = [threading.Thread(target=send, args=(n,)) for n in range(senders)]
        scraper.start()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        over.set()
        scraper.join()
        assert post(service, body(7)) == 200
        assert post(service, body(7)) == 200, "a retry"
        assert post(service, encoded(request(span(span_id=b"\5" * 8, kind=3)))) == 200, "no audit record"
        assert post(service, NOT_OTLP) == 400
        assert post(service, b"{", {"content-type": "text/plain"}) == 415
        found = samples(url)
        assert service.terminate() == 0
    records = senders * requests * spans
    assert seen == sorted(seen), "counters never go back"
    assert {
        "grpc": value(found, "receiver_accepted_spans_total", transport="grpc"),
        "http": value(found, "receiver_accepted_spans_total", transport="http"),
        "skipped": value(found, "receiver_skipped_spans_total"),
        "requests": value(found, "receiver_requests_total"),
        "records": value(found, "log_records_total"),
        "duplicates": value(found, "log_duplicates_total"),
        "last_seq": value(found, "log_last_seq"),
        "unsealed": value(found, "seal_unsealed_records"),
        "quarantine": value(found, "quarantine_entries_total"),
        "stored": value(found, "quarantine_stored_entries"),
        "undecodable": value(found, "receiver_refused_requests_total", reason="undecodable"),
        "content_type": value(found, "receiver_refused_requests_total", reason="content_type"),
        "unavailable": value(found, "receiver_refused_requests_total", reason="unavailable"),
        "healthy": value(found, "healthy"),
        "in_flight": value(found, "receiver_in_flight_bytes"),
    } == {
        "grpc": records,
        "http": 15,
        "skipped": 1,
        "requests": senders * requests + 3,
        "records": records + 7,
        "duplicates": 7,
        "last_seq": records + 7,
        "unsealed": records + 7,
        "quarantine": 1,
        "stored": 1,
        "undecodable": 1,
        "content_type": 1,
        "unavailable": 0,
        "healthy": 1,
        "in_flight": 0,
    }
    commits = value(found, "log_commit_duration_seconds_count")
    assert 1 <= value(found, "journal_fsync_duration_seconds_count") <= commits <= senders * requests + 5
    assert 0 < value(found, "journal_fsync_duration_seconds_sum") < value(found, "log_commit_duration_seconds_sum")
    assert value(found, "seal_lag_seconds") > 0


def test_the_service_tells_every_metric_of_the_table_and_no_other(tmp_path: Path) -> None:
    config = tmp_path / "audit.yaml"
    config.write_text(f"{PROMETHEUS}\nexporters: {{otlp_logs: {{endpoint: 'http://127.0.0.1:9'}}}}\n")
    with Server(load(config, {"dir": str(tmp_path / "log"), "grpc": "127.0.0.1:0", "http": "127.0.0.1:0"})) as server:
        text = httpx.get(f"http://{server.telemetry.addresses[0]}/metrics", trust_env=False).text
    told = set(re.findall(r"^# TYPE (otel_audit_\w+) ", text, re.MULTILINE))
    assert told == {i.prometheus for i in INSTRUMENTS}


def test_the_lag_of_sealing_ends_with_the_seal(tmp_path: Path) -> None:
    config = tmp_path / "audit.yaml"
    config.write_text(PROMETHEUS + "log: {segment_age: 1h}\n")
    settings = load(config, {"dir": str(tmp_path / "log"), "grpc": "127.0.0.1:0", "http": "127.0.0.1:0"})
    with Server(settings) as server, export_to(server.addresses.grpc) as export:
        url = f"http://{server.telemetry.addresses[0]}/metrics"
        assert value(samples(url), "seal_lag_seconds") == 0
        export(body(3), timeout=30)
        first = value(samples(url), "seal_lag_seconds")
        assert 0 < first < value(samples(url), "seal_lag_seconds")
    with Server(settings) as server, export_to(server.addresses.grpc) as export:
        url = f"http://{server.telemetry.addresses[0]}/metrics"
        assert value(samples(url), "seal_lag_seconds") > first, "a restart does not make it younger"
        server.log.seal(60)
        found = samples(url)
        assert (value(found, "seal_lag_seconds"), value(found, "seal_unsealed_records")) == (0, 0)
        assert value(found, "seal_segments_total") == 1


# --- pushed -----------------------------------------------------------------------------------------------------------------
def pushed(file: Path) -> dict[str, Any]:
    """The last push that a Collector wrote down: metrics by name, and the resource under `resource`."""
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")] if file.exists() else []
    if not lines:
        return {}
    (resource_metrics,) = json.loads(lines[-1])["resourceMetrics"]
    (scope_metrics,) = resource_metrics["scopeMetrics"]
    attributes = {a["key"]: a["value"].get("stringValue") for a in resource_metrics["resource"]["attributes"]}
    return {"resource": attributes, **{m["name"]: m for m in scope_metrics["metrics"]}}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_real_collector_gets_what_is_pushed(tmp_path: Path, protocol: str) -> None:
    ports = {"grpc": free_port(), "http/protobuf": free_port()}
    out = tmp_path / "metrics.json"
    collector = tmp_path / "collector.yaml"
    collector.write_text(
        f"""
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: "127.0.0.1:{ports["grpc"]}"}}
      http: {{endpoint: "127.0.0.1:{ports["http/protobuf"]}"}}
exporters: {{file: {{path: {out}}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{metrics: {{receivers: [otlp], exporters: [file]}}}}
"""
    )
    config = tmp_path / "audit.yaml"
    config.write_text(
        f"""
service:
  telemetry:
    metrics:
      readers:
        - periodic:
            interval: 300
            exporter:
              otlp: {{protocol: {protocol}, endpoint: "http://127.0.0.1:{ports[protocol]}", headers: [{{name: X-Who, value: me}}]}}
    resource: {{deployment.environment.name: test}}
"""
    )
    with Collector([collector], tmp_path), Service(tmp_path / "log", "--config", config) as service:
        with export_to(service.grpc) as export:
            export(body(9), timeout=30)

        def arrived() -> bool:
            spans = pushed(out).get("otel_audit.receiver.accepted_spans")
            return spans is not None and any(p.get("asInt") == "9" for p in spans["sum"]["dataPoints"])

        wait_for(arrived, "the numbers are pushed")
        assert service.terminate() == 0
        found = pushed(out)
    assert found["resource"]["service.name"] == "otel-audit"
    assert found["resource"]["deployment.environment.name"] == "test"
    assert found["resource"]["service.instance.id"]
    spans = found["otel_audit.receiver.accepted_spans"]
    assert (spans["unit"], spans["sum"]["aggregationTemporality"], spans["sum"]["isMonotonic"]) == ("{span}", 2, True)
    by_transport = {p["attributes"][0]["value"]["stringValue"]: p["asInt"] for p in spans["sum"]["dataPoints"]}
    assert by_transport == {"grpc": "9", "http": "0"}
    assert found["otel_audit.log.last_seq"]["gauge"]["dataPoints"][0]["asInt"] == "9"
    fsync = found["otel_audit.journal.fsync.duration"]
    (point,) = fsync["histogram"]["dataPoints"]
    assert (fsync["unit"], point["count"], fsync["histogram"]["aggregationTemporality"]) == ("s", "1", 2)
    assert sum(map(int, point["bucketCounts"])) == 1
    assert "min" not in point
    assert found["otel_audit.healthy"]["gauge"]["dataPoints"][0]["asInt"] == "0", "the last push comes after the end"


def test_an_endpoint_that_is_not_there_disturbs_nothing(tmp_path: Path) -> None:
    config = tmp_path / "audit.yaml"
    config.write_text(
        "service: {telemetry: {metrics: {readers: [{periodic: {interval: 100, exporter: {otlp: "
        f"{{endpoint: 'http://127.0.0.1:{free_port()}'}}}}}}}}]}}}}}}\n"
    )
    with Service(tmp_path / "log", "--config", config) as service:
        with export_to(service.grpc) as export:
            export(body(9), timeout=30)
        wait_for(lambda: "opentelemetry" in service.said(), "the failure is logged")
        assert service.terminate(60) == 0


# --- log --------------------------------------------------------------------------------------------------------------------
def test_with_json_nothing_but_objects_is_written(tmp_path: Path) -> None:
    config = tmp_path / "audit.yaml"
    config.write_text("service: {telemetry: {logs: {encoding: json}}}\n")
    with Service(tmp_path / "log", "--config", config) as service:
        assert post(service, NOT_OTLP) == 400
        assert service.terminate() == 0
        lines = [json.loads(line) for line in service.said().splitlines()]
    assert all(set(line) >= {"ts", "level", "logger", "msg"} for line in lines)
    (listening,) = [line for line in lines if line["msg"].startswith("listening ")]
    assert (listening["grpc"], listening["http"], listening["directory"]) == (
        service.grpc,
        service.http,
        str(tmp_path / "log"),
    )
    (refused,) = [line for line in lines if line.get("reason") == "undecodable"]
    assert (refused["level"], refused["logger"], refused["count"]) == ("warn", "otel_audit.receiver", 1)
    assert lines[-1]["msg"].startswith("stopped: ")


def test_a_level_keeps_what_is_below_it_out(tmp_path: Path) -> None:
    config = tmp_path / "audit.yaml"
    config.write_text("service: {telemetry: {logs: {level: warn}}}\n")
    with Service(tmp_path / "log", "--config", config) as service:
        assert post(service, NOT_OTLP) == 400
        assert service.terminate() == 0
        lines = service.said().splitlines()
    assert [line.split()[0] == "listening" or " WARNING " in line for line in lines] == [True, True]


# --- systemd ----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        yield sock


def test_the_service_manager_hears_of_readiness_life_and_the_end(tmp_path: Path, manager: socket.socket) -> None:
    told = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "600000"}
    with Service(tmp_path / "log", environment=told) as service:
        assert manager.recv(1000) == b"READY=1"
        with grpc.insecure_channel(service.grpc) as channel:
            grpc.channel_ready_future(channel).result(30)
        said = {manager.recv(1000) for _ in range(4)}
        assert said == {b"STATUS=ready", b"WATCHDOG=1"}
        service.send(signal.SIGTERM)
        while (last := manager.recv(1000)) == b"WATCHDOG=1":
            pass
        assert last == b"STOPPING=1"
        wait_for(lambda: service.exit_code == 0, "it ends")
