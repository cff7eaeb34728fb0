"""Straight into a local log, without a service: by environment, by endpoint, and as an exporter wired by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.capture_support import APPS, BIN, environment, service
from tests.support import calls_of


@pytest.mark.parametrize("kind", ["uvicorn", "flask"])
@pytest.mark.parametrize("how", ["exporter", "endpoint"])
def test_each_call_is_recorded_once(kind: str, how: str, tmp_path: Path) -> None:
    folder = tmp_path / "audit-log"
    env = {
        "exporter": {"OTEL_TRACES_EXPORTER": "audit", "OTEL_AUDIT_DIR": str(folder)},
        "endpoint": {"OTEL_AUDIT_ENDPOINT": f"file:{folder}"},
    }[how]
    with service(kind, tmp_path, environment(OTEL_BSP_SCHEDULE_DELAY="20", **env)) as s:
        for n in range(30):
            assert s.get(f"/things/{n}", {"X-API-Key": "k"}) == 200
        s.stop()
        assert "audit" not in s.output(), "nothing stood in the way, so nothing is said"
    found = calls_of(folder)
    assert sorted(r["source_seq"] for r in found) == list(range(2, 32)), "1 is the start of the source"
    assert {(r["service"], r["action"], r["outcome"]) for r in found} == {("things", "read", "success")}
    assert all(r["client_id"].startswith("key:") for r in found)


SCRIPT = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import {processor}
from otel_audit.capture.exporter import AuditSpanExporter

provider = TracerProvider()
provider.add_span_processor({processor}(AuditSpanExporter({endpoint!r})))
for n in range(10):
    provider.get_tracer("a").start_span("GET /", kind=trace.SpanKind.SERVER).end()
assert provider.force_flush()
"""


@pytest.mark.parametrize("processor", ["SimpleSpanProcessor", "BatchSpanProcessor"])
@pytest.mark.parametrize("instrument", [False, True])
def test_the_exporter_wired_by_hand(processor: str, instrument: bool, tmp_path: Path) -> None:
    """Also beside installed capture, for another destination and for the same."""
    folder = tmp_path / "audit-log"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(processor=processor, endpoint=f"file:{folder}"))
    words = [sys.executable, str(script)]
    env = environment()
    if instrument:
        words.insert(0, str(BIN / "opentelemetry-instrument"))
        env["OTEL_AUDIT_ENDPOINT"] = f"file:{folder}"
    done = subprocess.run(words, env=env, cwd=APPS, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(calls_of(folder)) == 10
    first = 2 if instrument else 1  # the exporter alone makes no record of its start
    assert [r["source_seq"] for r in calls_of(folder)] == list(range(first, first + 10))


def test_a_log_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    from otel_audit.auditlog import AuditLog

    folder = tmp_path / "audit-log"
    with service("flask", tmp_path, environment(OTEL_AUDIT_ENDPOINT=f"file:{folder}")) as s:
        with AuditLog.open(folder):
            assert s.get("/things/1") == 200
            assert s.get("/things/2") == 200
        s.stop()
    assert len(calls_of(folder)) == 2
