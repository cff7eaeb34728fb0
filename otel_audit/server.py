"""The service put together: a log, and the receiver in front of it.

`Server` starts and stops; `serve` runs one as a process, until a signal ends it.
"""

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Final, Self

from otel_audit._server_watch import Watch
from otel_audit.auditlog import AuditLog
from otel_audit.config import ServerSettings
from otel_audit.forwarder import Forwarder, ForwarderStats
from otel_audit.otlp import Decoder
from otel_audit.receiver import Receiver, ReceiverStats
from otel_audit.tracker import TrackerStats

__all__ = ["Addresses", "Server", "serve"]

_log = logging.getLogger("otel_audit.server")
_GRACE_S: Final = 10.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_M_ARENA_MAX: Final = -8  # from malloc.h
_ARENAS: Final = 2


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens and what it writes; as text, the line that scripts read.

    Args:
        grpc: `host:port` of OTLP/gRPC; None if it is off.
        http: `host:port` of OTLP/HTTP; None if it is off.
        directory: absolute path of the log's folder.
    """

    grpc: str | None
    http: str | None
    directory: str

    def __str__(self) -> str:
        return f"listening grpc={self.grpc or 'off'} http={self.http or 'off'} dir={self.directory}"


class Server:
    """A log with a receiver in front of it; a context manager that starts and stops them.

    Args:
        settings: addresses, folder and limits.

    Raises:
        ConfigError: an address cannot be used.
        StorageError: the folder cannot be written, is damaged, or another process writes it.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.log = AuditLog.open(settings.directory, settings.log)
        try:
            self._forwarder = Forwarder(self.log, settings.otlp_logs) if settings.otlp_logs else None
            self._receiver = Receiver(self.log, Decoder(settings.decode), settings.receiver)
        except BaseException:
            self.log.close()
            raise
        self._watch = Watch(self.log)
        directory = str(Path(settings.directory).resolve())
        self.addresses = Addresses(self._receiver.grpc_address, self._receiver.http_address, directory)

    def start(self) -> Addresses:
        """Take requests from now on; gives where."""
        self._receiver.start()
        self._watch.start()
        if self._forwarder:
            self._forwarder.start()
        return self.addresses

    def stop(self, grace_s: float = _GRACE_S) -> None:
        """Refuse new requests, wait up to `grace_s` for those under way, then close the log."""
        try:
            self._receiver.stop(grace_s)
        finally:
            if self._forwarder:
                self._forwarder.stop()
            self.log.close()
            self._watch.stop()

    def stats(self) -> ReceiverStats:
        """Counters of the receiver since start."""
        return self._receiver.stats()

    def forwarder_stats(self) -> ForwarderStats | None:
        """What was passed on as OTLP log records; None when nothing is to be."""
        return self._forwarder.stats() if self._forwarder else None

    def source_stats(self) -> TrackerStats:
        """What is known of the sources whose records it takes."""
        return self.log.tracker.stats()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(settings: ServerSettings, *, ready: Callable[[Addresses], None] | None = None) -> int:
    """Run a server until SIGTERM or SIGINT; gives the exit code.

    The first signal stops gracefully, the second at once: what was acknowledged is on disk either way.

    Args:
        settings: addresses, folder and limits.
        ready: called once requests are taken.

    Raises what `Server` raises.
    """
    _spare_memory()
    with _stop_signals() as stopping, Server(settings) as server:
        _log.info("pid %d serves %s", os.getpid(), server.addresses.directory)
        if ready:
            ready(server.addresses)
        stopping.wait()
        _log.info("stopping; a second signal stops at once")
    forwarded = server.forwarder_stats()
    pairs = [*_pairs(server.stats()), *_pairs(server.source_stats()), *(_pairs(forwarded) if forwarded else ())]
    _log.info("stopped: %s", " ".join(pairs))
    return 0


def _pairs(stats: ReceiverStats | TrackerStats | ForwarderStats) -> Iterator[str]:
    """`key=value` of each counter, those of a table as `key.name=value`."""
    for field in fields(stats):
        value = getattr(stats, field.name)
        if isinstance(value, Mapping):
            yield from (f"{field.name}.{name}={count}" for name, count in value.items())
        else:
            yield f"{field.name}={value}"


def _spare_memory() -> None:
    """Let the C library keep two heaps instead of eight a core; what one thread frees, another can so use again.

    With the default, thirty requests of 64 MiB at once leave several hundred MiB behind that nobody can use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, other C libraries need no such help
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process."""
    stopping = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
