"""Which records are already in the log: retries collapse here.

A record's identity is (trace id, span id, time, duration): 40 bytes, `keys_of`. A batch that is sent again carries the same
four; two calls that share only their ids (a sender whose random numbers repeat) are two records.

The newest identities are kept as they are; older ones as 64-bit keyed hashes in a sorted array, and from a quarter of a million
on as 46 bits of the hash in bucketed arrays, about 4.6 bytes an identity, behind a bitmap that answers most questions with one
look. A hash that is found only raises the question;
whether the record really is a duplicate is answered by reading the stored one (`Memory.duplicates`, `stored`), so a
collision, by chance or by intent, never costs a record. The hash is keyed with fresh random numbers in every process.

Source of the hash: multilinear hashing over 32-bit words (Lemire and Kaser, "Strongly universal string hashing is fast").
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["KEY_COLUMNS", "REMEMBERED_LEAST", "Memory", "keys_of"]

KEY_COLUMNS: Final = ("trace_id", "span_id", "time", "duration_ns")
_KEY_BYTES: Final = 40
_WORDS: Final = _KEY_BYTES // 4
_RECENT: Final = 1 << 13
_RUN: Final = 1 << 18
REMEMBERED_LEAST: Final = _RUN
"""So many of the newest identities are never forgotten for their age."""
_BUCKET_BITS: Final = 14
_BITMAP_BITS: Final = 26
_NO_DURATION: Final = np.iinfo(np.int64).min

Keys = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Stored = Callable[[int, int], Iterable[Keys]]
"""Gives the identities of the stored records numbered first to last (both included), in pieces of shape (n, 40)."""


def _fixed(values: Any, size: int) -> Keys:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not pa.types.is_fixed_size_binary(values.type):
        values = values.cast(pa.binary(size))
    n = len(values)
    buffer = values.buffers()[1]
    if n == 0 or buffer is None:
        return np.empty((0, size), np.uint8)
    start = values.offset * size
    return np.frombuffer(buffer, np.uint8, n * size, start).reshape(n, size)


def _int64(values: Any) -> npt.NDArray[np.int64]:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not pa.types.is_int64(values.type):
        values = values.cast(pa.int64())
    if values.null_count:
        values = values.fill_null(_NO_DURATION)
    result: npt.NDArray[np.int64] = values.to_numpy(zero_copy_only=False)
    return result


def keys_of(batch: pa.RecordBatch | pa.Table) -> Keys:
    """Identities of the rows: uint8 array of shape (rows, 40); needs the columns `KEY_COLUMNS`."""
    keys = np.empty((batch.num_rows, _KEY_BYTES), np.uint8)
    keys[:, :16] = _fixed(batch.column("trace_id"), 16)
    keys[:, 16:24] = _fixed(batch.column("span_id"), 8)
    keys[:, 24:32] = _int64(batch.column("time")).view(np.uint8).reshape(-1, 8)
    keys[:, 32:] = _int64(batch.column("duration_ns")).view(np.uint8).reshape(-1, 8)
    return keys


def _as_bytes(keys: Keys) -> list[bytes]:
    texts: list[bytes] = np.ascontiguousarray(keys).view(f"V{_KEY_BYTES}").ravel().tolist()
    return texts


@dataclass(slots=True)
class _Span:
    """A range of record numbers and when the newest of them was recorded (microseconds)."""

    first_seq: int
    last_seq: int
    newest_us: int


class _Runs:
    """Runs of sorted hashes, 46 bits each (14 by the bucket, 32 stored), side by side so that one look asks all."""

    def __init__(self, count: int) -> None:
        self._low = np.empty((count, _RUN + 2 * _RECENT), np.uint32)
        self._index = np.zeros((count, (1 << _BUCKET_BITS) + 1), np.uint32)
        self._free = list(range(count))
        self._live: list[tuple[int, _Span]] = []  # oldest first: place, what it holds

    def __len__(self) -> int:
        return sum(int(self._index[place, -1]) for place, _ in self._live)

    @property
    def full(self) -> bool:
        """Whether the oldest run must go before another is added."""
        return not self._free

    @property
    def oldest(self) -> _Span | None:
        """What the oldest run holds."""
        return self._live[0][1] if self._live else None

    def add(self, hashes: Hashes, span: _Span) -> None:
        """Keep sorted hashes; at most `_RUN + 2 * _RECENT` of them."""
        place = self._free.pop()
        starts = np.arange(1 << _BUCKET_BITS, dtype=np.uint64) << np.uint64(64 - _BUCKET_BITS)
        self._index[place, :-1] = np.searchsorted(hashes, starts)
        self._index[place, -1] = len(hashes)
        self._low[place, : len(hashes)] = hashes >> np.uint64(32 - _BUCKET_BITS)
        self._live.append((place, span))

    def drop_oldest(self) -> None:
        """Forget the oldest run."""
        self._free.append(self._live.pop(0)[0])

    def hashes(self) -> Iterator[Hashes]:
        """The hashes of each run again, sorted, their last 18 bits lost."""
        for place, _ in self._live:
            buckets = np.repeat(np.arange(1 << _BUCKET_BITS, dtype=np.uint64), np.diff(self._index[place]))
            low = self._low[place, : len(buckets)].astype(np.uint64)
            yield (buckets << np.uint64(64 - _BUCKET_BITS)) | (low << np.uint64(32 - _BUCKET_BITS))

    def find(self, hashes: Hashes) -> Iterator[tuple[_Span, npt.NDArray[np.intp]]]:
        """For each run that may hold some of the hashes, newest first: its span and their positions."""
        places = np.array([place for place, _ in self._live])[:, None]
        bucket = (hashes >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)[None, :]
        low = ((hashes >> np.uint64(32 - _BUCKET_BITS)) & np.uint64(0xFFFFFFFF)).astype(np.uint32)[None, :]
        left = self._index[places, bucket]
        end = self._index[places, bucket + 1]
        right = end
        for _ in range(int((end - left).max(initial=0)).bit_length()):  # a binary search in every bucket at once
            middle = (left + right) >> np.uint32(1)
            below = (self._low[places, middle] < low) & (left < right)
            left, right = np.where(below, middle + np.uint32(1), left), np.where(below, right, middle)
        hit = (left < end) & (self._low[places, left] == low)
        for i in np.flatnonzero(hit.any(axis=1))[::-1]:
            yield self._live[i][1], np.flatnonzero(hit[i])


class _Bitmap:
    """One bit for each value of a hash's first 26 bits: unset means surely not in any run."""

    def __init__(self) -> None:
        self._bytes = np.zeros(1 << (_BITMAP_BITS - 3), np.uint8)
        self.added = 0

    def add(self, hashes: Hashes) -> None:
        """Set the bits of sorted hashes."""
        bit = (hashes >> np.uint64(64 - _BITMAP_BITS)).astype(np.uint32)
        place = bit >> np.uint32(3)
        value = np.left_shift(np.uint8(1), (bit & np.uint32(7)).astype(np.uint8))
        first = np.flatnonzero(np.diff(place, prepend=place[0] ^ np.uint32(1)))
        self._bytes[place[first]] |= np.bitwise_or.reduceat(value, first)
        self.added += len(hashes)

    def maybe(self, hashes: Hashes) -> npt.NDArray[np.intp]:
        """Positions of the hashes that may be in a run."""
        bit = (hashes >> np.uint64(64 - _BITMAP_BITS)).astype(np.uint32)
        value = self._bytes[bit >> np.uint32(3)] >> (bit & np.uint32(7)).astype(np.uint8)
        return np.flatnonzero(value & np.uint8(1))


class Memory:
    """The identities of the last records, bounded; one owner, one thread.

    Args:
        window_us: how long an identity must be remembered.
        ids_max: how many identities are remembered at most; the oldest go first, even before their time.
        stored: reads identities back from the log, to answer what a hash only asks.
    """

    def __init__(self, window_us: int, ids_max: int, stored: Stored) -> None:
        self._window_us = window_us
        self._ids_max = ids_max
        self._stored = stored
        rng = np.random.default_rng(secrets.randbits(128))
        self._factors: Hashes = rng.integers(0, 2**64, (2, _WORDS), np.uint64, endpoint=False) | np.uint64(1)
        self._addends: Hashes = rng.integers(0, 2**64, 2, np.uint64, endpoint=False)
        # The newest identities, whole: two sets that take turns, so that the last 8,192 at least are exact.
        self._recent: set[bytes] = set()
        self._older: set[bytes] = set()
        # Hashes of everything since the last full run; the first part sorted, the rest as it came.
        self._sorted: Hashes = np.empty(0, np.uint64)
        self._pending: list[Hashes] = []
        self._pending_count = 0
        self._span: _Span | None = None
        # What was last asked for, as text and hashed: when all of it is new, `add` needs the same.
        self._asked: tuple[Keys, list[bytes], Hashes | None] | None = None
        self._runs = _Runs(ids_max // _RUN + 1)
        self._bitmap = _Bitmap()

    def __len__(self) -> int:
        return len(self._sorted) + self._pending_count + len(self._runs)

    @property
    def oldest_seq(self) -> int | None:
        """Number of the oldest record whose retry would be recognised."""
        span = self._runs.oldest or self._span
        return span.first_seq if span else None

    def _hash(self, keys: Keys) -> Hashes:
        words = np.ascontiguousarray(keys).view("<u4").astype(np.uint64)
        high = (words * self._factors[0]).sum(axis=1, dtype=np.uint64) + self._addends[0]
        low = (words * self._factors[1]).sum(axis=1, dtype=np.uint64) + self._addends[1]
        result: Hashes = (high & np.uint64(0xFFFFFFFF00000000)) | (low >> np.uint64(32))
        return result

    def duplicates(self, keys: Keys) -> npt.NDArray[np.bool_] | None:
        """Which rows are already in the log, or earlier among these rows; None when none is (the usual answer).

        Args:
            keys: identities, shape (n, 40).
        """
        if not len(keys):
            return None
        texts = _as_bytes(keys)
        self._asked = (keys, texts, None)
        unique = set(texts)
        found: set[bytes] = set()
        if not self._recent.isdisjoint(unique):
            found |= self._recent & unique
        if not self._older.isdisjoint(unique):
            found |= self._older & unique
        if len(found) < len(unique):
            found |= self._found_by_hash(keys, texts, found)
        if not found and len(unique) == len(texts):
            return None
        mask = np.zeros(len(texts), np.bool_)
        for i, text in enumerate(texts):
            if text in found:
                mask[i] = True
            else:
                found.add(text)
        return mask

    def _found_by_hash(self, keys: Keys, texts: list[bytes], known: set[bytes]) -> set[bytes]:
        """Of the rows not known yet, those whose hash is found and whose stored record is the same."""
        hashes = self._hash(keys)
        self._asked = (keys, texts, hashes)
        questions: list[tuple[_Span, npt.NDArray[np.intp]]] = []
        if self._span is not None and len(self._sorted):
            at = np.minimum(np.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
            questions.append((self._span, np.flatnonzero(self._sorted[at] == hashes)))
        maybe = self._bitmap.maybe(hashes)
        if len(maybe):
            questions += [(span, maybe[at]) for span, at in self._runs.find(hashes[maybe])]
        found: set[bytes] = set()
        for span, hit in questions:
            if len(hit):
                asked = {texts[i] for i in hit} - known - found
                if asked:
                    found |= self._read(asked, span)
        return found

    def _read(self, asked: set[bytes], span: _Span) -> set[bytes]:
        """Those of the asked identities that stored records of the span have; by hash first, then by all bytes."""
        wanted = self._hash(np.frombuffer(b"".join(asked), np.uint8).reshape(-1, _KEY_BYTES))
        found: set[bytes] = set()
        for piece in self._stored(span.first_seq, span.last_seq):
            for start in range(0, len(piece), _RECENT):
                keys = piece[start : start + _RECENT]
                found.update(_as_bytes(keys[np.isin(self._hash(keys), wanted)]))
        return found & asked

    def add(self, keys: Keys, first_seq: int, recorded_us: int) -> None:
        """Remember records just made durable, numbered from `first_seq` on; call in order of number."""
        asked, texts, hashes = self._asked or (None, [], None)
        if asked is not keys:
            texts, hashes = _as_bytes(keys), None
        if hashes is None:
            hashes = self._hash(keys)
        self._asked = None
        for start in range(0, len(keys), _RECENT):
            piece = slice(start, start + _RECENT)
            self._add(texts[piece], hashes[piece], first_seq + start, recorded_us)

    def _add(self, texts: list[bytes], hashes: Hashes, first_seq: int, recorded_us: int) -> None:
        self._recent.update(texts)
        self._pending.append(hashes)
        self._pending_count += len(texts)
        last = first_seq + len(texts) - 1
        if self._span is None:
            self._span = _Span(first_seq, last, recorded_us)
        else:
            self._span.last_seq, self._span.newest_us = last, max(self._span.newest_us, recorded_us)
        if self._pending_count >= _RECENT:
            self._older, self._recent = self._recent, set()
            self._settle(recorded_us)

    def _settle(self, now_us: int) -> None:
        """Sort what is pending in with the rest; a full array becomes a run."""
        merged = np.concatenate([self._sorted, *self._pending])
        self._sorted, self._pending, self._pending_count = np.empty(0, np.uint64), [], 0
        merged.sort(kind="stable")  # two sorted parts, nearly: a merge
        if len(merged) < _RUN or self._span is None:
            self._sorted = merged
            return
        while (oldest := self._runs.oldest) and (self._runs.full or oldest.newest_us < now_us - self._window_us):
            self._runs.drop_oldest()
        self._bitmap.add(merged)
        self._runs.add(merged, self._span)
        self._span = None
        if self._bitmap.added > 1.5 * len(self._runs):
            self._bitmap = _Bitmap()
            for hashes in self._runs.hashes():
                self._bitmap.add(hashes)
