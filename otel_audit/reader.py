"""Read a log from any process, at any time, without blocking its writer.

A snapshot is a prefix of the log: the sealed segments and, joined to them without a gap, the unsealed records. Journals are
read before the table's version, so that a segment sealed in between is seen at least once; what is seen twice is cut by
number.
"""

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from otel_audit.errors import CorruptLogError, NotFoundError, StorageError
from otel_audit.journal import JournalTail
from otel_audit.lake import Lake, Segment
from otel_audit.record import schema

__all__ = ["LogReader", "Segment", "Snapshot", "log_name"]

_ATTEMPTS: Final = 5


@dataclass(frozen=True)
class Snapshot:
    """A consistent view of a log.

    Args:
        name: of the log.
        segments: sealed Parquet files, ascending by number, without gaps.
        unsealed: records after the last segment, `record.schema()`, ascending by number.
        sealed_seq: number of the last sealed record, 0 when none is.
        last_seq: number of the last record, 0 when the log is empty.
    """

    name: str
    segments: tuple[Segment, ...]
    unsealed: pa.Table
    sealed_seq: int
    last_seq: int


def log_name(directory: str | os.PathLike[str]) -> str:
    """Name of the log in a folder; raises NotFoundError when there is none."""
    path = Path(directory) / "log.json"
    try:
        about = json.loads(path.read_bytes())
        return str(about["name"])
    except FileNotFoundError as e:
        raise NotFoundError(
            "open log", directory, "there is no audit log in this folder", "name another with --dir or OTEL_AUDIT_DIR"
        ) from e
    except (ValueError, KeyError, TypeError) as e:
        raise CorruptLogError(path, 0, f"not the description of a log: {e}", "restore the file from a copy") from e


class LogReader:
    """A log open for reading; `snapshot` may be called from any thread and remembers what it has read.

    Args:
        directory: folder of the log.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.name = log_name(directory)
        # Everything below is touched under the lock only.
        self._lock = threading.Lock()
        self._lake = Lake(self.directory / "lake")
        self._tails: dict[str, JournalTail] = {}

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> "LogReader":
        """Open the log of a folder; raises NotFoundError when there is none."""
        return cls(directory)

    def snapshot(self) -> Snapshot:
        """The log as it is now; cheap to repeat, for only what is new is read.

        Raises:
            CorruptLogError: a file does not hold what was written, or records are missing.
        """
        with self._lock:
            for attempt in range(_ATTEMPTS):
                try:
                    return self._look()
                except (CorruptLogError, FileNotFoundError):
                    # A journal sealed under our hands, or a failed write cut back: look again, from the start.
                    self._tails.clear()
                    if attempt == _ATTEMPTS - 1:
                        raise
            raise StorageError("read", self.directory, "the log changed faster than it could be read")

    def _look(self) -> Snapshot:
        tails = self._journals()
        sealed_seq = self._lake.sealed_seq(self.name)
        segments = self._lake.segments()
        if segments and segments[-1].last_seq != sealed_seq:
            raise CorruptLogError(
                segments[-1].path, 0, f"the table says {sealed_seq} records are sealed, the last segment ends elsewhere"
            )
        batches: list[pa.RecordBatch] = []
        expected = sealed_seq + 1
        for tail in tails:
            if tail.next_seq <= expected:
                continue
            if tail.first_seq > expected:
                raise CorruptLogError(tail.path, 0, f"records {expected} to {tail.first_seq - 1} are missing before it")
            batches += tail.batches
            if tail.first_seq < expected:
                raise CorruptLogError(tail.path, 0, f"it is sealed in part, up to record {expected - 1}")
            expected = tail.next_seq
        return Snapshot(
            name=self.name,
            segments=segments,
            unsealed=pa.Table.from_batches(batches, schema()),
            sealed_seq=sealed_seq,
            last_seq=expected - 1,
        )

    def _journals(self) -> list[JournalTail]:
        names = sorted(p.name for p in (self.directory / "journal").glob("*.journal"))
        for gone in self._tails.keys() - set(names):
            del self._tails[gone]
        for name in names:
            tail = self._tails.setdefault(name, JournalTail(self.directory / "journal" / name))
            tail.refresh()
        return [self._tails[name] for name in names]
