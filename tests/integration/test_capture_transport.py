"""Each answer of a real receiver, over gRPC and HTTP, leads to what the OTLP specification asks for."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from otel_audit.capture.settings import destination
from otel_audit.capture.transport import Fate, _kept, connect
from tests.capture_support import METHOD, free_port, grpc_sink, http_sink

BODY = ExportTraceServiceRequest(
    resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[Span(name="GET /")])])]
).SerializeToString()


def details(seconds: int) -> tuple[tuple[str, bytes], ...]:
    packed = AnyMessage()
    packed.Pack(RetryInfo(retry_delay=Duration(seconds=seconds)))
    return (("grpc-status-details-bin", Status(code=14, details=[packed]).SerializeToString()),)


@pytest.mark.parametrize(
    ("code", "trailers", "fate", "delay_s"),
    [
        ("UNAVAILABLE", (), Fate.AGAIN, None),
        ("UNAVAILABLE", details(7), Fate.AGAIN, 7.0),
        ("UNAVAILABLE", details(86_400), Fate.AGAIN, 300.0),
        ("UNAVAILABLE", (("grpc-status-details-bin", b"\xff\xff"),), Fate.AGAIN, None),
        ("RESOURCE_EXHAUSTED", details(2), Fate.AGAIN, 2.0),
        (
            "RESOURCE_EXHAUSTED",
            (("google.rpc.retryinfo-bin", RetryInfo(retry_delay=Duration(seconds=3)).SerializeToString()),),
            Fate.AGAIN,
            3.0,
        ),
        ("DEADLINE_EXCEEDED", (), Fate.AGAIN, None),
        ("INTERNAL", (), Fate.AGAIN, None),
        ("INVALID_ARGUMENT", (), Fate.REFUSED, None),
        # an operator can put these right; the records wait for it
        ("UNAUTHENTICATED", (), Fate.AGAIN, 10.0),
        ("UNIMPLEMENTED", (), Fate.AGAIN, 10.0),
    ],
)
def test_grpc_answers(code: str, trailers: Any, fate: Fate, delay_s: float | None) -> None:
    with grpc_sink() as sink:
        sink.refuse = lambda attempt: (grpc.StatusCode[code], "because", trailers) if attempt == 1 else None
        transport = connect(destination({}, endpoint=sink.address))
        answer = transport.send(BODY, 10)
        assert (answer.fate, answer.delay_s) == (fate, delay_s)
        assert answer.reason.startswith(f"{code}: because")
        assert transport.send(BODY, 10).fate is Fate.KEPT
        transport.close()
        assert transport.send(BODY, 10).fate is Fate.KEPT
        transport.close()
        assert sink.bodies == [BODY, BODY]


@pytest.mark.parametrize(
    ("status", "headers", "fate", "delay_s"),
    [
        (503, {}, Fate.AGAIN, None),
        (503, {"Retry-After": "4"}, Fate.AGAIN, 4.0),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, Fate.AGAIN, 0.0),
        (503, {"Retry-After": "soon"}, Fate.AGAIN, None),
        (500, {}, Fate.AGAIN, None),
        (302, {"Location": "http://127.0.0.1:1/"}, Fate.AGAIN, 10.0),
        (401, {}, Fate.AGAIN, 10.0),
        (404, {}, Fate.AGAIN, 10.0),
        (408, {}, Fate.AGAIN, None),
        (400, {}, Fate.REFUSED, None),
        (413, {}, Fate.REFUSED, None),
    ],
)
def test_http_answers(status: int, headers: dict[str, str], fate: Fate, delay_s: float | None) -> None:
    with http_sink() as sink:
        sink.refuse = lambda attempt: (status, headers) if attempt == 1 else None
        transport = connect(destination({}, endpoint=sink.address, protocol="http/protobuf"))
        answer = transport.send(BODY, 10)
        assert (answer.fate, answer.delay_s) == (fate, delay_s)
        assert f"HTTP {status}" in answer.reason
        assert transport.send(BODY, 10).fate is Fate.KEPT
        transport.close()
        assert sink.bodies == [BODY]
        assert sink.metadata[-1]["path"] == "/v1/traces"


def test_a_message_that_is_too_large_for_the_server_is_not_tried_again_as_it_is() -> None:
    """It answers RESOURCE_EXHAUSTED, as when it is only busy; its words tell the difference."""
    handler = grpc.method_handlers_generic_handler(
        METHOD.split("/")[1], {"Export": grpc.unary_unary_rpc_method_handler(lambda *_: b"")}
    )
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", 1000)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        transport = connect(destination({}, endpoint=f"http://127.0.0.1:{port}"))
        answer = transport.send(BODY * 100, 10)
        assert answer.fate is Fate.REFUSED
        assert "RESOURCE_EXHAUSTED" in answer.reason
        assert transport.send(BODY, 10).fate is Fate.KEPT
        transport.close()
    finally:
        server.stop(None).wait()


def test_headers_and_compression_are_sent() -> None:
    env = {"OTEL_AUDIT_HEADERS": "authorization=Bearer%20x", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    with grpc_sink() as sink:
        transport = connect(destination(env, endpoint=sink.address))
        assert transport.send(BODY, 10).fate is Fate.KEPT
        transport.close()
        assert sink.metadata[0]["authorization"] == "Bearer x"
        assert sink.bodies == [BODY]
    with http_sink() as http:
        http.refuse = lambda _: (503, {})  # the sink does not unpack
        transport = connect(destination(env, endpoint=http.address, protocol="http/protobuf"))
        transport.send(BODY, 10)
        transport.close()
        assert http.metadata[0]["authorization"] == "Bearer x"
        assert http.metadata[0]["content-encoding"] == "gzip"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_nobody_there_and_nobody_answering_are_tried_again(protocol: str) -> None:
    transport = connect(destination({}, endpoint=f"http://127.0.0.1:{free_port()}", protocol=protocol))
    assert transport.send(BODY, 10).fate is Fate.AGAIN
    transport.close()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = connect(destination({}, endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", protocol=protocol))
        assert transport.send(BODY, 0.2).fate is Fate.AGAIN
        transport.close()


def test_a_partial_success_is_not_taken_for_a_whole_one() -> None:
    partial = ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
    )
    answer = _kept(partial.SerializeToString())
    assert (answer.fate, answer.dropped, answer.reason) == (Fate.KEPT, 3, "too old")
    assert _kept(b"").dropped == 0
    assert _kept(b"{}").dropped == 0


def test_an_idle_connection_that_the_server_closed_is_no_failure() -> None:
    with http_sink() as sink:
        transport = connect(destination({}, endpoint=sink.address, protocol="http/protobuf"))
        assert transport.send(BODY, 10).fate is Fate.KEPT
        connection = transport._connection  # type: ignore[attr-defined]
        connection.sock.shutdown(socket.SHUT_RDWR)
        assert transport.send(BODY, 10).fate is Fate.KEPT
        transport.close()


def test_a_certificate_that_is_not_there_is_tried_again_with_its_name() -> None:
    env = {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such/ca.pem"}
    for protocol in ("grpc", "http/protobuf"):
        transport = connect(destination(env, endpoint="https://127.0.0.1:1", protocol=protocol))
        answer = transport.send(BODY, time.monotonic())
        assert answer.fate is Fate.AGAIN
        assert "FileNotFoundError" in answer.reason
