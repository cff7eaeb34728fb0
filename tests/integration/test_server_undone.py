"""A server of which a part fails while it starts or stops: everything else is let go all the same."""

import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from otel_audit._server_health import Health
from otel_audit._server_watch import Watch
from otel_audit.auditlog import AuditLog
from otel_audit.config import ServerSettings, load
from otel_audit.errors import ConfigError
from otel_audit.forwarder import Forwarder
from otel_audit.quarantine import Quarantine
from otel_audit.receiver import Receiver
from otel_audit.server import Server
from otel_audit.telemetry import Telemetry
from tests.collector.support import free_port


class BrokenError(Exception):
    pass


def broken(*_: object, **__: object) -> None:
    raise BrokenError


def settings(folder: Path) -> ServerSettings:
    """On ports that are known before, with everything switched on."""
    file = folder / "audit.yaml"
    file.write_text(
        f"""
receivers:
  otlp: {{protocols: {{grpc: {{endpoint: "127.0.0.1:{free_port()}"}}, http: {{endpoint: "127.0.0.1:{free_port()}"}}}}}}
exporters: {{otlp_logs: {{endpoint: "http://127.0.0.1:{free_port()}"}}}}
service: {{telemetry: {{metrics: {{readers: [{{pull: {{exporter: {{prometheus: {{host: 127.0.0.1, port: {free_port()}}}}}}}}}]}}}}}}
"""
    )
    return load(file, {"dir": str(folder / "log")})


def check_free(given: ServerSettings) -> None:
    """Folder and ports can be had again."""
    with Server(given) as server:
        assert httpx.get(f"http://{server.addresses.http}/livez", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    "stop",
    [
        (Receiver, "stop"),
        (Forwarder, "stop"),
        (Quarantine, "close"),
        (AuditLog, "close"),
        (Watch, "stop"),
        (Health, "stop"),
        (Telemetry, "stop"),
    ],
    ids=lambda stop: stop[0].__name__,
)
def test_what_cannot_be_stopped_keeps_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: tuple[type, str]
) -> None:
    given, real = settings(tmp_path), getattr(*stop)

    def stopped_but_broken(*arguments: object, **more: object) -> None:
        real(*arguments, **more)
        raise BrokenError

    server = Server(given)
    server.start()
    with monkeypatch.context() as patch:
        patch.setattr(*stop, stopped_but_broken)
        with pytest.raises(BrokenError):
            server.stop()
    check_free(given)


@pytest.mark.parametrize("part", [Receiver, Forwarder, Watch, Health, Telemetry], ids=lambda part: part.__name__)
@pytest.mark.parametrize("method", ["__init__", "start"])
def test_what_cannot_be_started_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: type, method: str
) -> None:
    given = settings(tmp_path)
    start: Callable[[], object] = lambda: Server(given).start()  # noqa: E731 - shorter than a function
    with monkeypatch.context() as patch:
        patch.setattr(part, method, broken)
        with pytest.raises(BrokenError):
            start()
    check_free(given)


def test_a_push_that_cannot_begin_ends_the_one_that_did(tmp_path: Path) -> None:

    file = tmp_path / "audit.yaml"
    pushes = "".join(
        f"{{periodic: {{exporter: {{otlp: {{endpoint: 'https://127.0.0.1:1', certificate: {path}}}}}}}}},"
        for path in (Path(__file__), tmp_path / "none.pem")
    )
    file.write_text(f"service: {{telemetry: {{metrics: {{readers: [{pushes}]}}}}}}")
    given = load(file, {"dir": str(tmp_path / "log"), "grpc": "127.0.0.1:0", "http": "127.0.0.1:0"})
    before = set(threading.enumerate())
    with pytest.raises(ConfigError, match=r"none\.pem"):
        Server(given).start()
    assert not {t.name for t in set(threading.enumerate()) - before if "Metric" in t.name}
