"""Records passed on as OTLP logs, by a real service to a real Collector and to another service."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from otel_audit.auditlog import AuditLog
from otel_audit.otlp import Decoder
from otel_audit.record import ASSIGNED
from tests.collector.support import Collector, Service, free_port, wait_for
from tests.forwarder_support import cursor
from tests.logs_support import log_record, logs_request
from tests.otlp_support import encoded, request, span
from tests.support import check_log, decoded

PROTOCOLS = ["grpc", "http/protobuf"]
COLLECTOR_CONFIG = """
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: "127.0.0.1:{grpc}"}}
      http: {{endpoint: "127.0.0.1:{http}"}}
exporters:
  file: {{path: {path}, flush_interval: 100ms}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    logs: {{receivers: [otlp], exporters: [file]}}
"""


def exporter_config(folder: Path, endpoint: str, protocol: str, more: str = "") -> Path:
    path = folder / "forward.yaml"
    path.write_text(
        f"exporters: {{otlp_logs: {{endpoint: 'http://{endpoint}', protocol: {protocol}, batch_records: 100{more}}}}}"
    )
    return path


def calls(count: int, first: int) -> bytes:
    """A trace request of numbered calls of several kinds."""
    kinds: list[dict[str, Any]] = [
        {
            "http.request.method": "GET",
            "http.route": "/a/{id}",
            "http.response.status_code": 200,
            "audit.note": {"a": 1},
        },
        {"rpc.system": "grpc", "rpc.service": "p.S", "rpc.method": "Get", "rpc.grpc.status_code": 5},
        {"audit.action": "merge", "audit.client.id": "c-1", "client.address": "192.0.2.1", "user.id": "u"},
    ]
    return encoded(
        request(
            *(
                span(
                    kinds[n % 3] | {"audit.source.id": "h-1-x", "audit.source.seq": n},
                    trace_id=n.to_bytes(16, "big"),
                    end_time_unix_nano=0 if n % 7 == 0 else span().end_time_unix_nano + n,
                )
                for n in range(first, first + count)
            ),
            resource={"service.name": f"crm-{first % 3}", "service.version": "1", "audit.tenant": "t"},
        )
    )


def filled(directory: Path, count: int) -> Path:
    """A log of so many records, part of it sealed."""
    with AuditLog.open(directory) as log:
        for first in range(1, count + 1, 500):
            log.append(Decoder().decode(calls(500, first)))
            if first < count // 2:
                log.seal()
    return directory


def without_assigned(records: list[dict[str, Any]]) -> list[str]:
    """Records but for what each log assigns itself, sorted."""
    return sorted(repr({k: v for k, v in r.items() if k not in ASSIGNED}) for r in records)


def exported(path: Path) -> list[dict[str, Any]]:
    """The log records in the Collector's file, attributes as a mapping, their resource's among them."""
    found = []
    for line in path.read_text().splitlines():
        for resource_logs in json.loads(line)["resourceLogs"]:
            for scope_logs in resource_logs["scopeLogs"]:
                for record in scope_logs["logRecords"]:
                    pairs = [*resource_logs["resource"].get("attributes", []), *record["attributes"]]
                    said = {a["key"]: next(iter(a["value"].values()), None) for a in pairs}
                    found.append({**record, "attributes": said})
    return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_real_collector_gets_every_record(tmp_path: Path, protocol: str) -> None:
    filled(tmp_path / "log", 3000)
    ports = {"grpc": free_port(), "http": free_port()}
    config, path = tmp_path / "collector.yaml", tmp_path / "logs.json"
    config.write_text(COLLECTOR_CONFIG.format(path=path, **ports))
    endpoint = f"127.0.0.1:{ports[protocol.partition('/')[0]]}"
    with (
        Collector([config], tmp_path),
        Service(tmp_path / "log", "--config", exporter_config(tmp_path, endpoint, protocol)) as service,
    ):
        httpx.post(
            f"http://{service.http}/v1/traces",
            content=calls(50, 5001),
            headers={"content-type": "application/x-protobuf"},
        ).raise_for_status()
        wait_for(lambda: path.exists() and len(exported(path)) >= 3050, "all records in the Collector's file")
        assert service.terminate() == 0
    found = {int(r["attributes"]["otel_audit.seq"]): r for r in exported(path)}
    assert len(exported(path)) == 3050
    for record in check_log(tmp_path / "log"):
        one = found[record["seq"]]
        said = one["attributes"]
        assert (one["eventName"], one["severityText"]) == ("audit.record", "INFO")
        assert (one["traceId"], one["spanId"]) == (record["trace_id"].hex(), record["span_id"].hex())
        assert int(one["timeUnixNano"]) == round(record["time"].timestamp() * 1e6) * 1000
        assert int(one["observedTimeUnixNano"]) == round(record["recorded_at"].timestamp() * 1e6) * 1000
        assert (said["audit.action"], said["audit.outcome"]) == (record["action"], record["outcome"])
        assert (said["service.name"], said["service.version"]) == (record["service"], "1")
        assert said["log.record.uid"] == said["audit.record.id"]
        assert record["action"] in one["body"]["stringValue"]
    assert len({r["attributes"]["log.record.uid"] for r in found.values()}) == 3050


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_another_service_has_the_same_records_exactly_once(tmp_path: Path, protocol: str) -> None:
    filled(tmp_path / "log", 2000)
    with Service(tmp_path / "other") as other:
        config = exporter_config(tmp_path, other.grpc if protocol == "grpc" else other.http, protocol)
        with Service(tmp_path / "log", "--config", config) as service:
            headers = {"content-type": "application/x-protobuf"}
            logs = logs_request(
                log_record({"audit.action": "a", "audit.record.id": "r-1"}, body="x")
            ).SerializeToString()
            httpx.post(f"http://{service.http}/v1/traces", content=calls(50, 5001), headers=headers).raise_for_status()
            httpx.post(f"http://{service.http}/v1/logs", content=logs, headers=headers).raise_for_status()
            wait_for(lambda: cursor(tmp_path / "log") == 2052, "all passed on")
            assert service.terminate() == 0
            assert " sent=2051 send_failed=0 " in service.said()
        assert other.terminate() == 0
    assert without_assigned(check_log(tmp_path / "other")) == without_assigned(check_log(tmp_path / "log"))


def test_what_a_collector_passes_on_is_the_same_as_well(tmp_path: Path) -> None:
    """otel-audit → Collector → otel-audit: a Collector changes neither ids nor values on the way."""
    filled(tmp_path / "log", 1000)
    port = free_port()
    with Service(tmp_path / "other") as other:
        config = tmp_path / "collector.yaml"
        config.write_text(
            f"""
receivers: {{otlp: {{protocols: {{grpc: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters: {{otlp: {{endpoint: "{other.grpc}", tls: {{insecure: true}}, sending_queue: {{enabled: false}}}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{logs: {{receivers: [otlp], exporters: [otlp]}}}}
"""
        )
        with (
            Collector([config], tmp_path),
            Service(tmp_path / "log", "--config", exporter_config(tmp_path, f"127.0.0.1:{port}", "grpc")),
        ):
            wait_for(lambda: cursor(tmp_path / "log") == 1001, "all passed on")
        assert other.terminate() == 0
    assert without_assigned(check_log(tmp_path / "other")) == without_assigned(check_log(tmp_path / "log"))


def test_a_service_starts_and_serves_while_the_destination_is_away(tmp_path: Path) -> None:
    port = free_port()
    config = exporter_config(tmp_path, f"127.0.0.1:{port}", "grpc", ", timeout: 1s")
    with Service(tmp_path / "log", "--config", config) as service:
        for first in range(1, 2001, 500):
            httpx.post(
                f"http://{service.http}/v1/traces",
                content=calls(500, first),
                headers={"content-type": "application/x-protobuf"},
            ).raise_for_status()
        wait_for(lambda: "not passed on, it is tried again" in service.said(), "a warning")
        assert cursor(tmp_path / "log") == 1
        with Service(tmp_path / "other", grpc=f"127.0.0.1:{port}"):
            wait_for(lambda: cursor(tmp_path / "log") == 2001, "all passed on")
        assert service.terminate() == 0
    assert len(check_log(tmp_path / "other")) == 2000


def test_a_destination_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for protocol in PROTOCOLS:
            config = exporter_config(tmp_path, f"127.0.0.1:{port}", protocol, ", timeout: 1h")
            log = tmp_path / protocol.replace("/", "-")
            with AuditLog.open(log) as opened:
                opened.append(decoded(10, 1))
            with Service(log, "--config", config) as service:
                assert service.terminate(60) == 0
                assert "lag=10" in service.said()
            assert cursor(log) == 1
