"""What could not become a record, or not wholly: kept durably with its reason, to be looked at and never dropped.

Files `D/quarantine/<number of the first entry>.frames` are frame files like the journal's. A payload is the length of a
JSON object (u32, little-endian), the object, and the bytes as they were received.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_audit.errors import CorruptLogError
from otel_audit.journal import FrameFile, fsync_path, scan
from otel_audit.record import Quarantined

__all__ = ["Quarantine", "QuarantineEntry", "read"]

_MAGIC: Final = b"OAQRNT1\n"
_LENGTH: Final = struct.Struct("<I")
_FILE_BYTES: Final = 64 << 20
_REMEMBERED: Final = 20_000


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """One entry as it is stored.

    Args:
        number: its number, contiguous from 1.
        received_us: when the log took it, microseconds since 1970 UTC.
        reason: short word; detail: a sentence; kind: what the payload is; see `record.Quarantined`.
        service: `service.name` of the sender where known.
        recorded: whether a record of the call exists all the same.
        payload: the bytes as received.
    """

    number: int
    received_us: int
    reason: str
    detail: str
    kind: str
    service: str | None
    recorded: bool
    payload: bytes


def _folder(directory: str | os.PathLike[str]) -> Path:
    return Path(directory) / "quarantine"


def _first(path: Path) -> int:
    return int(path.name.split(".")[0])


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.frames") if p.name.split(".")[0].isdigit())


def _encode(entry: Quarantined, number: int, received_us: int) -> bytes:
    about = {
        "number": number,
        "received_us": received_us,
        "reason": entry.reason,
        "detail": entry.detail,
        "kind": entry.kind,
        "service": entry.service,
        "recorded": entry.recorded,
    }
    # Escaped to ASCII, so that no text a sender chose can fail to encode.
    text = json.dumps(about, separators=(",", ":")).encode("ascii")
    return _LENGTH.pack(len(text)) + text + entry.payload


def _decode(path: Path, offset: int, payload: memoryview) -> QuarantineEntry:
    try:
        (length,) = _LENGTH.unpack_from(payload)
        about = json.loads(bytes(payload[4 : 4 + length]))
        return QuarantineEntry(**about, payload=bytes(payload[4 + length :]))
    except (ValueError, TypeError, struct.error) as e:
        raise CorruptLogError(path, offset, f"the frame holds no quarantine entry: {e}") from e


def read(directory: str | os.PathLike[str]) -> Iterator[QuarantineEntry]:
    """The entries of a log's quarantine in order; any process may read while the log is written.

    Raises:
        CorruptLogError: a file does not hold what was written.
    """
    for path in _files(_folder(directory)):
        for frame in scan(path, _MAGIC).frames:
            yield _decode(path, frame.offset, frame.payload)


class Quarantine:
    """The quarantine of a log, open for appending; used by the log's committer thread alone.

    A span that is sent again is not kept twice: the digests of the last entries are remembered.
    """

    def __init__(self, directory: Path, log: str) -> None:
        self._folder = _folder(directory)
        if not self._folder.exists():
            self._folder.mkdir(mode=0o750)
            fsync_path(directory)
        self._log = log
        self._file: FrameFile | None = None
        self._digests: dict[bytes, None] = {}
        self.count = 0
        files = _files(self._folder)
        for path in files:
            found = scan(path, _MAGIC)
            if found.meta is None:  # the crash came before the header was whole: nothing was acknowledged
                path.unlink()
                continue
            self.count = _first(path) - 1 + len(found.frames)
            if path == files[-1]:
                for frame in found.frames[-_REMEMBERED:]:
                    entry = _decode(path, frame.offset, frame.payload)
                    self._digests[_digest(entry.reason, entry.payload)] = None
                self._file = FrameFile.reopen(path, found)

    def append(self, entries: Sequence[Quarantined], received_us: int) -> int:
        """Keep entries durably; gives how many were new. Raises UnavailableError, and then kept none."""
        fresh: dict[bytes, Quarantined] = {}
        for entry in entries:
            digest = _digest(entry.reason, entry.payload)
            if digest not in self._digests:
                fresh[digest] = entry
        if not fresh:
            return 0
        if self._file is None or self._file.end >= _FILE_BYTES:
            self.close()
            path = self._folder / f"{self.count + 1:020d}.frames"
            self._file = FrameFile.create(path, _MAGIC, {"log": self._log, "first": self.count + 1})
        self._file.append([_encode(e, self.count + i, received_us) for i, e in enumerate(fresh.values(), 1)])
        self.count += len(fresh)
        self._digests.update(dict.fromkeys(fresh))
        while len(self._digests) > _REMEMBERED:
            del self._digests[next(iter(self._digests))]
        return len(fresh)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _digest(reason: str, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16, person=hashlib.sha256(reason.encode()).digest()[:16]).digest()
