"""What capture counts, as the metrics of the SDK, in real processes that fork."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.capture_support import APPS, environment, free_port, grpc_sink

PROGRAM = """
import json, os, sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
import otel_audit

def counters(reader):
    found = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name.startswith("otel_audit.capture."):
                    (point,) = metric.data.data_points
                    found[metric.name.removeprefix("otel_audit.capture.")] = point.value
    return found

def calls(count):
    tracer = trace.get_tracer("shop")
    for n in range(count):
        tracer.start_span(f"GET /{n}", kind=trace.SpanKind.SERVER).end()
    trace.get_tracer_provider().force_flush()

otel_audit.install()
trace.set_tracer_provider(TracerProvider())
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))  # later than capture: it must be found all the same
calls(3)
out, into = os.pipe()
if os.fork() == 0:
    calls(5)
    os.write(into, json.dumps(counters(reader)).encode())
    raise SystemExit(0)
os.wait()
calls(1)
print(json.dumps([counters(reader), json.loads(os.read(out, 65536))]))
"""


def run(tmp_path: Path, flush_ms: int = 30_000, **settings: str) -> list[dict[str, Any]]:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.replace("force_flush()", f"force_flush({flush_ms})"))
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment(OTEL_AUDIT_SPOOL_DIR=str(tmp_path / "spool"), **settings),
        cwd=APPS,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_each_process_counts_what_it_spooled_and_delivered(tmp_path: Path) -> None:
    with grpc_sink() as sink:
        parent, child = run(tmp_path, OTEL_AUDIT_ENDPOINT=sink.address)
    for counters, records in ((parent, 5), (child, 6)):  # calls, and the start of the source
        assert counters["spooled"] == records
        assert counters["delivered"] == records
        assert counters["refused"] == 0
        assert counters["lost"] == 0
        assert counters["spool.size"] > 0


def test_what_is_refused_is_counted(tmp_path: Path) -> None:
    import grpc

    with grpc_sink() as sink:
        sink.refuse = lambda _: (grpc.StatusCode.INVALID_ARGUMENT, "not like this", ())
        parent, _ = run(tmp_path, OTEL_AUDIT_ENDPOINT=sink.address)
    assert parent["refused"] > 0
    assert parent["delivered"] == 0


def test_what_waits_for_its_destination_is_spooled_and_not_delivered(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    parent, child = run(tmp_path, 10, OTEL_AUDIT_ENDPOINT=nobody, OTEL_AUDIT_EXIT_TIMEOUT="0")
    assert (parent["spooled"], parent["delivered"]) == (5, 0)
    assert (child["spooled"], child["delivered"]) == (6, 0)
