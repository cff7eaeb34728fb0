"""Sets of numbers, and the notes of those that no record carries."""

import random
from pathlib import Path

import pyarrow as pa
import pytest

from otel_audit.errors import CorruptLogError
from otel_audit.numbers import NumberNotes, Numbers, Range, Seen, ranges_of, read_notes


def spread(ranges: list[Range]) -> set[int]:
    return {n for first, last in ranges for n in range(first, last + 1)}


@pytest.mark.parametrize("seed", range(50))
def test_a_set_of_runs_is_the_set_of_their_numbers(seed: int) -> None:
    rng = random.Random(seed)
    numbers, there = Numbers(), set[int]()
    for step in range(60):
        first = rng.randrange(1, 120)
        last = first + rng.randrange(8)
        assert spread(numbers.without(first, last)) == set(range(first, last + 1)) - there
        numbers.add(first, last, step)
        there |= set(range(first, last + 1))
        assert spread([hole for hole, _ in numbers.holes()]) == set(range(1, max(there))) - there
        assert numbers.last == max(there)


def test_a_hole_counts_from_when_it_was_first_seen_also_when_it_is_filled_in_part() -> None:
    numbers = Numbers()
    numbers.add(1, 5, 0)
    numbers.add(20, 30, 1)
    numbers.add(10, 12, 2)
    numbers.add(40, 41, 3)
    assert list(numbers.holes()) == [((6, 9), 1), ((13, 19), 1), ((31, 39), 3)]


def test_with_too_many_holes_the_lowest_is_forgotten_and_said_not_to_be_known() -> None:
    numbers = Numbers(ranges_max=3)
    for first in (1, 11, 21, 31):
        numbers.add(first, first, 0)
    assert [hole for hole, _ in numbers.holes()] == [(12, 20), (22, 30)]
    assert numbers.without(5, 5) == [(5, 5)], "never taken for seen"
    assert numbers.without(21, 21) == []


@pytest.mark.parametrize("few", [True, False])
def test_the_numbers_of_records_are_found_by_source(few: bool) -> None:
    rows = [("a", 1), ("b", 7), ("a", 2), ("a", 5), (None, 9), ("b", None), ("a", 2), ("b", 0), ("b", -3), ("a", 4)]
    rows += [] if few else [("c", n) for n in range(100, 0, -1)]
    batch = pa.record_batch(
        {"source_id": pa.array([r[0] for r in rows]), "source_seq": pa.array([r[1] for r in rows], pa.int64())}
    )
    found = {s.source: s.ranges for s in ranges_of(batch)}
    assert found == {"a": ((1, 2), (4, 5)), "b": ((7, 7),), **({} if few else {"c": ((1, 100),)})}


@pytest.mark.parametrize("count", [3, 1000])
def test_records_without_numbers_say_nothing(count: int) -> None:
    batch = pa.record_batch({"source_id": pa.array(["a"] * count), "source_seq": pa.nulls(count, pa.int64())})
    assert ranges_of(batch) == []


def test_notes_are_there_for_whoever_reads_them_and_go_on_after_a_restart(tmp_path: Path) -> None:
    first, second = Seen("web-1", ((5, 7), (9, 9)), "copy"), Seen("\udcff\n", ((1, 1),), "unrecorded")
    notes = NumberNotes(tmp_path, "audit")
    assert list(read_notes(tmp_path)) == []
    notes.append([first], 1)
    assert list(read_notes(tmp_path)) == [first]
    notes.close()
    notes = NumberNotes(tmp_path, "audit")
    notes.append([second], 2)
    notes.close()
    assert list(read_notes(tmp_path)) == [first, second]
    assert len(list((tmp_path / "numbers").iterdir())) == 1


def test_an_interrupted_note_is_cut_off_and_a_changed_one_is_an_error(tmp_path: Path) -> None:
    notes = NumberNotes(tmp_path, "audit")
    notes.append([Seen("web-1", ((5, 7),), "copy")], 1)
    notes.close()
    (path,) = (tmp_path / "numbers").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole + b"\x09\x00\x00\x00")
    assert len(list(read_notes(tmp_path))) == 1
    NumberNotes(tmp_path, "audit").close()
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b"web-1", b"web-2"))
    with pytest.raises(CorruptLogError):
        list(read_notes(tmp_path))
