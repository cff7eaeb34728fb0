"""TLS and mTLS to the destination, with certificates made here."""

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

from otel_audit.capture.settings import destination
from otel_audit.capture.transport import Fate, connect
from tests.capture_support import environment, service
from tests.certificates import Authority
from tests.integration.test_capture_transport import BODY

PROTOCOLS = ["grpc", "http/protobuf"]


class Peers:
    """Common names of the clients whose requests were taken; None for one without a certificate."""

    def __init__(self) -> None:
        self.address = ""
        self.names: list[str | None] = []
        self.changed = threading.Condition()

    def take(self, name: str | None) -> None:
        with self.changed:
            self.names.append(name)
            self.changed.notify_all()


@contextmanager
def _grpc_receiver(authority: Authority, *, mutual: bool) -> Iterator[Peers]:
    peers = Peers()

    def export(_: bytes, context: Any) -> bytes:
        names = context.auth_context().get("x509_common_name")
        peers.take(names[0].decode() if names else None)
        return b""

    issued = authority.issue("receiver")
    key, certificate = issued.key, issued.certificate
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], authority.file.read_bytes() if mutual else None, mutual
    )
    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        {"Export": grpc.unary_unary_rpc_method_handler(export)},
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    peers.address = f"https://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    server.start()
    try:
        yield peers
    finally:
        server.stop(None).wait()


@contextmanager
def _http_receiver(authority: Authority, *, mutual: bool) -> Iterator[Peers]:
    peers = Peers()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            subject: Any = (self.connection.getpeercert() or {}).get("subject", ())
            peers.take(next((value for part in subject for _, value in part), None))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a handshake that is refused, on purpose

    issued = authority.issue("receiver")
    key, certificate = issued.key, issued.certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.file)
    server = Server(("127.0.0.1", 0), Handler)
    # The handshake belongs into the connection's own thread: a client that refuses it must not hold up the next.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    peers.address = f"https://127.0.0.1:{server.server_port}"
    try:
        yield peers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def receiver(protocol: str, authority: Authority, *, mutual: bool = False) -> Any:
    return (_grpc_receiver if protocol == "grpc" else _http_receiver)(authority, mutual=mutual)


def send(protocol: str, address: str, **files: Path) -> Fate:
    env = {f"OTEL_AUDIT_{name.upper()}": str(path) for name, path in files.items()}
    transport = connect(destination(env, endpoint=address, protocol=protocol))
    try:
        return transport.send(BODY, 10).fate
    finally:
        transport.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_receiver_of_the_trusted_authority_gets_the_records(protocol: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    with receiver(protocol, authority) as peers:
        assert send(protocol, peers.address, certificate=authority.file) is Fate.KEPT
        assert peers.names == [None]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_receiver_that_cannot_prove_who_it_is_gets_nothing(protocol: str, tmp_path: Path) -> None:
    with receiver(protocol, Authority(tmp_path, "stranger")) as peers:
        other = Authority(tmp_path, "ours")
        assert send(protocol, peers.address, certificate=other.file) is Fate.AGAIN
        assert send(protocol, peers.address) is Fate.AGAIN, "the system's authorities do not know it"
        assert send(protocol, peers.address.replace("https", "http"), certificate=other.file) is Fate.AGAIN
        assert peers.names == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_receiver_that_asks_for_a_certificate_sees_ours(protocol: str, tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "stranger")
    issued = authority.issue("crm")
    key, certificate = issued.key, issued.certificate
    with receiver(protocol, authority, mutual=True) as peers:
        assert send(protocol, peers.address, certificate=authority.file) is Fate.AGAIN
        other = stranger.issue("crm")
        files = {"client_key": other.key, "client_certificate": other.certificate}
        assert send(protocol, peers.address, certificate=authority.file, **files) is Fate.AGAIN
        assert peers.names == []
        files = {"client_key": key, "client_certificate": certificate}
        assert send(protocol, peers.address, certificate=authority.file, **files) is Fate.KEPT
        assert peers.names == ["crm"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_service_delivers_over_mutual_tls(protocol: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    issued = authority.issue("crm")
    key, certificate = issued.key, issued.certificate
    with receiver(protocol, authority, mutual=True) as peers:
        env = environment(
            OTEL_AUDIT_ENDPOINT=peers.address,
            OTEL_AUDIT_PROTOCOL=protocol,
            OTEL_AUDIT_CERTIFICATE=str(authority.file),
            OTEL_AUDIT_CLIENT_KEY=str(key),
            OTEL_AUDIT_CLIENT_CERTIFICATE=str(certificate),
        )
        with service("flask", tmp_path, env) as s:
            assert s.get("/things/1") == 200
            with peers.changed:
                assert peers.changed.wait_for(lambda: bool(peers.names), 30), s.output()
            s.stop()
        assert set(peers.names) == {"crm"}
