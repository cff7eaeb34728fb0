"""What systemd is told, through a real datagram socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_audit._notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def test_each_state_is_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "3000000"})
    assert notifier.watchdog_s == 3
    notifier.ready()
    notifier.status("not ready: disk\nfull")
    notifier.status("not ready: disk\nfull")
    notifier.alive()
    notifier.stopping()
    said = [manager.recv(1000).decode() for _ in range(4)]
    assert said == ["READY=1", "STATUS=not ready: disk full", "WATCHDOG=1", "STOPPING=1"]


def test_an_abstract_socket_is_reached_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0otel-audit-test-{os.getpid()}")
        sock.settimeout(10)
        Notifier({"NOTIFY_SOCKET": f"@otel-audit-test-{os.getpid()}"}).ready()
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "relative", "@" + "x" * 300])
def test_without_a_manager_nothing_fails(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address} if address else {})
    assert notifier.watchdog_s is None
    notifier.ready()
    notifier.alive()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_counts_only_if_it_is_meant_for_this_process(
    environment: dict[str, str], watchdog_s: float | None
) -> None:
    assert Notifier(environment).watchdog_s == watchdog_s


def test_a_manager_that_does_not_read_holds_nothing_up(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1"})
    for _ in range(5_000):
        notifier.alive()
    assert manager.recv(100) == b"WATCHDOG=1"
