"""What a running log knows of its sources."""

from typing import Any

import pyarrow as pa
import pytest

from otel_audit import tracker as module
from otel_audit.numbers import Seen
from otel_audit.tracker import Event, Tracker, host_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def batch(*rows: tuple[str | None, int | None, str]) -> pa.RecordBatch:
    said = [{"source_id": s, "source_seq": n, "service": "crm", "action": a} for s, n, a in rows]
    fields = [("source_id", pa.string()), ("source_seq", pa.int64()), ("service", pa.string()), ("action", pa.string())]
    return pa.RecordBatch.from_pylist(said, schema=pa.schema(fields))


def calls(source: str, *numbers: int) -> pa.RecordBatch:
    return batch(*((source, n, "read") for n in numbers))


def holes(tracker: Tracker) -> list[tuple[Any, ...]]:
    return [(h.source, h.first, h.last) for h in tracker.suspects()]


def test_a_hole_is_suspect_once_it_is_older_than_the_bound_and_until_it_was_told() -> None:
    clock = Clock()
    tracker = Tracker(10, clock)
    tracker.take(calls("a", 1, 2, 5, 6))
    clock.now = 9
    assert holes(tracker) == []
    clock.now = 10
    assert holes(tracker) == [("a", 3, 4)]
    for hole in tracker.suspects():
        tracker.told(hole)
    assert holes(tracker) == []
    assert tracker.stats() == module.TrackerStats(sources=1, running=1, missing=2, reported=2)
    tracker.take(calls("a", 3, 4))
    assert tracker.stats().missing == 0


def test_only_what_was_not_seen_is_the_number_of_a_copy() -> None:
    tracker = Tracker()
    tracker.take(calls("a", 1, 2, 3))
    assert tracker.unknown(calls("a", 2, 3)) == [], "a retry"
    assert tracker.unknown(calls("a", 3, 4)) == [Seen("a", ((4, 4),), "copy")]
    assert tracker.unknown(calls("b", 1)) == [Seen("b", ((1, 1),), "copy")], "a source that is not known any more"
    tracker.add([Seen("a", ((4, 4),), "copy")])
    assert tracker.unknown(calls("a", 4)) == []


def test_begin_and_end_are_told_once_each_and_of_the_source_alone() -> None:
    tracker = Tracker()
    tracker.take(batch(("web-1-77-aa", 1, "otel_audit.start"), ("web-1-77-aa", 2, "otel_audit.stop")))
    tracker.take(batch(("web-1-78-bb", 1, "otel_audit.start")))
    tracker.take(batch(("web-1-79-cc", 1, "otel_audit.start"), ("web-2-80-dd", 1, "otel_audit.start")))
    assert tracker.events() == [
        Event("start", "web-1-77-aa", "crm"),
        Event("stop", "web-1-77-aa", "crm"),
        Event("start", "web-1-78-bb", "crm"),
        Event("start", "web-1-79-cc", "crm"),
        Event("start", "web-2-80-dd", "crm"),
    ]
    assert tracker.events() == []
    assert (tracker.stats().sources, tracker.stats().running) == (4, 3)


def test_what_an_earlier_run_took_is_known_and_not_told_again() -> None:
    tracker = Tracker()
    own = batch(("a", 1, "otel_audit.start"), ("a", 2, "otel_audit.stop"), ("b", 1, "otel_audit.start"))
    tracker.take(own, replayed=True)
    assert tracker.events() == []
    assert (tracker.stats().sources, tracker.stats().running) == (2, 1)
    tracker.take(batch(("b", 2, "otel_audit.stop")))
    assert tracker.events() == [Event("stop", "b", "crm")]


def test_what_the_log_says_fills_what_memory_has_forgotten() -> None:
    clock = Clock()
    tracker = Tracker(1, clock)
    tracker.take(calls("a", 500, 501))
    tracker.learn("a", [(1, 99), (101, 499)], told=[(100, 100)])
    clock.now = 5
    assert holes(tracker) == []
    assert tracker.stats().missing == 1


def test_memory_is_bounded_and_those_that_ended_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOURCES_MAX", 10)
    monkeypatch.setattr(module, "_EVICTED_AT_ONCE", 2)
    tracker = Tracker()
    tracker.take(calls("silent", 1))
    tracker.take(batch(("ended", 1, "otel_audit.start"), ("ended", 2, "otel_audit.stop")))
    for n in range(9):
        tracker.take(calls(f"s{n}", 1))
    assert tracker.stats().sources == 9
    assert tracker.unknown(calls("ended", 1))
    assert tracker.unknown(calls("silent", 1))
    assert not tracker.unknown(calls("s0", 1))


@pytest.mark.parametrize(
    ("source", "host"),
    [("web-1-77-deadbeef", "web-1"), ("web-77-deadbeef", "web"), ("my-source", "my-source"), ("x", "x"), ("", "")],
)
def test_the_host_is_read_from_a_sources_id(source: str, host: str) -> None:
    assert host_of(source) == host
