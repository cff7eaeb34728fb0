"""A full disk ends in retryable errors, not in a crash, and the log goes on by itself once there is room."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.errors import UnavailableError
from otel_audit.quarantine import read
from otel_audit.record import Quarantined
from tests.support import check_log, decoded, ids


def fill(folder: Path, leave_bytes: int) -> Path:
    """Fill the disk but for so many bytes."""
    path = folder / "filler"
    with path.open("wb") as f, contextlib.suppress(OSError):
        disk = os.statvfs(folder)
        f.write(b"\0" * max(disk.f_bavail * disk.f_frsize - leave_bytes, 0))
    return path


@pytest.mark.parametrize("reserve", [0, None], ids=["no reserve", "default reserve"])
def test_appends_are_refused_as_retryable_and_go_on_once_there_is_room(small_disk: Path, reserve: int | None) -> None:
    settings = LogSettings(segment_rows=2_000, segment_age_s=3600, disk_reserve_bytes=reserve)
    with AuditLog.open(small_disk / "log", settings) as log:
        acknowledged = []
        log.append(decoded(500, 0))
        acknowledged += ids(500, 0)
        filler = fill(small_disk, 200_000)
        refused = 0
        for seed in range(1, 40):
            try:
                log.append(decoded(500, seed))
                acknowledged += ids(500, seed)
            except UnavailableError:
                refused += 1
        assert refused > 10
        assert "space" in log.stats().append_error or "left" in log.stats().append_error
        found = [(r["trace_id"], r["span_id"]) for r in check_log(small_disk / "log")]
        assert found == acknowledged  # readers work on a full disk too
        filler.unlink()
        for seed in range(1, 40):
            log.append(decoded(500, seed))
        assert log.stats().append_error == ""
        log._sealer.wait(60)
        log.seal()
    everything = {i for seed in range(40) for i in ids(500, seed)}
    assert {(r["trace_id"], r["span_id"]) for r in check_log(small_disk / "log")} == everything


def test_a_log_killed_on_a_full_disk_opens_again(small_disk: Path) -> None:
    settings = LogSettings(segment_age_s=3600, disk_reserve_bytes=0)
    with AuditLog.open(small_disk / "log", settings) as log:
        log.append(decoded(500, 0))
        filler = fill(small_disk, 0)
        with pytest.raises(UnavailableError):
            log.append(decoded(5_000, 1))
        shutil.copytree(small_disk / "log", small_disk.parent / "crashed")
        filler.unlink()
    with AuditLog.open(small_disk.parent / "crashed", settings) as again:
        assert again.append(decoded(5_000, 1)).accepted == 5_000
    assert len(check_log(small_disk.parent / "crashed")) == 5_500


def test_a_log_opens_on_a_full_disk_refuses_and_goes_on_once_there_is_room(small_disk: Path) -> None:
    settings = LogSettings(segment_age_s=3600, disk_reserve_bytes=0)
    with AuditLog.open(small_disk / "log", settings) as log:
        log.append(decoded(500, 0))
    filler = fill(small_disk, 0)
    with AuditLog.open(small_disk / "log", settings) as log:
        with pytest.raises(UnavailableError):
            log.append(decoded(5_000, 1))
        assert log.append(decoded(500, 0)).duplicates == 500  # what is there needs no room
        filler.unlink()
        log.append(decoded(5_000, 1))
    assert len(check_log(small_disk / "log")) == 5_500


def test_quarantine_on_a_full_disk_is_refused_with_its_batch(small_disk: Path) -> None:
    with AuditLog.open(small_disk / "log", LogSettings(segment_age_s=3600, disk_reserve_bytes=0)) as log:
        log.append(decoded(10, 0, [Quarantined("time_missing", "", b"first", "otlp.span+protobuf")]))
        filler = fill(small_disk, 0)
        poison = Quarantined("time_missing", "", b"x" * 1_000_000, "otlp.span+protobuf")
        with pytest.raises(UnavailableError):
            log.append(decoded(10, 1, [poison]))
        filler.unlink()
        assert log.append(decoded(10, 1, [poison])).quarantined == 1
    assert [e.payload[:1] for e in read(small_disk / "log")] == [b"f", b"x"]
