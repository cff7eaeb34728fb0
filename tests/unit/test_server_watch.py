"""What the running service says of its sources as it begins."""

import logging
from pathlib import Path

import pytest

from otel_audit._server_watch import Watch
from otel_audit.auditlog import AuditLog
from otel_audit.sources import Source, Verdict
from tests.support import decoded


def source(name: str, missing: dict[Verdict, int]) -> Source:
    return Source(name, "crm", None, "running", None, 0, 0, 0, None, 1, 9, missing=missing)


def test_the_count_at_the_start_is_of_what_earlier_runs_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = [
        source("a", {"lost": 2, "late": 3}),
        source("b", {"dropped": 5}),
        source("c", {"late": 1}),
        source("d", {}),
    ]
    monkeypatch.setattr(Watch, "_survey", lambda *_: found)
    with caplog.at_level(logging.INFO, "otel_audit.sources"), AuditLog.open(tmp_path) as log:
        log.append(decoded(1))
        watch = Watch(log)
        watch.start()
        watch.stop()
    assert caplog.messages == ["7 records of 2 sources are missing in the log; see otel-audit gaps"]
