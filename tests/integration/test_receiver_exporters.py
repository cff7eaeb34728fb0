"""OpenTelemetry's own Python exporters, as services use them, against the receiver."""

import threading
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from otel_audit.errors import UnavailableError
from otel_audit.receiver import IntakeSettings, Receiver
from tests.receiver_support import FakeLog, receiver, settings


def finished(count: int) -> Sequence[ReadableSpan]:
    """Spans as an instrumented service ends them."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "crm"}))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    for i in range(count):
        attributes: dict[str, str | int] = {
            "http.request.method": "GET",
            "http.route": f"/contacts/{i}",
            "http.response.status_code": 200,
        }
        tracer.start_span("GET", kind=SpanKind.SERVER, attributes=attributes).end()
    provider.shutdown()
    return memory.get_finished_spans()


def exporter(kind: str, r: Receiver) -> SpanExporter:
    made: Any
    if kind.startswith("grpc"):
        compression = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}.get(
            kind.removeprefix("grpc-"), grpc.Compression.NoCompression
        )
        made = GrpcExporter(endpoint=f"http://{r.grpc_address}", insecure=True, compression=compression)
    else:
        compression_ = {c.value: c for c in HttpCompression}[kind.removeprefix("http-")]
        made = HttpExporter(endpoint=f"http://{r.http_address}/v1/traces", compression=compression_)
    assert isinstance(made, SpanExporter)
    return made


KINDS = ["grpc-none", "grpc-gzip", "grpc-deflate", "http-none", "http-gzip", "http-deflate"]


@pytest.mark.parametrize("kind", KINDS)
def test_spans_of_the_exporter_become_records(kind: str) -> None:
    log = FakeLog()
    with receiver(log) as r:
        sender = exporter(kind, r)
        assert sender.export(finished(5)) is SpanExportResult.SUCCESS
        sender.shutdown()
    records = log.taken[0].records
    assert records.column("service").to_pylist() == ["crm"] * 5
    assert records.column("route").to_pylist() == [f"/contacts/{i}" for i in range(5)]


@pytest.mark.parametrize("kind", ["grpc-none", "http-none"])
def test_the_exporter_comes_again_when_told_and_loses_nothing(kind: str) -> None:
    log = FakeLog(error=UnavailableError("append", "log", "disk full"))
    with receiver(log, settings(IntakeSettings(retry_after_s=0.1))) as r:
        sender = exporter(kind, r)
        results: list[SpanExportResult] = []
        export = threading.Thread(target=lambda: results.append(sender.export(finished(5))))
        export.start()
        assert log.arrived.acquire(timeout=10)
        log.error = None
        export.join(30)
        sender.shutdown()
    assert results == [SpanExportResult.SUCCESS]
    assert [d.records.num_rows for d in log.taken] == [5]


def test_the_grpc_exporter_reads_when_to_come_again() -> None:
    # Told nothing it could read, it waits 1, 2 and 4 s, and gives up after four tries, before its time of 10 s is over.
    log = FakeLog(error=UnavailableError("append", "log", "disk full"))
    with receiver(log, settings(IntakeSettings(retry_after_s=0.05))) as r:
        sender = exporter("grpc-none", r)
        assert sender.export(finished(1)) is SpanExportResult.FAILURE
        sender.shutdown()
        assert r.stats().refused == {"unavailable": 6}
