"""`otel-audit doctor --canary` through a real Collector into a real log: it finds what the pipeline does to calls."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_audit.reader import LogReader
from tests.certificates import Authority
from tests.collector.support import Collector, Service, free_port
from tests.support import all_records

PIPELINE = """\
extensions:
  file_storage/audit: {directory: ./queue, create_directory: true, fsync: true}
receivers:
  otlp:
    protocols:
      grpc: {endpoint: "127.0.0.1:GRPC", max_recv_msg_size_mib: 16}
      http: {endpoint: "127.0.0.1:HTTP"}
processors:
  memory_limiter: {check_interval: 1s, limit_mib: 200}
PROCESSORS
exporters:
  otlp_grpc/audit:
    endpoint: SERVICE
    tls: {insecure: true}
    timeout: 40s
    retry_on_failure: {max_elapsed_time: 0}
    sending_queue: {storage: file_storage/audit, block_on_overflow: true, sizer: bytes, queue_size: 100000000}
service:
  extensions: [file_storage/audit]
  telemetry: {metrics: {level: none}}
  pipelines:
    traces/audit:
      receivers: [otlp]
      processors: [memory_limiter, NAMES]
      exporters: [otlp_grpc/audit]
"""
SAMPLER = """\
  tail_sampling:
    decision_wait: 1s
    policies: [{name: half, type: probabilistic, probabilistic: {sampling_percentage: 50}}]
"""
REDACTION = """\
  transform:
    error_mode: ignore
    trace_statements:
      - delete_key(span.attributes, "audit.client.ip")
      - set(span.attributes["audit.client.name"], "someone") where span.attributes["http.request.method"] == "DELETE"
      - set(span.attributes["region"], "eu")
      - delete_key(span.attributes, "audit.canary.padding")
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "log") as running:
        yield running


def pipeline(
    folder: Path, service: Service, processors: str = "", names: str = "", text: str = PIPELINE
) -> tuple[Collector, str, str]:
    """A Collector in front of the service; its addresses of gRPC and HTTP."""
    grpc, http = free_port(), free_port()
    text = text.replace("GRPC", str(grpc)).replace("HTTP", str(http)).replace("SERVICE", service.grpc)
    text = text.replace("PROCESSORS", processors).replace("NAMES", names)
    path = folder / "collector.yaml"
    path.write_text(text)
    return Collector([path], folder), f"http://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}/v1/traces"


def canary(endpoint: str, service: Service, *arguments: str, timeout: str = "30") -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "otel_audit", "doctor", "--canary", endpoint, "--dir", str(service.directory)]
    command += ["--json", "--timeout", timeout, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_a_good_pipeline_brings_every_call_as_it_was_sent(tmp_path: Path, service: Service) -> None:
    collector, grpc, http = pipeline(tmp_path, service)
    with collector:
        for endpoint in (grpc, http):
            code, said, err = canary(endpoint, service, "--count", "60")
            assert (code, err) == (0, "")
            assert (said["sent"], said["arrived"]) == (62, 62)
            assert (said["missing"], said["changed"], said["duplicates"]) == ([], [], [])
            assert 0 < said["latency_ms"]["p50"] <= said["latency_ms"]["max"]
    records = all_records(LogReader.open(service.directory).snapshot())
    assert len(records) == 124
    assert {r["action"] for r in records} == {"otel_audit.start", "otel_audit.canary", "otel_audit.stop"}
    assert {r["service"] for r in records} == {"otel-audit-canary"}


def test_a_canary_is_a_source_that_ended_and_counts_as_no_call(tmp_path: Path, service: Service) -> None:
    code, said, _ = canary(f"http://{service.grpc}", service, "--count", "5")
    assert code == 0
    command = [sys.executable, "-m", "otel_audit", "gaps", "--all", "--json", "--dir", str(service.directory)]
    (source,) = map(json.loads, subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
    assert (source["source"], source["state"], source["records"]) == (said["source"], "clean", 7)
    command = [sys.executable, "-m", "otel_audit", "stats", "--json", "--dir", str(service.directory)]
    stats = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (stats["records"], stats["matching"]) == (7, 0)


def test_a_sampler_is_found_out(tmp_path: Path, service: Service) -> None:
    collector, grpc, _ = pipeline(tmp_path, service, SAMPLER, "tail_sampling")
    with collector:
        code, said, _ = canary(grpc, service, timeout="8")
    assert code == 3
    lost = sum(last - first + 1 for first, last in said["missing"])
    assert said["arrived"] + lost == said["sent"] == 102
    assert 10 < lost < 92  # half of them, by chance
    assert said["changed"] == []


def test_attributes_that_are_removed_or_set_are_found_out(tmp_path: Path, service: Service) -> None:
    collector, grpc, _ = pipeline(tmp_path, service, REDACTION, "transform")
    with collector:
        code, said, _ = canary(grpc, service, "--count", "40")
    assert code == 3
    assert said["missing"] == []
    changed = {entry["column"]: entry for entry in said["changed"]}
    assert set(changed) >= {"client_ip", "client_name", "attributes.audit.canary.padding"}
    assert (changed["client_ip"]["records"], changed["client_ip"]["sent"]) == (40, "2001:db8::2")
    assert (changed["client_name"]["records"], changed["client_name"]["arrived"]) == (10, "someone")
    assert changed["attributes.audit.canary.padding"]["records"] == 4
    assert not any("region" in column or column in ("time", "client_id", "action") for column in changed)


def test_a_pipeline_that_is_not_there_or_says_no_is_a_failure(tmp_path: Path, service: Service) -> None:
    code, _, err = canary(f"127.0.0.1:{free_port()}", service, timeout="1")
    assert code == 1
    assert "not taken in time" in err
    code, _, err = canary(f"http://{service.http}/v1/nothing", service)
    assert code == 1
    assert "refused for good: HTTP 404" in err
    code, _, err = canary("nonsense", service)
    assert code == 2
    assert LogReader.open(service.directory).snapshot().last_seq == 0


def test_send_only_names_the_source_to_look_for(tmp_path: Path, service: Service) -> None:
    code, said, err = canary(f"http://{service.http}", service, "--protocol", "http", "--send-only", "--count", "3")
    assert (code, said["sent"]) == (0, 5)
    assert f"otel-audit gaps --all --source {said['source']}" in err
    records = all_records(LogReader.open(service.directory).snapshot())
    assert [r["source_id"] for r in records] == [said["source"]] * 5


def test_tls_and_a_token_are_spoken_over_both_protocols(tmp_path: Path, service: Service) -> None:
    authority = Authority(tmp_path, "authority")
    issued = authority.issue("server")
    tls = f'tls: {{cert_file: "{issued.certificate}", key_file: "{issued.key}"}}, auth: {{authenticator: bearertokenauth}}'
    text = PIPELINE.replace("max_recv_msg_size_mib: 16}", f"max_recv_msg_size_mib: 16, {tls}}}")
    text = text.replace('HTTP"}', f'HTTP", {tls}}}').replace(
        "extensions:\n", "extensions:\n  bearertokenauth: {token: t0ken}\n", 1
    )
    text = text.replace("[file_storage/audit]", "[file_storage/audit, bearertokenauth]")
    collector, grpc, http = pipeline(tmp_path, service, text=text)
    with collector:
        for endpoint in (grpc.replace("http:", "https:"), http.replace("http:", "https:")):
            token = ("--header", "authorization=Bearer t0ken")
            code, said, err = canary(endpoint, service, "--ca", str(authority.file), *token, "--count", "5")
            assert (code, said.get("arrived"), err) == (0, 7, "")
            code, _, err = canary(endpoint, service, "--ca", str(authority.file), timeout="2")
            assert code == 1
            assert "refused for good" in err
            code, _, err = canary(endpoint, service, *token, timeout="1")
            assert code == 1
            assert "not taken in time" in err
