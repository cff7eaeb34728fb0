import errno
import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from otel_audit.errors import OverloadedError, StorageError, UnavailableError
from otel_audit.otlp import Decoder
from otel_audit.receiver import IntakeSettings, Receiver
from tests.receiver_support import LIMIT, NOT_OTLP, FakeLog, body, receiver, settings

PROTOBUF = {"content-type": "application/x-protobuf"}
JSON = {"content-type": "application/json"}
SPAN = {
    "traceId": "0123456789abcdef0123456789abcdef",
    "spanId": "0123456789abcdef",
    "name": "GET /contacts",
    "kind": 2,
    "startTimeUnixNano": "1795420800000000000",
    "endTimeUnixNano": "1795420800001000000",
}
JSON_BODY = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [SPAN]}]}]}).encode()


@contextmanager
def client(r: Receiver) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{r.http_address}", timeout=20, trust_env=False) as opened:
        yield opened


def status(response: httpx.Response) -> status_pb2.Status:
    if response.headers["content-type"] == "application/json":
        parsed = json_format.Parse(response.text, status_pb2.Status())
        assert isinstance(parsed, status_pb2.Status)
        return parsed
    assert response.headers["content-type"] == "application/x-protobuf"
    return status_pb2.Status.FromString(response.content)


# --- success ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content_type", ["application/x-protobuf", "Application/X-Protobuf; charset=utf-8"])
def test_protobuf_becomes_records_and_is_answered_in_protobuf(content_type: str) -> None:
    log = FakeLog()
    with receiver(log) as r, client(r) as http:
        response = http.post("/v1/traces", content=body(4), headers={"content-type": content_type})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-protobuf")
    answer = trace_service_pb2.ExportTraceServiceResponse.FromString(response.content)
    assert not answer.HasField("partial_success")
    assert [d.records.num_rows for d in log.taken] == [4]


@pytest.mark.parametrize("content_type", ["application/json", "application/json;charset=UTF-8"])
def test_json_becomes_records_and_is_answered_in_json(content_type: str) -> None:
    log = FakeLog()
    with receiver(log) as r, client(r) as http:
        response = http.post("/v1/traces", content=JSON_BODY, headers={"content-type": content_type})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == {}
    assert [d.records.num_rows for d in log.taken] == [1]


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
)
def test_every_supported_compression_is_read(encoding: str, pack: type[bytes]) -> None:
    log = FakeLog()
    with receiver(log) as r, client(r) as http:
        response = http.post("/v1/traces", content=pack(body()), headers=PROTOBUF | {"content-encoding": encoding})
    assert response.status_code == 200
    assert log.taken[0].records.num_rows == 3


def test_a_body_in_chunks_is_read_to_its_end() -> None:
    log = FakeLog()
    whole = body(500)
    with receiver(log) as r, client(r) as http:
        chunks = (whole[i : i + 1000] for i in range(0, len(whole), 1000))
        assert http.post("/v1/traces", content=chunks, headers=PROTOBUF).status_code == 200
    assert log.taken[0].records.num_rows == 500


def test_success_waits_for_the_disk() -> None:
    log = FakeLog(held=True)
    answered: list[int] = []
    with receiver(log) as r, client(r) as http:
        post = threading.Thread(
            target=lambda: answered.append(http.post("/v1/traces", content=body(), headers=PROTOBUF).status_code)
        )
        post.start()
        assert log.arrived.acquire(timeout=10)
        post.join(0.2)
        assert answered == []
        log.release()
        post.join(10)
        assert answered == [200]


def test_a_connection_serves_one_request_after_the_other_even_pipelined() -> None:
    log = FakeLog()
    data = body()
    head = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: %d\r\n\r\n"
    with receiver(log) as r:
        assert r.http_address
        host, _, port = r.http_address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall((head % len(data) + data) * 3)
            received = b""
            while received.count(b"HTTP/1.1 200 OK") < 3:
                part = sock.recv(4096)
                assert part, received
                received += part
    assert len(log.taken) == 3


def test_a_sender_that_waits_to_be_asked_for_the_body_is_asked() -> None:
    log = FakeLog()
    data = body()
    head = (
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
        b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(data)
    )
    with receiver(log) as r:
        assert r.http_address
        host, _, port = r.http_address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(head)
            assert sock.recv(4096).startswith(b"HTTP/1.1 100")
            sock.sendall(data)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_sender_that_waits_to_be_asked_is_refused_without_sending() -> None:
    head = (
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
        b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (LIMIT + 1)
    )
    with receiver(FakeLog()) as r:
        assert r.http_address
        host, _, port = r.http_address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(head)
            assert sock.recv(4096).startswith(b"HTTP/1.1 413")


# --- refusals -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "error", [UnavailableError("append", "log", "disk full"), OverloadedError("append", "log", "full")]
)
@pytest.mark.parametrize("headers", [PROTOBUF, JSON])
def test_what_is_not_durable_is_503_with_the_time_to_come_again(error: Exception, headers: dict[str, str]) -> None:
    log = FakeLog(error=error, late=True)
    content = body() if headers is PROTOBUF else JSON_BODY
    with receiver(log, settings(IntakeSettings(retry_after_s=1.5))) as r, client(r) as http:
        response = http.post("/v1/traces", content=content, headers=headers)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "2", "whole seconds, rounded up"
        assert response.headers["content-type"] == headers["content-type"]
        assert status(response).details[0].Unpack(error_details_pb2.RetryInfo())
        log.error = None
        assert http.post("/v1/traces", content=content, headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [PROTOBUF, JSON])
def test_what_is_not_otlp_is_400_and_kept(headers: dict[str, str]) -> None:
    log = FakeLog()
    with receiver(log) as r, client(r) as http:
        response = http.post("/v1/traces", content=NOT_OTLP, headers=headers)
    assert response.status_code == 400
    assert response.headers["content-type"] == headers["content-type"]
    assert "kept in quarantine" in status(response).message
    assert status(response).details[0].Unpack(error_details_pb2.BadRequest())
    assert log.taken[0].quarantine[0].payload == NOT_OTLP


def test_damaged_gzip_is_400_and_kept() -> None:
    log = FakeLog()
    with receiver(log) as r, client(r) as http:
        response = http.post("/v1/traces", content=b"no gzip", headers=PROTOBUF | {"content-encoding": "gzip"})
    assert response.status_code == 400
    assert log.taken[0].quarantine[0].payload == b"no gzip"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"content-type": "text/plain"}, "content_type"),
        ({}, "content_type"),
        (PROTOBUF | {"content-encoding": "zstd"}, "content_encoding"),
        (PROTOBUF | {"content-encoding": "gzip, gzip"}, "content_encoding"),
    ],
)
def test_other_media_are_415(headers: dict[str, str], reason: str) -> None:
    with receiver(FakeLog()) as r, client(r) as http:
        response = http.post("/v1/traces", content=body(), headers=headers)
        assert response.status_code == 415
        assert status(response).message
        assert r.stats().refused == {reason: 1}
        assert http.post("/v1/traces", content=body(), headers=PROTOBUF).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/v1/traces", 405), ("PUT", "/v1/traces", 405), ("POST", "/v1/metrics", 404)]
)
def test_other_methods_and_paths_are_refused_with_a_status_counted_and_logged(
    method: str, path: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    with receiver(FakeLog()) as r, client(r) as http:
        response = http.request(method, path)
        assert r.stats().refused == {"path": 1}
    assert f"({method} '{path}' from 127.0.0.1:" in caplog.text
    assert response.status_code == code
    assert "/v1/traces" in status(response).message
    assert code != 405 or response.headers["allow"] == "POST"


def test_a_path_that_ends_with_a_line_break_is_another_path() -> None:
    with receiver(FakeLog()) as r, client(r) as http:
        response = http.post("/v1/traces%0A", content=body(), headers=PROTOBUF)
        assert (response.status_code, r.stats().refused) == (404, {"path": 1})
        assert http.get("/readyz").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413_and_the_sender_gets_to_read_it(chunked: bool) -> None:
    log = FakeLog()
    big = bytes(LIMIT + 300_000)
    with receiver(log) as r, client(r) as http:
        content: bytes | Iterator[bytes] = (big[i : i + 65536] for i in range(0, len(big), 65536)) if chunked else big
        response = http.post("/v1/traces", content=content, headers=PROTOBUF)
        assert response.status_code == 413
        assert r.stats().refused == {"too_large": 1}
        assert http.post("/v1/traces", content=body(), headers=PROTOBUF).status_code == 200
    assert len(log.taken) == 1


def test_a_small_body_that_inflates_over_the_limit_is_413() -> None:
    bomb = gzip.compress(bytes(LIMIT + 1))
    with receiver(FakeLog()) as r, client(r) as http:
        response = http.post("/v1/traces", content=bomb, headers=PROTOBUF | {"content-encoding": "gzip"})
        assert response.status_code == 413
        assert r.stats().refused == {"too_large": 1}


def test_bytes_in_flight_are_bounded_over_all_requests() -> None:
    with receiver(FakeLog(), settings(IntakeSettings(max_in_flight_bytes=100_000))) as r, client(r) as http:
        response = http.post("/v1/traces", content=bytes(200_000), headers=PROTOBUF)
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert r.stats().in_flight_bytes_max <= 100_000
        assert http.post("/v1/traces", content=body(), headers=PROTOBUF).status_code == 200
        assert r.stats().in_flight_bytes == 0


def test_probes_tell_alive_from_ready() -> None:
    log = FakeLog(error=UnavailableError("append", "log", "disk full"))
    with receiver(log) as r, client(r) as http:
        assert (http.get("/livez").status_code, http.get("/readyz").status_code) == (200, 200)
        http.post("/v1/traces", content=body(), headers=PROTOBUF)
        assert (http.get("/livez").status_code, http.get("/readyz").status_code) == (200, 503)


def test_stop_answers_what_is_under_way() -> None:
    log = FakeLog(held=True)
    answered: list[int] = []
    with receiver(log) as r, client(r) as http:
        post = threading.Thread(
            target=lambda: answered.append(http.post("/v1/traces", content=body(), headers=PROTOBUF).status_code)
        )
        post.start()
        assert log.arrived.acquire(timeout=10)
        stopping = threading.Thread(target=r.stop)
        stopping.start()
        stopping.join(0.3)
        assert stopping.is_alive()
        log.release()
        post.join(10)
        stopping.join(20)
        assert answered == [200]
        assert not stopping.is_alive()


async def _cannot(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_server_that_cannot_begin_is_an_error_and_holds_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.Server, "startup", _cannot)
    started = Receiver(FakeLog(), Decoder(), settings())
    with pytest.raises(StorageError, match=r"start OTLP/HTTP on 127.*Too many open files.*check the limits"):
        started.start()
    for address in (started.http_address, started.grpc_address):
        assert address
        with socket.socket() as other:
            other.bind((address.partition(":")[0], int(address.partition(":")[2])))
            other.listen()


def test_a_server_that_has_ended_by_itself_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    fail = threading.Event()

    async def tick(*_: object) -> bool:
        if fail.is_set():
            raise OSError(errno.EMFILE, "Too many open files")
        return False

    monkeypatch.setattr(uvicorn.Server, "on_tick", tick)
    with receiver(FakeLog()) as r, client(r) as http:
        assert http.get("/readyz").status_code == 200
        fail.set()
        until_s = time.monotonic() + 30
        while not r.reasons() and time.monotonic() < until_s:
            time.sleep(0.01)
        assert r.reasons() == ["OTLP/HTTP has ended by a fault of its own; restart the service"]
        assert not r.stats().healthy


def test_reasons_for_not_being_ready_are_told_one_a_line() -> None:
    reasons = ["the disk is nearly full", "sealing has failed: two\nlines \ud800"]
    with (
        Receiver(FakeLog(), Decoder(), settings(), lambda: reasons) as started,
        client(started) as http,
    ):
        response = http.get("/readyz")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.text == "the disk is nearly full\nsealing has failed: two lines \\ud800\n"
        reasons.clear()
        assert (http.get("/readyz").status_code, http.get("/readyz").text) == (200, "ready\n")
