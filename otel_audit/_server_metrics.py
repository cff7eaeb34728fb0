"""Which number of the service is which metric."""

import os
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from otel_audit._durations import Spread
from otel_audit._server_health import Health
from otel_audit.auditlog import AuditLog
from otel_audit.forwarder import Forwarder
from otel_audit.receiver import ReceiverSettings, ReceiverStats
from otel_audit.telemetry import Telemetry
from otel_audit.tracker import TrackerStats

__all__ = ["REASONS", "watch_forwarder", "watch_process", "watch_service"]

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
REASONS: Final = (
    "abandoned",
    "certificate_missing",
    "certificate_unknown",
    "content_encoding",
    "content_type",
    "credentials_missing",
    "incomplete",
    "overloaded",
    "path",
    "rate_limited",
    "stopping",
    "token_unknown",
    "too_large",
    "unavailable",
    "undecodable",
)
"""Why requests are refused."""
_SOURCES_FOR_S: Final = 0.2  # counting them looks at thousands; one collection asks several times


class _Receives(Protocol):
    """The part of `Receiver` that is told."""

    def stats(self) -> ReceiverStats: ...


def watch_service(
    telemetry: Telemetry, log: AuditLog, receiver: _Receives, settings: ReceiverSettings, health: Health
) -> None:
    """Tell all there is of a log and its receiver."""
    _watch_receiver(telemetry, receiver, settings)
    _watch_log(telemetry, log)
    _watch_seal(telemetry, log)
    _watch_sources(telemetry, _Recent(log.tracker.stats, _SOURCES_FOR_S).read)
    telemetry.watch("otel_audit.disk.free", lambda: health.disk.free)
    telemetry.watch("otel_audit.disk.ready", lambda: health.disk.ready)
    telemetry.watch("otel_audit.disk.reserve", lambda: health.disk.reserve)


def _watch_receiver(telemetry: Telemetry, receiver: _Receives, settings: ReceiverSettings) -> None:
    def spans() -> list[tuple[float, dict[str, str]]]:
        return [(n, {"transport": transport}) for transport, n in receiver.stats().spans_by_transport.items()]

    def log_records() -> list[tuple[float, dict[str, str]]]:
        return [(n, {"transport": transport}) for transport, n in receiver.stats().log_records_by_transport.items()]

    none = dict.fromkeys(REASONS, 0)  # a rate can be told only of what was there before it rose

    def refused() -> list[tuple[float, dict[str, str]]]:
        return [(n, {"reason": reason}) for reason, n in {**none, **receiver.stats().refused}.items()]

    telemetry.watch("otel_audit.receiver.accepted_spans", spans)
    telemetry.watch("otel_audit.receiver.accepted_log_records", log_records)
    telemetry.watch("otel_audit.receiver.not_allowed_records", lambda: receiver.stats().not_allowed)
    telemetry.watch("otel_audit.receiver.stale_files", lambda: receiver.stats().stale_files)
    telemetry.watch("otel_audit.receiver.skipped_spans", lambda: receiver.stats().skipped)
    telemetry.watch("otel_audit.receiver.requests", lambda: receiver.stats().requests)
    telemetry.watch("otel_audit.receiver.refused_requests", refused)
    telemetry.watch("otel_audit.receiver.in_flight", lambda: receiver.stats().in_flight_bytes)
    telemetry.watch("otel_audit.receiver.in_flight.limit", lambda: settings.intake.max_in_flight_bytes)
    telemetry.watch("otel_audit.healthy", lambda: int(receiver.stats().healthy))


def _watch_log(telemetry: Telemetry, log: AuditLog) -> None:
    telemetry.watch("otel_audit.log.records", lambda: log.stats().accepted)
    telemetry.watch("otel_audit.log.duplicates", lambda: log.stats().duplicates)
    telemetry.watch("otel_audit.log.queue.size", lambda: log.stats().queued_records)
    telemetry.watch("otel_audit.log.queue.capacity", lambda: log.settings.queue_records)
    telemetry.watch("otel_audit.log.refused", lambda: log.stats().refused)
    telemetry.watch("otel_audit.log.last_seq", lambda: log.stats().last_seq)
    telemetry.watch("otel_audit.quarantine.entries", lambda: log.stats().quarantined)
    telemetry.watch("otel_audit.quarantine.stored_entries", lambda: log.stats().quarantine_entries)

    def commits() -> Spread:
        return log.stats().commit_durations

    def fsyncs() -> Spread:
        return log.stats().fsync_durations

    telemetry.watch_durations("otel_audit.log.commit.duration", commits)
    telemetry.watch_durations("otel_audit.journal.fsync.duration", fsyncs)


def _watch_seal(telemetry: Telemetry, log: AuditLog) -> None:
    def unsealed() -> int:
        stats = log.stats()
        return max(stats.last_seq - stats.sealed_seq, 0)

    def lag_s() -> float:
        since_us = log.stats().unsealed_since_us
        return 0.0 if since_us is None else max(time.time() - since_us / 1e6, 0.0)

    telemetry.watch("otel_audit.seal.unsealed_records", unsealed)
    telemetry.watch("otel_audit.seal.lag", lag_s)
    telemetry.watch("otel_audit.seal.segments", lambda: log.stats().segments_sealed)
    telemetry.watch("otel_audit.seal.errors", lambda: log.stats().seal_errors)
    telemetry.watch("otel_audit.seal.failed", lambda: int(log.stats().seal_failed_s is not None))


def _watch_sources(telemetry: Telemetry, stats: Callable[[], TrackerStats]) -> None:
    telemetry.watch("otel_audit.sources", lambda: stats().sources)
    telemetry.watch("otel_audit.sources_running", lambda: stats().running)
    telemetry.watch("otel_audit.sources_missing_records", lambda: stats().missing)
    telemetry.watch("otel_audit.sources_lost_records", lambda: stats().reported)


def watch_forwarder(telemetry: Telemetry, forwarder: Forwarder) -> None:
    """Tell what is passed on as OTLP log records."""
    to = {"exporter": "otlp_logs"}
    telemetry.watch("otel_audit.exporter.sent_log_records", lambda: [(forwarder.stats().sent, to)])
    telemetry.watch("otel_audit.exporter.send_failed_log_records", lambda: [(forwarder.stats().send_failed, to)])
    telemetry.watch("otel_audit.exporter.retries", lambda: [(forwarder.stats().retries, to)])
    telemetry.watch("otel_audit.exporter.lag_records", lambda: [(forwarder.stats().lag, to)])


def watch_process(telemetry: Telemetry) -> None:
    """Tell what this process takes of the machine."""
    started_s = time.monotonic()
    telemetry.watch("otel_audit.process.uptime", lambda: time.monotonic() - started_s)
    telemetry.watch("otel_audit.process.cpu", lambda: sum(os.times()[:2]))
    if os.path.exists("/proc/self/statm"):  # noqa: PTH110 - a constant, not a path to work with
        telemetry.watch("otel_audit.process.memory.rss", _rss_bytes)
        telemetry.watch("otel_audit.process.open_fds", lambda: len(os.listdir("/proc/self/fd")) - 1)  # noqa: PTH208


def _rss_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - see above
        return int(file.read().split()[1]) * _PAGE_BYTES


class _Recent:
    """What a call gave, for a moment."""

    def __init__(self, read: Callable[[], TrackerStats], for_s: float) -> None:
        self._read = read
        self._for_s = for_s
        self._lock = threading.Lock()
        self._due_s = 0.0  # under `_lock`, as what follows
        self._last: TrackerStats | None = None

    def read(self) -> TrackerStats:
        now_s = time.monotonic()
        with self._lock:
            if self._last is None or now_s >= self._due_s:
                self._last = self._read()
                self._due_s = now_s + self._for_s
            return self._last
