import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from otel_audit import _receiver_bind
from otel_audit._receiver_reload import Watched
from otel_audit.errors import ConfigError, OverloadedError, UnavailableError
from otel_audit.otlp import Decoder
from otel_audit.receiver import AccessSettings, GrpcSettings, IntakeSettings, Receiver
from tests.receiver_support import LIMIT, NOT_OTLP, FakeLog, body, export_to, failure, receiver, settings

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


@pytest.mark.parametrize("compression", list(grpc.Compression))
def test_a_request_of_any_compression_becomes_records(compression: grpc.Compression) -> None:
    log = FakeLog()
    with receiver(log) as r, export_to(r.grpc_address) as export:
        export(body(4), compression=compression, timeout=10)
    assert [d.records.num_rows for d in log.taken] == [4]


def test_the_answer_is_an_export_response_without_partial_success() -> None:
    with receiver(FakeLog()) as r:
        assert r.grpc_address
        with grpc.insecure_channel(r.grpc_address) as channel:
            stub: Any = trace_service_pb2_grpc.TraceServiceStub
            request = trace_service_pb2.ExportTraceServiceRequest.FromString(body())
            response = stub(channel).Export(request, timeout=10)
    assert response == trace_service_pb2.ExportTraceServiceResponse()
    assert not response.HasField("partial_success")


def test_an_empty_request_is_a_success() -> None:
    with receiver(FakeLog()) as r, export_to(r.grpc_address) as export:
        assert export(b"", timeout=10) == b""


def test_success_waits_for_the_disk() -> None:
    log = FakeLog(held=True)
    with receiver(log) as r, export_to(r.grpc_address) as export:
        call = export.future(body(), timeout=30)
        assert log.arrived.acquire(timeout=10)
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(timeout=0.2)
        log.release()
        assert call.result() == b""


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "error", [UnavailableError("append", "log", "disk full"), OverloadedError("append", "log", "full")]
)
def test_what_is_not_durable_is_unavailable_with_the_time_to_come_again(error: Exception, late: bool) -> None:
    log = FakeLog(error=error, late=late)
    with receiver(log, settings(IntakeSettings(retry_after_s=1.5))) as r, export_to(r.grpc_address) as export:
        with pytest.raises(grpc.RpcError) as refused:
            export(body(), timeout=10)
        code, _, trailers = failure(refused.value)
        assert code is grpc.StatusCode.UNAVAILABLE
        (detail,) = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
        retry = error_details_pb2.RetryInfo()
        assert detail.Unpack(retry)
        assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 500_000_000)
        assert error_details_pb2.RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"]) == retry
        log.error = None
        assert export(body(), timeout=10) == b"", "it recovers by itself"


def test_what_is_not_otlp_is_an_invalid_argument_and_kept() -> None:
    log = FakeLog()
    with receiver(log) as r, export_to(r.grpc_address) as export, pytest.raises(grpc.RpcError) as refused:
        export(NOT_OTLP, timeout=10)
    code, details, trailers = failure(refused.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "kept in quarantine" in details
    (detail,) = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
    assert detail.Unpack(error_details_pb2.BadRequest())
    assert log.taken[0].quarantine[0].payload == NOT_OTLP


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_request_over_the_limit_is_resource_exhausted_and_counted(compression: grpc.Compression) -> None:
    log = FakeLog()
    with receiver(log) as r, export_to(r.grpc_address) as export:
        with pytest.raises(grpc.RpcError) as refused:
            export(bytes(LIMIT + 1), compression=compression, timeout=10)
        assert failure(refused.value)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        export(body(), timeout=10)  # so that the count is done
        assert sum(r.stats().refused.values()) == 1
    assert len(log.taken) == 1


def test_a_request_of_exactly_the_limit_is_taken() -> None:
    log = FakeLog()
    size = LIMIT - len(body()) - 5
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    whole = body() + b"\x9a\x06" + length + bytes(size)  # as an unknown field of the request
    assert len(whole) == LIMIT
    with receiver(log) as r, export_to(r.grpc_address) as export:
        export(whole, timeout=10)
        export(whole, compression=grpc.Compression.Gzip, timeout=10)
    assert [d.records.num_rows for d in log.taken] == [3, 3]


def test_other_methods_are_unimplemented() -> None:
    with receiver(FakeLog()) as r:
        assert r.grpc_address
        with grpc.insecure_channel(r.grpc_address) as channel:
            metrics: Any = channel.unary_unary("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export")
            with pytest.raises(grpc.RpcError) as refused:
                metrics(b"", timeout=10)
    assert failure(refused.value)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_without_a_message_is_refused_and_the_server_lives_on() -> None:
    with receiver(FakeLog()) as r, export_to(r.grpc_address) as export:
        assert r.grpc_address
        with grpc.insecure_channel(r.grpc_address) as channel, pytest.raises(grpc.RpcError) as refused:
            channel.stream_unary(f"/{SERVICE}/Export")(iter([]), timeout=10)
        assert failure(refused.value)[0] is grpc.StatusCode.INVALID_ARGUMENT
        export(body(), timeout=10)


def test_more_requests_at_a_time_than_threads_are_all_served() -> None:
    log = FakeLog()
    small = GrpcSettings(max_body_bytes=LIMIT, workers=2)
    with receiver(log, settings(grpc_=small)) as r, export_to(r.grpc_address) as export:
        calls = [export.future(body(1), timeout=30) for _ in range(200)]
        assert [call.result() for call in calls] == [b""] * 200
    assert len(log.taken) == 200


# --- health -------------------------------------------------------------------------------------------------------------
def health_of(address: str | None, service: str = "") -> int:
    assert address
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_says_serving(service: str) -> None:
    with receiver(FakeLog()) as r:
        assert health_of(r.grpc_address, service) == health_pb2.HealthCheckResponse.SERVING


def test_health_follows_whether_data_becomes_durable() -> None:
    log = FakeLog(error=UnavailableError("append", "log", "disk full"))
    with receiver(log) as r, export_to(r.grpc_address) as export:
        assert r.grpc_address
        with grpc.insecure_channel(r.grpc_address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=30
            )
            states = (int(update.status) for update in watch)
            assert next(states) == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError):
                export(body(), timeout=10)
            assert next(states) == health_pb2.HealthCheckResponse.NOT_SERVING
            log.error = None
            export(body(), timeout=10)
            assert next(states) == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()


def test_health_is_answered_while_every_worker_waits_for_the_disk() -> None:
    log = FakeLog(held=True)
    small = GrpcSettings(max_body_bytes=LIMIT, workers=1)
    with receiver(log, settings(grpc_=small)) as r, export_to(r.grpc_address) as export:
        calls = [export.future(body(), timeout=30) for _ in range(3)]
        assert log.arrived.acquire(timeout=10)
        assert health_of(r.grpc_address) == health_pb2.HealthCheckResponse.SERVING
        log.held = False
        log.release()
        assert [call.result() for call in calls] == [b""] * 3


# --- addresses ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_port_in_use_is_an_error_that_says_what_to_do(protocol: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        endpoint = f"127.0.0.1:{other.getsockname()[1]}"
        given = settings()
        assert given.grpc
        assert given.http
        taken = (
            replace(given, grpc=replace(given.grpc, endpoint=endpoint))
            if protocol == "grpc"
            else replace(given, http=replace(given.http, endpoint=endpoint))
        )
        with pytest.raises(ConfigError, match=rf"listen on {endpoint}: the port is in use.*choose another port"):
            Receiver(FakeLog(), Decoder(), taken)


def test_two_receivers_cannot_share_a_port_even_before_they_start() -> None:
    given = settings()
    assert given.http
    first = Receiver(FakeLog(), Decoder(), given)
    assert first.http_address
    with pytest.raises(ConfigError, match="in use"):
        Receiver(FakeLog(), Decoder(), replace(given, http=replace(given.http, endpoint=first.http_address)))
    first.stop()


def test_two_receivers_cannot_share_a_port() -> None:
    with receiver(FakeLog()) as r:
        given = settings()
        assert given.grpc
        assert r.grpc_address
        with pytest.raises(ConfigError, match="in use"):
            Receiver(FakeLog(), Decoder(), replace(given, grpc=replace(given.grpc, endpoint=r.grpc_address)))


def test_a_port_is_free_again_after_stop() -> None:
    with receiver(FakeLog()) as r:
        given = settings()
        assert given.grpc
        assert given.http
        assert r.grpc_address
        assert r.http_address
        again = replace(
            given,
            grpc=replace(given.grpc, endpoint=r.grpc_address),
            http=replace(given.http, endpoint=r.http_address),
        )
    with receiver(FakeLog(), again), export_to(r.grpc_address) as export:
        export(body(), timeout=10, wait_for_ready=True)


def taken(address: str | None) -> bool:
    """Whether somebody listens there."""
    assert address
    host, _, port = address.rpartition(":")
    with socket.socket() as other:
        try:
            other.bind((host, int(port)))
            other.listen()
        except OSError:
            return True
    return False


def test_a_port_is_free_again_after_the_stop_of_what_never_started() -> None:
    never = Receiver(FakeLog(), Decoder(), settings())
    assert (taken(never.grpc_address), taken(never.http_address)) == (True, True)
    never.stop()
    assert (taken(never.grpc_address), taken(never.http_address)) == (False, False)


def test_when_one_address_is_taken_the_others_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings()
    assert given.grpc
    monkeypatch.setattr(_receiver_bind, "_addresses", lambda _: ["127.0.0.1", "127.0.0.2"])
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.listen()
        port = other.getsockname()[1]
        endpoint = f"two.example:{port}"
        with pytest.raises(ConfigError, match="in use"):
            Receiver(
                FakeLog(),
                Decoder(),
                replace(
                    given,
                    http=None,
                    grpc=replace(given.grpc, endpoint=endpoint),
                    access=AccessSettings(allow_insecure=True),
                ),
            )
        assert not taken(f"127.0.0.1:{port}")


def test_localhost_is_reached_by_name_and_by_number() -> None:
    given = settings()
    assert given.grpc
    with receiver(FakeLog(), replace(given, grpc=replace(given.grpc, endpoint="localhost:0"))) as r:
        assert r.grpc_address
        port = r.grpc_address.removeprefix("localhost:")
        for host in ("localhost", "127.0.0.1"):
            with export_to(f"{host}:{port}") as export:
                export(body(), timeout=10)


def test_an_address_open_to_other_machines_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    given = settings()
    assert given.grpc
    with receiver(FakeLog(), replace(given, http=None)):
        assert not caplog.records
    exposed = replace(given, http=None, grpc=replace(given.grpc, endpoint="0.0.0.0:0"))
    with receiver(FakeLog(), replace(exposed, access=AccessSettings(allow_insecure=True))):
        assert "open to other machines" in caplog.text


# --- stop ---------------------------------------------------------------------------------------------------------------
def test_stop_waits_for_requests_under_way_and_refuses_new_ones() -> None:
    log = FakeLog(held=True)
    with receiver(log) as r, export_to(r.grpc_address) as export:
        call = export.future(body(), timeout=30)
        assert log.arrived.acquire(timeout=10)
        stopping = threading.Thread(target=r.stop)
        stopping.start()
        refused: list[grpc.StatusCode] = []
        while not refused:  # until the stop has begun
            try:
                export(NOT_OTLP, timeout=0.2)
            except grpc.RpcError as e:
                refused = [code for code in [failure(e)[0]] if code is grpc.StatusCode.UNAVAILABLE]
        assert not call.done()
        assert not r.stats().healthy
        log.release()
        assert call.result() == b""
        stopping.join(20)
        assert not stopping.is_alive()


def test_stop_ends_although_files_that_are_being_read_never_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        reading.set()
        go_on.wait(60)

    access = AccessSettings(senders_file=str(tmp_path / "senders.yaml"), reload_interval_s=0.01)
    (tmp_path / "senders.yaml").write_text(f"- name: crm\n  token_sha256: {'a' * 64}\n")
    log = FakeLog()
    with receiver(log, replace(settings(), access=access)) as r:
        monkeypatch.setattr(Watched, "poll", hang)
        assert reading.wait(30)
        stopping = threading.Thread(target=r.stop)
        stopping.start()
        stopping.join(30)
        ended, reasons = not stopping.is_alive(), r.reasons()
        go_on.set()
        assert (ended, reasons) == (True, ["the service is stopping"])


def test_stop_ends_although_the_disk_never_answers() -> None:
    log = FakeLog(held=True)
    with receiver(log) as r, export_to(r.grpc_address) as export:
        call = export.future(body(), timeout=60)
        assert log.arrived.acquire(timeout=10)
        r.stop(grace_s=0.2)
        with pytest.raises(grpc.RpcError):
            call.result()
