"""What a log says of itself beyond its counters: how old the unsealed is, whether sealing works, how long syncs take."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.errors import UnavailableError
from otel_audit.lake import Lake
from otel_audit.record import Quarantined
from tests.collector.support import wait_for
from tests.support import decoded

SLOW = LogSettings(segment_age_s=3600, disk_reserve_bytes=0)


def test_the_oldest_unsealed_record_has_the_age_it_has_through_seals_and_restarts(tmp_path: Path) -> None:
    before_us = time.time_ns() // 1000
    with AuditLog.open(tmp_path, SLOW) as log:
        assert log.stats().unsealed_since_us is None
        log.append(decoded(5))
        since_us = log.stats().unsealed_since_us
        assert since_us is not None
        assert before_us <= since_us <= time.time_ns() // 1000
        log.append(decoded(5, seed=1))
        assert log.stats().unsealed_since_us == since_us, "that of the oldest"
    with AuditLog.open(tmp_path, SLOW) as log:
        assert log.stats().unsealed_since_us == since_us
        log.seal(60)
        assert log.stats().unsealed_since_us is None
        log.append(decoded(5, seed=2))
        later_us = log.stats().unsealed_since_us
        assert later_us is not None
        assert later_us > since_us


def test_entries_in_quarantine_are_counted_through_restarts(tmp_path: Path) -> None:
    entry = Quarantined(reason="odd", detail="", payload=b"x", kind="otlp.request+protobuf")
    with AuditLog.open(tmp_path, SLOW) as log:
        log.append(decoded(0, quarantine=[entry]))
    with AuditLog.open(tmp_path, SLOW) as log:
        stats = log.stats()
    assert (stats.quarantine_entries, stats.quarantined) == (1, 0)


def test_failures_to_seal_are_counted_and_end_with_a_seal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, works = Lake.seal, threading.Event()

    def seal(*arguments: Any) -> int:
        if not works.is_set():
            raise UnavailableError("seal", "lake", "no")
        return real(*arguments)

    monkeypatch.setattr(Lake, "seal", seal)
    started_s = time.monotonic()
    with AuditLog.open(tmp_path, SLOW) as log:
        log.append(decoded(5))
        with pytest.raises(UnavailableError):
            log.seal(60)
        failed_s = log.stats().seal_failed_s
        assert failed_s is not None
        assert started_s <= failed_s <= time.monotonic()
        with pytest.raises(UnavailableError):
            log.seal(60)
        stats = log.stats()
        assert stats.seal_failed_s == failed_s, "since the first of them"
        assert stats.seal_errors >= 2
        works.set()
        wait_for(lambda: log.stats().seal_failed_s is None, "it is sealed by itself")
        stats = log.stats()
    assert (stats.seal_failed_s, stats.seal_error) == (None, "")


def test_each_sync_and_each_commit_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = iter(range(0, 10**12, 3_000_000))  # each look at the clock 3 ms after the last
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(now_ns))
    with AuditLog.open(tmp_path, SLOW) as log:
        for seed in range(3):
            log.append(decoded(5, seed=seed))
        log.append(decoded(5))  # nothing new
        stats = log.stats()
    assert (stats.fsync_durations.count, stats.fsync_durations.sum_s) == (3, 0.009)
    # Beginning, two looks at the sync, end: three steps; without a sync there is one.
    assert (stats.commit_durations.count, stats.commit_durations.sum_s) == (4, 0.030)
    assert stats.commits == 4


def test_a_log_whose_disk_hangs_says_since_when_and_can_be_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, sync = threading.Event(), os.fdatasync

    def hang(fd: int) -> None:
        release.wait()
        sync(fd)

    log = AuditLog.open(tmp_path, SLOW)
    assert log.stats().committing_since_s is None
    monkeypatch.setattr(os, "fdatasync", hang)
    started_s = time.monotonic()
    future = log.submit(decoded(5))
    while (since_s := log.stats().committing_since_s) is None:
        assert time.monotonic() < started_s + 60
    assert since_s >= started_s
    assert log.close(0.05) is False
    assert [log.committing, future.done()] == [True, False], "nothing is acknowledged that is not durable"
    release.set()
    assert future.result(60).accepted == 5
    log._thread.join(60)
    assert [log.committing] == [False]
    log._sealer.close(60)
