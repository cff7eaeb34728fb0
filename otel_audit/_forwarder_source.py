"""Reads a log that is being written by number: the sealed segments, then the journals, in bounded pieces.

Nothing past what is durable is read: a frame whose sync fails is cut off, and its numbers are given to other records.
"""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa

from otel_audit.errors import CorruptLogError, StorageError
from otel_audit.journal import JournalTail, journals
from otel_audit.lake import Lake
from otel_audit.record import schema

__all__ = ["LogSource"]

_ATTEMPTS: Final = 5


class LogSource:
    """Records of a log from any number on, in order; one owner, one thread.

    It holds what is left of the piece it read last: of a journal, or 65,536 records of a segment.

    Args:
        directory: folder of the log.
        name: of the log.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, name
        self._lake = Lake(directory / "lake")
        self._at = 0  # number of the first record of the buffer
        self._buffer: deque[pa.RecordBatch] = deque()
        self.buffered = 0
        """Records held."""
        self._segment: Iterator[pa.RecordBatch] | None = None
        self._tail: JournalTail | None = None

    def read(self, first_seq: int, last_seq: int, most: int) -> list[pa.RecordBatch]:
        """Records from number `first_seq` on, at least one and at most `most`.

        Args:
            first_seq: number of the first.
            last_seq: number of the last durable record, not before `first_seq`.
            most: how many at most.

        Raises:
            StorageError: they cannot be read; the next call tries again.
        """
        if first_seq != self._at:
            self._forget()
            self._at = first_seq
        found: list[pa.RecordBatch] = []
        while most and self._at <= last_seq:
            if not self._buffer:
                if found:
                    break
                self._fill(last_seq)
            batch = self._buffer.popleft()
            if batch.num_rows > most:
                self._buffer.appendleft(batch.slice(most))
                batch = batch.slice(0, most)
            self._at += batch.num_rows
            self.buffered -= batch.num_rows
            most -= batch.num_rows
            found.append(batch)
        return found

    def _forget(self) -> None:
        self._buffer.clear()
        self.buffered = 0
        self._segment = self._tail = None

    def _fill(self, last_seq: int) -> None:
        """Read the next piece; a journal is looked for first: one that is sealed meanwhile is then in the lake."""
        for attempt in range(_ATTEMPTS):
            try:
                if self._from_segment() or self._from_journal(last_seq) or self._from_lake():
                    return
            except (CorruptLogError, OSError) as e:
                # A journal sealed under our hands, or a failed write cut back: look again, from the start.
                self._forget()
                if attempt == _ATTEMPTS - 1:
                    if isinstance(e, OSError):
                        raise StorageError("read", self._directory, e.strerror or str(e)) from e
                    raise
        raise StorageError("read", self._directory, f"record {self._at} is in no journal and no segment")

    def _from_segment(self) -> bool:
        """The next piece of the segment that is open."""
        while self._segment is not None:
            batch = next(self._segment, None)
            if batch is None:
                self._segment = None
            elif self._take(batch):
                return True
        return False

    def _from_journal(self, last_seq: int) -> bool:
        """What is new in the journal that holds the next record."""
        reached = [tail for tail in journals(self._directory / "journal") if tail.first_seq <= self._at]
        if not reached:
            return False
        if self._tail is None or self._tail.path != reached[-1].path:
            self._tail = reached[-1]
        self._tail.refresh(last_seq)
        batches = self._tail.batches[:]
        self._tail.batches.clear()
        taken = [self._take(batch) for batch in batches]
        return any(taken)

    def _from_lake(self) -> bool:
        """Open the segment that holds the next record, and read its first piece."""
        self._tail = None
        self._lake.sealed_seq(self._name)
        for segment in self._lake.segments():
            if segment.first_seq <= self._at <= segment.last_seq:
                self._segment = self._lake.read(segment, schema().names)
                return self._from_segment()
        return False

    def _take(self, batch: pa.RecordBatch) -> bool:
        """Put what is not before the next record into the buffer."""
        first: int = batch.column("seq")[0].as_py() if batch.num_rows else 0
        expected = self._at + self.buffered
        before = max(expected - first, 0)
        if before >= batch.num_rows:
            return False
        if first > expected:
            raise CorruptLogError(self._directory, 0, f"records {expected} to {first - 1} are missing")
        self._buffer.append(batch.slice(before))
        self.buffered += batch.num_rows - before
        return True
