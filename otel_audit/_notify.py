"""What systemd is told: that the service is ready, how it is, that it stops, and that it is alive.

Nothing is said where `NOTIFY_SOCKET` is not set, and nothing here ever fails: a service must run without systemd.

Source: systemd, `sd_notify(3)`, `sd_watchdog_enabled(3)`.
"""

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

__all__ = ["Notifier"]

_TEXT_MAX: Final = 500


class Notifier:
    """Tells the service manager that started this process.

    Args:
        environment: of the process.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environment)
        """How often systemd wants to hear that the process is alive; None: not at all."""
        self._status = ""

    def ready(self) -> None:
        """Requests are taken."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The service ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The process runs; to be called at least twice in `watchdog_s`."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent when it has changed."""
        line = " ".join(text.split())[:_TEXT_MAX]
        if line != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def _send(self, text: str) -> None:
        if not self._address.startswith(("/", "\0")):
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.setblocking(False)  # a manager that does not read must not hold us up
            to.sendto(text.encode(errors="backslashreplace"), self._address)


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Seconds, if the watchdog is meant for this process."""
    pid, usec = environment.get("WATCHDOG_PID", ""), environment.get("WATCHDOG_USEC", "")
    if not usec.isdecimal() or int(usec) <= 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6
