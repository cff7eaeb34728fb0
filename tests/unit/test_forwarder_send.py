"""What each answer of a real server means."""

import http.client
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from otel_audit._forwarder_send import Fate, OtlpLogsSettings, Transport, _Http, connect
from tests.logs_support import log_record, logs_request

BODY: bytes = logs_request(log_record({"audit.action": "merge"})).SerializeToString()


def partial(rejected: int, message: str) -> bytes:
    response = ExportLogsServiceResponse()
    response.partial_success.rejected_log_records = rejected
    response.partial_success.error_message = message
    data: bytes = response.SerializeToString()
    return data


# --- HTTP ---------------------------------------------------------------------------------------------------------------
class HttpServer:
    """An HTTP server with one answer."""

    def __init__(self) -> None:
        self.status, self.headers, self.content = 200, {"Content-Length": "0"}, b""
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.hold = threading.Event()
        self.hold.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.seen.append((self.path, dict(self.headers), body))
                self.send_response(server.status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(server.content))) if server.content else None
                self.end_headers()
                server.hold.wait(30)
                self.wfile.write(server.content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class says so
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self._thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self._thread.start()

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.status, self.content = status, content
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if not content:
            self.headers["Content-Length"] = "0"

    def close(self) -> None:
        self.hold.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[HttpServer]:
    made = HttpServer()
    yield made
    made.close()


_open: list[Transport] = []


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def opened(settings: OtlpLogsSettings) -> Transport:
    """A transport that is closed after the test."""
    _open.append(connect(settings))
    return _open[-1]


def over_http(server: HttpServer, **more: Any) -> Transport:
    return opened(replace(OtlpLogsSettings(endpoint=server.url, protocol="http/protobuf", compression="none"), **more))


def test_a_page_of_html_is_no_acknowledgement(server: HttpServer) -> None:
    server.headers, server.content = {"Content-Type": "text/html; charset=utf-8"}, b"<p>please log in"
    answer = over_http(server).send(BODY)
    assert answer.fate is Fate.MISCONFIGURED
    assert "HTML" in answer.reason


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        (200, Fate.SENT),
        (202, Fate.SENT),
        (400, Fate.REFUSED),
        (422, Fate.REFUSED),
        (413, Fate.TOO_LARGE),
        (401, Fate.MISCONFIGURED),
        (403, Fate.MISCONFIGURED),
        (404, Fate.MISCONFIGURED),
        (405, Fate.MISCONFIGURED),
        (415, Fate.MISCONFIGURED),
        (301, Fate.MISCONFIGURED),
        (501, Fate.MISCONFIGURED),
        (408, Fate.AGAIN),
        (429, Fate.AGAIN),
        (500, Fate.AGAIN),
        (502, Fate.AGAIN),
        (503, Fate.AGAIN),
    ],
)
def test_what_an_http_status_means(server: HttpServer, status: int, fate: Fate) -> None:
    server.answer(status)
    answer = over_http(server).send(BODY)
    assert answer.fate is fate
    assert fate is Fate.SENT or str(status) in answer.reason


def test_what_the_server_says_is_the_reason(server: HttpServer) -> None:
    server.answer(400, "entry too old\n\x1b[31m é".encode())
    assert over_http(server).send(BODY).reason == "HTTP 400 Bad Request entry too old  [31m ??"


def test_retry_after_is_read(server: HttpServer) -> None:
    server.answer(503, Retry_After="7")
    assert over_http(server).send(BODY).delay_s == 7


def test_partial_success_over_http_is_read(server: HttpServer) -> None:
    server.answer(200, partial(3, "too old"))
    answer = over_http(server).send(BODY)
    assert (answer.fate, answer.rejected, answer.reason) == (Fate.SENT, 3, "too old")


@pytest.mark.parametrize("path", ["", "/", "/otlp", "/otlp/v1/logs", "/v1/logs"])
def test_the_request_is_otlp_on_the_right_path(server: HttpServer, path: str) -> None:
    headers = (("Authorization", "Bearer abc"),)
    transport = over_http(server, endpoint=server.url + path, headers=headers, compression="gzip")
    assert transport.send(BODY).fate is Fate.SENT
    assert transport.send(BODY).fate is Fate.SENT
    where, sent, body = server.seen[0]
    assert where == ("/otlp/v1/logs" if "otlp" in path else "/v1/logs")
    assert (sent["Content-Type"], sent["Content-Encoding"]) == ("application/x-protobuf", "gzip")
    assert sent["Authorization"] == "Bearer abc"
    import gzip

    assert ExportLogsServiceRequest.FromString(gzip.decompress(body)) == ExportLogsServiceRequest.FromString(BODY)


def test_nobody_there_is_again(server: HttpServer) -> None:
    transport = over_http(server)
    server.close()
    assert transport.send(BODY).fate is Fate.AGAIN


def test_a_server_that_sends_no_end_is_given_up(server: HttpServer) -> None:
    server.hold.clear()
    server.answer(200, partial(0, "x"))
    answer = over_http(server, timeout_s=0.3).send(BODY)
    assert answer.fate is Fate.AGAIN


def test_a_connection_that_is_given_up_meanwhile_does_not_break_the_end() -> None:
    class Vanishing(_Http):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name == "_connection":  # the thread that sends gives it up just after it was looked at
                self._connection = None
            return found

    transport = Vanishing(OtlpLogsSettings("http://127.0.0.1:1"))
    transport._connection = http.client.HTTPConnection("127.0.0.1", 1)
    transport.abort()
    assert transport._connection is None


def test_an_attempt_can_be_ended_from_another_thread(server: HttpServer) -> None:
    server.hold.clear()
    server.answer(200, partial(0, "x"))
    transport = over_http(server, timeout_s=60.0)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(transport.send(BODY)))
    thread.start()
    while not server.seen:
        pass
    transport.abort()
    thread.join(20)
    assert [a.fate for a in answers] == [Fate.AGAIN]


# --- gRPC ---------------------------------------------------------------------------------------------------------------
class Status(grpc.Status):
    """A status with details."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, bytes], ...] = ()) -> None:
        self.code, self.details, self.trailing_metadata = code, details, trailers


@contextmanager
def grpc_server(answer: Any, limit_bytes: int = 1 << 20) -> Iterator[tuple[str, list[bytes]]]:
    """A LogsService with one answer: bytes, or a status."""
    seen: list[bytes] = []

    def export(body: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(body)
        if isinstance(answer, bytes):
            return answer
        context.abort_with_status(answer)
        raise AssertionError

    handlers: Any = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    service = grpc.method_handlers_generic_handler("opentelemetry.proto.collector.logs.v1.LogsService", handlers)
    options = [("grpc.max_receive_message_length", limit_bytes)]
    server = grpc.server(ThreadPoolExecutor(2), handlers=[service], options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", seen
    finally:
        server.stop(None).wait(10)


def retry_info(delay_s: int) -> tuple[tuple[str, bytes], ...]:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=delay_s)))
    return (("grpc-status-details-bin", status_pb2.Status(code=8, details=[detail]).SerializeToString()),)


@pytest.mark.parametrize(
    ("code", "fate"),
    [
        ("INVALID_ARGUMENT", Fate.REFUSED),
        ("RESOURCE_EXHAUSTED", Fate.TOO_LARGE),
        ("UNAUTHENTICATED", Fate.MISCONFIGURED),
        ("PERMISSION_DENIED", Fate.MISCONFIGURED),
        ("UNIMPLEMENTED", Fate.MISCONFIGURED),
        ("UNAVAILABLE", Fate.AGAIN),
        ("DEADLINE_EXCEEDED", Fate.AGAIN),
        ("INTERNAL", Fate.AGAIN),
        ("UNKNOWN", Fate.AGAIN),
        ("ABORTED", Fate.AGAIN),
    ],
)
def test_what_a_grpc_status_means(code: str, fate: Fate) -> None:
    with grpc_server(Status(grpc.StatusCode[code], "why")) as (url, _):
        answer = opened(OtlpLogsSettings(endpoint=url)).send(BODY)
    assert (answer.fate, answer.reason) == (fate, f"{code}: why")
    assert answer.certain is (fate is not Fate.TOO_LARGE), "it may be a quota as well"


def test_retry_info_makes_an_exhausted_resource_one_to_wait_for() -> None:
    with grpc_server(Status(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota", retry_info(9))) as (url, _):
        answer = opened(OtlpLogsSettings(endpoint=url)).send(BODY)
    assert (answer.fate, answer.delay_s) == (Fate.AGAIN, 9)


def test_a_message_over_the_servers_limit_is_too_large() -> None:
    with grpc_server(b"", limit_bytes=1000) as (url, seen):
        answer = opened(OtlpLogsSettings(endpoint=url, compression="none")).send(BODY * 100)
    assert (answer.fate, answer.certain, seen) == (Fate.TOO_LARGE, True, [])


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_grpc_success_and_partial_success(compression: str) -> None:
    for content, rejected in ((b"", 0), (partial(2, "odd"), 2), (partial(-1, ""), 0), (b"\xff", 0)):
        with grpc_server(content) as (url, seen):
            settings = OtlpLogsSettings(endpoint=url, compression=compression, headers=(("X-Scope", "a"),))
            answer = opened(settings).send(BODY)
        assert (answer.fate, answer.rejected, seen) == (Fate.SENT, rejected, [BODY])


def test_a_connection_is_made_anew_after_the_server_was_away() -> None:
    with grpc_server(b"") as (url, _):
        transport = opened(OtlpLogsSettings(endpoint=url))
        assert transport.send(BODY).fate is Fate.SENT
    assert transport.send(BODY).fate is Fate.AGAIN
