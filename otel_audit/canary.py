"""Numbered calls through a live pipeline, counted and compared at its other end: `otel-audit doctor --canary`.

The calls are recognisable (`audit.action` is `otel_audit.canary`, the service `otel-audit-canary`), counted as no call by `stats`,
and have a source of their own, which begins and ends in good order.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from otel_audit._canary_calls import SERVICE, Batch, Call, make_batches, source_name
from otel_audit._canary_send import Target, open_sender, send
from otel_audit._query_filters import Clause
from otel_audit.numbers import Range
from otel_audit.query import Query, SnapshotExpiredError
from otel_audit.reader import LogReader

__all__ = ["SERVICE", "Change", "Result", "Target", "run", "send_only"]

COMPARED: Final = (
    "time", "duration_ns", "client_id", "client_name", "client_auth", "user_id", "service", "action", "target", "outcome",
    "status_code", "method", "route", "client_ip", "client_ip_source", "peer_ip", "trace_id", "span_id",
)  # fmt: skip
"""Columns that must be what was sent; `attributes` must hold what was sent, and may hold more."""
_READ: Final = (*COMPARED, "attributes", "source_seq", "recorded_at")
_PAUSE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Change:
    """A column that did not come through as it was sent.

    Args:
        column: its name, or `attributes.<key>`.
        records: in how many records.
        sent, arrived: of the first of them.
    """

    column: str
    records: int
    sent: Any
    arrived: Any


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the calls.

    Args:
        source: their source id.
        sent: how many were sent, start and stop of the source included.
        arrived: how many of them the log has.
        missing: runs of numbers that it has not.
        missing_unsampled: how many of the missing had trace flags 0; missing_large: how many had padding.
        duplicates: numbers that are there more than once.
        changes: columns that are not as they were sent.
        latency_ms: from sending to recording, of all that arrived, ascending; by the clocks of both machines.
    """

    source: str
    sent: int
    arrived: int
    missing: tuple[Range, ...] = ()
    missing_unsampled: int = 0
    missing_large: int = 0
    duplicates: tuple[int, ...] = ()
    changes: tuple[Change, ...] = ()
    latency_ms: tuple[float, ...] = field(default=(), repr=False)

    @property
    def good(self) -> bool:
        """Whether all of them arrived once and as they were sent."""
        return not self.missing and not self.duplicates and not self.changes

    def json(self) -> dict[str, Any]:
        """As `--json` prints it; the keys are a contract."""
        median = self.latency_ms[len(self.latency_ms) // 2] if self.latency_ms else None
        return {
            "source": self.source,
            "sent": self.sent,
            "arrived": self.arrived,
            "missing": [list(run) for run in self.missing],
            "missing_unsampled": self.missing_unsampled,
            "missing_large": self.missing_large,
            "duplicates": list(self.duplicates),
            "changed": [
                {"column": c.column, "records": c.records, "sent": _shown(c.sent), "arrived": _shown(c.arrived)}
                for c in self.changes
            ],
            "latency_ms": {"p50": median, "max": self.latency_ms[-1] if self.latency_ms else None},
        }


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, int | str) else str(value)


def send_only(target: Target, *, count: int, timeout_s: float) -> str:
    """Send the calls, and leave it to `otel-audit gaps` on another machine to count them; gives the source id.

    Raises what `run` raises.
    """
    source = source_name()
    _send_all(target, make_batches(source, count), time.monotonic() + timeout_s)
    return source


def run(target: Target, directory: str, *, count: int, timeout_s: float) -> Result:
    """Send calls to a pipeline, wait for them in the log, and compare.

    Args:
        target: where the pipeline receives.
        directory: folder of the log at its end.
        count: how many calls, beside the start and the stop of their source.
        timeout_s: how long to wait for sending, and again for arriving.

    Raises:
        NotFoundError: there is no log in the folder.
        UsageError: the endpoint is none.
        UnavailableError: the pipeline did not take them.
    """
    reader = LogReader.open(directory)  # before anything is sent
    source = source_name()
    batches = make_batches(source, count)
    sent_us = _send_all(target, batches, time.monotonic() + timeout_s)
    calls = {call.seq: call for batch in batches for call in batch.calls}
    due_s = time.monotonic() + timeout_s
    rows = _rows(reader, source)
    while len({row["source_seq"] for row in rows}) < len(calls) and time.monotonic() < due_s:
        time.sleep(_PAUSE_S)
        rows = _rows(reader, source)
    return compare(source, calls, rows, sent_us)


def _send_all(target: Target, batches: Sequence[Batch], due_s: float) -> dict[int, int]:
    """Send every batch; gives when each call was sent for the first time, in microseconds since 1970."""
    sender = open_sender(target)
    sent_us: dict[int, int] = {}
    try:
        for batch in batches:
            now_us = time.time_ns() // 1_000
            sent_us.update((call.seq, now_us) for call in batch.calls)
            send(sender, target, batch.body, due_s)
    finally:
        sender.close()
    return sent_us


def _rows(reader: LogReader, source: str) -> list[dict[str, Any]]:
    """The records of a source."""
    clause = Clause("source_id = ?", (source,))
    try:
        with Query(reader.snapshot()) as query:
            everything = query.scan.everything
            if not everything:
                return []
            # Times as numbers: their parts below a microsecond do not exist, and zones do not matter.
            columns = ", ".join(f"epoch_us({c}) AS {c}" if c in ("time", "recorded_at") else c for c in _READ)
            found: list[dict[str, Any]] = query.scan.table(everything.select(columns, clause), everything).to_pylist()
            return found
    except SnapshotExpiredError:  # a segment was merged under our hands: the next look has it
        return []


def compare(source: str, calls: dict[int, Call], rows: Iterable[dict[str, Any]], sent_us: dict[int, int]) -> Result:
    """What became of calls, by the records that are in the log.

    Args:
        source: their source id.
        calls: what was sent, by number.
        rows: records of that source; times in microseconds.
        sent_us: when each call was sent.
    """
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["source_seq"]].append(row)
    gone = [call for seq, call in calls.items() if seq not in found]
    differences: defaultdict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for seq, call in calls.items():
        for row in found.get(seq, [])[:1]:
            for column, sent, arrived in _differences(call.row, row):
                differences[column].append((sent, arrived))
    arrived = [(row["recorded_at"] - sent_us[seq]) / 1_000 for seq, copies in found.items() for row in copies[:1]]
    return Result(
        source=source,
        sent=len(calls),
        arrived=len(calls) - len(gone),
        missing=_runs(call.seq for call in gone),
        missing_unsampled=sum(not call.sampled for call in gone),
        missing_large=sum(call.large for call in gone),
        duplicates=tuple(sorted(seq for seq, copies in found.items() if len(copies) > 1)),
        changes=tuple(Change(column, len(pairs), *pairs[0]) for column, pairs in differences.items()),
        latency_ms=tuple(sorted(arrived)),
    )


def _differences(sent: dict[str, Any], arrived: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    found = []
    for column in COMPARED:
        wanted = sent[column]
        if column == "time":
            wanted = int(wanted.timestamp() * 1_000_000 + 0.5)
        if wanted != arrived[column]:
            found.append((column, wanted, arrived[column]))
    was, now = (json.loads(row["attributes"] or "{}") for row in (sent, arrived))
    found += [(f"attributes.{key}", value, now.get(key)) for key, value in was.items() if now.get(key) != value]
    return found


def _runs(numbers: Iterable[int]) -> tuple[Range, ...]:
    runs: list[Range] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return tuple(runs)
