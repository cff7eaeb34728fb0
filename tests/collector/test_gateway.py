"""gateway.yaml: TLS and a bearer token from senders, TLS and a bearer token to the log."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from otel_audit._config_settings import BY_KEY
from tests.certificates import Authority
from tests.collector.pipeline import EXPORT, Place, arrived, bodies, check_complete, send
from tests.collector.support import Service, wait_for
from tests.support import calls_of

SENDER, LOG = "token-of-a-sender", "token-of-the-gateway"


class Front:
    """TLS and a token in front of a log: what it takes, it hands on; what it refuses, the log never sees."""

    def __init__(self) -> None:
        self.address = ""
        self.refused = threading.Event()


@contextmanager
def _front(authority: Authority, log: str) -> Iterator[Front]:
    front = Front()
    issued = authority.issue("log")
    with grpc.insecure_channel(log) as opened:
        hand_on: Any = opened.unary_unary(EXPORT)

        def export(body: bytes, context: Any) -> bytes:
            if ("authorization", f"Bearer {LOG}") not in [tuple(pair) for pair in context.invocation_metadata()]:
                front.refused.set()
                context.abort(grpc.StatusCode.UNAVAILABLE, "who are you?")
            answer: bytes = hand_on(body, timeout=60)
            return answer

        handler: Any = grpc.unary_unary_rpc_method_handler(export)
        server = grpc.server(ThreadPoolExecutor(4))
        path, _, method = EXPORT.lstrip("/").partition("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(path, {method: handler}),))
        credentials = grpc.ssl_server_credentials([(issued.key.read_bytes(), issued.certificate.read_bytes())])
        front.address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        server.start()
        try:
            yield front
        finally:
            server.stop(None).wait()


def _files(folder: Path, authority: Authority, token: str = LOG) -> dict[str, str]:
    """The files a gateway needs, as its environment names them."""
    own = authority.issue("gateway")
    (folder / "senders").write_text(f"another-sender\n{SENDER}\n")
    (folder / "token").write_text(token)
    return {
        "AUDIT_SERVER_CERT_FILE": str(own.certificate),
        "AUDIT_SERVER_KEY_FILE": str(own.key),
        "AUDIT_CA_FILE": str(authority.file),
        "AUDIT_SENDERS_FILE": str(folder / "senders"),
        "AUDIT_TOKEN_FILE": str(folder / "token"),
    }


def test_calls_arrive_through_tls_and_tokens(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    with Service(tmp_path / "log") as service, _front(authority, service.grpc) as front:
        place = Place(tmp_path, front.address)
        with place.start("gateway.yaml", **_files(tmp_path, authority)):
            send(place.grpc, bodies(200, each=20), authority=authority.file, token=SENDER)
            check_complete(arrived(service, 200), range(200))


def test_calls_arrive_in_a_log_that_knows_the_gateway(tmp_path: Path) -> None:
    """The same without the stand-in: the log's own TLS and its own check of tokens."""
    if "receivers.otlp.senders_file" not in BY_KEY:
        pytest.skip("this version has no receivers.otlp.senders_file")
    authority = Authority(tmp_path, "authority")
    issued = authority.issue("log")
    tls = {"cert_file": str(issued.certificate), "key_file": str(issued.key)}
    senders, settings = tmp_path / "senders.yaml", tmp_path / "audit.yaml"
    senders.write_text(f"- {{name: gateway, token_sha256: {hashlib.sha256(LOG.encode()).hexdigest()}}}\n")
    otlp = {"protocols": {"grpc": {"tls": tls}, "http": {"tls": tls}}, "senders_file": str(senders)}
    settings.write_text(yaml.safe_dump({"receivers": {"otlp": otlp}}))
    with Service(tmp_path / "log", "--config", settings) as service:
        place = Place(tmp_path, service.grpc)
        with place.start("gateway.yaml", **_files(tmp_path, authority, token="not-the-gateway's")):
            send(place.grpc, bodies(100, each=20), authority=authority.file, token=SENDER)
            wait_for(lambda: "Exporting failed" in place.said(), "the log does not take it, and the gateway keeps it")
            assert calls_of(service.directory) == []
            (tmp_path / "token").write_text(LOG)
            check_complete(arrived(service, 100), range(100))


@pytest.mark.parametrize("token", ["", "a-guess"])
def test_a_sender_without_the_token_is_refused(token: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    place = Place(tmp_path, "127.0.0.1:9")
    with (
        place.start("gateway.yaml", **_files(tmp_path, authority)),
        pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"),
    ):
        send(place.grpc, bodies(1, each=1), authority=authority.file, token=token)


def test_a_sender_without_tls_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    place = Place(tmp_path, "127.0.0.1:9")
    with (
        place.start("gateway.yaml", **_files(tmp_path, authority)),
        pytest.raises(grpc.RpcError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"),
    ):
        send(place.grpc, bodies(1, each=1), token=SENDER, timeout_s=3)


def test_with_a_client_authority_a_token_alone_is_not_enough(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    files = _files(tmp_path, authority)
    place = Place(tmp_path, "127.0.0.1:9")
    with (
        place.start("gateway.yaml", **files, AUDIT_CLIENT_CA_FILE=str(authority.file)),
        pytest.raises(grpc.RpcError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"),
    ):
        send(place.grpc, bodies(1, each=1), authority=authority.file, token=SENDER, timeout_s=5)


def test_a_token_that_is_replaced_is_taken_up_without_a_restart(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    with Service(tmp_path / "log") as service, _front(authority, service.grpc) as front:
        place = Place(tmp_path, front.address)
        with place.start("gateway.yaml", **_files(tmp_path, authority, token="an-old-one")):
            send(place.grpc, bodies(10, each=10), authority=authority.file, token=SENDER)
            wait_for(front.refused.is_set, "the log refuses the old token")
            (tmp_path / "token").write_text(LOG)
            check_complete(arrived(service, 10), range(10))
