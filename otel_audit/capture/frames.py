"""One record in a spool file: a frame that can be told from damage, and found again behind it.

```
 4  magic            4  kind: RECORD, START or DONE (little endian, like all numbers)
 8  number of the record
20  five lengths: resource, its schema, scope, its schema, span
 4  CRC-32 of everything else in the frame
 …  the five parts
```
A frame stands for itself: it holds the resource too, so that no frame depends on one before it that may be damaged.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

from otel_audit.capture.wire import EncodedSpan

__all__ = ["DONE", "HEAD_BYTES", "RECORD", "START", "Frame", "frame", "frames_in"]

_MAGIC: Final = b"\xf4oa1"
_HEAD: Final = struct.Struct("<4sIQ5I")
_CRC: Final = struct.Struct("<I")
HEAD_BYTES: Final = _HEAD.size + _CRC.size

RECORD: Final = 1
START: Final = 2
"""A call that began, in mode fail-closed; it becomes a record only if its end is never seen."""
DONE: Final = 3
"""The call of an earlier START has its record."""

_NOTHING: Final = EncodedSpan(b"", b"", b"", b"", b"")


class Frame(NamedTuple):
    """A frame that was read.

    Args:
        kind: RECORD, START or DONE.
        seq: number of the record.
        record: the span; empty for DONE.
        end: offset behind the frame, from where reading began.
        skipped: bytes in front of it that were no frame.
    """

    kind: int
    seq: int
    record: EncodedSpan
    end: int
    skipped: int


def frame(kind: int, seq: int, record: EncodedSpan = _NOTHING) -> bytes:
    """The bytes of one frame."""
    resource, resource_schema, scope, scope_schema, span = record
    head = _HEAD.pack(_MAGIC, kind, seq, len(resource), len(resource_schema), len(scope), len(scope_schema), len(span))
    body = b"".join(record)
    return b"".join((head, _CRC.pack(crc32(body, crc32(head))), body))


def _read(buffer: bytes, at: int) -> tuple[int, int, EncodedSpan, int] | None:
    """Kind, number, record and end of the frame at `at`; None when there is none, or not all of it."""
    body = at + HEAD_BYTES
    if body > len(buffer):
        return None
    magic, kind, seq, a, b, c, d, e = _HEAD.unpack_from(buffer, at)
    ends = (body + a, body + a + b, body + a + b + c, body + a + b + c + d, body + a + b + c + d + e)
    if magic != _MAGIC or ends[4] > len(buffer):
        return None
    content = buffer[body : ends[4]]
    if crc32(content, crc32(buffer[at : at + _HEAD.size])) != _CRC.unpack_from(buffer, at + _HEAD.size)[0]:
        return None
    record = EncodedSpan(
        buffer[body : ends[0]], buffer[ends[0] : ends[1]], buffer[ends[1] : ends[2]],
        buffer[ends[2] : ends[3]], buffer[ends[3] : ends[4]],
    )  # fmt: skip
    return kind, seq, record, ends[4]


def frames_in(buffer: bytes) -> Iterator[Frame]:
    """The frames in `buffer`, in order; what is no frame is skipped up to the next one that is.

    What remains behind the last frame is not told: it may be the beginning of a frame that is being written.
    """
    at = expected = 0
    while True:
        found = _read(buffer, at)
        if found is not None:
            kind, seq, record, end = found
            yield Frame(kind, seq, record, end, at - expected)
            at = expected = end
            continue
        at = buffer.find(_MAGIC, at + 1)
        if at < 0:
            return
