"""Senders that are slow, leave early, or try to exhaust memory."""

import contextlib
import gzip
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

from otel_audit.receiver import GrpcSettings, HttpSettings, IntakeSettings, Receiver
from tests.receiver_support import EXPORT, LIMIT, FakeLog, body, export_to, failure, receiver, settings

PROTOBUF = {"content-type": "application/x-protobuf"}
HEAD = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"


def connect(r: Receiver) -> socket.socket:
    assert r.http_address
    host, _, port = r.http_address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def until_closed(sock: socket.socket) -> bytes:
    """Everything the server says until it hangs up."""
    received = b""
    try:
        while part := sock.recv(4096):
            received += part
    except ConnectionResetError:
        pass
    return received


# --- HTTP ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sent", [b"", b"POST", HEAD])
def test_a_client_that_does_not_finish_the_head_is_hung_up_on(sent: bytes) -> None:
    hasty = HttpSettings(max_body_bytes=LIMIT, header_timeout_s=0.2)
    with receiver(FakeLog(), settings(http=hasty)) as r, connect(r) as sock:
        sock.sendall(sent)
        assert until_closed(sock) == b""


def test_a_client_that_does_not_finish_its_second_head_is_hung_up_on() -> None:
    hasty = HttpSettings(max_body_bytes=LIMIT, header_timeout_s=0.2)
    with receiver(FakeLog(), settings(http=hasty)) as r, connect(r) as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /li")
        assert until_closed(sock).count(b"HTTP/1.1 200 OK") == 1


def test_a_slow_answer_is_not_taken_for_a_slow_client() -> None:
    log = FakeLog(held=True)
    hasty = HttpSettings(max_body_bytes=LIMIT, header_timeout_s=0.1, receive_timeout_s=0.1)
    data = body()
    with receiver(log, settings(http=hasty)) as r, connect(r) as sock:
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        assert log.arrived.acquire(timeout=10)
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(10)
        log.release()
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_body_that_does_not_arrive_in_time_is_503_and_its_bytes_are_given_back() -> None:
    hasty = HttpSettings(max_body_bytes=LIMIT, receive_timeout_s=0.2)
    with receiver(FakeLog(), settings(http=hasty)) as r, connect(r) as sock:
        sock.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 10)
        answer = until_closed(sock).lower()
        assert answer.startswith(b"http/1.1 503")
        assert b"retry-after" in answer
        assert r.stats().in_flight_bytes == 0


def test_a_sender_that_leaves_in_the_middle_is_forgotten() -> None:
    with receiver(FakeLog()) as r:
        with connect(r) as sock:
            sock.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 10)
        with httpx.Client(base_url=f"http://{r.http_address}", trust_env=False) as http:
            while r.stats().refused != {"incomplete": 1}:
                assert http.get("/livez").status_code == 200
        assert r.stats().in_flight_bytes == 0


def test_connections_are_bounded_and_their_places_are_given_back() -> None:
    few = HttpSettings(max_body_bytes=LIMIT, connections_max=2)
    with receiver(FakeLog(), settings(http=few)) as r:
        first, second = connect(r), connect(r)
        for sock in (first, second):
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        with connect(r) as third:
            with contextlib.suppress(OSError):
                third.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert until_closed(third) == b""
        first.close()
        second.close()
        with httpx.Client(base_url=f"http://{r.http_address}", trust_env=False) as http:
            while True:
                try:
                    assert http.get("/livez").status_code == 200
                except httpx.TransportError:  # the places are not free yet
                    continue
                break


def test_a_chunked_body_without_end_is_cut_off() -> None:
    with receiver(FakeLog()) as r, connect(r) as sock:
        sock.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"

        def send() -> None:
            try:
                while True:
                    sock.sendall(chunk)
            except OSError:
                pass

        sender = threading.Thread(target=send)
        sender.start()
        answer = until_closed(sock)
        sender.join(20)
        assert not sender.is_alive()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
        assert r.stats().refused == {"too_large": 1}


# --- gRPC ---------------------------------------------------------------------------------------------------------------
def connect_grpc(r: Receiver) -> socket.socket:
    """A connection of HTTP/2 without a request."""
    assert r.grpc_address
    host, _, port = r.grpc_address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=20)
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
    return sock


def test_connections_of_grpc_are_bounded_and_their_places_are_given_back() -> None:
    few = GrpcSettings(max_body_bytes=LIMIT, connections_max=2)
    with receiver(FakeLog(), settings(grpc_=few)) as r:
        with connect_grpc(r) as first, connect_grpc(r) as second:
            assert first.recv(1)
            assert second.recv(1)
            with connect_grpc(r) as third:
                assert until_closed(third) == b""
        with export_to(r.grpc_address) as export:
            export(body(), timeout=30, wait_for_ready=True)


def test_a_connection_of_grpc_without_a_request_is_closed_and_its_sender_opens_another() -> None:
    hasty = GrpcSettings(max_body_bytes=LIMIT, idle_timeout_s=0.1)
    with receiver(FakeLog(), settings(grpc_=hasty)) as r, export_to(r.grpc_address) as export:
        export(body(), timeout=30)
        with connect_grpc(r) as sock:
            assert until_closed(sock), "until the service hangs up"
        export(body(), timeout=30)
        assert r.stats().requests == 2


def test_a_sender_that_does_not_send_is_cancelled_and_its_thread_is_free_again() -> None:
    hasty = GrpcSettings(max_body_bytes=LIMIT, workers=1, receive_timeout_s=0.1)
    hold = threading.Event()

    def never() -> Iterator[bytes]:
        hold.wait()
        yield b""

    with receiver(FakeLog(), settings(grpc_=hasty)) as r, export_to(r.grpc_address) as export:
        assert r.grpc_address
        with grpc.insecure_channel(r.grpc_address) as channel:
            stream: Any = channel.stream_unary(EXPORT)
            slow = stream.future(never())
            with pytest.raises(grpc.RpcError) as late:
                slow.result(timeout=20)
        hold.set()
        assert failure(late.value)[0] is grpc.StatusCode.CANCELLED, "which senders take for retryable"
        export(body(), timeout=10)
        assert r.stats().refused == {"incomplete": 1}


@pytest.mark.parametrize("how", ["deadline", "cancel"])
def test_a_sender_that_leaves_while_its_data_waits_for_the_disk_frees_the_thread(how: str) -> None:
    log = FakeLog(held=True)
    one = GrpcSettings(max_body_bytes=LIMIT, workers=1)
    with receiver(log, settings(grpc_=one)) as r, export_to(r.grpc_address) as export:
        call = export.future(body(), timeout=1 if how == "deadline" else 60)
        assert log.arrived.acquire(timeout=10)
        if how == "cancel":
            call.cancel()
        else:
            with pytest.raises(grpc.RpcError):
                call.result()
        second = export.future(body(), timeout=60)
        assert log.arrived.acquire(timeout=10), "the only thread is free for the next request"
        assert r.stats().in_flight_bytes > 2 * 4096, "the bytes of both still wait"
        log.release()
        assert second.result() == b""
        stats = r.stats()
        assert (stats.requests, stats.in_flight_bytes) == (2, 0), "what nobody waited for is durable all the same"


def test_data_that_does_not_become_durable_in_time_is_to_be_sent_again() -> None:
    log = FakeLog(held=True)
    with receiver(log, settings(IntakeSettings(ack_timeout_s=0.2))) as r, export_to(r.grpc_address) as export:
        with pytest.raises(grpc.RpcError) as late:
            export(body(), timeout=60)
        assert failure(late.value)[0] is grpc.StatusCode.UNAVAILABLE
        with httpx.Client(base_url=f"http://{r.http_address}", trust_env=False) as http:
            assert http.post("/v1/traces", content=body(), headers=PROTOBUF, timeout=60).status_code == 503
            assert http.get("/readyz").status_code == 503
        log.release()


# --- memory -------------------------------------------------------------------------------------------------------------
def test_bombs_sent_at_once_over_both_protocols_stay_within_the_bytes_in_flight() -> None:
    limit = 16 << 20
    bounded = 40 << 20
    bomb = gzip.compress(bytes(limit))
    given = settings(
        IntakeSettings(max_in_flight_bytes=bounded),
        GrpcSettings(max_body_bytes=limit),
        HttpSettings(max_body_bytes=limit, workers=8),
    )

    def over_grpc(r: Receiver) -> str:
        with export_to(r.grpc_address) as export, pytest.raises(grpc.RpcError) as refused:
            export(bytes(limit), compression=grpc.Compression.Gzip, timeout=60)
        return failure(refused.value)[0].name

    def over_http(r: Receiver) -> int:
        headers = PROTOBUF | {"content-encoding": "gzip"}
        url = f"http://{r.http_address}/v1/traces"
        return httpx.post(url, content=bomb, headers=headers, timeout=60, trust_env=False).status_code

    with receiver(FakeLog(), given) as r, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(over_grpc if i % 4 == 0 else over_http, r) for i in range(16)]
        codes = {a.result() for a in answers}
        assert codes <= {"UNAVAILABLE", "INVALID_ARGUMENT", 503, 400}
        assert r.stats().in_flight_bytes_max <= bounded
        assert r.stats().in_flight_bytes == 0


def test_large_requests_beyond_the_bytes_in_flight_are_told_to_come_again() -> None:
    given = settings(IntakeSettings(max_in_flight_bytes=LIMIT // 2))
    with receiver(FakeLog(), given) as r, export_to(r.grpc_address) as export:
        with pytest.raises(grpc.RpcError) as refused:
            export(bytes(LIMIT - 100), timeout=10)
        assert failure(refused.value)[0] is grpc.StatusCode.UNAVAILABLE
        export(body(), timeout=10)
