"""The service put together: a log, and the receiver in front of it.

`Server` starts and stops; `serve` runs one as a process, until a signal ends it.
"""

import ctypes
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Final, Literal, Self

from otel_audit._notify import Notifier
from otel_audit._server_health import Health, HealthSettings
from otel_audit._server_metrics import watch_forwarder, watch_process, watch_service
from otel_audit._server_watch import Watch
from otel_audit.auditlog import AuditLog
from otel_audit.config import ServerSettings
from otel_audit.forwarder import Forwarder, ForwarderStats
from otel_audit.otlp import Decoder
from otel_audit.receiver import Receiver, ReceiverSettings, ReceiverStats
from otel_audit.telemetry import Telemetry
from otel_audit.tracker import TrackerStats

__all__ = ["Addresses", "Server", "serve"]

Ending = Literal["ended", "sealing", "hanging"]
"""How a server has stopped: wholly; while a segment was being sealed, which the next start does again; or not, as
something does not return, such as a disk that does not answer."""

_Stats = ReceiverStats | TrackerStats | ForwarderStats

_log = logging.getLogger("otel_audit.server")
_CLOSE_S: Final = 2.0  # the least that is left to close the log, and the most to push the last metrics
_HEARTBEAT_S: Final = 5.0
_CUT_SHORT: Final = 1  # exit code
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_M_ARENA_MAX: Final = -8  # from malloc.h
_ARENAS: Final = 2
_FILES: Final = 256  # that are open beside connections


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
        health: when the log counts as not ready.

    Raises:
        ConfigError: an address cannot be used.
        StorageError: the folder cannot be written, is damaged, or another process writes it.
    """

    def __init__(self, settings: ServerSettings, health: HealthSettings | None = None) -> None:
        self._shutdown_timeout_s = settings.shutdown_timeout_s
        self.telemetry = Telemetry(settings.telemetry)
        """Its metrics; what is to be told is watched before `start`."""
        self.log = AuditLog.open(settings.directory, settings.log)
        with ExitStack() as undo:
            undo.callback(self.log.close)
            undo.callback(self.telemetry.stop)
            self._health = Health(self.log, health or HealthSettings())
            self.telemetry.open()
            self._forwarder = Forwarder(self.log, settings.otlp_logs) if settings.otlp_logs else None
            self._receiver = Receiver(self.log, Decoder(settings.decode), settings.receiver, self._health.reasons)
            undo.callback(self._receiver.stop, 0.0)
            watch_process(self.telemetry)
            watch_service(self.telemetry, self.log, self._receiver, settings.receiver, self._health)
            if self._forwarder:
                watch_forwarder(self.telemetry, self._forwarder)
            self._watch = Watch(self.log)
            directory = str(Path(settings.directory).resolve())
            self.addresses = Addresses(self._receiver.grpc_address, self._receiver.http_address, directory)
            undo.pop_all()

    def start(self) -> Addresses:
        """Take requests from now on; gives where. It is stopped again if that fails."""
        try:
            self._start()
        except BaseException:
            with suppress(Exception):  # why it did not start is what counts
                self.stop()
            raise
        return self.addresses

    def _start(self) -> None:
        self._health.start()
        self.telemetry.start()
        self._receiver.start()
        self._watch.start()
        if self._forwarder:
            self._forwarder.start()

    def stop(self, grace_s: float | None = None) -> Ending:
        """Refuse new requests, wait up to `grace_s` for those under way, then close the log.

        Args:
            grace_s: None: the shutdown timeout of the settings.

        A few seconds beyond `grace_s` the caller gets control back whatever hangs. What was acknowledged is on disk.
        What fails keeps nothing else from being stopped; the first error is raised at the end.
        """
        grace_s = self._shutdown_timeout_s if grace_s is None else grace_s
        due_s = time.monotonic() + grace_s
        ended = closed = False

        def receiver() -> None:
            nonlocal ended
            ended = _within(grace_s + _CLOSE_S, "otel-audit-stop", lambda: self._receiver.stop(grace_s))

        def log() -> None:
            nonlocal closed
            closed = self.log.close(max(due_s - time.monotonic(), _CLOSE_S))

        _each(
            receiver,
            self._forwarder.stop if self._forwarder else None,
            log,
            lambda: self._watch.stop(max(due_s - time.monotonic(), 0.0) if closed else 0.0),
            self._health.stop,
            lambda: self.telemetry.stop(min(max(due_s - time.monotonic(), 1.0), _CLOSE_S)),
        )
        if self.log.committing or not ended:
            return "hanging"
        return "ended" if closed else "sealing"

    def stats(self) -> ReceiverStats:
        """Counters of the receiver since start."""
        return self._receiver.stats()

    def forwarder_stats(self) -> ForwarderStats | None:
        """What was passed on as OTLP log records; None when nothing is to be."""
        return self._forwarder.stats() if self._forwarder else None

    def reasons(self) -> list[str]:
        """Why senders should not come here now, a sentence each; empty if they should."""
        return self._receiver.reasons()

    def source_stats(self) -> TrackerStats:
        """What is known of the sources whose records it takes."""
        return self.log.tracker.stats()

    def __enter__(self) -> Self:
        self.start()
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
    _allow_files(settings.receiver)
    notifier = Notifier()
    with _stop_signals() as stopping:
        server = Server(settings)
        try:
            server.start()
            _log.info("pid %d serves %s", os.getpid(), server.addresses.directory)
            for address in server.telemetry.addresses:
                _log.info("metrics are at http://%s/metrics", address)
            if ready:
                ready(server.addresses)
            notifier.ready()
            _beat(server, notifier, stopping)
        finally:
            notifier.stopping()
            _log.info("stopping; a second signal stops at once")
            ending = server.stop()
        told: list[_Stats | None] = [server.stats(), server.source_stats(), server.forwarder_stats()]
        _log.info("stopped: %s", " ".join(pair for stats in told if stats is not None for pair in _pairs(stats)))
        if ending != "ended":
            _end_at_once(ending, settings.shutdown_timeout_s)
    return 0


def _beat(server: Server, notifier: Notifier, stopping: threading.Event) -> None:
    """Tell the service manager how things are, until a signal comes."""
    every_s = min(_HEARTBEAT_S, (notifier.watchdog_s or _HEARTBEAT_S * 3) / 3)
    while True:
        reasons = server.reasons()
        notifier.status(f"not ready: {'; '.join(reasons)}" if reasons else "ready")
        notifier.alive()
        if stopping.wait(every_s):
            return


def _end_at_once(ending: Ending, timeout_s: float) -> None:
    """End a process whose threads do not: Python would wait for them."""
    if ending == "sealing":
        _log.warning("a segment was still being sealed after %g s; the next start seals it again", timeout_s)
    else:
        _log.error(
            "not stopped within %g s: a write to the disk does not return; ended all the same. "
            "What was acknowledged is on disk, what was not will be sent again",
            timeout_s,
        )
    logging.shutdown()
    os._exit(0 if ending == "sealing" else _CUT_SHORT)


def _within(timeout_s: float, name: str, do: Callable[[], None]) -> bool:
    """Do something that may hang; whether it ended in time. Raises what it raised."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failed:
        raise failed[0]
    return not thread.is_alive()


def _each(*steps: Callable[[], None] | None) -> None:
    """Do one after the other, each whatever became of those before; raises the first error, logs others."""
    failed: list[BaseException] = []
    for step in steps:
        try:
            if step:
                step()
        except BaseException as e:
            failed.append(e)
    for error in failed[1:]:
        _log.error("stopping: %s: %s", type(error).__name__, error)
    if failed:
        raise failed[0]


def _pairs(stats: _Stats) -> Iterator[str]:
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


def _allow_files(settings: ReceiverSettings) -> None:
    """Let the process open as many files as it may: each connection is one, and the log needs its own beside them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # where "no limit" is more than the system allows
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES + sum(served.connections_max for served in (settings.grpc, settings.http) if served)
    if soft != resource.RLIM_INFINITY and soft < needed:
        hint = "allow more (ulimit -n, LimitNOFILE=), or lower max_connections of receivers.otlp.protocols"
        _log.warning("at most %d files can be open, all connections and the log may need %d: %s", soft, needed, hint)


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
