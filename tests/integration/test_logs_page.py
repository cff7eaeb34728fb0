"""What docs/logs.md shows works as it is shown, but for the addresses."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import yaml
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit import config, names
from otel_audit._forwarder_encode import RecordEncoder, request_of
from otel_audit.record import ASSIGNED, COLUMNS, span_schema
from tests.collector.support import Service, validate_with_collector, wait_for
from tests.property.test_forwarder_property import as_stored
from tests.support import check_log
from tests.tools import ROOT

PAGE = (ROOT / "docs" / "logs.md").read_text()


def block(language: str, holds: str) -> str:
    """The code block in that language that holds a text."""
    found = [b for b in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holds in b]
    assert len(found) == 1
    return str(found[0])


def test_the_python_example_makes_a_record(tmp_path: Path) -> None:
    with Service(tmp_path / "log") as service:
        program = block("python", "LoggerProvider").replace("localhost:4318", service.http) + "\nprovider.shutdown()\n"
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
        wait_for(lambda: check_log(tmp_path / "log"), "a record")
    (record,) = check_log(tmp_path / "log")
    assert (record["service"], record["action"], record["client_id"]) == ("payroll", "approve", "hr-batch")
    assert (record["target"], record["outcome"]) == ("/payslips/2026-11", "success")


def test_the_curl_example_makes_a_record(tmp_path: Path) -> None:
    found = re.search(r"-d '(.*?)'\n", block("console", "curl"), re.DOTALL)
    assert found
    with Service(tmp_path / "log") as service:
        response = httpx.post(
            f"http://{service.http}/v1/logs", content=found[1], headers={"content-type": "application/json"}
        )
        assert response.status_code == 200
    (record,) = check_log(tmp_path / "log")
    assert (record["service"], record["action"], record["client_id"]) == ("payroll", "approve", "hr-batch")


def test_the_settings_are_settings(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LOGS_TOKEN", "secret")
    path = tmp_path / "audit.yaml"
    path.write_text(block("yaml", "LOGS_TOKEN"))
    assert config.problems(path) == []
    exporter = config.load(path).otlp_logs
    assert exporter
    assert exporter.headers == (("Authorization", "Bearer secret"),)
    inline = re.search(r"`(exporters: \{otlp_logs.*?\}\})`", PAGE)
    assert inline
    path.write_text(inline[1])
    assert config.problems(path) == []


def test_the_collectors_configuration_is_one(tmp_path: Path) -> None:
    text = block("yaml", "logs/audit")
    (tmp_path / "collector.yaml").write_text(text)
    assert yaml.safe_load(text)["service"]["pipelines"]
    assert validate_with_collector([tmp_path / "collector.yaml"]) == ""


def test_the_table_names_every_attribute_and_every_column() -> None:
    table = PAGE.partition("### What a backend sees")[2]
    for column in COLUMNS:
        known = column.name in ("time", "trace_id", "span_id", "attributes", *ASSIGNED)
        assert known or f"`{column.name}`" in table, column.name
    row: dict[str, Any] = {c.name: "x" for c in COLUMNS if c.kind == "string"}
    row |= {"time": 1, "duration_ns": 1, "trace_id": b"t" * 16, "span_id": b"s" * 8, "source_seq": 1, "status_code": 5}
    for method in ("GET", "p.S/Get"):
        batch = pa.RecordBatch.from_pylist([{**row, "method": method}], schema=span_schema())
        body = request_of(RecordEncoder().encode(as_stored(batch)))
        resource_logs = ExportLogsServiceRequest.FromString(body).resource_logs[0]
        pairs = [*resource_logs.resource.attributes, *resource_logs.scope_logs[0].log_records[0].attributes]
        assert len(pairs) > 15
        for pair in pairs:
            assert f"`{pair.key}`" in table, pair.key
    assert f"`{names.EVENT_RECORD}`" in table
