"""Durable frames: what is written here and synced is what the receiver acknowledges.

A frame file is a header and then frames, only ever appended to:

    header   magic (8) | length of meta u32 | CRC-32 of (magic, length) u32 | CRC-32 of meta u32 | meta, a JSON object
    frame    length of payload u32 | CRC-32 of (length, offset of the frame) u32 | chain digest (32) | payload

Numbers are little-endian. The chain digest is SHA-256 of the previous digest and the payload; the first frame's previous
digest is SHA-256 of the header. A frame that moved, changed or vanished from the middle breaks the chain.

What a crash can leave is a prefix of the last frame, or zeros where the file system had grown the file but not yet
written it: that tail was never acknowledged and is cut off on open. Anything else that does not match is an error that
names file and offset, because something acknowledged may have been there.

A journal is a frame file whose payloads are Arrow record batches (IPC messages, LZ4); the schema is in the header.
"""

import base64
import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from otel_audit.errors import CorruptLogError, StorageError, UnavailableError

__all__ = ["Frame", "FrameFile", "Journal", "JournalTail", "Scan", "fsync_path", "scan", "write_durably"]

_JOURNAL_MAGIC: Final = b"OAJRNL1\n"
_HEADER: Final = struct.Struct("<8sIII")
_START: Final = struct.Struct("<8sI")
_FRAME: Final = struct.Struct("<II32s")
_PLACE: Final = struct.Struct("<IQ")
_META_BYTES_MAX: Final = 1 << 20
_IPC: Final = pa.ipc.IpcWriteOptions(compression="lz4")
_EOS_BYTES: Final = 8
_EMPTY_TAIL: Final = "not the tail of an interrupted write"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: where it starts, what it holds, and the chain digest after it."""

    offset: int
    payload: memoryview
    digest: bytes

    @property
    def end(self) -> int:
        """Offset of the byte after the frame."""
        return self.offset + _FRAME.size + len(self.payload)


@dataclass(frozen=True, slots=True)
class Scan:
    """What a frame file holds from some place on.

    Args:
        meta: the header's object; None when the file ends before its header does.
        frames: whole frames whose chain digest matches.
        end: offset after the last of them.
        digest: chain digest there.
        torn_bytes: bytes after `end` that an interrupted write left.
    """

    meta: dict[str, Any] | None
    frames: tuple[Frame, ...]
    end: int
    digest: bytes
    torn_bytes: int


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Sync a file or folder by path."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all: a new file beside it, synced, renamed, folder synced."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


def _crc(length: int, offset: int) -> int:
    return zlib.crc32(_PLACE.pack(length, offset))


def _is_torn(rest: memoryview, offset: int) -> bool:
    """Whether `rest`, which is not a whole good frame at `offset`, is what an interrupted write leaves.

    That is: less than a frame header; a good header whose payload ends early; or the same with zeros from some point to
    the end, which is how a file system shows blocks it had not written when the power went.
    """
    if len(rest) < _FRAME.size or not any(rest[: _FRAME.size]):
        return len(rest) < _FRAME.size or not any(rest)
    length, crc, _ = _FRAME.unpack_from(rest)
    if crc != _crc(length, offset):
        return False
    if len(rest) < _FRAME.size + length:
        return True
    payload = rest[_FRAME.size : _FRAME.size + length]
    return len(rest) == _FRAME.size + length and length >= 512 and not any(payload[-512:])


def scan(path: Path, magic: bytes, *, offset: int = 0, digest: bytes = b"") -> Scan:
    """Read and check the frames of a file from a place on.

    Args:
        path: the file.
        magic: first eight bytes it must have.
        offset: 0, or the `end` of an earlier scan, to read only what is new.
        digest: chain digest at `offset`, from the earlier scan.

    Raises:
        CorruptLogError: a header or frame does not match and is not an interrupted write's tail.
        FileNotFoundError: the file is gone (it was sealed meanwhile).
    """
    with path.open("rb") as f:
        f.seek(offset)
        data = memoryview(f.read())
    meta: dict[str, Any] | None = None
    position = 0
    if offset == 0:
        meta, position = _header(path, data, magic)
        if meta is None:
            return Scan(None, (), 0, b"", len(data))
        digest = hashlib.sha256(data[:position]).digest()
    frames = []
    while len(data) - position >= _FRAME.size:
        length, crc, expected = _FRAME.unpack_from(data, position)
        body = data[position + _FRAME.size : position + _FRAME.size + length]
        if crc != _crc(length, offset + position) or len(body) < length:
            break
        chained = hashlib.sha256(digest)
        chained.update(body)
        if chained.digest() != expected:
            break
        digest = expected
        frames.append(Frame(offset + position, body, digest))
        position += _FRAME.size + length
    rest = data[position:]
    if len(rest) and not _is_torn(rest, offset + position):
        raise CorruptLogError(
            path,
            offset + position,
            f"{len(rest)} bytes from here on do not match the chain digest, and are {_EMPTY_TAIL}",
            "nothing was changed; restore the file from a copy, or move it out of the folder to go on without it",
        )
    return Scan(meta, tuple(frames), offset + position, digest, len(rest))


def _header(path: Path, data: memoryview, magic: bytes) -> tuple[dict[str, Any] | None, int]:
    hint = "restore the file from a copy"
    if len(data) < _HEADER.size:
        if data == magic[: len(data)] or not any(data) or bytes(data[:8]) == magic:
            return None, 0
        raise CorruptLogError(path, 0, "not a file of this kind", hint)
    found, length, start_crc, crc = _HEADER.unpack_from(data)
    if not any(data):
        return None, 0
    if found != magic:
        raise CorruptLogError(path, 0, "not a file of this kind, or of a newer version", hint)
    if zlib.crc32(_START.pack(magic, length)) != start_crc or length > _META_BYTES_MAX:
        raise CorruptLogError(path, 0, "the header does not match its checksum", hint)
    meta = data[_HEADER.size : _HEADER.size + length]
    if len(meta) < length:
        return None, 0
    if zlib.crc32(meta) != crc:
        if not any(data[_HEADER.size :]):
            return None, 0
        raise CorruptLogError(path, _HEADER.size, "the header does not match its checksum", hint)
    value = json.loads(bytes(meta))
    return value, _HEADER.size + length


class FrameFile:
    """A frame file open for appending; one owner, one thread.

    Invariant: bytes up to `end` are synced frames. After a failed write or sync the file may hold more; `append` cuts it
    back to `end` before it writes again, so a frame that was reported as failed is never in the chain.
    """

    def __init__(self, path: Path, fd: int, end: int, digest: bytes, frames: int) -> None:
        self.path = path
        self.end = end
        self.digest = digest
        self.frames = frames
        self.sync_ns = 0
        """How long the last sync took."""
        self._fd = fd
        self._dirty = False

    @classmethod
    def create(cls, path: Path, magic: bytes, meta: dict[str, Any]) -> "FrameFile":
        """Make a new file with its header, durably; raises UnavailableError when that cannot be done now."""
        text = json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()
        start_crc = zlib.crc32(_START.pack(magic, len(text)))
        header = _HEADER.pack(magic, len(text), start_crc, zlib.crc32(text)) + text
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as e:
            raise _unavailable("create", path, e) from e
        try:
            _write(fd, [header])
            os.fsync(fd)
            fsync_path(path.parent)
        except OSError as e:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise _unavailable("create", path, e) from e
        return cls(path, fd, len(header), hashlib.sha256(header).digest(), 0)

    @classmethod
    def reopen(cls, path: Path, found: Scan) -> "FrameFile":
        """Open for appending after `scan`; cuts off what an interrupted write left."""
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            if found.torn_bytes:
                os.ftruncate(fd, found.end)
            os.fsync(fd)
        except OSError as e:
            os.close(fd)
            raise _unavailable("open", path, e) from e
        return cls(path, fd, found.end, found.digest, len(found.frames))

    def append(self, payloads: Sequence[bytes | pa.Buffer]) -> None:
        """Write one frame a payload, then sync once; all of them are durable on return, or none is.

        Raises:
            UnavailableError: the disk is full or failed; the file is as it was before the call.
        """
        try:
            self._repair()
            self._dirty = True
            digest, end, pieces = self.digest, self.end, []
            for payload in payloads:
                chained = hashlib.sha256(digest)
                chained.update(payload)
                digest = chained.digest()
                length = len(payload)
                pieces += [_FRAME.pack(length, _crc(length, end), digest), payload]
                end += _FRAME.size + length
            _write(self._fd, pieces)
            started_ns = time.perf_counter_ns()
            os.fdatasync(self._fd)
            self.sync_ns = time.perf_counter_ns() - started_ns
        except OSError as e:
            raise _unavailable("append to", self.path, e) from e
        self._dirty = False
        self.digest, self.end = digest, end
        self.frames += len(payloads)

    def _repair(self) -> None:
        if self._dirty:
            os.ftruncate(self._fd, self.end)
            os.fsync(self._fd)
            self._dirty = False

    def close(self) -> bool:
        """Close the file, cut back to its last good frame.

        Gives False, and stays open, when that cannot be done now: then the file may end in a frame that was reported as
        failed, and nothing may follow it.
        """
        if self._fd >= 0:
            try:
                self._repair()
            except OSError:
                return False
            os.close(self._fd)
            self._fd = -1
        return True


def _write(fd: int, pieces: Sequence[Any]) -> None:
    """Write all of the pieces, however many calls it takes."""
    views = [memoryview(p).cast("B") for p in pieces if len(p)]
    while views:
        done = os.writev(fd, views[:512])
        while views and done >= len(views[0]):
            done -= len(views[0])
            views.pop(0)
        if done:
            views[0] = views[0][done:]


def _unavailable(operation: str, path: Path, e: OSError) -> UnavailableError:
    return UnavailableError(
        operation,
        path,
        e.strerror or str(e),
        "nothing of it was kept; send again when the disk has room or is repaired",
    )


# --- journals -----------------------------------------------------------------------------------------------------------
class Journal:
    """The journal of one unsealed segment, open for appending; one owner, one thread.

    Args:
        file: the frame file.
        schema: Arrow schema of every batch.
        first_seq: number of its first record, part of the file name.
        rows: records in it; its last record is `first_seq + rows - 1`.
    """

    def __init__(self, file: FrameFile, schema: pa.Schema, first_seq: int, rows: int) -> None:
        self.file = file
        self.schema = schema
        self.first_seq = first_seq
        self.rows = rows
        self._prefix_bytes = len(schema.serialize())

    @classmethod
    def create(cls, folder: Path, log: str, first_seq: int, previous: bytes, schema: pa.Schema) -> "Journal":
        """Start the journal whose first record will be `first_seq`; `previous` is the chain head it continues."""
        meta = {
            "log": log,
            "first_seq": first_seq,
            "previous": previous.hex(),
            "schema": base64.b64encode(schema.serialize()).decode(),
        }
        file = FrameFile.create(folder / f"{first_seq:020d}.journal", _JOURNAL_MAGIC, meta)
        return cls(file, schema, first_seq, 0)

    @property
    def next_seq(self) -> int:
        """Number of the next record."""
        return self.first_seq + self.rows

    def encode(self, batch: pa.RecordBatch) -> pa.Buffer:
        """The payload of one batch: its IPC message without the schema."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.schema, options=_IPC) as writer:
            writer.write_batch(batch)
        stream = sink.getvalue()
        return stream.slice(self._prefix_bytes, stream.size - self._prefix_bytes - _EOS_BYTES)

    def append(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Append batches durably, all or none; raises UnavailableError."""
        self.file.append([self.encode(b) for b in batches])
        self.rows += sum(b.num_rows for b in batches)

    def close(self) -> bool:
        """Close the file; False when a failed append cannot be cut off now, see `FrameFile.close`."""
        return self.file.close()


class JournalTail:
    """A journal being read, from its start or on from where the last look ended; one owner, one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta: dict[str, Any] = {}
        self.batches: list[pa.RecordBatch] = []
        self.rows = 0
        self.scan: Scan | None = None
        self._schema: pa.Schema | None = None

    def refresh(self, last_seq: int | None = None) -> "JournalTail":
        """Read what has come since the last look.

        Args:
            last_seq: leave frames that begin after this record for the next look: the writer may not have synced them
                yet, and one whose sync fails is cut off again. None: read all.

        Raises:
            CorruptLogError: a frame does not match.
            FileNotFoundError: the journal was sealed and dropped meanwhile.
        """
        before = self.scan
        if before is None or before.meta is None:
            found = scan(self.path, _JOURNAL_MAGIC)
            if found.meta is None:
                return self
            self.meta = found.meta
            self._schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(found.meta["schema"])))
        else:
            found = scan(self.path, _JOURNAL_MAGIC, offset=before.end, digest=before.digest)
            found = Scan(before.meta, found.frames, found.end, found.digest, found.torn_bytes)
        for frame in found.frames:
            if last_seq is not None and self.next_seq > last_seq:
                return self
            self._add(frame)
            self.scan = Scan(found.meta, (), frame.end, frame.digest, 0)
        # The payloads live on in the batches; the scan is kept for its place only.
        self.scan = Scan(found.meta, (), found.end, found.digest, found.torn_bytes)
        return self

    def _add(self, frame: Frame) -> None:
        try:
            batch = pa.ipc.read_record_batch(pa.py_buffer(frame.payload), self._schema)
        except (pa.ArrowInvalid, OSError) as e:
            raise CorruptLogError(self.path, frame.offset, f"the frame holds no record batch: {e}") from e
        first = batch.column("seq")[0].as_py() if batch.num_rows else self.next_seq
        if first != self.next_seq:
            raise CorruptLogError(self.path, frame.offset, f"record {first} follows record {self.next_seq - 1}")
        self.batches.append(batch)
        self.rows += batch.num_rows

    @property
    def first_seq(self) -> int:
        """Number of the first record, from the file name."""
        return int(self.path.name.split(".")[0])

    @property
    def next_seq(self) -> int:
        """Number after the last record."""
        return self.first_seq + self.rows

    def reopen(self) -> Journal:
        """Go on writing where the file ends; the caller holds the log's lock."""
        if self.scan is None or self.scan.meta is None or self._schema is None:
            raise StorageError("open", self.path, "has no header")
        return Journal(FrameFile.reopen(self.path, self.scan), self._schema, self.first_seq, self.rows)


def journals(folder: Path, made: Callable[[Path], JournalTail] = JournalTail) -> Iterator[JournalTail]:
    """The journals of a folder by number, unread."""
    for path in sorted(folder.glob("*.journal")):
        if path.name.split(".")[0].isdigit():
            yield made(path)
