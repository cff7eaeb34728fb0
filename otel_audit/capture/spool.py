"""The spool: records on disk from the moment a call ends until the destination answers for them.

Written synchronously by the thread that ends the span, so that the death of the process loses nothing: what `write` has
taken is the kernel's. `sync` makes it survive the loss of power as well.

```
<root>/<destination>/.destination    says for a person where its sources ship to
<root>/<destination>/<source id>/
    owner             locked by the process that writes here, for as long as it lives
    position          locked by whoever ships from here; holds file and offset up to which the destination answers
    00000001.spool    frames
    open              frames of calls that began and have not ended (mode fail-closed)
```
One process writes a source's folder. Usually it ships from it as well; a folder whose owner is dead is adopted by the next
process that looks, and with a local log as destination whoever has that log open ships for all. Locks are flock(2): they
go with the process, whatever kills it.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from zlib import crc32

from otel_audit.capture.frames import DONE, RECORD, START, frame, frames_in
from otel_audit.capture.settings import Destination
from otel_audit.capture.wire import EncodedSpan
from otel_audit.errors import CaptureError

__all__ = [
    "DESTINATION",
    "SUFFIX",
    "Position",
    "Spool",
    "SpoolFullError",
    "calls_without_end",
    "candidates",
    "find_root",
    "folder_of",
    "lock",
    "read_position",
    "write_position",
]

FILE_BYTES: Final = 4 * 1024 * 1024
"""A spool file that has reached this is closed, and deleted once shipped."""
_OPEN_BYTES_MAX: Final = 1024 * 1024
SUFFIX: Final = ".spool"
DESTINATION: Final = ".destination"
"""File that says, for a person, where the sources beside it ship to."""
_POSITION: Final = struct.Struct("<QQ")
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_sync_data = getattr(os, "fdatasync", os.fsync)

Position = tuple[int, int]
"""Number of a spool file, and offset in it."""


class SpoolFullError(CaptureError):
    """The spool has reached its size, or its disk is full; the record was not written."""


# --- places -------------------------------------------------------------------------------------------------------------
def candidates(wanted: str | None) -> Iterator[Path]:
    """The folders that a spool may be in, in the order in which they are tried."""
    if wanted:
        yield Path(wanted)
    with contextlib.suppress(RuntimeError):  # no home
        yield Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "otel-audit" / "spool"
    for base in (tempfile.gettempdir(), "/dev/shm"):  # noqa: S108 - our own folder in it, checked to be ours
        yield Path(base) / f"otel-audit-spool-{os.getuid()}"


def find_root(wanted: str | None = None) -> tuple[Path, list[str]]:
    """A folder of ours that can be written to, made if need be, and a complaint for each that could not be used.

    Args:
        wanted: the folder asked for; else `$XDG_STATE_HOME/otel-audit/spool`, `~/.local/state/otel-audit/spool`, a folder
            in the system's temporary one, one in shared memory.

    Raises:
        CaptureError: there is none.
    """
    problems = []
    for path in candidates(wanted):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not wanted and path.stat().st_uid != os.getuid():
                raise PermissionError(errno.EPERM, "belongs to somebody else")
            handle, probe = tempfile.mkstemp(dir=path, prefix=".probe-")
            os.close(handle)
            Path(probe).unlink()
        except OSError as e:
            problems.append(f"spool folder {path} cannot be used: {e.strerror or e}")
        else:
            return path.resolve(), problems
    raise CaptureError(
        "make the spool", wanted or "folder", "; ".join(problems), "set OTEL_AUDIT_SPOOL_DIR to a folder to write to"
    )


def folder_of(root: Path, destination: Destination) -> Path:
    """Where sources that ship to `destination` have their folders."""
    digest = hashlib.sha256(f"{destination.kind} {destination.target}".encode()).hexdigest()
    return root / f"{destination.kind}-{digest[:12]}"


def lock(path: Path, *, create: bool = False) -> int | None:
    """A descriptor that holds the lock of `path`; None when another process has it, or the file is gone."""
    flags = os.O_RDWR | (os.O_CREAT if create else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:  # else its folder was cleared away while we waited
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def read_position(fd: int) -> Position:
    """What `write_position` wrote; the beginning when it cannot be read."""
    raw = os.pread(fd, _POSITION.size + 4, 0)
    if len(raw) < _POSITION.size + 4 or crc32(raw[: _POSITION.size]) != int.from_bytes(raw[_POSITION.size :], "little"):
        return 0, 0
    file, offset = _POSITION.unpack_from(raw)
    return int(file), int(offset)


def write_position(fd: int, position: Position) -> None:
    """Note up to where the destination answers for what is spooled."""
    raw = _POSITION.pack(*position)
    os.pwrite(fd, raw + crc32(raw).to_bytes(4, "little"), 0)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- writing --------------------------------------------------------------------------------------------------------------
class Spool:
    """The folder of one source, written by this process alone; made with the first record.

    Every method may be called from any thread, and from a signal handler that interrupted another one of them.

    Args:
        parent: folder of the sources of one destination.
        source_id: name of the folder.
        bytes_max: how large all files together may grow.
        synced: whether `sync` will be used, so that file names must be on disk too.
        file_bytes: size at which a file is closed.
        destination: where its records go, as text for a person.
    """

    def __init__(
        self,
        parent: Path,
        source_id: str,
        *,
        bytes_max: int,
        synced: bool = False,
        file_bytes: int = FILE_BYTES,
        destination: str = "",
    ) -> None:
        self._destination = destination
        self.folder = parent / source_id
        self._bytes_max = bytes_max
        self._file_bytes = file_bytes
        self._synced_files = synced
        # `_lock` guards all that follows; re-entrant, because a signal handler may write a record too.
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._fd = -1
        self._number = 0
        self._size = 0  # of the current file
        self._used = 0  # by all files, at most; corrected from the disk when it says that the spool is full
        self._open_fd = -1
        self._open: dict[int, bytes] = {}  # calls that began: number -> frame
        self._open_size = 0
        self._open_live = 0  # bytes of it that are calls which have not ended
        self.records = 0
        """Records written."""
        self.generation = 0
        """How often the folder was made; positions of one are nothing in another."""
        # `_syncing` is held by the one thread that syncs; others wait for it and find their data synced with it.
        # Re-entrant, as `_lock` is.
        self._syncing = threading.RLock()
        self._synced: Position = (0, 0)

    @property
    def end(self) -> Position:
        """Where the next record goes."""
        return self._number, self._size

    @property
    def used(self) -> int:
        """Bytes of all its files, at most; what is deleted meanwhile is counted until the spool seems full."""
        return self._used

    @property
    def begun(self) -> bool:
        """Whether there is a folder."""
        return self._owner is not None

    def append(self, seq: int, record: EncodedSpan, *, beyond: bool = False) -> None:
        """Write one record.

        Args:
            seq: its number.
            record: the span.
            beyond: write also when the spool has reached its size: for the few records about itself.

        Raises:
            SpoolFullError: no room.
            OSError: the disk failed.
        """
        data = frame(RECORD, seq, record)
        with self._lock:
            if self._fd < 0 or self._size + len(data) > self._file_bytes:
                self._next_file()
            if self._used + len(data) > self._bytes_max and not beyond:
                self._used = self._on_disk()
                if self._used + len(data) > self._bytes_max:
                    raise SpoolFullError("spool a record", self.folder, "the spool has reached its size")
            _write(self._fd, data, self._size, self.folder)
            self._size += len(data)
            self._used += len(data)
            self.records += 1

    def sync(self) -> None:
        """Have all that was appended before survive the loss of power; raises `OSError`."""
        wanted = self.end
        with self._syncing:
            if self._synced >= wanted:
                return
            with self._lock:
                if self._fd < 0:  # all of it was answered for, and cleared away
                    return
                reached, fd = self.end, os.dup(self._fd)
            try:
                _sync_data(fd)
            finally:
                os.close(fd)
            self._synced = reached

    def begin_call(self, seq: int, record: EncodedSpan) -> None:
        """Note, durably, that a call began; raises `SpoolFullError` or `OSError`."""
        data = frame(START, seq, record)
        with self._lock:
            if self._fd < 0:
                self._next_file()
            if self._open_fd < 0:
                self._open_fd = os.open(self.folder / "open", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                _sync_folder(self.folder)
            if self._used + len(data) > self._bytes_max:
                self._used = self._on_disk()
                if self._used + len(data) > self._bytes_max:
                    raise SpoolFullError("spool a call", self.folder, "the spool has reached its size")
            _write(self._open_fd, data, self._open_size, self.folder)
            self._open_size += len(data)
            self._open[seq] = data
            self._open_live += len(data)
            fd = os.dup(self._open_fd)
        try:
            _sync_data(fd)
        except OSError:
            with contextlib.suppress(OSError, SpoolFullError):
                self.end_call(seq)  # it is refused, and must not become a record
            raise
        finally:
            os.close(fd)

    def end_call(self, seq: int) -> None:
        """Note that a call which `begin_call` noted has its record."""
        data = frame(DONE, seq)
        with self._lock:
            began = self._open.pop(seq, None)
            if began is None:
                return
            _write(self._open_fd, data, self._open_size, self.folder)
            self._open_size += len(data)
            self._open_live -= len(began)
            if self._open_size > max(_OPEN_BYTES_MAX, 2 * self._open_live):
                self._rewrite_open()

    def _rewrite_open(self) -> None:
        """Keep only what has not ended."""
        fresh = self.folder / "open.new"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        data = b"".join(self._open.values())
        _write(fd, data, 0, self.folder)
        _sync_data(fd)
        fresh.rename(self.folder / "open")
        os.close(self._open_fd)
        self._open_fd, self._open_size = fd, len(data)

    def _next_file(self) -> None:
        if self._owner is None:
            self._begin()
        if self._fd >= 0:
            if self._synced_files:
                _sync_data(self._fd)
                if (
                    self._open_fd >= 0
                ):  # a file may be deleted once shipped: by then its calls must be known to have ended
                    _sync_data(self._open_fd)
            os.close(self._fd)
            self._fd = -1
        path = self.folder / f"{self._number + 1:08d}{SUFFIX}"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._number, self._size = self._number + 1, 0
        if self._synced_files:
            _sync_folder(self.folder)

    def _begin(self) -> None:
        """Make the folder under another name, lock it, and only then show it to those who look for the dead's."""
        parent = self.folder.parent
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._destination and not (parent / DESTINATION).exists():
            (parent / DESTINATION).write_text(self._destination + "\n", encoding="utf-8")
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        owner = lock(fresh / "owner", create=True)
        os.close(os.open(fresh / "position", os.O_WRONLY | os.O_CREAT, 0o600))
        fresh.rename(self.folder)
        self._owner, self._number = owner, 0
        self.generation += 1
        if self._synced_files:
            _sync_folder(parent)

    def _on_disk(self) -> int:
        with os.scandir(self.folder) as entries:
            return sum(entry.stat().st_size for entry in entries)

    def remove_if_empty(self, position: Position) -> None:
        """Clear the folder away when everything up to its end is answered for; a later record makes it anew."""
        with self._lock:
            if self._owner is None or position < self.end or self._open:
                return
            self.let_go()
            shutil.rmtree(self.folder, ignore_errors=True)

    def let_go(self) -> None:
        """Close everything; in a forked child, what is the parent's stays the parent's."""
        for fd in (self._fd, self._open_fd, self._owner):
            if fd is not None and fd >= 0:
                with contextlib.suppress(OSError):  # closed meanwhile, by a thread that a fork has ended
                    os.close(fd)
        self._fd = self._open_fd = -1
        self._owner = None
        self._size = self._used = self._open_size = self._open_live = 0
        self._open = {}
        self._synced = (0, 0)


def _write(fd: int, data: bytes, size: int, folder: Path) -> None:
    """Write all of `data` behind `size` bytes, or nothing."""
    try:
        written = os.write(fd, data)
        reason = "the disk is full"
        while 0 < written < len(data):
            more = os.write(fd, data[written:])
            if not more:
                break
            written += more
        if written == len(data):
            return
    except OSError as e:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, size)
        if e.errno not in _NO_ROOM:
            raise
        reason = e.strerror or "no room"
    else:
        os.ftruncate(fd, size)
    raise SpoolFullError("spool a record", folder, reason)


def calls_without_end(folder: Path) -> dict[int, EncodedSpan]:
    """The calls of a dead source that began and have no record, by number."""
    try:
        data = (folder / "open").read_bytes()
    except FileNotFoundError:
        return {}
    began: dict[int, EncodedSpan] = {}
    for found in frames_in(data):
        if found.kind == START:
            began[found.seq] = found.record
        elif found.kind == DONE:
            began.pop(found.seq, None)
    return began
