"""A push of metrics obeys the settings alone: what the environment says is meant for other exporters of the process."""

import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import grpc
import pytest

from otel_audit.telemetry import OtlpReader, Telemetry, TelemetrySettings
from tests.certificates import Authority

Protocol = Literal["grpc", "http/protobuf"]
PROTOCOLS: list[Protocol] = ["grpc", "http/protobuf"]
Fields = dict[str, str]


@contextmanager
def grpc_receiver(got: list[Fields], tls: Authority | None) -> Iterator[str]:
    def export(_: bytes, context: grpc.ServicerContext) -> bytes:
        got.append({key: str(value) for key, value in context.invocation_metadata()})
        return b""

    handlers: Any = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    service = grpc.method_handlers_generic_handler("opentelemetry.proto.collector.metrics.v1.MetricsService", handlers)
    server = grpc.server(ThreadPoolExecutor(2), handlers=[service])
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = tls.issue("receiver")
        credentials = grpc.ssl_server_credentials(
            [(pair.key.read_bytes(), pair.certificate.read_bytes())], tls.file.read_bytes(), require_client_auth=True
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def http_receiver(got: list[Fields], tls: Authority | None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            got.append({key.lower(): value for key, value in self.headers.items()})
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class says so
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        pair = tls.issue("receiver")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        context.load_verify_locations(tls.file)
        context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pushed(protocol: Protocol, tls: Authority | None = None, headers: tuple[tuple[str, str], ...] = ()) -> list[Fields]:
    """What a receiver sees of one push, the last one."""
    got: list[Fields] = []
    with (grpc_receiver if protocol == "grpc" else http_receiver)(got, tls) as address:
        reader = OtlpReader(f"http://{address}", protocol, headers=headers)
        if tls is not None:
            own = tls.issue("client")
            reader = replace(reader, endpoint=f"https://{address}", certificate=str(tls.file))
            reader = replace(reader, client_key=str(own.key), client_certificate=str(own.certificate))
        telemetry = Telemetry(TelemetrySettings(readers=(reader,)))
        telemetry.watch("otel_audit.disk.free", lambda: 5)
        telemetry.open()
        telemetry.start()
        telemetry.stop(10)
    return got


@pytest.fixture(params=["", "_METRICS"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = f"OTEL_EXPORTER_OTLP{request.param}"
    monkeypatch.setenv(f"{prefix}_HEADERS", "authorization=Bearer%20another,x-other=1")
    for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
        monkeypatch.setenv(f"{prefix}_{name}", "/does/not/exist.pem")


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("headers", [(), (("X-Who", "me"),)])
def test_headers_for_another_endpoint_are_not_sent(protocol: Protocol, headers: tuple[tuple[str, str], ...]) -> None:
    (fields,) = pushed(protocol, headers=headers)
    assert "authorization" not in fields
    assert "x-other" not in fields
    assert fields.get("x-who") == dict(headers).get("X-Who")
    assert fields["user-agent"]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_certificates_for_another_endpoint_are_not_used(tmp_path: Path, protocol: Protocol) -> None:
    assert len(pushed(protocol, Authority(tmp_path, "authority"))) == 1
