import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from otel_audit import auditlog as auditlog_module
from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.errors import (
    ConfigError,
    CorruptLogError,
    LockedError,
    LogClosedError,
    OverloadedError,
    StorageError,
    UnavailableError,
)
from otel_audit.reader import LogReader
from otel_audit.record import Quarantined
from otel_audit.sealer import Sealer
from tests.support import check_log, decoded, ids

SLOW = LogSettings(segment_age_s=3600, disk_reserve_bytes=0)


def test_records_are_numbered_without_gaps_and_read_back_as_they_were(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path, SLOW) as log:
        assert log.append(decoded(10, 1)).first_seq == 1
        receipt = log.append(decoded(5, 2))
        assert (receipt.log, receipt.first_seq, receipt.last_seq, receipt.accepted) == ("audit", 11, 15, 5)
    records = check_log(tmp_path)
    assert [(r["trace_id"], r["span_id"]) for r in records] == ids(10, 1) + ids(5, 2)
    assert {r["log"] for r in records} == {"audit"}


@pytest.mark.parametrize("away_s", [86_400, -86_400], ids=["a day later", "with the clock a day back"])
def test_a_batch_sent_again_is_recognised_however_long_the_log_was_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away_s: int
) -> None:
    with AuditLog.open(tmp_path / "log") as log:
        log.append(decoded(100, 0))
        log.seal()
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + away_s * 10**9)
    with AuditLog.open(tmp_path / "log") as log:
        assert log.append(decoded(100, 0)).duplicates == 100
        log.append(decoded(100, 1))
        log.seal()
    with AuditLog.open(tmp_path / "log") as log:  # the newest are a day later than the first, and do not push them out
        assert log.append(decoded(100, 0)).duplicates == 100
    recorded = [r["recorded_at"] for r in check_log(tmp_path / "log")]
    assert recorded == sorted(recorded)


def test_a_batch_sent_again_adds_nothing_whether_unsealed_sealed_or_reopened(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path, SLOW) as log:
        log.append(decoded(100, 1))
        again = log.append(decoded(100, 1))
        assert (again.accepted, again.duplicates, again.first_seq) == (0, 100, None)
        log.seal()
        assert log.append(decoded(100, 1)).duplicates == 100
        log.append(decoded(50, 2))
    with AuditLog.open(tmp_path, SLOW) as log:
        assert log.append(decoded(100, 1)).duplicates == 100
        assert log.append(decoded(60, 2)).duplicates == 0 + len(set(ids(60, 2)) & set(ids(50, 2)))
    check_log(tmp_path)


def test_retries_of_old_records_are_read_back_from_the_store(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path, LogSettings(segment_rows=8_000, segment_age_s=3600, disk_reserve_bytes=0)) as log:
        for seed in range(30):
            log.append(decoded(2_000, seed))
        assert log.append(decoded(2_000, 0)).duplicates == 2_000
        assert log.append(decoded(2_000, 17)).duplicates == 2_000
        log.seal()
        assert log.append(decoded(2_000, 1)).duplicates == 2_000
        assert log.stats().last_seq == 60_000


def test_eight_senders_of_the_same_batch_at_once_add_it_once(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path, SLOW) as log:
        barrier = threading.Barrier(8)
        accepted: list[int] = []

        def send() -> None:
            barrier.wait()
            accepted.extend(log.append(decoded(200, seed)).accepted for seed in range(20))

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(accepted) == 4_000
    assert len(check_log(tmp_path)) == 4_000


def test_a_second_writer_is_refused_and_told_who_holds_the_log(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path, SLOW):
        code = f"from otel_audit.auditlog import AuditLog; AuditLog.open({str(tmp_path)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "LockedError" in other.stderr
        assert f"process {os.getpid()} on " in other.stderr
        with pytest.raises(LockedError):
            AuditLog.open(tmp_path, SLOW)
    AuditLog.open(tmp_path, SLOW).close()


def test_a_log_keeps_its_name(tmp_path: Path) -> None:
    AuditLog.open(tmp_path, LogSettings(name="crm-prod")).close()
    with AuditLog.open(tmp_path, LogSettings(name="other")) as log:
        assert log.name == "crm-prod"
    assert json.loads((tmp_path / "log.json").read_text())["name"] == "crm-prod"


@pytest.mark.parametrize("settings", [{"name": "../x"}, {"segment_rows": 0}, {"dedupe_window_s": -1.0}])
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LogSettings(**settings)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose a folder"):
        AuditLog.open(tmp_path / "file" / "log")


def test_segments_are_sealed_by_size_and_by_age(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path / "size", LogSettings(segment_rows=100, segment_age_s=3600)) as log:
        for seed in range(5):
            log.append(decoded(100, seed))
        log.seal()
        assert log.stats().segments_sealed == 5
    with AuditLog.open(tmp_path / "age", LogSettings(segment_age_s=0.05)) as log:
        log.append(decoded(10, 1))
        wait_until(lambda: log.stats().sealed_seq == 10)


def hold(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make the committer wait before it writes: events for "it waits" and "go on"."""
    held, release = threading.Event(), threading.Event()
    real = log._write

    def slow(group: list[auditlog_module._Waiting]) -> object:
        held.set()
        release.wait(30)
        return real(group)

    monkeypatch.setattr(log, "_write", slow)
    return held, release


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Wait on a condition; fails when it does not come true."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the condition did not come true")


def test_small_segments_are_merged_and_the_records_stay_as_they_were(tmp_path: Path) -> None:
    settings = LogSettings(segment_rows=1_000, segment_age_s=3600, compact_least=4, keep_replaced_s=3600)
    reader = None
    with AuditLog.open(tmp_path, settings) as log:
        for seed in range(30):
            log.append(decoded(50, seed))
            log.seal()
            reader = reader or LogReader.open(tmp_path)
            before = reader.snapshot()
    with AuditLog.open(tmp_path, settings) as log:
        records = check_log(tmp_path)
    assert [(r["trace_id"], r["span_id"]) for r in records] == [i for seed in range(30) for i in ids(50, seed)]
    after = LogReader.open(tmp_path).snapshot()
    assert len(after.segments) < 15
    assert all(Path(s.path).exists() for s in before.segments)  # an older snapshot is still good


def test_merged_away_files_are_deleted_once_nobody_needs_them(tmp_path: Path) -> None:
    settings = LogSettings(segment_rows=1_000, segment_age_s=3600, compact_least=4, keep_replaced_s=0.0)
    with AuditLog.open(tmp_path, settings) as log:
        for seed in range(30):
            log.append(decoded(50, seed))
            log.seal()
    files = list((tmp_path / "lake").glob("*.parquet"))
    assert len(files) < 30
    assert len(check_log(tmp_path)) == 1_500


def test_a_full_queue_refuses_at_once_and_keeps_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AuditLog.open(tmp_path, LogSettings(queue_records=100, segment_age_s=3600)) as log:
        held, release = hold(log, monkeypatch)
        futures = [log.submit(decoded(60, 1))]
        held.wait(30)
        futures.append(log.submit(decoded(60, 2)))
        with pytest.raises(OverloadedError) as caught:
            log.submit(decoded(60, 3))
        assert caught.value.retryable
        release.set()
        assert [f.result(30).accepted for f in futures] == [60, 60]
    assert len(check_log(tmp_path)) == 120


def test_a_request_larger_than_the_queue_is_still_taken_when_nothing_waits(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path, LogSettings(queue_records=100)) as log:
        assert log.append(decoded(500, 1)).accepted == 500


def test_close_makes_durable_what_was_submitted_and_refuses_the_rest(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path, SLOW)
    futures = [log.submit(decoded(100, seed)) for seed in range(20)]
    log.close()
    assert sum(f.result(0).accepted for f in futures) == 2_000
    with pytest.raises(LogClosedError):
        log.submit(decoded(1, 99))
    assert len(check_log(tmp_path)) == 2_000


def test_nothing_is_acknowledged_before_its_bytes_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Quarantined("time_missing", "no start time", b"span", "otlp.span+protobuf")
    with AuditLog.open(tmp_path, SLOW) as log:
        log.append(decoded(1, 0, [Quarantined("oversize", "", b"earlier", "otlp.span+protobuf")]))
        syncing, release = threading.Event(), threading.Event()
        synced: list[str] = []
        real = os.fdatasync

        def slow(fd: int) -> None:
            syncing.set()
            release.wait(30)
            real(fd)
            synced.append(Path(f"/proc/self/fd/{fd}").readlink().suffix)

        monkeypatch.setattr(os, "fdatasync", slow)
        future = log.submit(decoded(10, 1, [entry]))
        assert syncing.wait(30)
        assert not future.done()
        release.set()
        future.result(30)
        assert synced == [".frames", ".journal"]


def test_a_cancelled_submission_is_not_written_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AuditLog.open(tmp_path, SLOW) as log:
        held, release = hold(log, monkeypatch)
        first = log.submit(decoded(10, 1))
        held.wait(30)
        second, third = log.submit(decoded(10, 2)), log.submit(decoded(10, 3))
        assert not first.cancel()
        assert second.cancel()
        release.set()
        assert (first.result(30).accepted, third.result(30).first_seq) == (10, 11)


def test_quarantine_entries_are_durable_before_the_receipt(tmp_path: Path) -> None:
    from otel_audit.quarantine import read

    entry = Quarantined("time_missing", "no start time", b"span", "otlp.span+protobuf")
    with AuditLog.open(tmp_path, SLOW) as log:
        receipt = log.append(decoded(3, 1, [entry]))
        assert (receipt.accepted, receipt.quarantined) == (3, 1)
        assert [e.payload for e in read(tmp_path)] == [b"span"]
        assert log.append(decoded(0, 2, [entry])).quarantined == 0  # sent again


def test_a_batch_that_cannot_be_written_does_not_hold_up_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AuditLog.open(tmp_path, SLOW) as log:
        held, release = hold(log, monkeypatch)
        first = log.submit(decoded(1, 0))
        held.wait(30)
        poison = decoded(1, 2)
        poison = replace(poison, records=poison.records.drop_columns(["time"]))
        futures = [log.submit(decoded(5, 1)), log.submit(poison), log.submit(decoded(5, 3))]
        release.set()
        assert first.result(30).accepted == 1
        with pytest.raises(UnavailableError):
            futures[1].result(30)
        assert [futures[0].result(30).accepted, futures[2].result(30).accepted] == [5, 5]
    assert len(check_log(tmp_path)) == 11


def test_recorded_at_never_goes_back_when_the_clock_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([2_000_000_000_000_000_000, 1_000_000_000_000_000_000, 1_500_000_000_000_000_000])
    with AuditLog.open(tmp_path, SLOW) as log:
        monkeypatch.setattr(time, "time_ns", lambda: next(times))
        for seed in range(3):
            log.append(decoded(1, seed))
        monkeypatch.undo()
    recorded = [r["recorded_at"] for r in check_log(tmp_path)]
    assert recorded == sorted(recorded)


def test_a_missing_journal_is_an_error_that_names_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise UnavailableError("seal", tmp_path, "not now")

    monkeypatch.setattr(Sealer, "_seal", cannot)
    with AuditLog.open(tmp_path, LogSettings(segment_rows=10, segment_age_s=3600)) as log:
        for seed in range(4):
            log.append(decoded(10, seed))
    monkeypatch.undo()
    names = sorted((tmp_path / "journal").iterdir())
    assert len(names) > 1
    names[-2].unlink()
    with pytest.raises(CorruptLogError, match="records 21 to 30 are missing"):
        AuditLog.open(tmp_path)


def test_a_missing_or_rolled_back_table_is_an_error(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path, SLOW) as log:
        log.append(decoded(10, 1))
        log.seal()
        log.append(decoded(10, 2))
    commit = tmp_path / "lake" / "_delta_log" / "00000000000000000001.json"
    commit.unlink()
    with pytest.raises(CorruptLogError, match="records 1 to 10 are missing"):
        AuditLog.open(tmp_path)
    with pytest.raises(CorruptLogError, match="missing"):
        LogReader.open(tmp_path).snapshot()


def test_readers_follow_appends_seals_and_merges_without_a_gap(tmp_path: Path) -> None:
    settings = LogSettings(segment_rows=500, segment_age_s=3600, compact_least=3, disk_reserve_bytes=0)
    with AuditLog.open(tmp_path, settings) as log:
        reader = LogReader.open(tmp_path)
        stop = threading.Event()
        seen: list[int] = []
        wrong: list[str] = []

        def follow() -> None:
            while not stop.is_set():
                snapshot = reader.snapshot()
                numbers = snapshot.unsealed.column("seq").to_pylist()
                if numbers != list(range(snapshot.sealed_seq + 1, snapshot.last_seq + 1)):
                    wrong.append(f"{snapshot.sealed_seq} {numbers[:1]} {snapshot.last_seq}")
                seen.append(snapshot.last_seq)

        thread = threading.Thread(target=follow)
        thread.start()
        for seed in range(150):
            log.append(decoded(100, seed))
        stop.set()
        thread.join()
        assert not wrong
        assert seen == sorted(seen)
        assert len(set(seen)) > 3
        assert reader.snapshot().last_seq == 15_000
