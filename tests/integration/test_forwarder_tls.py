"""TLS and mTLS to the destination of log records, with certificates made here."""

import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from otel_audit._forwarder_send import Answer, Fate, OtlpLogsSettings, connect
from tests.certificates import Authority
from tests.logs_support import log_record, logs_request

PROTOCOLS = ["grpc", "http/protobuf"]
BODY: bytes = logs_request(log_record({"audit.action": "merge"})).SerializeToString()


@contextmanager
def grpc_receiver(authority: Authority, *, mutual: bool) -> Iterator[str]:
    issued = authority.issue("receiver")
    key, certificate = issued.key, issued.certificate
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], authority.file.read_bytes() if mutual else None, mutual
    )
    handlers: Any = {"Export": grpc.unary_unary_rpc_method_handler(lambda _, __: b"")}
    service = grpc.method_handlers_generic_handler("opentelemetry.proto.collector.logs.v1.LogsService", handlers)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[service])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"https://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class says so
        pass


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that turns away from a certificate is what some of these tests want


@contextmanager
def http_receiver(authority: Authority, *, mutual: bool) -> Iterator[str]:
    issued = authority.issue("receiver")
    key, certificate = issued.key, issued.certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if mutual:
        context.load_verify_locations(authority.file)
        context.verify_mode = ssl.CERT_REQUIRED
    with _Quiet(("127.0.0.1", 0), _Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def receiver(protocol: str, authority: Authority, *, mutual: bool = False) -> Any:
    return (grpc_receiver if protocol == "grpc" else http_receiver)(authority, mutual=mutual)


def send(protocol: str, endpoint: str, **files: Any) -> Answer:
    settings = OtlpLogsSettings(endpoint=endpoint, protocol=protocol, timeout_s=5, **files)
    settings.check()
    transport = connect(settings)
    try:
        return transport.send(BODY)
    finally:
        transport.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "good")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_a_trusted_authority_names_is_sent_to(protocol: str, authority: Authority) -> None:
    with receiver(protocol, authority) as endpoint:
        assert send(protocol, endpoint, ca_file=str(authority.file)).fate is Fate.SENT


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_other_server_is_not_and_nothing_is_given_up(protocol: str, authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    with receiver(protocol, authority) as endpoint:
        assert send(protocol, endpoint).fate is Fate.AGAIN
        assert send(protocol, endpoint, ca_file=str(other.file)).fate is Fate.AGAIN


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_wants_a_certificate_gets_it(protocol: str, authority: Authority) -> None:
    issued = authority.issue("forwarder")
    key, certificate = issued.key, issued.certificate
    trusted: dict[str, Any] = {"ca_file": str(authority.file)}
    with receiver(protocol, authority, mutual=True) as endpoint:
        own = {**trusted, "key_file": str(key), "cert_file": str(certificate)}
        assert send(protocol, endpoint, **own).fate is Fate.SENT
        assert send(protocol, endpoint, **trusted).fate is Fate.AGAIN


def test_without_verification_any_server_will_do_if_asked_for(authority: Authority) -> None:
    with receiver("http/protobuf", authority) as endpoint:
        assert send("http/protobuf", endpoint, insecure_skip_verify=True).fate is Fate.SENT
