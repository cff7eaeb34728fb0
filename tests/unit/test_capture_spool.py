"""What was spooled is read back, whatever happened to the process, the file or the disk."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_audit.capture import spool as spool_module
from otel_audit.capture.frames import DONE, RECORD, START, frame, frames_in
from otel_audit.capture.outbox import Outbox, orphans, position_of, sources
from otel_audit.capture.settings import Destination
from otel_audit.capture.spool import Spool, SpoolFullError, find_root, folder_of
from otel_audit.capture.wire import EncodedSpan
from otel_audit.errors import CaptureError
from tests.spool_support import MIB, fill, outbox, record, spool, texts_of

PARTS = st.binary(max_size=40)
RECORDS = st.builds(EncodedSpan, PARTS, PARTS, PARTS, PARTS, st.binary(max_size=400))


# --- frames -------------------------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.sampled_from([RECORD, START, DONE]), st.integers(0, 2**64 - 1), RECORDS), max_size=8))
def test_frames_are_read_as_they_were_written(written: list[tuple[int, int, EncodedSpan]]) -> None:
    data = b"".join(frame(*one) for one in written)
    read = list(frames_in(data))
    assert [(one.kind, one.seq, one.record) for one in read] == written
    assert (read[-1].end if read else 0) == len(data)
    assert not any(one.skipped for one in read)


@given(st.lists(RECORDS, min_size=3, max_size=3), st.data())
@settings(max_examples=300)
def test_a_damaged_frame_is_skipped_and_its_neighbours_are_read(
    records: list[EncodedSpan], data: st.DataObject
) -> None:
    parts = [frame(RECORD, i, one) for i, one in enumerate(records)]
    at = data.draw(st.integers(0, len(parts[1]) - 1))
    damaged = bytearray(parts[1])
    damaged[at] ^= data.draw(st.integers(1, 255))
    read = list(frames_in(parts[0] + bytes(damaged) + parts[2]))
    assert [one.seq for one in read] == [0, 2]
    assert read[1].skipped == len(parts[1])


@given(st.lists(RECORDS, min_size=2, max_size=2), st.data())
def test_a_torn_frame_is_not_read(records: list[EncodedSpan], data: st.DataObject) -> None:
    parts = [frame(RECORD, i, one) for i, one in enumerate(records)]
    cut = data.draw(st.integers(0, len(parts[1]) - 1))
    assert [one.seq for one in frames_in(parts[0] + parts[1][:cut])] == [0]


# --- writing and reading ----------------------------------------------------------------------------------------------
def test_records_come_back_in_order_over_many_files_which_go_once_answered_for(tmp_path: Path) -> None:
    written = spool(tmp_path, file_bytes=2000)
    fill(written, *range(100))
    files = len(list(written.folder.glob("*.spool")))
    assert files > 2
    reader = outbox(written)
    read = []
    while batch := reader.read(7, MIB):
        read += texts_of(batch)
        reader.answered()
    assert read == [str(i) for i in range(100)]
    assert len(list(written.folder.glob("*.spool"))) == 1, "only the file that is written to is left"
    assert reader.position == written.end


def test_what_is_not_answered_for_is_read_again_by_the_next_reader(tmp_path: Path) -> None:
    written = spool(tmp_path)
    fill(written, *range(10))
    reader = outbox(written)
    reader.read(4, MIB)
    reader.answered()
    assert texts_of(reader.read(3, MIB)) == ["4", "5", "6"]
    assert Outbox.take(written.folder) is None, "one reader at a time"
    reader.close()
    assert texts_of(outbox(written).read(99, MIB)) == [str(i) for i in range(4, 10)]


def test_a_reader_sees_what_comes_later(tmp_path: Path) -> None:
    written = spool(tmp_path)
    fill(written, "a")
    reader = outbox(written)
    assert texts_of(reader.read(9, MIB)) == ["a"]
    assert reader.read(9, MIB) == []
    fill(written, "b")
    assert texts_of(reader.read(9, MIB)) == ["b"]


def test_a_record_larger_than_the_buffer_is_read(tmp_path: Path) -> None:
    written = spool(tmp_path)
    fill(written, "small")
    fill(written, "large", size=5 * MIB)
    fill(written, "after")
    reader = outbox(written)
    found = [*reader.read(9, MIB), *reader.read(9, MIB), *reader.read(9, MIB)]
    assert texts_of(found) == ["small", "large", "after"]


def test_a_torn_tail_waits_while_its_writer_lives_and_is_skipped_when_dead(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = spool(tmp_path)
    fill(written, "whole")
    file = next(written.folder.glob("*.spool"))
    torn = frame(RECORD, 2, record("torn"))[:-3]
    with file.open("ab") as out:
        out.write(torn)
    reader = outbox(written)
    assert texts_of(reader.read(9, MIB)) == ["whole"]
    assert reader.read(9, MIB) == []
    assert not caplog.records
    reader.close()
    written.let_go()
    (adopted,) = orphans(tmp_path, tmp_path / "own")
    assert texts_of(adopted.read(9, MIB)) == ["whole"]
    assert adopted.read(9, MIB) == []
    assert f"{len(torn)} bytes at its end" in caplog.text
    adopted.close()


def test_damage_in_the_middle_costs_one_record_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = spool(tmp_path)
    fill(written, *range(5))
    file = next(written.folder.glob("*.spool"))
    data = bytearray(file.read_bytes())
    data[data.index(b"<2>") + 1] ^= 1
    file.write_bytes(bytes(data))
    assert texts_of(outbox(written).read(9, MIB)) == ["0", "1", "3", "4"]
    assert "damaged bytes skipped" in caplog.text


def test_a_position_that_cannot_be_read_means_sending_again_not_losing(tmp_path: Path) -> None:
    written = spool(tmp_path)
    fill(written, *range(3))
    reader = outbox(written)
    reader.read(9, MIB)
    reader.answered()
    reader.close()
    assert position_of(written.folder) == written.end
    (written.folder / "position").write_bytes(b"\x01" * 20)
    assert texts_of(outbox(written).read(9, MIB)) == ["0", "1", "2"]


def test_threads_write_whole_records(tmp_path: Path) -> None:
    written = spool(tmp_path, file_bytes=20_000)

    def write(name: str) -> None:
        for i in range(200):
            written.append(i, record(f"{name}{i}", size=i))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = outbox(written)
    read: list[str] = []
    while batch := reader.read(1000, MIB):
        read += texts_of(batch)
    assert sorted(read) == sorted(f"{name}{i}" for name in "abcd" for i in range(200))


# --- no room ------------------------------------------------------------------------------------------------------------
def test_a_full_spool_refuses_and_has_room_once_files_are_answered_for(tmp_path: Path) -> None:
    written = spool(tmp_path, bytes_max=20_000, file_bytes=4_000)
    with pytest.raises(SpoolFullError, match="reached its size"):
        fill(written, *range(1000))
    taken = written.records
    assert taken > 100
    written.append(0, record("about itself"), beyond=True)
    reader = outbox(written)
    while reader.read(1000, MIB):
        reader.answered()
    fill(written, "again")
    assert written.records == taken + 2


def test_a_full_disk_leaves_no_torn_record(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 4 * MIB)
    written = spool(small_disk)
    with pytest.raises(SpoolFullError):
        fill(written, *range(10_000), size=100_000)
    taken = written.records
    assert taken > 100
    ballast.unlink()
    fill(written, "room again")
    reader = outbox(written)
    read: list[str] = []
    while batch := reader.read(1000, MIB):
        read += texts_of(batch)
    assert read == [*map(str, range(taken)), "room again"]


def test_a_short_write_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = spool(tmp_path)
    fill(written, "before")
    write, calls = os.write, iter(["short", "none"])

    def broken(fd: int, data: bytes) -> int:
        kind = next(calls, "good")
        if kind == "none":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[: len(data) // 2] if kind == "short" else data)

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(SpoolFullError, match="No space"):
        fill(written, "lost")
    fill(written, "after")
    assert texts_of(outbox(written).read(9, MIB)) == ["before", "after"]


# --- who owns a folder --------------------------------------------------------------------------------------------------
def test_only_the_dead_are_adopted_and_only_once(tmp_path: Path) -> None:
    alive, dead = spool(tmp_path, "alive-1-aa"), spool(tmp_path, "dead.example.com-2-bb")
    fill(alive, "a")
    fill(dead, "d")
    assert orphans(tmp_path, alive.folder) == []
    dead.let_go()
    (adopted,) = orphans(tmp_path, tmp_path / "own")
    assert adopted.folder == dead.folder
    assert orphans(tmp_path, tmp_path / "own") == []
    assert texts_of(adopted.read(9, MIB)) == ["d"]
    adopted.answered()
    adopted.clear_away()
    assert sources(tmp_path) == [alive.folder]


SCRIPT = """
import os, sys
from pathlib import Path
from tests.spool_support import spool, fill
written = spool(Path(sys.argv[1]), "killed-1-aa", synced=True)
fill(written, *range(50))
written.begin_call(51, __import__("tests.spool_support").spool_support.record("open"))
written.begin_call(52, __import__("tests.spool_support").spool_support.record("closed"))
written.end_call(52)
print("ready", flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_everything_and_its_open_calls(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (-9, "ready\n"), done.stderr
    (adopted,) = orphans(tmp_path, tmp_path / "own")
    assert texts_of(adopted.read(1000, MIB)) == [str(i) for i in range(50)]
    last = adopted.read(1000, MIB)
    assert [(one.seq, texts_of([one])) for one in last] == [(51, ["open"])]
    assert adopted.read(1000, MIB) == []
    adopted.close()


def test_a_forked_child_does_not_keep_its_dead_parent_alive(tmp_path: Path) -> None:
    written = spool(tmp_path)
    fill(written, "a")
    assert written._owner is not None
    inherited = os.dup(written._owner)  # what a child has that has not let go
    written.let_go()
    assert orphans(tmp_path, tmp_path / "own") == []
    os.close(inherited)
    (adopted,) = orphans(tmp_path, tmp_path / "own")
    adopted.close()


def test_a_folder_that_is_empty_goes_and_comes_again(tmp_path: Path) -> None:
    written = spool(tmp_path)
    fill(written, "a")
    written.remove_if_empty((0, 0))
    assert written.begun
    reader = outbox(written)
    reader.read(9, MIB)
    reader.answered()
    reader.close()
    written.remove_if_empty(reader.position)
    assert not written.folder.exists()
    fill(written, "late")
    assert texts_of(outbox(written).read(9, MIB)) == ["late"]


def test_calls_that_ended_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_OPEN_BYTES_MAX", 2000)
    written = spool(tmp_path)
    written.begin_call(1, record("long"))
    for seq in range(2, 200):
        written.begin_call(seq, record("short"))
        written.end_call(seq)
    assert (written.folder / "open").stat().st_size < 3000
    assert list(spool_module.calls_without_end(written.folder)) == [1]


def test_sync_reaches_the_disk_once_for_all_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(spool_module, "_sync_data", synced.append)
    written = spool(tmp_path, synced=True)
    fill(written, "a", "b")
    written.sync()
    written.sync()
    assert len(synced) == 1
    fill(written, "c")
    written.sync()
    assert len(synced) == 2


# --- places -------------------------------------------------------------------------------------------------------------
def test_a_folder_that_cannot_be_used_is_said_and_another_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "file"
    file.write_text("")
    root, problems = find_root(str(file / "spool"))
    assert root == tmp_path / "otel-audit" / "spool"
    assert [str(file) in problem for problem in problems] == [True]
    assert oct(root.stat().st_mode)[-3:] == "700"


def test_no_folder_at_all_is_an_error_that_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "candidates", lambda _: iter([Path("/proc/nowhere")]))
    with pytest.raises(CaptureError, match="set OTEL_AUDIT_SPOOL_DIR"):
        find_root()


def test_each_destination_has_a_folder_of_its_own(tmp_path: Path) -> None:
    places = {
        folder_of(tmp_path, Destination("grpc", "a:1")),
        folder_of(tmp_path, Destination("grpc", "b:1")),
        folder_of(tmp_path, Destination("log", "a:1")),
    }
    assert len(places) == 3
    secret = Destination("grpc", "a:1", headers=(("authorization", "s"),))
    assert folder_of(tmp_path, secret) in places, "a new token does not orphan what waits"


def test_locks_are_let_go_by_death_alone(tmp_path: Path) -> None:
    written = spool(tmp_path)
    fill(written, "a")
    fd = os.open(written.folder / "owner", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    assert isinstance(written, Spool)
