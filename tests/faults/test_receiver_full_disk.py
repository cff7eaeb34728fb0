"""A full disk, seen from the senders' side: come again, until there is room."""

import contextlib
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from otel_audit.config import load
from otel_audit.reader import LogReader
from otel_audit.server import Server
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
