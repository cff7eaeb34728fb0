"""Numbers that sources gave their records: sets of them, and notes of those that no record in the log carries.

A source numbers its records from 1 without gaps; a number that the log has not seen is a record that was lost. Two kinds
of numbers were received and are yet on no record: a record that came as a copy of one that is there without a number
(the service's own exporter was faster), and a span that the log's settings exclude or that went to quarantine. They are
noted durably before the request is acknowledged, so that they are never taken for lost.

Files `D/numbers/<n>.frames` are frame files like the journal's; a payload is a JSON object:
`{"received_us": 1, "seen": [["<source id>", "copy", [[5, 7], [9, 9]]]]}`.
"""

import bisect
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from otel_audit.errors import CorruptLogError
from otel_audit.journal import FrameFile, fsync_path, scan

__all__ = ["NumberNotes", "Numbers", "Range", "Seen", "Why", "ranges_of", "read_notes"]

_MAGIC: Final = b"OANUMB1\n"
_FILE_BYTES: Final = 64 << 20
_FEW: Final = 24

Range = tuple[int, int]
"""First and last of a run of numbers, both included."""
Why = Literal["copy", "unrecorded"]
"""Why a number that was received is on no record."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Numbers of one source that were received.

    Args:
        source: its id.
        ranges: ascending, disjoint.
        why: why no record carries them; empty where records do.
    """

    source: str
    ranges: tuple[Range, ...]
    why: Why | Literal[""] = ""


# --- sets of numbers ------------------------------------------------------------------------------------------------------
class Numbers:
    """A set of numbers above zero as ranges; small as long as few numbers are missing between them.

    Args:
        ranges_max: the most ranges it keeps; beyond, the lowest hole is forgotten as if it had been filled.
    """

    __slots__ = ("_firsts", "_lasts", "_noticed", "_ranges_max", "exact_from")

    def __init__(self, ranges_max: int = 200) -> None:
        self._ranges_max = ranges_max
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._noticed: list[float] = []  # by range: when the hole below it was first seen
        self.exact_from = 1
        """Below it, holes may have been forgotten."""

    @property
    def last(self) -> int:
        """The highest number; 0 where there is none."""
        return self._lasts[-1] if self._lasts else 0

    def add(self, first: int, last: int, now: float) -> None:
        """Take in a run of numbers; a hole it leaves below it counts from `now`."""
        firsts, lasts = self._firsts, self._lasts
        if firsts and firsts[-1] <= first <= lasts[-1] + 1:  # as nearly always: it goes on where the last one ended
            lasts[-1] = max(lasts[-1], last)
            return
        low = bisect.bisect_left(lasts, first - 1)  # the first range it touches
        high = bisect.bisect_right(firsts, last + 1)  # and the one behind the last it touches
        noticed = self._noticed[low] if low < len(firsts) else now  # what splits a hole leaves both parts its age
        if low < high:
            first, last = min(first, firsts[low]), max(last, lasts[high - 1])
        firsts[low:high], lasts[low:high], self._noticed[low:high] = [first], [last], [noticed]
        if len(firsts) > self._ranges_max:
            self.exact_from = firsts[1]
            lasts[0] = lasts[1]
            del firsts[1], lasts[1], self._noticed[1]

    def without(self, first: int, last: int) -> list[Range]:
        """The numbers of a run that are not in the set; those of which it is not known count as not."""
        missing: list[Range] = []
        if first < self.exact_from:
            missing.append((first, min(last, self.exact_from - 1)))
            first = self.exact_from
        at = bisect.bisect_left(self._lasts, first)
        while first <= last:
            if at == len(self._firsts) or self._firsts[at] > last:
                missing.append((first, last))
                break
            if first < self._firsts[at]:
                missing.append((first, self._firsts[at] - 1))
            first = self._lasts[at] + 1
            at += 1
        return missing

    def holes(self) -> Iterator[tuple[Range, float]]:
        """The numbers missing from 1 on, and since when each hole is there."""
        below = 0
        for first, last, noticed in zip(self._firsts, self._lasts, self._noticed, strict=True):
            if first > below + 1:
                yield (below + 1, first - 1), noticed
            below = last


def ranges_of(batch: pa.RecordBatch) -> list[Seen]:
    """The numbers on some records, by source; needs the columns `source_id` and `source_seq`.

    Numbers below 1, and those without a source, say nothing.
    """
    seqs = batch.column("source_seq")
    if len(seqs) <= _FEW:
        return _ranges_of_few(batch.column("source_id").to_pylist(), seqs.to_pylist())
    if seqs.null_count == len(seqs):
        return []
    ids = batch.column("source_id").dictionary_encode()
    codes = ids.indices
    if seqs.null_count or codes.null_count:
        both = codes.is_valid().to_numpy(zero_copy_only=False) & seqs.is_valid().to_numpy(zero_copy_only=False)
        numbers = seqs.fill_null(0).to_numpy()[both]
        places = codes.fill_null(0).to_numpy()[both]
    else:
        numbers, places = seqs.to_numpy(), codes.to_numpy()
    names = ids.dictionary.to_pylist()
    if len(names) == 1:
        found = [(0, numbers)]
    else:
        if len(names) < 1 << 15:
            places = places.astype(np.int16)  # sorted by radix
        order = np.argsort(places, kind="stable")
        places, numbers = places[order], numbers[order]
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        found = list(zip(places[starts].tolist(), np.split(numbers, starts[1:]), strict=True))
    return [Seen(names[place], runs) for place, own in found if (runs := _runs(own))]


def _ranges_of_few(ids: list[str | None], seqs: list[int | None]) -> list[Seen]:
    """The same without Arrow and NumPy, which take longer to begin than a few records do."""
    found: dict[str, list[int]] = {}
    for name, seq in zip(ids, seqs, strict=True):
        if name is not None and seq is not None and seq > 0:
            found.setdefault(name, []).append(seq)
    seen = []
    for name, numbers in found.items():
        runs: list[Range] = []
        for number in sorted(numbers):
            if runs and number <= runs[-1][1] + 1:
                runs[-1] = (runs[-1][0], number)
            else:
                runs.append((number, number))
        seen.append(Seen(name, tuple(runs)))
    return seen


def _runs(numbers: npt.NDArray[np.int64]) -> tuple[Range, ...]:
    """The runs of numbers above zero, ascending."""
    if not len(numbers):
        return ()
    steps = np.diff(numbers)
    if numbers[0] > 0 and (steps == 1).all():  # as nearly always
        return ((int(numbers[0]), int(numbers[-1])),)
    numbers = np.unique(numbers[numbers > 0])
    if not len(numbers):
        return ()
    ends = np.flatnonzero(np.diff(numbers) != 1)
    firsts = numbers[np.concatenate([[0], ends + 1])].tolist()
    lasts = numbers[np.concatenate([ends, [len(numbers) - 1]])].tolist()
    return tuple(zip(firsts, lasts, strict=True))


# --- notes ----------------------------------------------------------------------------------------------------------------
def _folder(directory: str | os.PathLike[str]) -> Path:
    return Path(directory) / "numbers"


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.frames") if p.name.split(".")[0].isdigit())


def read_notes(directory: str | os.PathLike[str]) -> Iterator[Seen]:
    """Numbers that were received and that no record of a log carries; any process may read while the log is written.

    Raises:
        CorruptLogError: a file does not hold what was written.
    """
    for path in _files(_folder(directory)):
        for frame in scan(path, _MAGIC).frames:
            try:
                seen = json.loads(bytes(frame.payload))["seen"]
                yield from (Seen(str(s), tuple((int(a), int(b)) for a, b in r), w) for s, w, r in seen)
            except (ValueError, TypeError, KeyError) as e:
                raise CorruptLogError(path, frame.offset, f"the frame holds no numbers: {e}") from e


class NumberNotes:
    """The notes of a log, open for appending; used by the log's committer thread alone."""

    def __init__(self, directory: Path, log: str) -> None:
        self._directory = directory
        self._log = log
        self._file: FrameFile | None = None
        self._next = 1
        for path in _files(_folder(directory)):
            found = scan(path, _MAGIC)
            self.close()
            self._next = int(path.name.split(".")[0]) + 1
            if found.meta is None:  # the crash came before the header was whole: nothing was acknowledged
                path.unlink()
            else:
                self._file = FrameFile.reopen(path, found)

    def append(self, seen: Sequence[Seen], received_us: int) -> None:
        """Note numbers durably; raises UnavailableError, and then noted none."""
        if self._file is None or self._file.end >= _FILE_BYTES:
            self.close()
            folder = _folder(self._directory)
            if not folder.exists():
                folder.mkdir(mode=0o750)
                fsync_path(self._directory)
            self._file = FrameFile.create(folder / f"{self._next:020d}.frames", _MAGIC, {"log": self._log})
            self._next += 1
        said = {"received_us": received_us, "seen": [(s.source, s.why, s.ranges) for s in seen]}
        self._file.append([json.dumps(said, separators=(",", ":")).encode("ascii")])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
