"""Append, retry, seal, crash, reopen and read in any order: the log always holds exactly what was acknowledged, in order.

A crash is a copy of the folder as it lies on disk, with a torn frame written behind the journal, opened as a new log.
"""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.journal import Journal, JournalTail
from otel_audit.reader import LogReader
from otel_audit.record import schema
from tests.support import check_log, decoded, ids

SETTINGS = LogSettings(segment_rows=60, segment_age_s=3600, compact_least=3, disk_reserve_bytes=0, queue_records=10_000)


class LogModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="otel-audit-model-"))
        self.generation = 0
        self.acknowledged: list[tuple[bytes, bytes]] = []
        self.sent: dict[int, int] = {}

    @property
    def folder(self) -> Path:
        return self.root / str(self.generation)

    @initialize()
    def open(self) -> None:
        self.log = AuditLog.open(self.folder, SETTINGS)

    @rule(count=st.integers(1, 50))
    def append(self, count: int) -> None:
        seed = len(self.sent) + 1
        self.sent[seed] = count
        receipt = self.log.append(decoded(count, seed))
        assert receipt.accepted == count
        assert receipt.first_seq == len(self.acknowledged) + 1
        self.acknowledged += ids(count, seed)

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        if self.sent:
            seed = data.draw(st.sampled_from(sorted(self.sent)))
            receipt = self.log.append(decoded(self.sent[seed], seed))
            assert (receipt.accepted, receipt.duplicates) == (0, self.sent[seed])

    @rule()
    def seal(self) -> None:
        self.log.seal()
        assert self.log.stats().sealed_seq == len(self.acknowledged)

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.log = AuditLog.open(self.folder, SETTINGS)

    @rule(cut=st.integers(1, 2_000))
    def crash(self, cut: int) -> None:
        before = self.folder
        self.generation += 1
        shutil.copytree(before, self.folder, ignore=shutil.ignore_patterns("lock", "*.tmp"))
        self.tear(cut)
        self.log.close()
        self.log = AuditLog.open(self.folder, SETTINGS)

    def tear(self, cut: int) -> None:
        """Write the first bytes of one more frame behind the newest journal."""
        found = sorted((self.folder / "journal").glob("*.journal"))
        if not found:
            return
        whole = found[-1].read_bytes()
        journal: Journal = JournalTail(found[-1]).refresh().reopen()
        batch = decoded(5, 10_000).records
        import pyarrow as pa

        seq = pa.array(range(journal.next_seq, journal.next_seq + 5))
        columns = [*batch.columns, batch.column("time"), pa.repeat(pa.scalar("audit"), 5), seq]
        journal.append([pa.RecordBatch.from_arrays(columns, schema=schema())])
        journal.close()
        more = found[-1].read_bytes()[len(whole) :]
        found[-1].write_bytes(whole + more[: min(cut, len(more) - 1)])

    @invariant()
    def a_reader_sees_exactly_what_was_acknowledged(self) -> None:
        if not hasattr(self, "log"):
            return
        records = check_log(self.folder)
        assert [(r["trace_id"], r["span_id"]) for r in records] == self.acknowledged
        assert LogReader.open(self.folder).snapshot().last_seq == len(self.acknowledged)

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()
        shutil.rmtree(self.root)


LogModel.TestCase.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLogModel = LogModel.TestCase
