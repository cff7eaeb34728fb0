"""A full disk, seen from the senders' side: come again, until there is room."""

import contextlib
import re
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from otel_audit.config import load
from otel_audit.reader import LogReader
from otel_audit.server import Server
from tests.collector.support import Service, wait_for
from tests.receiver_support import NOT_OTLP, body, export_to, failure


def test_a_full_disk_is_answered_with_come_again_until_there_is_room(small_disk: Path) -> None:
    settings = load(None, {"dir": str(small_disk / "log"), "grpc": "127.0.0.1:0", "http": "127.0.0.1:0"})
    headers = {"content-type": "application/x-protobuf"}
    with Server(settings) as server, export_to(server.addresses.grpc) as export:
        assert server.addresses.grpc
        channel = grpc.insecure_channel(server.addresses.grpc)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        states = (int(update.status) for update in watch)
        with channel, httpx.Client(base_url=f"http://{server.addresses.http}", timeout=20, trust_env=False) as http:
            export(body(10), timeout=20)
            assert next(states) == health_pb2.HealthCheckResponse.SERVING
            filler = small_disk / "filler"
            with filler.open("wb") as file, contextlib.suppress(OSError):
                file.write(bytes(32 << 20))  # more than there is
            for content in (body(20), NOT_OTLP):  # what cannot be kept in quarantine is not refused for good either
                with pytest.raises(grpc.RpcError) as refused:
                    export(content, timeout=20)
                code, _, trailers = failure(refused.value)
                assert code is grpc.StatusCode.UNAVAILABLE
                assert "google.rpc.retryinfo-bin" in trailers
                response = http.post("/v1/traces", content=content, headers=headers)
                assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert http.get("/readyz").status_code == 503
            assert next(states) == health_pb2.HealthCheckResponse.NOT_SERVING
            filler.unlink()
            export(body(20), timeout=20)
            assert http.post("/v1/traces", content=body(30), headers=headers).status_code == 200
            assert next(states) == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
    assert LogReader.open(small_disk / "log").snapshot().last_seq == 30


def test_readiness_ends_while_appends_still_work_and_comes_back_without_requests(small_disk: Path) -> None:
    config = small_disk / "audit.yaml"
    config.write_text("log: {disk_reserve_mib: 4, disk_ready_mib: 8, segment_age: 1h}\n")
    with Service(small_disk / "log", "--config", config) as service:
        with httpx.Client(base_url=f"http://{service.http}", timeout=20, trust_env=False) as http:
            assert (http.get("/readyz").status_code, http.get("/readyz").text) == (200, "ready\n")
            filler = small_disk / "filler"
            filler.write_bytes(bytes(17 << 20))  # of 24: between the two levels
            wait_for(lambda: http.get("/readyz").status_code == 503, "it is not ready")
            assert re.fullmatch(
                r"the disk is nearly full: .* appends are refused below 4,194,304\n", http.get("/readyz").text
            )
            assert http.get("/livez").status_code == 200
            with export_to(service.grpc) as export:
                export(body(10), timeout=20)
            assert http.get("/readyz").status_code == 503, "that one append worked does not make it ready"
            with grpc.insecure_channel(service.grpc) as channel:
                health = health_pb2_grpc.HealthStub(channel)

                def state() -> int:
                    return int(health.Check(health_pb2.HealthCheckRequest(), timeout=20).status)

                wait_for(lambda: state() == health_pb2.HealthCheckResponse.NOT_SERVING, "gRPC says the same")
                filler.unlink()
                wait_for(lambda: http.get("/readyz").status_code == 200, "it is ready again")
                wait_for(lambda: state() == health_pb2.HealthCheckResponse.SERVING, "gRPC says the same")
        assert service.terminate() == 0
        said = service.said()
    assert said.count("the disk is nearly full") == 1
    assert said.count("the disk has room again") == 1
    assert LogReader.open(small_disk / "log").snapshot().last_seq == 10
