"""Audit records as OTLP logs, sent as services in any language do: by OpenTelemetry's own log exporters, by gRPC, by HTTP."""

import gzip
import json
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry._logs import LogRecord as ApiLogRecord
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_audit.errors import UnavailableError
from otel_audit.otlp import Decoder
from otel_audit.receiver import Receiver
from tests.logs_support import log_record, logs_request, logs_to_json
from tests.otlp_support import rows
from tests.receiver_support import NOT_OTLP, FakeLog, failure, receiver

EXPORT = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
KINDS = ["grpc-none", "grpc-gzip", "http-none", "http-gzip", "http-deflate"]


def exporter(kind: str, r: Receiver) -> Any:
    transport, _, compression = kind.partition("-")
    if transport == "grpc":
        chosen = grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression
        return GrpcExporter(endpoint=f"http://{r.grpc_address}", insecure=True, compression=chosen)
    which = {c.value: c for c in HttpCompression}[compression]
    return HttpExporter(endpoint=f"http://{r.http_address}/v1/logs", compression=which)


@pytest.mark.parametrize("kind", KINDS)
def test_log_records_of_the_sdk_become_records(kind: str) -> None:
    log = FakeLog()
    with receiver(log) as r:
        provider = LoggerProvider(resource=Resource({"service.name": "crm", "deployment.environment.name": "test"}))
        provider.add_log_record_processor(SimpleLogRecordProcessor(exporter(kind, r)))
        logger = provider.get_logger("test")
        tracer = TracerProvider().get_tracer("test")
        with tracer.start_as_current_span("a call") as span:
            logger.emit(
                ApiLogRecord(
                    timestamp=1_795_420_800_123_456_789,
                    event_name="audit.record",
                    body="merged",
                    attributes={"audit.action": "merge", "audit.client.id": "c-1", "audit.target.id": "/contacts/4"},
                )
            )
            logger.emit(ApiLogRecord(body="an ordinary line"))
        provider.shutdown()
        assert (r.stats().log_records, r.stats().skipped, r.stats().spans) == (2, 1, 0)
    (record,) = [row for decoded in log.taken for row in rows(decoded)]
    assert (record["service"], record["environment"], record["action"]) == ("crm", "test", "merge")
    assert (record["client_id"], record["target"], record["duration_ns"]) == ("c-1", "/contacts/4", None)
    assert record["trace_id"] == span.get_span_context().trace_id.to_bytes(16, "big")
    assert json.loads(record["attributes"]) == {
        "audit.log.body": "merged",
        "audit.log.span_id": f"{span.get_span_context().span_id:016x}",
    }


BODY: bytes = logs_request(log_record({"audit.action": "merge"}), log_record(event_name="")).SerializeToString()
JSON: bytes = json.dumps(logs_to_json(logs_request(log_record({"audit.action": "merge"})))).encode()


@pytest.mark.parametrize(
    ("content", "kind", "coding"),
    [(BODY, "application/x-protobuf", ""), (JSON, "application/json", ""), (JSON, "application/json", "gzip")],
)
def test_http_takes_logs_in_both_encodings(content: bytes, kind: str, coding: str) -> None:
    log = FakeLog()
    headers = {"content-type": kind, **({"content-encoding": coding} if coding else {})}
    with receiver(log) as r:
        data = gzip.compress(content) if coding else content
        response = httpx.post(f"http://{r.http_address}/v1/logs", content=data, headers=headers)
        again = httpx.post(f"http://{r.http_address}/v1/%6cogs", content=data, headers=headers)
    assert (response.status_code, again.status_code) == (200, 200)
    assert response.content == (b"" if kind == "application/x-protobuf" else b"{}")
    assert [d.records.column("action").to_pylist() for d in log.taken] == [["merge"]] * 2


@pytest.mark.parametrize("path", ["/v1/logs", "/v1/traces"])
def test_each_path_reads_its_own_kind_of_request(path: str) -> None:
    # On the wire a request of logs is one of traces whose spans make no sense, and the other way round.
    log = FakeLog()
    with receiver(log) as r:
        httpx.post(
            f"http://{r.http_address}{path}", content=BODY, headers={"content-type": "application/x-protobuf"}
        ).raise_for_status()
    assert log.taken[0].records.num_rows == (path == "/v1/logs")


def test_what_is_not_otlp_is_kept_as_a_logs_request_and_refused_on_both_transports() -> None:
    log = FakeLog()
    with receiver(log) as r, grpc.insecure_channel(r.grpc_address or "") as channel:
        export: Any = channel.unary_unary(EXPORT)
        with pytest.raises(grpc.RpcError) as refused:
            export(NOT_OTLP, timeout=10)
        response = httpx.post(
            f"http://{r.http_address}/v1/logs", content=NOT_OTLP, headers={"content-type": "application/x-protobuf"}
        )
    assert failure(refused.value)[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert response.status_code == 400
    kept = [q for decoded in log.taken for q in decoded.quarantine]
    assert [(q.kind, q.payload) for q in kept] == [("otlp.logs_request+protobuf", NOT_OTLP)] * 2


def test_logs_that_are_not_durable_are_to_be_sent_again() -> None:
    log = FakeLog(error=UnavailableError("append", "log", "disk full"))
    with receiver(log) as r, grpc.insecure_channel(r.grpc_address or "") as channel:
        export: Any = channel.unary_unary(EXPORT)
        with pytest.raises(grpc.RpcError) as refused:
            export(BODY, timeout=10)
        response = httpx.post(
            f"http://{r.http_address}/v1/logs", content=BODY, headers={"content-type": "application/x-protobuf"}
        )
    assert failure(refused.value)[0] is grpc.StatusCode.UNAVAILABLE
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_a_fault_in_the_decoder_keeps_the_request() -> None:
    class Broken(Decoder):
        def decode_logs(self, body: bytes) -> Any:
            raise RuntimeError(body)

    log = FakeLog()
    with receiver(log, decoder=Broken()) as r:
        response = httpx.post(
            f"http://{r.http_address}/v1/logs", content=BODY, headers={"content-type": "application/x-protobuf"}
        )
    assert response.status_code == 200
    assert [(q.reason, q.kind) for q in log.taken[0].quarantine] == [("internal_error", "otlp.logs_request+protobuf")]


def test_the_health_of_the_logs_service_is_told() -> None:
    with receiver(FakeLog()) as r, grpc.insecure_channel(r.grpc_address or "") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="opentelemetry.proto.collector.logs.v1.LogsService")
        assert stub.Check(request, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
