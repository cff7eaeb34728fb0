"""When a log counts as ready: what is looked at, what is said, and that readiness comes back."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_audit._server_health import Health, HealthSettings
from otel_audit.auditlog import AuditLog, LogSettings
from tests.collector.support import wait_for
from tests.support import decoded

RESERVE, READY = 10 << 20, 30 << 20
SETTINGS = LogSettings(segment_age_s=3600, disk_reserve_bytes=RESERVE, disk_ready_bytes=READY)


class Disk:
    """What statvfs says, as the test wants it; the log's own checks see it as well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 1 << 30
        self.error: OSError | None = None
        real = os.statvfs

        def statvfs(path: str | Path) -> os.statvfs_result:
            if self.error:
                raise self.error
            fields = list(real(path))
            fields[1] = 1  # f_frsize
            fields[4] = self.free  # f_bavail
            return os.statvfs_result(fields)

        monkeypatch.setattr(os, "statvfs", statvfs)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def log(tmp_path: Path, disk: Disk) -> Iterator[AuditLog]:
    with AuditLog.open(tmp_path / "log", SETTINGS) as opened:
        yield opened


def test_readiness_ends_before_appends_are_refused_and_comes_back(
    log: AuditLog, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "otel_audit.server")
    health = Health(log)
    assert health.reasons() == []
    disk.free = READY - 1
    for _ in range(3):
        health.look()
    (reason,) = health.reasons()
    assert reason.startswith("the disk is nearly full: 31,457,279 bytes are left, not ready below 31,457,280")
    assert log.append(decoded(5)).accepted == 5, "there is still room for what is under way"
    disk.free = READY
    health.look()
    assert health.reasons(), "at the level it must not turn on and off"
    disk.free = READY * 2
    for _ in range(3):
        health.look()
    assert health.reasons() == []
    said = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert [level for level, _ in said] == ["WARNING", "INFO"], "once each"
    assert "free space" in said[0][1]
    assert said[1][1] == "the disk has room again: 60 MiB are left"


@pytest.mark.parametrize(("wanted", "level"), [(None, 2 * RESERVE), (5 << 20, RESERVE), (99 << 20, 99 << 20)])
def test_the_level_is_twice_the_reserve_unless_set_and_never_below_it(
    tmp_path: Path, disk: Disk, wanted: int | None, level: int
) -> None:
    settings = LogSettings(disk_reserve_bytes=RESERVE, disk_ready_bytes=wanted)
    with AuditLog.open(tmp_path / "log", settings) as log:
        health = Health(log)
        assert (health.disk.ready, health.disk.reserve, health.disk.free) == (level, RESERVE, disk.free)
        disk.free = level - 1
        health.look()
        assert health.reasons()


def test_a_disk_that_does_not_answer_is_told_without_asking_it(log: AuditLog) -> None:
    clock = Clock()
    health = Health(log, HealthSettings(stale_s=5), clock)
    clock.now_s += 5
    assert health.reasons() == []
    clock.now_s += 3
    assert health.reasons() == ["the disk has not answered for 8 s"]
    health.look()
    assert health.reasons() == []


def test_a_write_that_hangs_is_told(log: AuditLog) -> None:
    clock = Clock()
    health = Health(log, HealthSettings(stale_s=5), clock)
    log._counters.committing_since_s = clock.now_s - 6
    assert health.reasons() == ["a write to the disk has been under way for 6 s"]
    log._counters.committing_since_s = None
    assert health.reasons() == []


def test_sealing_may_fail_for_a_while_but_not_for_long(log: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "otel_audit.server")
    clock = Clock()
    health = Health(log, HealthSettings(seal_failed_s=300), clock)
    stats = log._sealer.stats
    stats.error, stats.failed_s = "no bucket", clock.now_s
    health.look()
    assert health.reasons() == []
    clock.now_s += 300
    for _ in range(3):
        health.look()
    assert health.reasons() == ["sealing has failed for 300 s: no bucket"]
    stats.error, stats.failed_s = "", None
    health.look()
    assert health.reasons() == []
    assert [r.levelname for r in caplog.records] == ["ERROR", "INFO"]


def test_a_fault_that_needs_a_restart_is_told(log: AuditLog) -> None:
    log._broken = "the memory of identities failed"
    assert Health(log).reasons() == ["nothing is taken until a restart: the memory of identities failed"]


def test_the_thread_goes_on_after_a_disk_that_fails(log: AuditLog, disk: Disk) -> None:
    health = Health(log, HealthSettings(every_s=0.01, stale_s=0.5))
    health.start()
    try:
        disk.error = OSError(5, "Input/output error")
        wait_for(health.reasons, "what is known is too old")
        disk.error = None
        wait_for(lambda: not health.reasons(), "the disk answers again")
    finally:
        health.stop()
