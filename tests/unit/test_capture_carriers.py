"""What is read of a request in each shape it comes in; the peer is the socket's, whatever a header says."""

import datetime as dt
import ipaddress
import socket
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp.test_utils import make_mocked_request
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from multidict import CIMultiDict
from starlette.datastructures import Headers
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from otel_audit.capture.carriers import (
    CURRENT_HANDLER,
    PEER_KEY,
    Request,
    RequestReader,
    RpcCarrier,
    certificate_subject,
)

READER = RequestReader(("authorization", "x-api-key", "x-forwarded-for", "x-api-key"))
WANTED = {"x-api-key": "k", "x-forwarded-for": "203.0.113.9,10.0.0.1"}
GIVEN = [("X-API-Key", "k"), ("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-For", "10.0.0.1"), ("Cookie", "secret")]
CERTIFICATE = {"subject": ((("organizationName", "CRM"),), (("commonName", "crm-batch"),))}


def raw() -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in GIVEN]


# --- ASGI, WSGI ------------------------------------------------------------------------------------------------------------
def test_asgi() -> None:
    scope: dict[str, Any] = {"type": "http", "headers": raw(), "client": ("192.0.2.1", 5701)}
    assert READER.read(scope) == Request("192.0.2.1", WANTED)
    assert READER.read({**scope, "type": "websocket"}) == Request("192.0.2.1", WANTED)
    assert READER.read({**scope, "client": None}) == Request(None, WANTED)
    assert READER.read({**scope, PEER_KEY: ("192.0.2.7", 1)}) == Request("192.0.2.7", WANTED)
    assert READER.read({**scope, PEER_KEY: None}) == Request(None, WANTED), "a Unix socket, whatever a header said"
    assert READER.read({**scope, "type": "lifespan"}) is None


def test_headers_of_fastapis_own_tracing() -> None:
    assert READER.read(Headers(raw=raw())) == Request(None, WANTED)


def test_wsgi() -> None:
    environ = {
        "REQUEST_METHOD": "GET",
        "REMOTE_ADDR": "192.0.2.1",
        "HTTP_X_API_KEY": "k",
        "HTTP_X_FORWARDED_FOR": "203.0.113.9,10.0.0.1",
        "HTTP_COOKIE": "secret",
    }
    assert READER.read(environ) == Request("192.0.2.1", WANTED)
    fixed = {**environ, "REMOTE_ADDR": "203.0.113.9", "werkzeug.proxy_fix.orig": {"REMOTE_ADDR": "192.0.2.1"}}
    assert READER.read(fixed) == Request("192.0.2.1", WANTED)
    assert READER.read({**environ, "REMOTE_ADDR": ""}) == Request("", WANTED)


# --- aiohttp ---------------------------------------------------------------------------------------------------------------
class Transport:
    def __init__(self, peername: Any, peercert: Any = None) -> None:
        self.info = {"peername": peername, "peercert": peercert}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.info.get(name, default)


@pytest.mark.parametrize(
    ("transport", "peer", "certificate"),
    [
        (Transport(("192.0.2.1", 5701)), "192.0.2.1", None),
        (Transport(("2001:db8::1", 5701, 0, 0), CERTIFICATE), "2001:db8::1", "crm-batch"),
        (Transport(""), None, None),
        (Transport(None), None, None),
    ],
)
def test_aiohttp(transport: Transport, peer: str | None, certificate: str | None) -> None:
    request = make_mocked_request("GET", "/", headers=CIMultiDict(GIVEN), transport=transport)
    assert READER.read(request) == Request(peer, WANTED, certificate)


def test_aiohttp_after_the_client_has_gone() -> None:
    request = types.SimpleNamespace(transport=None, match_info={}, headers=CIMultiDict(GIVEN), remote="203.0.113.9")
    assert READER.read(request) == Request(None, WANTED)


# --- Tornado ---------------------------------------------------------------------------------------------------------------
def handler(address: Any, family: int | None, *, certificate: Any = None) -> Any:
    headers = HTTPHeaders({"Host": "crm"})
    for name, value in GIVEN:
        headers.add(name, value)
    protocol = "https" if certificate else "http"
    context = types.SimpleNamespace(
        address=address, address_family=family, protocol=protocol, remote_ip="203.0.113.9", _orig_protocol=protocol
    )
    stream = types.SimpleNamespace(socket=types.SimpleNamespace(getpeercert=lambda binary_form: certificate))
    connection: Any = types.SimpleNamespace(context=context, stream=stream, set_close_callback=lambda callback: None)
    start = RequestStartLine("GET", "/", "HTTP/1.1")
    return types.SimpleNamespace(request=HTTPServerRequest(start_line=start, headers=headers, connection=connection))


@pytest.mark.parametrize(
    ("address", "family", "peer"),
    [
        (("192.0.2.1", 5701), socket.AF_INET, "192.0.2.1"),
        (("2001:db8::1", 5701, 0, 0), socket.AF_INET6, "2001:db8::1"),
        ("", socket.AF_UNIX, None),
        (b"", socket.AF_UNIX, None),
        (None, None, None),
    ],
)
def test_tornados_peer_is_the_sockets_although_xheaders_says_otherwise(
    address: Any, family: int | None, peer: str | None
) -> None:
    current = handler(address, family)
    assert current.request.remote_ip == "203.0.113.9"
    token = CURRENT_HANDLER.set(current)
    try:
        assert READER.read(current.request.headers) == Request(peer, WANTED)
        assert READER.read(HTTPHeaders()) is None, "headers of something else"
    finally:
        CURRENT_HANDLER.reset(token)
    assert READER.read(current.request.headers) is None


def test_tornados_client_certificate() -> None:
    current = handler(("192.0.2.1", 5701), socket.AF_INET, certificate=CERTIFICATE)
    token = CURRENT_HANDLER.set(current)
    try:
        assert READER.read(current.request.headers) == Request("192.0.2.1", WANTED, "crm-batch")
    finally:
        CURRENT_HANDLER.reset(token)


# --- gRPC ------------------------------------------------------------------------------------------------------------------
class Context:
    def __init__(self, peer: str, auth: dict[str, Any] | None = None) -> None:
        self._peer, self._auth = peer, auth or {}

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, Any]:
        return self._auth

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return [*((name.lower(), value) for name, value in GIVEN), ("authorization", b"Bearer x")]


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:192.0.2.1:5701", "192.0.2.1"),
        ("ipv4:192.0.2.1:5701,192.0.2.2:5702", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:5701", "2001:db8::1"),
        ("ipv6:[::1]:5701", "::1"),
        ("unix:/run/crm.sock", None),
        ("unix-abstract:crm", None),
        ("unix:", None),
        ("", None),
        ("ipv4:", None),
    ],
)
def test_grpcs_peer(peer: str, expected: str | None) -> None:
    assert READER.read(RpcCarrier(Context(peer))) == Request(expected, {**WANTED, "authorization": "Bearer x"})


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        ({"transport_security_type": [b"insecure"]}, None),
        ({"x509_common_name": [b"crm-batch"], "x509_subject_alternative_name": [b"a", b"b"]}, "crm-batch"),
        ({"x509_common_name": [b""], "x509_subject_alternative_name": [b"spiffe://crm/batch"]}, "spiffe://crm/batch"),
        ({"x509_common_name": []}, None),
        ({"x509_common_name": [b"\xff"]}, "\\xff"),
    ],
)
def test_grpcs_client_certificate(auth: dict[str, Any], expected: str | None) -> None:
    found = READER.read(RpcCarrier(Context("ipv4:192.0.2.1:1", auth)))
    assert found is not None
    assert found.certificate == expected


def _signed(name: str, issuer: Any, key: Any, issuer_key: Any) -> bytes:
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM)


def _pem(key: Any) -> bytes:
    plain: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return plain


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[tuple[list[Request | None], dict[str, grpc.Channel]]]:
    """A gRPC server that reads each call as a request, and channels to it."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    ca = _signed("ca", None, keys[0], keys[0])
    server_pem = _signed("server", name, keys[1], keys[0])
    client_pem = _signed("crm-batch", name, keys[2], keys[0])
    requests: list[Request | None] = []

    def get(body: bytes, context: Any) -> bytes:
        requests.append(READER.read(RpcCarrier(context)))
        return body

    server = grpc.server(ThreadPoolExecutor(2))
    handlers: dict[str, Any] = {"Get": grpc.unary_unary_rpc_method_handler(get)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("crm", handlers),))
    tls = grpc.ssl_server_credentials([(_pem(keys[1]), server_pem)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", tls)
    unix = f"unix:{tmp_path / 'plain.sock'}"
    server.add_insecure_port(unix)
    ipv6 = server.add_insecure_port("[::1]:0")
    server.start()
    credentials = grpc.ssl_channel_credentials(ca, _pem(keys[2]), client_pem)
    channels = {
        "tls": grpc.secure_channel(f"127.0.0.1:{port}", credentials),
        "unix": grpc.insecure_channel(unix),
        "ipv6": grpc.insecure_channel(f"[::1]:{ipv6}"),
    }
    yield requests, channels
    for channel in channels.values():
        channel.close()
    server.stop(None).wait()


def test_a_real_grpc_server_tells_peer_and_certificate(
    seen: tuple[list[Request | None], dict[str, grpc.Channel]],
) -> None:
    requests, channels = seen
    expected = {"tls": ("127.0.0.1", "crm-batch"), "unix": (None, None), "ipv6": ("::1", None)}
    for kind, channel in channels.items():
        call: Any = channel.unary_unary("/crm/Get")
        call(b"", metadata=(("x-api-key", "k"),), timeout=20)
        assert requests.pop() == Request(expected[kind][0], {"x-api-key": "k"}, expected[kind][1])


# --- anything else ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("carrier", [None, "", [], {}, {"x-api-key": "k"}, object(), HTTPHeaders(), 7])
def test_what_is_no_request_is_left_alone(carrier: object) -> None:
    assert READER.read(carrier) is None


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [
        (CERTIFICATE, "crm-batch"),
        ({"subject": (), "subjectAltName": (("DNS", "crm"), ("URI", "spiffe://crm/batch"))}, "spiffe://crm/batch"),
        ({"subjectAltName": (("DNS", "crm"),)}, "crm"),
        ({"subject": ((("commonName", ""),),)}, None),
        ({}, None),
        (None, None),
        (b"der", None),
    ],
)
def test_certificate_subject(certificate: Any, expected: str | None) -> None:
    assert certificate_subject(certificate) == expected
