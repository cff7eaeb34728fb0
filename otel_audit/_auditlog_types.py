"""What goes into a log's opening, and what comes back from it."""

import re
from dataclasses import dataclass
from typing import Final

from otel_audit._durations import Spread
from otel_audit.errors import ConfigError

__all__ = ["LogSettings", "LogStats", "Receipt", "SealResult"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How a log is kept.

    Args:
        name: of the log, where it is made; an existing log keeps its own.
        segment_rows: records after which a segment is sealed.
        segment_age_s: seconds after which it is sealed anyway.
        queue_records: records that may wait for the committer; beyond, `submit` refuses.
        dedupe_window_s: how long a retry is recognised.
        dedupe_ids_max: how many identities are remembered for that, at most.
        compact_least: how many small neighbouring segments are worth merging.
        keep_replaced_s: how long segments that were merged stay on disk for readers of older snapshots.
        disk_reserve_bytes: appends are refused while the disk has less left than this, so that sealing still can go on;
            None: 64 MiB, or a twentieth of a smaller disk.
        disk_ready_bytes: the service counts as not ready while the disk has less left than this, so that senders turn
            elsewhere before appends are refused; None: twice the reserve. Never less than the reserve.
        late_s: how long a record that a source's numbers show to be missing may still be on its way.
    """

    name: str = "audit"
    segment_rows: int = 262_144
    segment_age_s: float = 60.0
    queue_records: int = 200_000
    dedupe_window_s: float = 900.0
    dedupe_ids_max: int = 10_000_000
    compact_least: int = 8
    keep_replaced_s: float = 3600.0
    disk_reserve_bytes: int | None = None
    disk_ready_bytes: int | None = None
    late_s: float = 300.0

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise ConfigError(
                "open log", repr(self.name), "not a log name", "use letters, digits, dot, dash, underscore"
            )
        for name in ("segment_rows", "segment_age_s", "queue_records", "dedupe_window_s", "dedupe_ids_max", "late_s"):
            if getattr(self, name) <= 0:
                raise ConfigError("open log", name, "must be above zero")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one submission.

    Args:
        log: name of the log.
        first_seq: number of its first new record; last_seq: of its last; None when nothing was new.
        accepted: new records; duplicates: retries that were collapsed; quarantined: new quarantine entries.
    """

    log: str
    first_seq: int | None
    last_seq: int | None
    accepted: int
    duplicates: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class SealResult:
    """What a seal did: records sealed by it, and the number of the last sealed record."""

    records: int
    sealed_seq: int


@dataclass(frozen=True, slots=True)
class LogStats:
    """Where a log stands, and counters since it was opened.

    Args:
        last_seq: number of the last durable record; sealed_seq: of the last sealed one.
        accepted, duplicates, quarantined: records, retries and quarantine entries.
        commits: group commits; commit_ns: time spent in them, syncing included.
        refused: submissions that were not made durable.
        queued_records: records waiting for the committer.
        remembered: identities whose retry would be recognised.
        segments_sealed, segments_compacted: files made, and small files merged away.
        append_error, seal_error: why the last try failed; empty when it did not.
        seal_errors: tries to seal that failed; seal_failed_s: on the monotonic clock, since when all have; None: they do not.
        unsealed_since_us: when the oldest record that is not sealed was taken, microseconds since 1970 UTC; None: all are.
        quarantine_entries: entries in the quarantine, of earlier runs as well.
        committing_since_s: on the monotonic clock, since when the group commit under way is; None: none is.
        broken: why nothing is taken until a restart; empty: it is.
        fsync_durations: how long the syncs of the journal took; commit_durations: and whole group commits.
    """

    last_seq: int
    sealed_seq: int
    accepted: int
    duplicates: int
    quarantined: int
    commits: int
    commit_ns: int
    refused: int
    queued_records: int
    remembered: int
    segments_sealed: int
    segments_compacted: int
    append_error: str
    seal_error: str
    seal_errors: int
    seal_failed_s: float | None
    unsealed_since_us: int | None
    quarantine_entries: int
    committing_since_s: float | None
    broken: str
    fsync_durations: Spread
    commit_durations: Spread
