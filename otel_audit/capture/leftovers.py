"""What lies in a spool, and who would ship it: for the one who looks after it, and for a warning at start-up.

A process ships what dead processes have left for its own destination. What they left for another one, because the endpoint
was changed since, waits for ever unless somebody is told.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_audit.capture.frames import RECORD, frames_in
from otel_audit.capture.outbox import position_of, sources
from otel_audit.capture.spool import DESTINATION, SUFFIX, calls_without_end, lock

__all__ = ["Waiting", "left_for_others", "waiting"]

_KINDS: Final = ("grpc-", "http-", "log-")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A source's folder with records that no destination answers for.

    Args:
        folder: the folder.
        destination: what it was meant for, as text.
        alive: whether its process lives, and so ships it.
        records: how many.
        size_bytes: their size.
        oldest_s: when its oldest file was last written to, seconds since 1970.
    """

    folder: Path
    destination: str
    alive: bool
    records: int
    size_bytes: int
    oldest_s: float


def destinations(root: Path) -> list[Path]:
    """The folders in a spool that hold the sources of one destination each."""
    try:
        return sorted(p for p in root.iterdir() if p.name.startswith(_KINDS) and p.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def meant_for(parent: Path) -> str:
    """The destination that the sources in `parent` ship to, as text."""
    try:
        return (parent / DESTINATION).read_text(encoding="utf-8").strip() or parent.name
    except (OSError, ValueError):
        return parent.name


def waiting(root: Path) -> list[Waiting]:
    """Every source in a spool that has something to ship; takes nobody's place."""
    found = (_look(folder, meant_for(parent)) for parent in destinations(root) for folder in sources(parent))
    return [one for one in found if one is not None]


def left_for_others(parent: Path) -> dict[str, int]:
    """What dead sources have left for destinations other than the one of `parent`: destination to number of sources."""
    left: dict[str, int] = {}
    for other in destinations(parent.parent):
        if other != parent:
            dead = [f for f in sources(other) if not _alive(f) and any(f.glob("*" + SUFFIX))]
            if dead:
                left[meant_for(other)] = len(dead)
    return left


def _alive(folder: Path) -> bool:
    fd = lock(folder / "owner")
    if fd is None:
        return (folder / "owner").exists()
    os.close(fd)
    return False


def _look(folder: Path, destination: str) -> Waiting | None:
    alive = _alive(folder)
    number, offset = position_of(folder)
    records = size_bytes = 0
    oldest_s = float("inf")
    for path in sorted(folder.glob("*" + SUFFIX)):
        file = int(path.stem) if path.stem.isdigit() else -1
        if file < number:
            continue
        try:
            data = path.read_bytes()[offset if file == number else 0 :]
            oldest_s = min(oldest_s, path.stat().st_mtime)
        except FileNotFoundError:  # shipped meanwhile
            continue
        records += sum(found.kind == RECORD for found in frames_in(data))
        size_bytes += len(data)
    if not alive:
        records += len(calls_without_end(folder))
    return Waiting(folder, destination, alive, records, size_bytes, oldest_s) if records else None
