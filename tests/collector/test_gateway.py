"""gateway.yaml: TLS and a bearer token from senders, TLS and a bearer token to the log."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import yaml

from otel_audit.senders import digest_of, new_token
from tests.certificates import Authority
from tests.collector.pipeline import Place, arrived, bodies, check_complete, send
from tests.collector.support import Service, wait_for

SENDER = "token-of-a-sender"


@contextmanager
def _log(folder: Path, authority: Authority, token: str) -> Iterator[Service]:
    """A log that takes calls over TLS, from whoever has the token."""
    issued = authority.issue("log")
    tls = {"cert_file": str(issued.certificate), "key_file": str(issued.key)}
    senders = [{"name": "gateway", "token_sha256": digest_of(token)}]
    otlp = {"senders": senders, "protocols": {"grpc": {"tls": tls}, "http": {"tls": tls}}}
    (folder / "audit.yaml").write_text(yaml.safe_dump({"receivers": {"otlp": otlp}}))
    with Service(folder / "log", "--config", folder / "audit.yaml") as service:
        yield service


def _files(folder: Path, authority: Authority, token: str) -> dict[str, str]:
    """The files a gateway needs, as its environment names them."""
    issued = authority.issue("gateway")
    (folder / "senders").write_text(f"another-sender\n{SENDER}\n")
    (folder / "token").write_text(token)
    return {
        "AUDIT_SERVER_CERT_FILE": str(issued.certificate),
        "AUDIT_SERVER_KEY_FILE": str(issued.key),
        "AUDIT_CA_FILE": str(authority.file),
        "AUDIT_SENDERS_FILE": str(folder / "senders"),
        "AUDIT_TOKEN_FILE": str(folder / "token"),
    }


def test_calls_arrive_through_tls_and_tokens(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    token = new_token()
    with _log(tmp_path, authority, token) as service:
        place = Place(tmp_path, service.grpc)
        with place.start("gateway.yaml", **_files(tmp_path, authority, token)):
            send(place.grpc, bodies(200, each=20), authority=authority.file, token=SENDER)
            check_complete(arrived(service, 200), range(200))


@pytest.mark.parametrize("token", ["", "a-guess"])
def test_a_sender_without_the_token_is_refused(token: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    place = Place(tmp_path, "127.0.0.1:9")
    with (
        place.start("gateway.yaml", **_files(tmp_path, authority, new_token())),
        pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"),
    ):
        send(place.grpc, bodies(1, each=1), authority=authority.file, token=token)


def test_a_sender_without_tls_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    place = Place(tmp_path, "127.0.0.1:9")
    with (
        place.start("gateway.yaml", **_files(tmp_path, authority, new_token())),
        pytest.raises(grpc.RpcError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"),
    ):
        send(place.grpc, bodies(1, each=1), token=SENDER, timeout_s=3)


def test_with_a_client_authority_a_token_alone_is_not_enough(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    files = _files(tmp_path, authority, new_token())
    place = Place(tmp_path, "127.0.0.1:9")
    with (
        place.start("gateway.yaml", **files, AUDIT_CLIENT_CA_FILE=str(authority.file)),
        pytest.raises(grpc.RpcError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"),
    ):
        send(place.grpc, bodies(1, each=1), authority=authority.file, token=SENDER, timeout_s=5)


def test_a_token_that_is_replaced_is_taken_up_without_a_restart(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    token = new_token()
    with _log(tmp_path, authority, token) as service:
        place = Place(tmp_path, service.grpc)
        with place.start("gateway.yaml", **_files(tmp_path, authority, new_token())):
            send(place.grpc, bodies(10, each=10), authority=authority.file, token=SENDER)
            wait_for(lambda: "token_unknown" in service.said(), "the log refuses the old token")
            (tmp_path / "token").write_text(token)
            check_complete(arrived(service, 10), range(10))
