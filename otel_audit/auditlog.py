"""The append-only log of one folder: records in, a receipt out once they are durable.

Threads: callers of `submit` only queue; the committer thread alone touches the journal, the quarantine and the memory of
identities, and makes one write and one sync for everything that waits (group commit). A journal that is full or old is closed
and handed to the sealer's thread, which alone writes the lake.

What a crash can lose: nothing whose future had resolved. What was written but not yet acknowledged may be there after a
restart; a sender that sends it again finds it a duplicate.
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from otel_audit._auditlog_open import lock, name_of, reserve_bytes, sealed_up_to
from otel_audit._auditlog_types import LogSettings, LogStats, Receipt, SealResult
from otel_audit._durations import Durations
from otel_audit._stored import StoredKeys
from otel_audit.dedupe import KEY_COLUMNS, REMEMBERED_LEAST, Keys, Memory, keys_of
from otel_audit.errors import (
    AuditError,
    CorruptLogError,
    LogClosedError,
    OverloadedError,
    StorageError,
    UnavailableError,
)
from otel_audit.journal import Journal, JournalTail, fsync_path, journals
from otel_audit.lake import Lake, Segment
from otel_audit.numbers import NumberNotes, Seen, ranges_of
from otel_audit.otlp import Decoded
from otel_audit.quarantine import Quarantine
from otel_audit.record import schema
from otel_audit.sealer import Sealer
from otel_audit.tracker import TRACKED_COLUMNS, Tracker

__all__ = ["AuditLog", "LogSettings", "LogStats", "Receipt", "SealResult"]

_log = logging.getLogger("otel_audit.log")
_FRAME_ROWS: Final = 32_768


@dataclass(slots=True)
class _Counters:
    """The committer's own counters; others only read."""

    accepted: int = 0
    duplicates: int = 0
    quarantined: int = 0
    commits: int = 0
    commit_ns: int = 0
    refused: int = 0
    append_error: str = ""
    committing_since_s: float | None = None
    fsyncs: Durations = field(default_factory=Durations)
    commit_times: Durations = field(default_factory=Durations)


@dataclass(slots=True)
class _Waiting:
    """One submission on its way to the committer."""

    decoded: Decoded
    future: "Future[Receipt]" = field(default_factory=Future)

    @property
    def size(self) -> int:
        """Records in it; one at least, so that a queue of quarantine entries is bounded as well."""
        return max(int(self.decoded.records.num_rows), 1)


class AuditLog:
    """The one writer of a log folder; every method may be called from any thread.

    Open with `AuditLog.open(directory)`; a context manager closes it.
    """

    def __init__(self, directory: Path, settings: LogSettings, lock_fd: int) -> None:
        self.directory = directory
        self.settings = settings
        self.name = name_of(directory, settings)
        self._name_scalar = pa.scalar(self.name, pa.string())
        self._lock_fd = lock_fd
        # Under `_work`: the queue, how much is in it, whether a rotation is asked for, `_closing`.
        self._work = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._queued_records = 0
        self._rotate_asked = False
        self._closing = False
        # The committer's own, from the end of `_recover` on.
        self._counters = _Counters()
        self._journal: Journal | None = None
        self._journal_since = 0.0
        self._broken = ""
        self._recorded_us = 0
        # Number and time of the first record of each journal that is not known to be sealed, oldest first.
        self._begun: deque[tuple[int, int]] = deque()
        lake = Lake(directory / "lake")
        lake.create(self.name)
        sealed_seq = sealed_up_to(lake, self.name)
        self._next_seq = sealed_seq + 1
        self._head = lake.journal_head(self.name) or b""
        self._quarantine = Quarantine(directory, self.name)
        self._notes = NumberNotes(directory, self.name)
        self.tracker = Tracker(settings.late_s)
        """The sources of its records; knows those of the dedupe window at least."""
        self._stored = StoredKeys(directory, self.name)
        self._memory = Memory(int(settings.dedupe_window_s * 1e6), settings.dedupe_ids_max, self._stored)
        self.reserve_bytes = reserve_bytes(directory, settings)
        """Appends are refused while the disk has less left than this."""
        self._sealer = Sealer(
            lake,
            self.name,
            segment_rows=settings.segment_rows,
            compact_least=settings.compact_least,
            keep_replaced_s=settings.keep_replaced_s,
            sealed_seq=sealed_seq,
        )
        self._remember_sealed(lake)
        self._sealer.start(self._recover(sealed_seq))
        self._thread = threading.Thread(target=self._commit_loop, name="otel-audit-commit", daemon=True)
        self._thread.start()

    # --- open and close ---------------------------------------------------------------------------------------------------
    @classmethod
    def open(cls, directory: str | os.PathLike[str], settings: LogSettings | None = None) -> Self:
        """Open a log for writing, making it if the folder has none; replays what a crash left.

        Args:
            directory: folder of the log.
            settings: how to keep it.

        Raises:
            LockedError: another process has it open; says who.
            CorruptLogError: a file does not hold what was written; says where. Nothing is changed then.
            StorageError: the folder cannot be used.
        """
        path = Path(directory).absolute()
        try:
            (path / "journal").mkdir(mode=0o750, parents=True, exist_ok=True)
            fd = lock(path)
            fsync_path(path)
            fsync_path(path.parent)
        except OSError as e:
            raise StorageError("open log", path, e.strerror or str(e), "choose a folder this user may write to") from e
        try:
            return cls(path, settings or LogSettings(), fd)
        except BaseException:
            os.close(fd)
            raise

    def _recover(self, sealed_seq: int) -> list[Path]:
        """Read the journals that are left and go on with the last; gives those that wait to be sealed.

        Everything is checked before anything is changed.
        """
        tails = [tail.refresh() for tail in journals(self.directory / "journal")]
        done = [t for t in tails if t.rows and t.next_seq <= sealed_seq + 1]
        if tails and tails[-1].scan is None:  # the crash came before its header was whole: nothing was acknowledged
            done.append(tails.pop())
        live = [t for t in tails if t not in done]
        for tail in live:
            self._replay(tail)
        for tail in done:
            tail.path.unlink()
        if live and live[-1].rows < self.settings.segment_rows:
            self._journal = live.pop().reopen()
            self._head = self._journal.file.digest
            self._journal_since = time.monotonic()
        return [t.path for t in live]

    def _replay(self, tail: JournalTail) -> None:
        """Take over the numbers and identities of a journal's records."""
        hint = "nothing was changed; restore the folder from a copy"
        if tail.scan is None:
            raise CorruptLogError(tail.path, 0, "the header is missing, though later journals exist", hint)
        if tail.first_seq != self._next_seq:
            low, high = sorted((tail.first_seq, self._next_seq))
            what = "missing before this journal" if high == tail.first_seq else "sealed already, later ones are not"
            raise CorruptLogError(tail.path, 0, f"records {low} to {high - 1} are {what}", hint)
        if self._head and tail.meta.get("previous") != self._head.hex():
            raise CorruptLogError(tail.path, 0, "the journal does not continue the one before it", hint)
        if tail.batches:
            self._begun.append((self._next_seq, tail.batches[0].column("recorded_at").cast(pa.int64())[0].as_py()))
        for batch in tail.batches:
            recorded_us = batch.column("recorded_at").cast(pa.int64())[-1].as_py()
            self._memory.add(keys_of(batch), self._next_seq, recorded_us)
            self.tracker.take(batch, replayed=True)
            self._next_seq += batch.num_rows
            self._recorded_us = max(self._recorded_us, recorded_us)
        self._head = tail.scan.digest

    def _remember_sealed(self, lake: Lake) -> None:
        """Put the identities sealed within the dedupe window back into the memory, oldest first.

        The window ends with the newest record, not now: while the log was closed, or its clock was set, senders kept what they
        had. For the same reason the last `REMEMBERED_LEAST` are remembered however old they are, as in a log that stays open.
        """
        window_us, rows = int(self.settings.dedupe_window_s * 1e6), 0
        recent: list[Segment] = []
        for segment in reversed(lake.segments()):
            self._recorded_us = max(self._recorded_us, segment.recorded_max_us)
            cutoff_us = min(time.time_ns() // 1000, self._recorded_us) - window_us
            old = rows >= REMEMBERED_LEAST and segment.recorded_max_us < cutoff_us
            if old or rows > self.settings.dedupe_ids_max:
                break
            recent.append(segment)
            rows += segment.rows
        for segment in reversed(recent):
            seq = segment.first_seq
            for batch in lake.read(segment, (*KEY_COLUMNS, *TRACKED_COLUMNS)):
                self._memory.add(keys_of(batch), seq, segment.recorded_max_us)
                self.tracker.take(batch, replayed=True)
                seq += batch.num_rows

    def close(self, timeout_s: float | None = None) -> bool:
        """Make durable what was submitted, then let the folder go; what is unsealed stays in the journal.

        Args:
            timeout_s: how long that may take; None: for ever.

        Gives False if it took longer: the disk does not answer, or a segment is still being sealed. The folder is not let
        go then. The process may end all the same: it loses nothing that was acknowledged, as in a crash.
        """
        due_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._work:
            if self._closing:
                return not self._thread.is_alive()
            self._closing = True
            self._work.notify_all()
        self._thread.join(timeout_s)
        left_s = None if due_s is None else max(due_s - time.monotonic(), 0.0)
        if self._thread.is_alive() or not self._sealer.close(left_s):
            return False
        with (
            contextlib.ExitStack() as last_first
        ):  # a file that cannot be closed keeps neither the others open nor the folder
            last_first.callback(os.close, self._lock_fd)
            last_first.callback(self._notes.close)
            last_first.callback(self._quarantine.close)
            if self._journal is not None:
                last_first.callback(self._journal.close)
        return True

    @property
    def committing(self) -> bool:
        """Whether the committer runs; after `close`, whether something that was submitted still hangs in it."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- append -----------------------------------------------------------------------------------------------------------
    def submit(self, decoded: Decoded) -> "Future[Receipt]":
        """Queue records and quarantine entries; the future resolves once they are durable.

        The future fails with `UnavailableError` when they could not be made durable: nothing of them was kept. Its
        callbacks run on the committer thread and must be short.

        Raises:
            OverloadedError: the queue is full; LogClosedError: the log is closing. Both are retryable.
        """
        waiting = _Waiting(decoded)
        with self._work:
            if self._closing:
                raise LogClosedError("append to", self.directory, "the log is closing", "send again to its successor")
            if self._queue and self._queued_records + waiting.size > self.settings.queue_records:
                raise OverloadedError(
                    "append to",
                    self.directory,
                    f"{self._queued_records} records wait to be written",
                    "send again later",
                )
            self._queue.append(waiting)
            self._queued_records += waiting.size
            self._work.notify_all()
        return waiting.future

    def append(self, decoded: Decoded, timeout_s: float | None = None) -> Receipt:
        """`submit`, and wait; raises what the future fails with, or TimeoutError (the data may still become durable)."""
        return self.submit(decoded).result(timeout_s)

    def stats(self) -> LogStats:
        """Where the log stands now."""
        counters, sealer = self._counters, self._sealer.stats
        return LogStats(
            last_seq=self._next_seq - 1,
            sealed_seq=sealer.sealed_seq,
            accepted=counters.accepted,
            duplicates=counters.duplicates,
            quarantined=counters.quarantined,
            commits=counters.commits,
            commit_ns=counters.commit_ns,
            refused=counters.refused,
            queued_records=self._queued_records,
            remembered=len(self._memory),
            segments_sealed=sealer.segments_sealed,
            segments_compacted=sealer.segments_compacted,
            append_error=counters.append_error,
            seal_error=sealer.error,
            seal_errors=sealer.errors,
            seal_failed_s=sealer.failed_s,
            unsealed_since_us=self._unsealed_since_us(sealer.sealed_seq),
            quarantine_entries=self._quarantine.count,
            committing_since_s=counters.committing_since_s,
            broken=self._broken,
            fsync_durations=counters.fsyncs.read(),
            commit_durations=counters.commit_times.read(),
        )

    def _unsealed_since_us(self, sealed_seq: int) -> int | None:
        return next((since_us for first_seq, since_us in tuple(self._begun) if first_seq > sealed_seq), None)

    def _commit_loop(self) -> None:
        while (group := self._next_group()) is not None:
            if group:
                self._commit(group)
            self._rotate_if_due()

    def _next_group(self) -> list[_Waiting] | None:
        """What waits, up to a frame's worth; an empty list when only a rotation is due; None at the end."""
        with self._work:
            while not self._queue:
                if self._closing:
                    return None
                if self._rotate_asked or self._age_s() >= self.settings.segment_age_s:
                    return []
                aging = self._journal is not None and self._journal.rows
                self._work.wait(self.settings.segment_age_s - self._age_s() if aging else None)
            group: list[_Waiting] = []
            rows = 0
            while self._queue and (not group or rows + self._queue[0].size <= _FRAME_ROWS):
                waiting = self._queue.popleft()
                rows += waiting.size
                group.append(waiting)
            self._queued_records -= rows
        # From here on a caller can no longer cancel.
        return [w for w in group if w.future.set_running_or_notify_cancel()]

    def _age_s(self) -> float:
        """Age of the open journal; only journals that hold something age."""
        if self._journal is None or not self._journal.rows:
            return 0.0
        return time.monotonic() - self._journal_since

    def _commit(self, group: list[_Waiting]) -> None:
        started = time.perf_counter_ns()
        counters = self._counters
        counters.committing_since_s = time.monotonic()
        try:
            receipts = self._write(group)
        except Exception as e:
            counters.committing_since_s = None
            if not isinstance(e, UnavailableError):
                _log.exception("append failed unexpectedly")
                if len(group) > 1 and not self._broken:
                    for waiting in group:  # one that cannot be written must not hold up the others
                        self._commit([waiting])
                    return
            error = e if isinstance(e, AuditError) else UnavailableError("append to", self.directory, repr(e))
            counters.append_error = str(error)
            counters.refused += len(group)
            for waiting in group:
                waiting.future.set_exception(error)
            return
        took_ns = time.perf_counter_ns() - started
        counters.committing_since_s = None
        counters.append_error = ""
        counters.commits += 1
        counters.commit_ns += took_ns
        counters.commit_times.add(took_ns)
        for waiting, receipt in zip(group, receipts, strict=True):
            counters.accepted += receipt.accepted
            counters.duplicates += receipt.duplicates
            counters.quarantined += receipt.quarantined
            waiting.future.set_result(receipt)

    def _write(self, group: list[_Waiting]) -> list[Receipt]:
        """Make a group durable: quarantine first, then one frame in the journal; numbers are given here."""
        self._check_disk()
        now_us = max(time.time_ns() // 1000, self._recorded_us)
        quarantined = [self._quarantine.append(w.decoded.quarantine, now_us) for w in group]
        batches = [w.decoded.records for w in group]
        joined = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
        keys = keys_of(joined)
        duplicates, doubled = self._memory.duplicates(keys), None
        if duplicates is None:
            duplicates = np.zeros(len(keys), np.bool_)
        else:
            doubled = joined.filter(pa.array(duplicates))
            joined, keys = joined.filter(pa.array(~duplicates)), keys[~duplicates]
        first_seq = self._next_seq
        if joined.num_rows:
            self._append(joined, keys, now_us)
            self.tracker.take(joined)
        self._note_numbers(group, doubled, now_us)
        return self._receipts(batches, duplicates, quarantined, first_seq)

    def _note_numbers(self, group: list[_Waiting], doubled: pa.RecordBatch | None, now_us: int) -> None:
        """Keep durably which numbers came that no record carries, so that nobody takes them for lost."""
        seen = self.tracker.unknown(doubled) if doubled is not None else []
        for waiting in group:
            if waiting.decoded.unrecorded is not None:
                seen += [Seen(s.source, s.ranges, "unrecorded") for s in ranges_of(waiting.decoded.unrecorded)]
        if seen:
            self._notes.append(seen, now_us)
            self.tracker.add(seen)

    def _append(self, batch: pa.RecordBatch, keys: Keys, now_us: int) -> None:
        """Number, write and sync; from the sync on the records are in the log, whatever comes after."""
        if self._journal is None:
            folder = self.directory / "journal"
            self._journal = Journal.create(folder, self.name, self._next_seq, self._head, schema())
        if not self._journal.rows:
            self._journal_since = time.monotonic()
        first = not self._journal.rows
        self._journal.append([self._numbered(batch, now_us)])
        self._counters.fsyncs.add(self._journal.file.sync_ns)
        if first:
            self._note_begun(now_us)
        first_seq, self._next_seq = self._next_seq, self._next_seq + batch.num_rows
        self._head = self._journal.file.digest
        self._recorded_us = now_us
        try:
            self._memory.add(keys, first_seq, now_us)
        except Exception:
            # Durable, but a retry would not be recognised: take nothing more until a restart has read them back.
            self._broken = "the memory of identities failed"
            raise

    def _note_begun(self, now_us: int) -> None:
        """A journal got its first record; those that were sealed meanwhile are forgotten."""
        sealed_seq = self._sealer.stats.sealed_seq
        while self._begun and self._begun[0][0] <= sealed_seq:
            self._begun.popleft()
        self._begun.append((self._next_seq, now_us))

    def _numbered(self, batch: pa.RecordBatch, now_us: int) -> pa.RecordBatch:
        rows = batch.num_rows
        assigned = [
            pa.array(np.full(rows, now_us, np.int64)).cast(pa.timestamp("us", "UTC")),
            pa.repeat(self._name_scalar, rows),
            pa.array(np.arange(self._next_seq, self._next_seq + rows, dtype=np.int64)),
        ]
        return pa.RecordBatch.from_arrays([*batch.columns, *assigned], schema=schema())

    def _receipts(
        self, batches: list[pa.RecordBatch], duplicates: npt.NDArray[np.bool_], quarantined: list[int], first_seq: int
    ) -> list[Receipt]:
        receipts, seq, row = [], first_seq, 0
        for batch, kept in zip(batches, quarantined, strict=True):
            doubled = int(duplicates[row : row + batch.num_rows].sum())
            new = batch.num_rows - doubled
            first, last = (seq, seq + new - 1) if new else (None, None)
            receipts.append(Receipt(self.name, first, last, new, doubled, kept))
            seq += new
            row += batch.num_rows
        return receipts

    def _check_disk(self) -> None:
        if self._broken:
            raise UnavailableError("append to", self.directory, self._broken, "restart the service")
        disk = os.statvfs(self.directory)
        left = disk.f_bavail * disk.f_frsize
        if left < self.reserve_bytes:
            reason = f"the disk has {left:,} bytes left, {self.reserve_bytes:,} are kept for sealing"
            raise UnavailableError("append to", self.directory, reason, "free space; it then goes on by itself")

    # --- seal -------------------------------------------------------------------------------------------------------------
    def seal(self, timeout_s: float | None = None) -> SealResult:
        """Seal what is in the journal now, and wait for it.

        Raises:
            UnavailableError: the lake cannot be written now; the journal keeps the records and sealing goes on by itself.
            TimeoutError: it takes longer than `timeout_s`.
        """
        before = self._sealer.stats.sealed_seq
        with self._work:
            if self._closing:
                raise LogClosedError("seal", self.directory, "the log is closing", "open it again")
            self._rotate_asked = True
            self._work.notify_all()
            if not self._work.wait_for(lambda: not self._rotate_asked or self._closing, timeout_s):
                raise TimeoutError(f"seal {self.directory}: not begun within {timeout_s} s")
        self._sealer.wait(timeout_s)
        sealed_seq = self._sealer.stats.sealed_seq
        return SealResult(sealed_seq - before, sealed_seq)

    def _rotate_if_due(self) -> None:
        """Close the journal and hand it to the sealer when it is full or old, or someone asks."""
        journal = self._journal
        if journal is not None and journal.rows:
            full = journal.rows >= self.settings.segment_rows or self._age_s() >= self.settings.segment_age_s
            if (full or self._rotate_asked) and journal.close():
                self._journal = None
                self._stored.forget()
                self._sealer.take(journal.file.path)
        with self._work:
            self._rotate_asked = False
            self._work.notify_all()
