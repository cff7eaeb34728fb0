"""What a running log knows of its sources: which numbers it took, and which it waits for.

Kept in memory and bounded; the log itself is the truth (`sources`), and is asked before anyone is told of a loss. Times
are those of the log's own clock, in seconds.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import pyarrow as pa
import pyarrow.compute as pc

from otel_audit.names import ACTION_OWN_PREFIX, ACTION_START, ACTION_STOP
from otel_audit.numbers import Numbers, Range, Seen, ranges_of

__all__ = ["SOURCES_MAX", "TRACKED_COLUMNS", "Event", "Hole", "Tracker", "TrackerStats", "host_of"]

TRACKED_COLUMNS: Final = ("source_id", "source_seq", "service", "action")
SOURCES_MAX: Final = 10_000
"""Sources that are remembered; beyond, those that ended go first, then those that have been silent longest."""
_EVICTED_AT_ONCE: Final = SOURCES_MAX // 10
_EVENTS_MAX: Final = 1_000
_HOLES_MAX: Final = 200
_HOLES_TOLD_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Event:
    """A source began, or ended in good order."""

    kind: Literal["start", "stop"]
    source: str
    service: str


@dataclass(frozen=True, slots=True)
class Hole:
    """Numbers of a source that have not come for longer than they may take."""

    source: str
    service: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class TrackerStats:
    """What is known of sources now.

    Args:
        sources: how many are remembered.
        running: of these, how many have not said that they ended.
        missing: numbers that are waited for, of all of them.
        reported: numbers that were found to be lost since the start.
    """

    sources: int
    running: int
    missing: int
    reported: int


@dataclass(slots=True)
class _Source:
    """One source; guarded by the tracker's lock."""

    numbers: Numbers = field(default_factory=lambda: Numbers(_HOLES_MAX))
    service: str = ""
    seen: float = 0.0
    ended: bool = False
    told: set[Range] = field(default_factory=set)


def host_of(source: str) -> str:
    """The host part of a source's id, which reads host-pid-random; the whole id where it does not."""
    parts = source.rsplit("-", 2)
    return parts[0] if len(parts) == 3 and parts[1].isdigit() else source


class Tracker:
    """Fed by the log's committer thread, asked by others; each method takes the lock for a moment.

    Args:
        late_s: how long a missing number may still be on its way.
        clock: seconds; tests replace it.
    """

    def __init__(self, late_s: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.late_s = late_s
        self._clock = clock
        self._lock = threading.Lock()
        # Under `_lock`, all that follows. Sources in the order in which they last spoke, the most silent first.
        self._sources: dict[str, _Source] = {}
        self._events: deque[Event] = deque(maxlen=_EVENTS_MAX)
        self._reported = 0

    # --- from the log -----------------------------------------------------------------------------------------------------
    def take(self, batch: pa.RecordBatch, *, replayed: bool = False) -> None:
        """Records that the log has.

        Args:
            batch: has the columns `TRACKED_COLUMNS`.
            replayed: an earlier run took them, and told of their begins and ends.
        """
        seen = ranges_of(batch)
        own = pc.starts_with(batch.column("action"), ACTION_OWN_PREFIX)
        events = batch.filter(own).select(TRACKED_COLUMNS).to_pylist() if own.true_count else []
        if not seen:
            return
        with self._lock:
            self._add(seen)
            for row in events:
                event = self._event(row["action"], row["source_id"], row["service"])
                if event is not None and not replayed:
                    self._events.append(event)
            if len(self._sources) > SOURCES_MAX:
                self._evict()

    def add(self, seen: Iterable[Seen]) -> None:
        """Numbers that were received otherwise than on a record of the log."""
        with self._lock:
            self._add(seen)

    def unknown(self, batch: pa.RecordBatch) -> list[Seen]:
        """The numbers on some records that were not seen yet: copies of records that the log has without them."""
        found = ranges_of(batch)
        with self._lock:
            return [Seen(s.source, left, "copy") for s in found if (left := self._left(s))]

    def _left(self, seen: Seen) -> tuple[Range, ...]:
        source = self._sources.get(seen.source)
        if source is None:
            return seen.ranges
        return tuple(r for run in seen.ranges for r in source.numbers.without(*run))

    def _add(self, seen: Iterable[Seen]) -> None:
        now = self._clock()
        for s in seen:
            source = self._sources.pop(s.source, None) or _Source()
            self._sources[s.source] = source
            source.seen = now
            for first, last in s.ranges:
                source.numbers.add(first, last, now)

    def _event(self, action: str, name: str | None, service: str) -> Event | None:
        """What a source says about itself in a record: that it begins or ends; None for anything else."""
        source = self._sources.get(name or "")
        if source is None or name is None:
            return None
        source.service = service
        if action == ACTION_STOP:
            source.ended = True
            return Event("stop", name, service)
        return Event("start", name, service) if action == ACTION_START else None

    def _evict(self) -> None:
        going = sorted(self._sources, key=lambda n: not self._sources[n].ended)[:_EVICTED_AT_ONCE]
        for name in going:
            del self._sources[name]

    # --- for who watches ----------------------------------------------------------------------------------------------------
    def events(self) -> list[Event]:
        """What happened since the last time."""
        with self._lock:
            found = list(self._events)
            self._events.clear()
            return found

    def suspects(self) -> list[Hole]:
        """Holes that are there for longer than `late_s` and were not told of; the log may yet have what is missing."""
        now = self._clock()
        found = []
        for name, source in self._one_by_one():
            with self._lock:
                found += [
                    Hole(name, source.service, first, last)
                    for (first, last), since in source.numbers.holes()
                    if now - since >= self.late_s and (first, last) not in source.told
                ]
        return found

    def _one_by_one(self) -> list[tuple[str, _Source]]:
        """The sources, to be looked at with the lock taken for each: the committer must not wait for all of them."""
        with self._lock:
            return list(self._sources.items())

    def learn(
        self,
        name: str,
        ranges: Sequence[Range],
        *,
        service: str = "",
        ended: bool = False,
        told: Collection[Range] = (),
    ) -> None:
        """Take in what the log says of a source: numbers it has, whether it ended, and holes that were told of."""
        now = self._clock()
        with self._lock:
            source = self._sources.setdefault(name, _Source())
            source.service = source.service or service
            source.ended = source.ended or ended
            source.told.update(told)
            for first, last in ranges:
                source.numbers.add(first, last, now)
            if len(self._sources) > SOURCES_MAX:
                self._evict()

    def told(self, hole: Hole) -> None:
        """A hole was reported: it is not a suspect again."""
        with self._lock:
            self._reported += hole.last - hole.first + 1
            source = self._sources.get(hole.source)
            if source is not None and len(source.told) < _HOLES_TOLD_MAX:
                source.told.add((hole.first, hole.last))

    def stats(self) -> TrackerStats:
        """The counts now."""
        sources = self._one_by_one()
        missing = 0
        for _, source in sources:
            with self._lock:
                missing += sum(last - first + 1 for (first, last), _ in source.numbers.holes())
        return TrackerStats(len(sources), sum(not s.ended for _, s in sources), missing, self._reported)
