"""A seal or compaction broken after each of its steps, by an error and by SIGKILL, leaves every record there once."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import DeltaTable

from otel_audit import lake as lake_module
from otel_audit import sealer as sealer_module
from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.errors import UnavailableError
from otel_audit.lake import Lake
from otel_audit.reader import LogReader
from tests.support import check_log, decoded, ids

SETTINGS = LogSettings(segment_age_s=3600, compact_least=3, disk_reserve_bytes=0)

# Each step of a seal or compaction, as (owner, function): it is broken before and after it has worked.
STEPS = [
    (lake_module, "_writer"),
    (lake_module.Lake, "_write"),
    (lake_module, "fsync_path"),
    (DeltaTable, "create_write_transaction"),
    (lake_module.Lake, "_sync_log"),
    (lake_module.Lake, "_commit"),
    (lake_module.Lake, "seal"),
    (sealer_module, "fsync_path"),
]


@pytest.mark.parametrize("after", [False, True], ids=["fails", "fails after it worked"])
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s[1])
def test_a_step_that_fails_is_repeated_and_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[object, str], after: bool
) -> None:
    owner, name = step
    real = getattr(owner, name)
    broken: list[int] = []

    def breaks(*args: object, **kwargs: object) -> object:
        if broken:
            return real(*args, **kwargs)
        if after:
            real(*args, **kwargs)
        broken.append(1)
        raise OSError(5, "Input/output error")

    with AuditLog.open(tmp_path, SETTINGS) as log:
        log.append(decoded(100, 1))
        monkeypatch.setattr(owner, name, breaks)
        with pytest.raises(UnavailableError, match="tried again"):
            log.seal()
        log.append(decoded(100, 2))
        assert len(check_log(tmp_path)) == 200
        log._sealer.wait(30)
        log.seal()
        assert log.stats().sealed_seq == 200
    assert broken
    assert [(r["trace_id"], r["span_id"]) for r in check_log(tmp_path)] == ids(100, 1) + ids(100, 2)
    with AuditLog.open(tmp_path, SETTINGS) as log:
        assert log.append(decoded(100, 1)).duplicates == 100


KILL = """
import os, signal, sys
from pathlib import Path
from otel_audit import lake, sealer
from otel_audit.auditlog import AuditLog, LogSettings
from tests.support import decoded

directory, owner, name, when, rounds = sys.argv[1:]
owner = {"lake": lake, "Lake": lake.Lake, "DeltaTable": lake.DeltaTable, "sealer": sealer, "Path": Path}[owner]
real = getattr(owner, name)
log = AuditLog.open(directory, LogSettings(segment_age_s=3600, compact_least=3, disk_reserve_bytes=0))
for seed in range(int(rounds)):
    log.append(decoded(100, seed))
    log.seal()

def kills(*args, **kwargs):
    if when == "after":
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

log.append(decoded(100, int(rounds)))
setattr(owner, name, kills)
log.seal()
log._sealer.close()
"""

KILL_STEPS = [
    ("lake", "_writer"),
    ("lake", "fsync_path"),
    ("Lake", "_write"),
    ("DeltaTable", "create_write_transaction"),
    ("Lake", "_sync_log"),
    ("Lake", "seal"),
    ("Path", "unlink"),
    ("sealer", "fsync_path"),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", KILL_STEPS, ids=lambda s: s[1])
# Two sealed segments and a third to seal: the last seal is followed by a compaction of all three.
def test_sigkill_at_a_step_loses_and_doubles_nothing(tmp_path: Path, step: tuple[str, str], when: str) -> None:
    command = [sys.executable, "-c", KILL, str(tmp_path), *step, when, "1"]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(check_log(tmp_path)) == 200  # a reader needs no recovery
    with AuditLog.open(tmp_path, SETTINGS) as log:
        assert log.append(decoded(100, 1)).duplicates == 100
        log.append(decoded(100, 7))
        log.seal()
        assert log.stats().sealed_seq == 300
    assert [(r["trace_id"], r["span_id"]) for r in check_log(tmp_path)] == ids(100, 0) + ids(100, 1) + ids(100, 7)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "step", [("Lake", "_write"), ("DeltaTable", "create_write_transaction"), ("Lake", "_sync_log")]
)
def test_sigkill_during_a_compaction_loses_and_doubles_nothing(
    tmp_path: Path, step: tuple[str, str], when: str
) -> None:
    code = KILL.replace("log.append(decoded(100, int(rounds)))\n", "").replace(
        "log.seal()\nlog._sealer.close()", "log._lake_for_test.compact(262_144, 3)"
    )
    code = code.replace("compact_least=3", "compact_least=99").replace(
        "def kills", "log._lake_for_test = log._sealer._lake\ndef kills"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *step, when, "4"]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    expected = [i for seed in range(4) for i in ids(100, seed)]
    assert [(r["trace_id"], r["span_id"]) for r in check_log(tmp_path)] == expected
    with AuditLog.open(tmp_path, SETTINGS) as log:
        log.append(decoded(100, 7))
        log.seal()
    assert len(LogReader.open(tmp_path).snapshot().segments) < 5
    assert [(r["trace_id"], r["span_id"]) for r in check_log(tmp_path)] == expected + ids(100, 7)


def test_a_seal_repeated_after_its_commit_adds_nothing(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path, SETTINGS) as log:
        log.append(decoded(100, 1))
        (journal,) = (tmp_path / "journal").iterdir()
        copy = journal.read_bytes()
        log.seal()
        version = Lake(tmp_path / "lake")._loaded().version()
    journal.write_bytes(copy)  # as if the crash had come before the journal was dropped
    with AuditLog.open(tmp_path, SETTINGS) as log:
        assert not journal.exists()
        assert log.seal().records == 0
    assert Lake(tmp_path / "lake")._loaded().version() == version
    assert len(check_log(tmp_path)) == 100


def test_a_store_that_cannot_be_written_holds_up_no_append_and_sealing_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AuditLog.open(tmp_path, LogSettings(segment_rows=50, segment_age_s=3600, disk_reserve_bytes=0)) as log:
        with monkeypatch.context() as m:
            m.setattr(lake_module, "_writer", _no_space)
            for seed in range(10):
                assert log.append(decoded(50, seed)).accepted == 50
            with pytest.raises(UnavailableError):
                log.seal()
            assert log.stats().sealed_seq == 0
            assert "No space left" in log.stats().seal_error
            assert len(check_log(tmp_path)) == 500
        log._sealer.wait(60)
        log.seal()
        assert (log.stats().sealed_seq, log.stats().seal_error) == (500, "")


def _no_space(*_: object) -> object:
    raise OSError(28, "No space left on device")
