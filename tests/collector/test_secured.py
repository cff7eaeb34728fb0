"""A real Collector that sends to a secured service: over TLS, with the token of a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from otel_audit.senders import digest_of, new_token
from tests.certificates import Authority
from tests.collector.support import Collector, Service, free_port, wait_for
from tests.otlp_support import encoded, request, span
from tests.receiver_support import export_to
from tests.support import check_log

EXPORTERS = ["otlp_grpc", "otlp_http"]
CALLS = 40  # of one batch


def collector_config(folder: Path, exporter: str, target: str, ca: Path, **ports: int) -> Path:
    """The audit branch of a gateway: a queue on disk, retries without end, a token read from a file."""
    config: dict[str, Any] = {
        "extensions": {
            "bearertokenauth": {"filename": str(folder / "token")},
            "file_storage": {"directory": str(folder / "queue"), "create_directory": True, "fsync": True},
            "health_check": {"endpoint": f"127.0.0.1:{ports['health']}"},
        },
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": f"127.0.0.1:{ports['grpc']}"}}}},
        "exporters": {
            exporter: {
                "endpoint": f"https://{target}",
                "tls": {"ca_file": str(ca)},
                "auth": {"authenticator": "bearertokenauth"},
                "sending_queue": {"storage": "file_storage", "block_on_overflow": True},
                "retry_on_failure": {"initial_interval": "100ms", "max_interval": "1s", "max_elapsed_time": 0},
            }
        },
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "extensions": ["bearertokenauth", "file_storage", "health_check"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": [exporter]}},
        },
    }
    path = folder / "collector.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def pipeline(folder: Path, exporter: str, *lines: str) -> Iterator[tuple[Collector, Service, str, Path, str]]:
    """Collector and service, the Collector's address, the service's file of senders, and the token in use."""
    ca, token, senders = Authority(folder, "ours"), new_token(), folder / "senders.yaml"
    server = ca.issue("server")
    tls = {"cert_file": str(server.certificate), "key_file": str(server.key)}
    (folder / "audit.yaml").write_text(
        yaml.safe_dump(
            {
                "receivers": {
                    "otlp": {
                        "senders_file": str(senders),
                        "protocols": {"grpc": {"tls": tls}, "http": {"tls": tls}},
                        **(yaml.safe_load("\n".join(lines)) or {}),
                    }
                }
            }
        )
    )
    senders.write_text(f"- {{name: gateway, token_sha256: {digest_of(token)}}}\n")
    (folder / "token").write_text(token)
    ports = {"grpc": free_port(), "health": free_port()}
    with Service(folder / "log", "--config", folder / "audit.yaml") as service:
        target = service.grpc if exporter == "otlp_grpc" else service.http
        config = collector_config(folder, exporter, target, ca.file, **ports)
        with Collector([config], folder, health=f"127.0.0.1:{ports['health']}") as collector:
            yield collector, service, f"127.0.0.1:{ports['grpc']}", senders, token


def batch(number: int) -> bytes:
    """One batch of calls that no other batch has."""
    return encoded(request(*(span(span_id=bytes([1, number]) + i.to_bytes(6, "big")) for i in range(CALLS))))


def send(address: str, first: int, after: int) -> None:
    with export_to(address) as export:
        for number in range(first, after):
            export(batch(number), timeout=30)


def held(service: Service) -> int:
    try:
        return len(check_log(service.directory))
    except Exception:
        return 0


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_collector_delivers_over_tls_with_its_token(exporter: str, tmp_path: Path) -> None:
    with pipeline(tmp_path, exporter) as (collector, service, address, _, token):
        send(address, 0, 5)
        wait_for(lambda: held(service) == 5 * CALLS, "all calls are in the log")
        assert token not in service.said()
        assert "Dropping data" not in collector.said()


@pytest.mark.parametrize("exporter", ["otlp_grpc", pytest.param("otlp_http", marks=pytest.mark.long)])
def test_nothing_is_lost_while_a_token_is_not_known(exporter: str, tmp_path: Path) -> None:
    with pipeline(tmp_path, exporter) as (collector, service, address, senders, token):
        send(address, 0, 5)
        wait_for(lambda: held(service) == 5 * CALLS, "the first calls are in the log")
        known = senders.read_text()
        senders.write_text(f"- {{name: gateway, token_sha256: {digest_of(new_token())}}}\n")
        wait_for(lambda: "are in use" in service.said(), "the token is revoked")
        send(address, 5, 10)
        wait_for(lambda: "no sender has the bearer token" in collector.said(), "the Collector says why")
        wait_for(lambda: "token_unknown" in service.said(), "and so does the service")
        assert held(service) == 5 * CALLS, "nothing comes in without a token"
        senders.write_text(known)
        wait_for(lambda: held(service) == 10 * CALLS, "all calls are in the log", 120)
        assert "Dropping data" not in collector.said()
        assert token not in service.said()


def test_the_strict_answer_makes_a_collector_drop_its_data(tmp_path: Path) -> None:
    """Why it is not the default."""
    with pipeline(tmp_path, "otlp_grpc", "unauthenticated: refuse") as (collector, service, address, senders, _):
        senders.write_text(f"- {{name: gateway, token_sha256: {digest_of(new_token())}}}\n")
        wait_for(lambda: "are in use" in service.said(), "the token is revoked")
        send(address, 0, 1)
        wait_for(lambda: "Dropping data" in collector.said(), "the Collector drops what it has")
        assert "Unauthenticated" in collector.said()


def test_a_token_is_replaced_without_a_break(tmp_path: Path) -> None:
    """The steps that docs/security.md gives: allow both, give the Collector the new one, forget the old one."""
    with pipeline(tmp_path, "otlp_grpc") as (collector, service, address, senders, token):
        newer = new_token()
        senders.write_text(f"- {{name: gateway, token_sha256: [{digest_of(token)}, {digest_of(newer)}]}}\n")
        wait_for(lambda: service.said().count("are in use") == 1, "both are known")
        (tmp_path / "token").write_text(newer)
        wait_for(lambda: "refresh token" in collector.said(), "the Collector has read the new one")
        senders.write_text(f"- {{name: gateway, token_sha256: {digest_of(newer)}}}\n")
        wait_for(lambda: service.said().count("are in use") == 2, "the old one is forgotten")
        send(address, 0, 3)
        wait_for(lambda: held(service) == 3 * CALLS, "all calls are in the log")
        assert "token_unknown" not in service.said()
