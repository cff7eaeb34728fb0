import os
from pathlib import Path

import pytest

from otel_audit import _stored as stored_module
from otel_audit._stored import StoredKeys
from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.dedupe import keys_of
from otel_audit.errors import UnavailableError
from otel_audit.journal import journals
from tests.support import batch, decoded

SETTINGS = LogSettings(segment_age_s=3600, disk_reserve_bytes=0)


def found(stored: StoredKeys, first: int, last: int) -> set[bytes]:
    return {key.tobytes() for piece in stored(first, last) for key in piece}


def wanted(seed: int) -> set[bytes]:
    return {key.tobytes() for key in keys_of(batch(100, seed))}


def test_identities_come_from_journals_and_segments(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path, SETTINGS) as log:
        stored = StoredKeys(tmp_path, "audit")
        log.append(decoded(100, 1))
        assert found(stored, 1, 100) == wanted(1)
        log.seal()
        log.append(decoded(100, 2))
        assert found(stored, 1, 200) == wanted(1) | wanted(2)
        log.append(decoded(100, 3))
        assert found(stored, 201, 300) >= wanted(3)
        stored.forget()
        assert found(stored, 1, 300) == wanted(1) | wanted(2) | wanted(3)


def test_a_journal_sealed_while_it_is_looked_for_is_found_in_the_lake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AuditLog.open(tmp_path, SETTINGS) as log:
        stored = StoredKeys(tmp_path, "audit")
        log.append(decoded(100, 1))

        def sealed_first(folder: Path) -> object:
            listed = list(journals(folder))
            log.seal()
            return listed

        monkeypatch.setattr(stored_module, "journals", sealed_first)
        assert found(stored, 1, 100) == wanted(1)


def test_a_copy_of_an_old_record_is_recognised_after_a_sync_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = os.fdatasync, [False]

    def sync(fd: int) -> None:
        if broken[0]:
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    with AuditLog.open(tmp_path, SETTINGS) as log:
        log.append(decoded(20, 1))
        stored = StoredKeys(tmp_path, "audit")
        broken[0] = True
        with pytest.raises(UnavailableError):
            log.append(decoded(100, 2))
        broken[0] = False
        assert {k.tobytes() for piece in stored(1, 20) for k in piece} == {k.tobytes() for k in keys_of(batch(20, 1))}
        log.append(decoded(30, 3))
        assert {k.tobytes() for piece in stored(1, 50) for k in piece} >= {k.tobytes() for k in keys_of(batch(30, 3))}
