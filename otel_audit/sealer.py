"""Turns closed journals into sealed segments, one after the other, until each is done.

One thread. A closed journal belongs to it alone; it is dropped only when its records are in the lake and synced, so every
step may fail or be repeated. While the lake cannot be written the journals wait, readers read them, and appends go on.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_audit.errors import CorruptLogError, UnavailableError
from otel_audit.journal import JournalTail, fsync_path
from otel_audit.lake import Lake

__all__ = ["Sealer", "SealerStats"]

_log = logging.getLogger("otel_audit.log")
_RETRY_S: Final = (0.2, 30.0)


@dataclass(slots=True)
class SealerStats:
    """What the sealer has done since the log was opened; written by its thread, read by anyone.

    Args:
        sealed_seq: number of the last sealed record.
        segments_sealed, segments_compacted: files made, and small files merged away.
        error: why the last try failed; empty when it did not.
        errors: tries that failed.
        failed_s: on the monotonic clock, since when every try has failed; None when the last one did not.
    """

    sealed_seq: int = 0
    segments_sealed: int = 0
    segments_compacted: int = 0
    error: str = ""
    errors: int = 0
    failed_s: float | None = None


class Sealer:
    """The sealing thread of a log.

    Args:
        lake: where segments go; this object's alone.
        log: name of the log.
        segment_rows: size of a full segment; compact_least, keep_replaced_s: as in `LogSettings`.
        sealed_seq: number of the last record sealed so far.
    """

    def __init__(
        self, lake: Lake, log: str, *, segment_rows: int, compact_least: int, keep_replaced_s: float, sealed_seq: int
    ) -> None:
        self.stats = SealerStats(sealed_seq)
        self._lake = lake
        self._log_name = log
        self._segment_rows = segment_rows
        self._compact_least = compact_least
        self._keep_replaced_s = keep_replaced_s
        self._changed = threading.Condition()
        # Under `_changed`:
        self._waiting: deque[Path] = deque()
        self._failures = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="otel-audit-seal", daemon=True)

    def start(self, journals: Iterable[Path]) -> None:
        """Start the thread on the closed journals that an earlier process left."""
        self._waiting.extend(journals)
        self._thread.start()

    def take(self, journal: Path) -> None:
        """Seal a journal that the committer has closed."""
        with self._changed:
            self._waiting.append(journal)
            self._changed.notify_all()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until every journal taken so far is sealed.

        Raises:
            UnavailableError: the lake cannot be written now; sealing goes on by itself.
            TimeoutError: it takes longer than `timeout_s`.
        """
        with self._changed:
            failures = self._failures
            done = self._changed.wait_for(
                lambda: not self._waiting or self._failures > failures or self._closing, timeout_s
            )
            if self._waiting and self._failures > failures:
                raise UnavailableError("seal", self._lake.url, self.stats.error, "it is tried again by itself")
            if not done:
                raise TimeoutError(f"seal {self._lake.url}: not done within {timeout_s} s")

    def close(self, timeout_s: float | None = None) -> bool:
        """Seal what was taken, unless that fails, and end the thread; False if that takes longer than `timeout_s`.

        The thread goes on then; as every step may be cut short, the process may end all the same.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                path = self._waiting[0]
            try:
                self._seal(path)
            except Exception as e:
                if self._failed(e):
                    return
                continue
            with self._changed:
                self._waiting.popleft()
                self._failures = 0
                self._changed.notify_all()
            self._tidy()

    def _failed(self, e: Exception) -> bool:
        """Say why and wait a while; True when the log closes meanwhile."""
        self.stats.error = str(e)
        self.stats.errors += 1
        if self.stats.failed_s is None:
            self.stats.failed_s = time.monotonic()
        if isinstance(e, UnavailableError):
            _log.warning("%s", e)
        else:
            _log.exception("sealing failed unexpectedly; it is tried again")
        with self._changed:
            self._failures += 1
            self._changed.notify_all()
            wait_s = min(_RETRY_S[0] * 2 ** min(self._failures, 10), _RETRY_S[1])
            self._changed.wait_for(lambda: self._closing, wait_s)
            return self._closing

    def _seal(self, path: Path) -> None:
        tail = JournalTail(path)
        if tail.first_seq > self.stats.sealed_seq:
            tail.refresh()
            if tail.scan is None:
                raise CorruptLogError(path, 0, "the journal has lost its header", "restore the file from a copy")
            last_seq = tail.next_seq - 1
            new = self._lake.seal(self._log_name, tail.batches, tail.first_seq, last_seq, tail.scan.digest)
            self.stats.segments_sealed += new
            self.stats.sealed_seq = last_seq
        # Here also when an earlier try had sealed it and failed later: what is sealed needs its journal no more.
        path.unlink(missing_ok=True)
        fsync_path(path.parent)
        self.stats.error = ""
        self.stats.failed_s = None

    def _tidy(self) -> None:
        """Merge small segments; what fails here is tried again after the next seal and costs nothing."""
        try:
            merged = self._lake.compact(self._segment_rows, self._compact_least)
            if merged:
                self.stats.segments_compacted += merged
                self._lake.vacuum(self._keep_replaced_s)
        except (OSError, UnavailableError) as e:
            _log.warning("%s", e)
        except Exception:
            _log.exception("merging small segments failed unexpectedly; they stay as they are")
