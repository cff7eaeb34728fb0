"""TLS, tokens and client certificates of real servers, with certificates made here."""

import logging
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from otel_audit import quarantine
from otel_audit.auditlog import AuditLog
from otel_audit.capture.settings import destination
from otel_audit.capture.transport import Fate, connect
from otel_audit.errors import ConfigError
from otel_audit.otlp import Decoder
from otel_audit.receiver import AccessSettings, Receiver, ReceiverSettings, TlsSettings
from otel_audit.senders import Sender, digest_of, new_token
from tests.certificates import Authority, Issued
from tests.otlp_support import encoded, request, span
from tests.receiver_support import EXPORT, FakeLog, body, failure, receiver, settings
from tests.support import check_log

TRANSPORTS = ["grpc", "http"]
TOKEN = new_token()
CRM = Sender("crm", (digest_of(TOKEN),))
WAIT_S = 30.0


def secure(
    server: Issued, access: AccessSettings | None = None, client_ca: Path | None = None, **tls: Any
) -> ReceiverSettings:
    """Settings of a receiver with this certificate on both transports."""
    made = TlsSettings(
        str(server.certificate), str(server.key), str(client_ca) if client_ca else None, reload_interval_s=0.05, **tls
    )
    given = settings()
    assert given.grpc
    assert given.http
    return replace(
        given,
        access=access or AccessSettings((CRM,)),
        grpc=replace(given.grpc, tls=replace(made, min_version="1.2")),
        http=replace(given.http, tls=made),
    )


@dataclass(frozen=True)
class Told:
    """What a sender was answered.

    Args:
        code: of gRPC or HTTP; empty where there was no connection.
        message: for its log.
        retry_after_s: when to come again; None: nothing was said.
        challenge: of HTTP.
    """

    code: str
    message: str = ""
    retry_after_s: float | None = None
    challenge: str = ""


class Client:
    """A sender that keeps its connection.

    Args:
        transport: grpc or http.
        r: the receiver.
        trusted: the file of the CA that it trusts.
        client: its own certificate.
    """

    def __init__(self, transport: str, r: Receiver, trusted: Path, client: Issued | None = None) -> None:
        if transport == "grpc":
            assert r.grpc_address
            files = (client.key.read_bytes(), client.certificate.read_bytes()) if client else (None, None)
            credentials = grpc.ssl_channel_credentials(trusted.read_bytes(), *files)
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
            self._channel: Any = grpc.secure_channel(r.grpc_address, credentials, options)
            self._send = self._grpc
            self.close = self._channel.close
        else:
            context = ssl.create_default_context(cafile=trusted)
            if client:
                context.load_cert_chain(client.certificate, client.key)
            self._client = httpx.Client(
                base_url=f"https://{r.http_address}", timeout=WAIT_S, trust_env=False, verify=context
            )
            self._send = self._http
            self.close = self._client.close

    def send(self, token: str | None = None, data: bytes | None = None) -> Told:
        """Send a request; gives the answer."""
        return self._send(f"Bearer {token}" if token else "", body() if data is None else data)

    def get(self, path: str) -> int:
        return self._client.get(path).status_code

    def _grpc(self, authorization: str, data: bytes) -> Told:
        metadata = (("authorization", authorization),) if authorization else ()
        try:
            self._channel.unary_unary(EXPORT)(data, timeout=WAIT_S, metadata=metadata)
        except grpc.RpcError as e:
            code, details, trailers = failure(e)
            if "grpc-status-details-bin" not in trailers:
                return Told("", details)
            delay = None
            for detail in status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details:
                info = error_details_pb2.RetryInfo()
                if detail.Unpack(info):
                    delay = info.retry_delay.ToMilliseconds() / 1000
            return Told(code.name, details, delay)
        return Told("OK")

    def _http(self, authorization: str, data: bytes) -> Told:
        headers = {"content-type": "application/x-protobuf"}
        if authorization:
            headers["authorization"] = authorization
        try:
            answer = self._client.post("/v1/traces", content=data, headers=headers)
        except httpx.TransportError as e:
            return Told("", str(e))
        if answer.status_code == 200:
            return Told("OK")
        after = answer.headers.get("retry-after")
        message = status_pb2.Status.FromString(answer.content).message
        challenge = answer.headers.get("www-authenticate", "")
        return Told(str(answer.status_code), message, float(after) if after else None, challenge)


@contextmanager
def client(transport: str, r: Receiver, trusted: Path, own: Issued | None = None) -> Iterator[Client]:
    made = Client(transport, r, trusted, own)
    try:
        yield made
    finally:
        made.close()


def eventually(condition: Callable[[], object], what: str) -> None:
    due_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < due_s, what
        time.sleep(0.01)


@contextmanager
def connected(address: str, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """A TLS connection, closed also where the handshake fails."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), WAIT_S) as sock:
        tls = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        with tls:
            tls.do_handshake()
            yield tls


RETRY = {"grpc": "UNAVAILABLE", "http": "503"}
REFUSED = {"grpc": "UNAUTHENTICATED", "http": "401"}


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


# --- tokens -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_sender_with_its_token_is_heard_and_nobody_else(
    transport: str, ca: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    log, wrong = FakeLog(), new_token()
    with receiver(log, secure(ca.issue("server"))) as r, client(transport, r, ca.file) as c:
        assert c.send(TOKEN) == Told("OK")
        for token, reason in ((None, "credentials_missing"), (wrong, "token_unknown")):
            told = c.send(token)
            assert (told.code, told.retry_after_s) == (RETRY[transport], 10), "a Collector keeps what it has"
            assert told.message.startswith("unauthenticated: ")
            assert transport == "grpc" or told.challenge.startswith("Bearer realm=")
            assert r.stats().refused[reason] == 1
            assert reason in caplog.text
        assert len(log.taken) == 1
        assert r.stats().in_flight_bytes_max < 20_000
    assert TOKEN not in caplog.text
    assert wrong not in caplog.text


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_strangers_are_sent_away_for_good_where_that_is_asked_for(transport: str, ca: Authority) -> None:
    access = AccessSettings((CRM,), unauthenticated="refuse")
    with receiver(FakeLog(), secure(ca.issue("server"), access)) as r, client(transport, r, ca.file) as c:
        told = c.send(new_token())
        assert (told.code, told.retry_after_s) == (REFUSED[transport], None)
        assert transport == "grpc" or 'error="invalid_token"' in told.challenge
        assert c.send(TOKEN) == Told("OK")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_body_of_a_stranger_is_not_held(transport: str, ca: Authority) -> None:
    with receiver(FakeLog(), secure(ca.issue("server"))) as r, client(transport, r, ca.file) as c:
        assert c.send(None, b"\n" * 1_000_000).code == RETRY[transport]
        assert r.stats().in_flight_bytes_max == 0


def test_a_stranger_keeps_no_connection(ca: Authority) -> None:
    with receiver(FakeLog(), secure(ca.issue("server"))) as r:
        assert r.http_address
        with connected(r.http_address, ssl.create_default_context(cafile=ca.file)) as tls:
            head = "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0"
            tls.sendall(f"{head}\r\n\r\n".encode())
            received = b""
            while part := tls.recv(4096):
                received += part
            assert received.startswith(b"HTTP/1.1 503")
            assert b"connection: close" in received


def test_connections_count_before_their_handshake(ca: Authority) -> None:
    given = secure(ca.issue("server"))
    assert given.http
    few = replace(given, http=replace(given.http, connections_max=2, header_timeout_s=WAIT_S * 2))
    with receiver(FakeLog(), few) as r, ExitStack() as opened:
        assert r.http_address
        host, _, port = r.http_address.rpartition(":")
        first, second, third = (
            opened.enter_context(socket.create_connection((host, int(port)), WAIT_S)) for _ in range(3)
        )
        assert third.recv(1) == b"", "the service hangs up"
        first.close()
        second.close()
        with client("http", r, ca.file) as c:
            eventually(lambda: c.send(TOKEN).code == "OK", "the places are free again")


def test_a_stranger_is_answered_before_it_has_sent_anything(ca: Authority) -> None:
    release = threading.Event()

    def messages() -> Iterator[bytes]:
        release.wait(WAIT_S)
        yield b""

    with receiver(FakeLog(), secure(ca.issue("server"))) as r:
        assert r.grpc_address
        credentials = grpc.ssl_channel_credentials(ca.file.read_bytes())
        with grpc.secure_channel(r.grpc_address, credentials) as channel:
            export: Any = channel.stream_unary(EXPORT)
            call = export.future(messages(), timeout=WAIT_S)
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            assert "unauthenticated" in call.details()
            release.set()
        assert r.http_address
        with connected(r.http_address, ssl.create_default_context(cafile=ca.file)) as tls:
            head = "POST /v1/traces HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-protobuf\r\ncontent-length: 60000000"
            tls.sendall(f"{head}\r\n\r\n".encode())
            assert tls.recv(100).startswith(b"HTTP/1.1 503")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_sender_over_its_rate_is_told_the_time_its_debt_takes(transport: str, ca: Authority) -> None:
    access = AccessSettings((replace(CRM, rate_records_per_s=1, burst_records=10),))
    with receiver(FakeLog(), secure(ca.issue("server"), access)) as r, client(transport, r, ca.file) as c:
        assert c.send(TOKEN, body(1010)) == Told("OK")
        told = c.send(TOKEN)
        assert told.code == RETRY[transport]
        assert told.retry_after_s
        assert 900 < told.retry_after_s <= 1001
        assert r.stats().refused == {"rate_limited": 1}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_sender_has_a_size_of_its_own(transport: str, ca: Authority) -> None:
    access = AccessSettings((replace(CRM, max_request_bytes=1000),))
    with receiver(FakeLog(), secure(ca.issue("server"), access)) as r, client(transport, r, ca.file) as c:
        assert c.send(TOKEN, body(1)) == Told("OK")
        assert c.send(TOKEN, body(100)).code in {"RESOURCE_EXHAUSTED", "413"}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_file_of_senders_is_read_again(
    transport: str, ca: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path, newer = tmp_path / "senders.yaml", new_token()
    path.write_text(f"- {{name: crm, token_sha256: {digest_of(TOKEN)}}}\n")
    access = AccessSettings(senders_file=str(path), reload_interval_s=0.05)
    with receiver(FakeLog(), secure(ca.issue("server"), access)) as r, client(transport, r, ca.file) as c:
        assert c.send(TOKEN) == Told("OK")
        path.write_text("- {name: crm\n")
        eventually(lambda: r.stats().stale_files == 1, "the broken file is noticed")
        assert c.send(TOKEN) == Told("OK")
        path.write_text(f"- {{name: crm, token_sha256: {digest_of(newer)}}}\n")
        eventually(lambda: r.stats().stale_files == 0, "the file that was mended is noticed")
        assert c.send(newer) == Told("OK")
        assert c.send(TOKEN).code == RETRY[transport]
        assert r.stats().reloads == 1
    assert "stay as they were" in caplog.text
    assert "are in use" in caplog.text


# --- certificates of clients ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_needs_a_certificate_of_the_right_authority(transport: str, ca: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    given = secure(ca.issue("server"), AccessSettings(), ca.file)
    log = FakeLog()
    with receiver(log, given) as r:
        for own in (None, stranger.issue("crm")):
            with client(transport, r, ca.file, own) as c:
                told = c.send()
                assert told.code == ("503" if transport == "http" and own is None else "")
        assert log.taken == []
        with client(transport, r, ca.file, ca.issue("crm")) as c:
            assert c.send() == Told("OK")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_sender_is_known_by_a_name_of_its_certificate(transport: str, ca: Authority) -> None:
    senders = (
        Sender("edge", certificate=("spiffe://example/edge/*",)),
        Sender("plain", certificate=("plain",)),
        Sender("both", (digest_of(TOKEN),), certificate=("both",)),
    )
    with receiver(FakeLog(), secure(ca.issue("server"), AccessSettings(senders), ca.file)) as r:

        def send(name: str, *uris: str, token: str | None = None) -> Told:
            with client(transport, r, ca.file, ca.issue(name, *uris)) as c:
                return c.send(token)

        assert send("a", "spiffe://example/edge/7") == Told("OK")
        assert send("plain") == Told("OK")
        assert send("both", token=TOKEN) == Told("OK")
        assert "certificate of spiffe://example/other, a" in _sorted(send("a", "spiffe://example/other").message)
        assert send("both").code == RETRY[transport]
        assert send("plain", token=TOKEN).code == RETRY[transport], "a token is no use without its certificate"
        assert r.stats().refused["certificate_unknown"] == 3


def _sorted(message: str) -> str:
    """The names of a certificate without those that all have: they come in no certain order."""
    return message.replace("127.0.0.1, ", "").replace("localhost, ", "")


def test_probes_need_neither_token_nor_certificate(ca: Authority) -> None:
    with receiver(FakeLog(), secure(ca.issue("server"), client_ca=ca.file)) as r, client("http", r, ca.file) as c:
        assert (c.get("/livez"), c.get("/readyz")) == (200, 200)
    with receiver(FakeLog(), secure(ca.issue("server"))) as r:
        assert r.grpc_address
        credentials = grpc.ssl_channel_credentials(ca.file.read_bytes())
        with grpc.secure_channel(r.grpc_address, credentials) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


# --- certificates that change --------------------------------------------------------------------------------------------
def serial(address: str | None, trusted: Path, own: Issued | None = None, **context_: Any) -> int:
    """The serial number of the certificate that a new connection sees."""
    assert address
    context = ssl.create_default_context(cafile=trusted)
    if own:
        context.load_cert_chain(own.certificate, own.key)
    for name, value in context_.items():
        setattr(context, name, value)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with connected(address, context) as tls:
        der = tls.getpeercert(binary_form=True)
        assert der
        return x509.load_der_x509_certificate(der).serial_number


def address_of(transport: str, r: Receiver) -> str | None:
    return r.grpc_address if transport == "grpc" else r.http_address


def put(issued: Issued, over: Issued) -> None:
    """Replace key and certificate by others, one after the other as administrators do."""
    shutil.copy(issued.certificate, over.certificate)
    shutil.copy(issued.key, over.key)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_new_certificate_is_used_without_a_request_lost(transport: str, ca: Authority) -> None:
    server, stop = ca.issue("server"), threading.Event()
    answers: list[list[Told]] = [[] for _ in range(4)]
    serials = []
    with receiver(FakeLog(), secure(server)) as r, ThreadPoolExecutor(4) as pool:

        def keep_sending(to: list[Told]) -> None:
            with client(transport, r, ca.file) as c:
                while not stop.is_set():
                    to.append(c.send(TOKEN))

        senders = [pool.submit(keep_sending, to) for to in answers]
        try:
            for _ in range(3):
                newer = ca.issue("server")
                put(newer, server)
                eventually(lambda n=newer: serial(address_of(transport, r), ca.file) == n.serial, "the new one is seen")  # type: ignore[misc]
                serials.append(newer.serial)
                counts = [len(to) for to in answers]
                eventually(lambda c=counts: all(len(a) > n + 3 for a, n in zip(answers, c, strict=True)), "they go on")  # type: ignore[misc]
        finally:
            stop.set()
        for sending in senders:
            sending.result(WAIT_S)
    assert len(set(serials)) == 3
    assert {told for to in answers for told in to} == {Told("OK")}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_files_that_cannot_be_used_leave_the_certificate_as_it_was(
    transport: str, ca: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server, newer = ca.issue("server"), ca.issue("server")
    good = (server.certificate.read_bytes(), server.key.read_bytes())
    both = 2  # protocols use the files

    def restore() -> None:
        server.certificate.write_bytes(good[0])
        server.key.write_bytes(good[1])

    def mismatch() -> None:
        shutil.copy(newer.certificate, server.certificate)

    def half() -> None:
        server.certificate.write_bytes(newer.certificate.read_bytes()[:300])

    def vanish() -> None:
        server.key.unlink()

    with receiver(FakeLog(), secure(server)) as r:
        for spoil in (mismatch, half, vanish):
            spoil()
            eventually(lambda: r.stats().stale_files == both, f"{spoil.__name__} is noticed")
            assert serial(address_of(transport, r), ca.file) == server.serial
            with client(transport, r, ca.file) as c:
                assert c.send(TOKEN) == Told("OK")
            restore()
            eventually(lambda: r.stats().stale_files == 0, "it is tried again")
        put(newer, server)
        eventually(lambda: serial(address_of(transport, r), ca.file) == newer.serial, "and the next is used")
        assert r.stats().reload_failures > 0
    assert "it is not the key of" in caplog.text
    assert "stay as they were" in caplog.text


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_authorities_of_clients_are_read_again(transport: str, ca: Authority, tmp_path: Path) -> None:
    other, trusted = Authority(tmp_path, "other"), tmp_path / "clients.pem"
    shutil.copy(ca.file, trusted)
    ours, theirs = ca.issue("crm"), other.issue("crm")
    with receiver(FakeLog(), secure(ca.issue("server"), AccessSettings(), trusted)) as r:

        def send(own: Issued) -> Told:
            with client(transport, r, ca.file, own) as c:
                return c.send()

        assert send(ours) == Told("OK")
        assert send(theirs).code == ""
        shutil.copy(other.file, trusted)
        eventually(lambda: send(theirs) == Told("OK"), "the new authority is known")
        assert send(ours).code == "", "and the old one no more"


# --- versions, and the start ----------------------------------------------------------------------------------------------
def test_older_tls_is_not_spoken(ca: Authority) -> None:
    with receiver(FakeLog(), secure(ca.issue("server"), min_version="1.3")) as r:
        assert serial(r.http_address, ca.file, minimum_version=ssl.TLSVersion.TLSv1_3)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            serial(r.http_address, ca.file, maximum_version=ssl.TLSVersion.TLSv1_2)
        assert serial(r.grpc_address, ca.file, maximum_version=ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_certificates_that_cannot_be_used_stop_the_start(transport: str, ca: Authority, tmp_path: Path) -> None:
    server, other = ca.issue("server"), ca.issue("server")
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n-----END ENCRYPTED PRIVATE KEY-----\n")
    empty = tmp_path / "empty.pem"
    empty.write_text("")

    def fault(**files: Path | None) -> str:
        given = secure(server)
        for_both = {f"{name}_file": str(path) if path else None for name, path in files.items()}
        assert given.grpc
        assert given.grpc.tls
        assert given.http
        changed = replace(given.grpc.tls, **for_both)  # type: ignore[arg-type]
        only = {"grpc": replace(given.grpc, tls=changed), "http": replace(given.http, tls=changed)}
        off = {name: None for name in only if name != transport}
        with pytest.raises(ConfigError) as error, receiver(FakeLog(), replace(given, **(only | off))):  # type: ignore[arg-type]
            pass
        return str(error.value)

    assert "missing.pem: No such file" in fault(cert=tmp_path / "missing.pem")
    assert f"{other.key}: it is not the key of {server.certificate}" in fault(key=other.key)
    assert "it is encrypted" in fault(key=encrypted)
    assert "both must be PEM" in fault(cert=empty)
    assert "it must hold PEM certificates" in fault(client_ca=empty)
    assert "needs cert_file and key_file" in fault(key=None)


def test_an_old_certificate_and_an_open_key_are_warned_of(ca: Authority, caplog: pytest.LogCaptureFixture) -> None:
    def warnings(server: Issued) -> str:
        caplog.clear()
        given = replace(secure(server), grpc=None)
        with receiver(FakeLog(), given):
            return caplog.text

    assert warnings(ca.issue("server", expires_in=timedelta(days=30))) == ""
    assert warnings(ca.issue("server", expires_in=timedelta(days=365 * 40))) == "", "whose end is written otherwise"
    expired = ca.issue("server", expires_in=-timedelta(hours=1))
    assert f"certificate {expired.certificate} expired at 20" in warnings(expired)
    assert "expires at 20" in warnings(ca.issue("server", expires_in=timedelta(days=1)))
    open_key = ca.issue("server", expires_in=timedelta(days=30))
    open_key.key.chmod(0o644)
    assert "can be read by everybody" in warnings(open_key)


def test_a_service_that_would_be_open_to_other_machines_does_not_start(ca: Authority) -> None:
    given = secure(ca.issue("server"), AccessSettings())
    assert given.http
    plain = replace(given, grpc=None, http=replace(given.http, endpoint="0.0.0.0:0", tls=None))
    for_all = replace(given, grpc=None, http=replace(given.http, endpoint="0.0.0.0:0"))
    for exposed, said in ((plain, "without encryption"), (for_all, "any machine could write")):
        with pytest.raises(ConfigError, match=said):
            Receiver(FakeLog(), Decoder(), exposed)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("failures", [0, 1, 2])
def test_what_an_endpoint_is_open_to_is_judged_on_the_addresses_that_are_bound(
    transport: str, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        if host != "audit.internal":
            return [host]
        if asked.count(host) <= failures:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ["0.0.0.0"]

    monkeypatch.setattr("otel_audit._receiver_bind._addresses", resolve)
    given = settings()
    assert given.grpc
    assert given.http
    if transport == "grpc":
        named = replace(given, grpc=replace(given.grpc, endpoint="audit.internal:0"))
    else:
        named = replace(given, http=replace(given.http, endpoint="audit.internal:0"))
    said = "the host is not known" if failures > 1 else "other machines would reach it without encryption"
    with pytest.raises(ConfigError, match=said):
        Receiver(FakeLog(), Decoder(), named)


def test_an_open_endpoint_that_is_allowed_is_warned_of_also_while_names_do_not_resolve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def resolve(host: str) -> list[str]:
        asked.append(host)
        if len(asked) > 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ["127.0.0.1"]

    monkeypatch.setattr("otel_audit._receiver_bind._addresses", resolve)
    given = settings()
    assert given.http
    open_to_all = replace(
        given,
        access=AccessSettings(allow_insecure=True),
        grpc=None,
        http=replace(given.http, endpoint="audit.internal:0"),
    )
    with receiver(FakeLog(), open_to_all):
        assert "audit.internal:0 is open to other machines" in caplog.text


def test_a_sender_known_by_its_certificate_needs_a_protocol_that_asks_for_one(ca: Authority) -> None:
    access = AccessSettings((Sender("edge", certificate=("edge",)),))
    with pytest.raises(ConfigError, match="no protocol asks for one"):
        Receiver(FakeLog(), Decoder(), secure(ca.issue("server"), access))


def test_a_handshake_that_does_not_end_is_ended(ca: Authority) -> None:
    given = secure(ca.issue("server"))
    assert given.http
    hasty = replace(given, http=replace(given.http, header_timeout_s=0.2))
    with receiver(FakeLog(), hasty) as r:
        assert r.http_address
        host, _, port = r.http_address.rpartition(":")
        with socket.create_connection((host, int(port)), WAIT_S) as sock:
            assert sock.recv(1) == b"", "the service hangs up"


def test_what_is_not_a_senders_own_is_in_the_quarantine_of_the_log(ca: Authority, tmp_path: Path) -> None:
    mine, theirs = (encoded(request(span(span_id=s.encode() * 8), resource={"service.name": s})) for s in "mt")
    access = AccessSettings((replace(CRM, services=("m",)),))
    with AuditLog.open(tmp_path / "log") as log, receiver(log, secure(ca.issue("server"), access)) as r:
        for transport in TRANSPORTS:
            with client(transport, r, ca.file) as c:
                assert c.send(TOKEN, mine + theirs) == Told("OK")
        assert r.stats().not_allowed == 2
    (entry,) = quarantine.read(tmp_path / "log")
    assert (entry.reason, entry.service, entry.recorded) == ("sender_not_allowed", "t", False)
    assert [record["service"] for record in check_log(tmp_path / "log")] == ["m"]


# --- capture --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("prefix", ["OTEL_AUDIT", "OTEL_EXPORTER_OTLP"])
def test_capture_delivers_with_its_token_and_certificate(protocol: str, prefix: str, ca: Authority) -> None:
    own = ca.issue("crm")
    with receiver(FakeLog(), secure(ca.issue("server"), client_ca=ca.file)) as r:
        address = f"https://{address_of(protocol.partition('/')[0], r)}"
        env = {
            "OTEL_AUDIT_ENDPOINT" if prefix == "OTEL_AUDIT" else "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            f"{prefix}_PROTOCOL": protocol,
            f"{prefix}_HEADERS": f"authorization=Bearer%20{TOKEN}",
            f"{prefix}_CERTIFICATE": str(ca.file),
            f"{prefix}_CLIENT_KEY": str(own.key),
            f"{prefix}_CLIENT_CERTIFICATE": str(own.certificate),
        }
        transport = connect(destination(env))
        assert transport.send(body(), WAIT_S).fate is Fate.KEPT
        transport.close()
        env[f"{prefix}_HEADERS"] = f"authorization=Bearer%20{new_token()}"
        transport = connect(destination(env))
        told = transport.send(body(), WAIT_S)
        assert (told.fate, told.delay_s) == (Fate.AGAIN, 10)
        transport.close()
