import os
import random
from pathlib import Path

import pyarrow as pa
import pytest

from otel_audit.errors import CorruptLogError, UnavailableError
from otel_audit.journal import FrameFile, Journal, JournalTail, scan
from otel_audit.record import schema
from tests.support import EPOCH_US, rows

MAGIC = b"TESTING\n"


def written(path: Path, payloads: list[bytes]) -> FrameFile:
    file = FrameFile.create(path, MAGIC, {"log": "t"})
    for payload in payloads:
        file.append([payload])
    return file


def payloads_of(path: Path) -> list[bytes]:
    return [bytes(f.payload) for f in scan(path, MAGIC).frames]


PAYLOADS = [b"first", b"", b"x" * 5000, b"last frame"]


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    written(tmp_path / "f", PAYLOADS).close()
    found = scan(tmp_path / "f", MAGIC)
    assert payloads_of(tmp_path / "f") == PAYLOADS
    assert found.meta == {"log": "t"}
    assert found.torn_bytes == 0


def test_a_file_cut_anywhere_keeps_its_whole_frames_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = written(path, PAYLOADS)
    file.close()
    whole = path.read_bytes()
    ends = [f.end for f in scan(path, MAGIC).frames]
    header = ends[0] - len(PAYLOADS[0]) - 40
    for cut in [*range(header, header + 60), *range(len(whole) - 60, len(whole) + 1), header + 2500]:
        path.write_bytes(whole[:cut])
        found = scan(path, MAGIC)
        expected = sum(end <= cut for end in ends)
        assert [bytes(f.payload) for f in found.frames] == PAYLOADS[:expected], cut
        again = FrameFile.reopen(path, found)
        again.append([b"after the crash"])
        again.close()
        assert payloads_of(path) == [*PAYLOADS[:expected], b"after the crash"]


def test_a_file_cut_inside_its_header_holds_nothing_and_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    written(path, []).close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert scan(path, MAGIC).meta is None


@pytest.mark.parametrize("tail", [b"\x00" * 10, b"\x00" * 4096])
def test_zeros_that_a_power_cut_leaves_are_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "f"
    written(path, PAYLOADS).close()
    size = path.stat().st_size
    with path.open("ab") as f:
        f.write(tail)
    found = scan(path, MAGIC)
    assert (len(found.frames), found.end, found.torn_bytes) == (4, size, len(tail))


def test_every_flipped_byte_is_an_error_naming_file_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "f"
    written(path, PAYLOADS).close()
    whole = path.read_bytes()
    starts = [f.offset for f in scan(path, MAGIC).frames]
    for position in [*range(starts[2] + 60), *range(starts[2] + 60, starts[3], 97), *range(starts[3], len(whole))]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with pytest.raises(CorruptLogError) as caught:
            scan(path, MAGIC)
        assert caught.value.path == str(path)
        if position >= starts[0]:
            assert caught.value.offset == max(s for s in starts if s <= position)


def test_a_flipped_bit_anywhere_in_the_header_is_never_taken_for_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    written(path, [b"acknowledged"]).close()
    whole = path.read_bytes()
    for position in range(scan(path, MAGIC).frames[0].offset):
        for bit in range(8):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            with pytest.raises(CorruptLogError):
                scan(path, MAGIC)


def test_frames_that_vanish_double_or_change_places_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "f"
    written(path, [b"a" * 50, b"b" * 50, b"c" * 50, b"d" * 50]).close()
    whole = path.read_bytes()
    frames = scan(path, MAGIC).frames
    head, (a, b, c, d) = whole[: frames[0].offset], [whole[f.offset : f.end] for f in frames]
    for order in ([a, c, d], [b, c, d], [a, b, b, c, d], [a, c, b, d], [b, a, c, d]):
        path.write_bytes(head + b"".join(order))
        with pytest.raises(CorruptLogError):
            scan(path, MAGIC)


def test_reading_on_from_a_place_gives_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = written(path, [b"one"])
    first = scan(path, MAGIC)
    file.append([b"two", b"three"])
    later = scan(path, MAGIC, offset=first.end, digest=first.digest)
    assert [bytes(f.payload) for f in later.frames] == [b"two", b"three"]
    assert later.digest == scan(path, MAGIC).digest == file.digest


@pytest.mark.parametrize("persisted", [False, True])
@pytest.mark.parametrize("call", ["writev", "fdatasync"])
def test_a_write_that_fails_leaves_nothing_in_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, persisted: bool
) -> None:
    path = tmp_path / "f"
    file = written(path, [b"kept"])
    real = getattr(os, call)

    def fails(*args: object) -> object:
        if persisted:
            real(*args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(UnavailableError) as caught:
        file.append([b"refused" * 100])
    assert caught.value.retryable
    monkeypatch.setattr(os, call, real)
    file.append([b"next"])
    assert payloads_of(path) == [b"kept", b"next"]


def test_a_failed_write_that_cannot_be_cut_back_keeps_the_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "f", [b"kept"])

    def fails(*_: object) -> object:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as m:
        m.setattr(os, "fdatasync", fails)
        m.setattr(os, "ftruncate", fails)
        with pytest.raises(UnavailableError):
            file.append([b"refused"])
        assert not file.close()
        with pytest.raises(UnavailableError):
            file.append([b"refused too"])
    assert file.close()
    assert payloads_of(tmp_path / "f") == [b"kept"]


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    rng = random.Random(1)

    def short(fd: int, views: list[memoryview]) -> int:
        joined = b"".join(bytes(v) for v in views)
        return real(fd, [joined[: rng.randrange(1, len(joined) + 1)]])

    monkeypatch.setattr(os, "writev", short)
    written(tmp_path / "f", PAYLOADS).close()
    assert payloads_of(tmp_path / "f") == PAYLOADS


def numbered(count: int, first_seq: int) -> pa.RecordBatch:
    made = rows(count, first_seq)
    for i, row in enumerate(made):
        row.update(recorded_at=EPOCH_US, log="t", seq=first_seq + i)
    return pa.RecordBatch.from_pylist(made, schema=schema())


def test_a_journal_gives_back_its_batches_and_is_read_on_incrementally(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, "t", 7, b"\x01" * 32, schema())
    one, two = numbered(5, 7), numbered(1000, 12)
    journal.append([one])
    tail = JournalTail(journal.file.path).refresh()
    assert (tail.first_seq, tail.next_seq, tail.meta["previous"]) == (7, 12, "01" * 32)
    journal.append([two])
    assert tail.refresh().next_seq == 1012
    assert pa.Table.from_batches(tail.batches).equals(pa.Table.from_batches([one, two]))
    again = tail.reopen()
    assert again.next_seq == 1012


def test_a_journal_whose_numbers_do_not_follow_is_an_error(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, "t", 1, b"", schema())
    journal.append([numbered(5, 1), numbered(5, 7)])
    with pytest.raises(CorruptLogError, match="record 7 follows record 5"):
        JournalTail(journal.file.path).refresh()
