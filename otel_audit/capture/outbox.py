"""Reading a spool: what a source has written and the destination has not answered for yet.

Whoever ships from a folder holds the lock of its `position` file. That is the process that writes there, or one that has
adopted the folder of a dead process, or the one that has the local log open.
"""

import contextlib
import logging
import os
import shutil
from pathlib import Path

from otel_audit.capture.frames import RECORD, Frame, frames_in
from otel_audit.capture.spool import SUFFIX, Position, calls_without_end, lock, read_position, write_position

__all__ = ["Outbox", "orphans", "position_of", "sources"]

_log = logging.getLogger("otel_audit.capture")

_CHUNK_BYTES: int = 2 * 1024 * 1024
_FRAME_BYTES_MAX: int = 64 * 1024 * 1024


class Outbox:
    """What is left to ship of one source; used by one thread.

    Args:
        folder: the source's.
        position_fd: holds the lock of its `position`.
        owner_fd: holds the lock of its `owner`, when that process is dead and the folder is adopted.
    """

    def __init__(self, folder: Path, position_fd: int, owner_fd: int | None = None) -> None:
        self.folder = folder
        self._fds = [position_fd] if owner_fd is None else [position_fd, owner_fd]
        self._position_fd = position_fd
        self.dead = owner_fd is not None
        self.position = read_position(position_fd)
        """Up to where the destination answers for everything."""
        self.read_to = self.position
        """Up to where it was read."""
        self._file: tuple[int, int] | None = None  # number and descriptor of the file that is being read
        self._ended = False

    @classmethod
    def take(cls, folder: Path) -> "Outbox | None":
        """The outbox of a folder that nobody ships from; None when somebody does, or it is gone."""
        fd = lock(folder / "position")
        return None if fd is None else cls(folder, fd)

    @classmethod
    def adopt(cls, folder: Path) -> "Outbox | None":
        """The outbox of a folder whose owner is dead; None when it lives, or another process was faster."""
        owner = lock(folder / "owner")
        if owner is None:
            return None
        fd = lock(folder / "position")
        if fd is None:
            os.close(owner)
            return None
        return cls(folder, fd, owner)

    # --- reading -----------------------------------------------------------------------------------------------------------
    def read(self, records_max: int, bytes_max: int) -> list[Frame]:
        """The next records, in the order in which they were written; empty when there are none now.

        A second call without `answered` between them gives what comes after.
        """
        while True:
            number, offset = self.read_to
            if number == 0 and not self._first_file():
                return self._last_calls()
            number, offset = self.read_to
            followed = (self.folder / _name(number + 1)).exists()  # before reading: what is behind it then is all
            found = self._frames(number, offset, records_max, bytes_max)
            if found:
                return found
            if not followed:
                self._tell_skipped(number, offset, tail=self.dead)
                return self._last_calls()
            self._tell_skipped(number, offset, tail=True)
            self.read_to = (number + 1, 0)

    def _frames(self, number: int, offset: int, records_max: int, bytes_max: int) -> list[Frame]:
        size = _CHUNK_BYTES
        while True:
            buffer = self._bytes(number, offset, size)
            found, taken = [], 0
            for one in frames_in(buffer):
                if one.skipped:
                    _log.error("read spool %s: %d damaged bytes skipped", self.folder / _name(number), one.skipped)
                taken = one.end
                if one.kind == RECORD:
                    found.append(one)
                if len(found) >= records_max or taken >= bytes_max:
                    break
            if taken:
                self.read_to = (number, offset + taken)
            if found or len(buffer) < size or size > _FRAME_BYTES_MAX:
                return found
            size *= 4  # one frame that is longer than the buffer, or a long stretch of damage

    def _bytes(self, number: int, offset: int, size: int) -> bytes:
        if self._file is None or self._file[0] != number:
            self._close_file()
            try:
                self._file = number, os.open(self.folder / _name(number), os.O_RDONLY)
            except FileNotFoundError:
                return b""
        return os.pread(self._file[1], size, offset)

    def _first_file(self) -> bool:
        numbers = sorted(
            int(name.removesuffix(SUFFIX)) for name in _names(self.folder) if name.removesuffix(SUFFIX).isdigit()
        )
        if numbers:
            self.read_to = (numbers[0], 0)
        return bool(numbers)

    def _last_calls(self) -> list[Frame]:
        """At the end of a dead source: the calls that began and never ended."""
        if not self.dead or self._ended:
            return []
        self._ended = True
        calls = calls_without_end(self.folder)
        return [Frame(RECORD, seq, record, 0, 0) for seq, record in sorted(calls.items())]

    def _tell_skipped(self, number: int, offset: int, *, tail: bool) -> None:
        """Say what is left behind the last frame of a file that nobody writes to any more."""
        left = len(self._bytes(number, offset, _CHUNK_BYTES)) if tail else 0
        if left:
            self.read_to = (number, offset + left)
            _log.error(
                "read spool %s: %d bytes at its end are no whole record and were skipped; the missing number shows in "
                "`otel-audit gaps`",
                self.folder / _name(number),
                left,
            )

    # --- answers ------------------------------------------------------------------------------------------------------------
    def answered(self) -> None:
        """The destination answers for all that was read: note it, and delete the files before it."""
        before, self.position = self.position[0], self.read_to
        write_position(self._position_fd, self.position)
        for number in range(max(before, 1), self.position[0]):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / _name(number)).unlink()

    def again(self) -> None:
        """What was read and not answered for is to be read again."""
        self.read_to, self._ended = self.position, False

    def close(self) -> None:
        """Let go of the locks."""
        self._close_file()
        fds, self._fds = self._fds, []
        for fd in fds:
            with contextlib.suppress(OSError):  # closed meanwhile, by a thread that a fork has ended
                os.close(fd)

    def clear_away(self) -> None:
        """Remove the folder of a dead source, all of which is answered for."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file[1])
            self._file = None


def _name(number: int) -> str:
    return f"{number:08d}{SUFFIX}"


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []


def sources(parent: Path) -> list[Path]:
    """The folders of all sources that spool for one destination."""
    return [parent / name for name in sorted(_names(parent)) if not name.startswith(".") and not name.endswith(SUFFIX)]


def orphans(parent: Path, own: Path) -> list[Outbox]:
    """The folders of dead sources, adopted."""
    found = (Outbox.adopt(folder) for folder in sources(parent) if folder != own)
    return [outbox for outbox in found if outbox is not None]


def position_of(folder: Path) -> Position:
    """Up to where a folder has been shipped, by whoever ships it."""
    try:
        fd = os.open(folder / "position", os.O_RDONLY)
    except FileNotFoundError:
        return 0, 0
    try:
        return read_position(fd)
    finally:
        os.close(fd)
