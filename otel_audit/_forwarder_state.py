"""What the forwarder must know after a crash: which record is next, and which the destination would not take.

`D/forward/otlp_logs.json` is the cursor, written whole or not at all. `D/forward/otlp_logs.refused.jsonl` has a line for each
record, or range of records, that the destination refused; the records themselves stay in the log.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import CorruptLogError
from otel_audit.journal import fsync_path, write_durably
from otel_audit.record import format_time

__all__ = ["ForwardState"]

_HINT: Final = "to pass on the log from the beginning, or as exporters.otlp_logs.from says, remove the file"


class ForwardState:
    """The forwarder's files in a log's folder; one owner, one thread.

    Args:
        directory: folder of the log.
        log: its name.

    Raises:
        CorruptLogError: the cursor is not what was written.
    """

    def __init__(self, directory: Path, log: str) -> None:
        self.folder = directory / "forward"
        self._log = log
        self._cursor = self.folder / "otlp_logs.json"
        self.refused = self.folder / "otlp_logs.refused.jsonl"
        self.next_seq: int | None = self._read()
        """Number of the first record that was not acknowledged; None before the first start."""

    def _read(self) -> int | None:
        try:
            text = self._cursor.read_bytes()
        except FileNotFoundError:
            return None
        try:
            about = json.loads(text)
            next_seq, log = about["next_seq"], about["log"]
        except (ValueError, TypeError, KeyError) as e:
            raise CorruptLogError(self._cursor, 0, f"not the place where forwarding stands: {e}", _HINT) from e
        if isinstance(next_seq, bool) or not isinstance(next_seq, int) or next_seq < 1:
            raise CorruptLogError(self._cursor, 0, f"{next_seq!r} is no number of a record", _HINT)
        if log != self._log:
            raise CorruptLogError(self._cursor, 0, f"it is of log {log!r}, the folder holds {self._log!r}", _HINT)
        return next_seq

    def advance(self, next_seq: int) -> None:
        """Keep durably that all records before `next_seq` are done; raises OSError."""
        if not self.folder.exists():
            self.folder.mkdir(mode=0o750)
            fsync_path(self.folder.parent)
        write_durably(self._cursor, json.dumps({"log": self._log, "next_seq": next_seq}).encode() + b"\n")
        self.next_seq = next_seq

    def note_refused(self, first_seq: int, last_seq: int, count: int, reason: str) -> None:
        """Keep durably that the destination refused `count` of these records, and why; raises OSError.

        After a crash the same may be noted twice.
        """
        note: dict[str, Any] = {
            "at": format_time(time.time_ns() // 1000),
            "first_seq": first_seq,
            "last_seq": last_seq,
            "count": count,
            "reason": reason,
        }
        new = not self.refused.exists()
        fd = os.open(self.refused, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            size = os.fstat(fd).st_size
            torn = size and os.pread(fd, 1, size - 1) != b"\n"  # a crash amid a line; it becomes one of its own
            os.write(fd, (b"\n" if torn else b"") + json.dumps(note).encode("ascii") + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        if new:
            fsync_path(self.folder)
