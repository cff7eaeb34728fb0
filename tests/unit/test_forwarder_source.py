from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from otel_audit._forwarder_source import LogSource
from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.errors import StorageError, UnavailableError
from otel_audit.journal import FrameFile
from tests.support import decoded, ids


def seqs(batches: list[pa.RecordBatch]) -> list[int]:
    return [seq for batch in batches for seq in batch.column("seq").to_pylist()]


def read_all(source: LogSource, first: int, last: int, most: int) -> list[int]:
    found: list[int] = []
    while first <= last:
        part = seqs(source.read(first, last, most))
        assert 1 <= len(part) <= most
        found += part
        first = part[-1] + 1
    return found


@pytest.mark.parametrize("most", [1, 7, 1000])
@pytest.mark.parametrize("first", [1, 2, 30, 31, 45, 60])
def test_any_number_is_a_place_to_begin(tmp_path: Path, most: int, first: int) -> None:
    with AuditLog.open(tmp_path / "log") as log:
        log.append(decoded(20, 1))
        log.append(decoded(10, 2))
        log.seal()
        log.append(decoded(15, 3))
        log.append(decoded(15, 4))
        source = LogSource(log.directory, log.name)
        assert read_all(source, first, 60, most) == list(range(first, 61))
        assert read_all(source, first, 60, most) == list(range(first, 61)), "again, from before"


def test_it_follows_a_log_through_seals_and_compactions(tmp_path: Path) -> None:
    settings = LogSettings(compact_least=3, keep_replaced_s=0.0)
    with AuditLog.open(tmp_path / "log", settings) as log:
        source = LogSource(log.directory, log.name)
        found: list[int] = []
        expected: list[Any] = []
        for turn in range(40):
            log.append(decoded(11, turn))
            expected += [trace for trace, _ in ids(11, turn)]
            if turn % 3 == 0:
                log.seal()
            last = log.stats().last_seq
            if turn % 5 == 0:  # it lags behind most of the time
                batches = source.read(len(found) + 1, last, 30)
                found += [t for batch in batches for t in batch.column("trace_id").to_pylist()]
        assert log.stats().segments_compacted > 0
        while len(found) < len(expected):
            batches = source.read(len(found) + 1, log.stats().last_seq, 30)
            found += [t for batch in batches for t in batch.column("trace_id").to_pylist()]
    assert found == expected


def test_a_frame_that_is_not_durable_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AuditLog.open(tmp_path / "log") as log:
        log.append(decoded(5, 1))
        source = LogSource(log.directory, log.name)
        assert seqs(source.read(1, log.stats().last_seq, 5)) == [1, 2, 3, 4, 5]
        log.append(decoded(2, 4))
        append = FrameFile.append

        def written_but_not_synced(self: FrameFile, payloads: Any) -> None:
            state = self.end, self.digest, self.frames
            append(self, payloads)
            self.end, self.digest, self.frames = state
            self._dirty = True
            # Between the writing and the failing sync someone reads.
            found.append(seqs(source.read(6, log.stats().last_seq, 100)))
            raise UnavailableError("append", self.path, "the disk failed")

        found: list[list[int]] = []
        monkeypatch.setattr(FrameFile, "append", written_but_not_synced)
        with pytest.raises(UnavailableError):
            log.append(decoded(4, 2))
        monkeypatch.undo()
        assert found == [[6, 7]]
        assert source.buffered == 0
        log.append(decoded(3, 3))
        batches = source.read(8, log.stats().last_seq, 100)
        assert [t for b in batches for t in b.column("trace_id").to_pylist()] == [t for t, _ in ids(3, 3)]


def test_a_record_that_is_nowhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path / "log") as log:
        log.append(decoded(5, 1))
        log.seal()
        source = LogSource(log.directory, log.name)
        with pytest.raises(StorageError, match="record 6 is in no journal and no segment"):
            source.read(6, 6, 5)
        log.append(decoded(2, 2))
        assert seqs(source.read(6, 7, 5)) == [6, 7], "it is looked for anew"


def test_what_is_held_is_what_is_left_of_one_piece(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path / "log") as log:
        log.append(decoded(100, 1))
        source = LogSource(log.directory, log.name)
        assert source.buffered == 0
        source.read(1, 100, 30)
        assert source.buffered == 70
        log.append(decoded(100, 2))
        source.read(31, 200, 30)
        assert source.buffered == 40
        source.read(150, 200, 30)
        assert source.buffered == 21
