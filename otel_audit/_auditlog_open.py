"""What opening a log for writing begins with: its lock, its name, how far it is sealed, and how much disk is kept free."""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Final

from otel_audit import __version__
from otel_audit._auditlog_types import LogSettings
from otel_audit.errors import CorruptLogError, LockedError, NotFoundError
from otel_audit.journal import write_durably
from otel_audit.lake import Lake
from otel_audit.reader import log_name

__all__ = ["lock", "name_of", "reserve_bytes", "sealed_up_to"]

_RESERVE_BYTES: Final = 64 << 20


def name_of(directory: Path, settings: LogSettings) -> str:
    """The name of the folder's log, which gets it on the first open."""
    try:
        return log_name(directory)
    except NotFoundError:
        about = {"name": settings.name, "format": 1, "created_by": f"otel-audit {__version__}"}
        write_durably(directory / "log.json", json.dumps(about).encode() + b"\n")
        return settings.name


def sealed_up_to(lake: Lake, name: str) -> int:
    """Number of the last sealed record, if the table and its files agree on it."""
    sealed = lake.sealed_seq(name)
    segments = lake.segments()
    last = segments[-1].last_seq if segments else 0
    if last != sealed:
        reason = f"the table says {sealed} records are sealed, its files end at {last}"
        raise CorruptLogError(lake.url, 0, reason, "nothing was changed; restore the folder from a copy")
    return sealed


def reserve_bytes(directory: Path, settings: LogSettings) -> int:
    if settings.disk_reserve_bytes is not None:
        return settings.disk_reserve_bytes
    disk = os.statvfs(directory)
    return min(_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // 20)


def lock(directory: Path) -> int:
    """Take the folder's lock; raises LockedError that says who holds it."""
    path = directory / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 4096, 0).decode(errors="replace").strip() or "another process"
        os.close(fd)
        raise LockedError(
            "open log", directory, f"it is open for writing by {holder}", "stop that process, or use another folder"
        ) from None
    about = (
        f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n"
    )
    with contextlib.suppress(OSError):  # a full disk keeps nobody from opening the log
        os.pwrite(fd, about.encode(), 0)
        os.ftruncate(fd, len(about))
    return fd
