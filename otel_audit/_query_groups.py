"""Counting: calls over time, and calls by client, service or any other column, with percentiles of their duration."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Final

from otel_audit import record
from otel_audit._query_filters import Clause, Filters
from otel_audit._query_scan import Scan, Source, columns_known
from otel_audit.errors import UsageError

__all__ = ["BUCKETS_MAX", "GROUPS_MAX", "GROUP_COLUMNS", "Bucket", "Group", "histogram", "top"]

GROUP_COLUMNS: Final = tuple(c.name for c in record.COLUMNS if c.kind in ("string", "int16") and c.name != "log")
"""Columns that `top` ranks."""

BUCKETS_MAX: Final = 10_000
GROUPS_MAX: Final = 1_000
STEPS_PER_OCTAVE: Final = 64
"""Durations are counted in 64 steps per doubling: a percentile is within 0.6 % of the exact one, in bounded memory."""

_OUTCOME_COUNTS: Final = ", ".join(f"count(*) FILTER (outcome = '{o}')" for o in record.OUTCOMES)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Calls that began within one step of a histogram, by outcome."""

    start_us: int
    count: int
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that share a value.

    Args:
        value: the shared value; None for calls without one.
        label: for clients, the name last used with the id.
        count: calls, of which `outcomes` says how they ended.
        first_us: Execution Time of the earliest.
        last_us: and of the latest.
        p50_ns: duration that half the calls kept within (nearest rank); within 0.6 %; None where no call had one.
        p95_ns: likewise.
        p99_ns: likewise.
        max_ns: the longest, exactly.
    """

    value: str | int | None
    label: str | None
    count: int
    outcomes: dict[str, int]
    first_us: int
    last_us: int
    p50_ns: int | None
    p95_ns: int | None
    p99_ns: int | None
    max_ns: int | None

    @property
    def errors(self) -> int:
        """Calls that were denied, failed or ended in an error."""
        return sum(self.outcomes[o] for o in ("denied", "failure", "error"))


def histogram(scan: Scan, filters: Filters, width_us: int, offset_us: int) -> list[Bucket]:
    """Counts per step of time, ascending; steps without calls are left out."""
    if width_us < 1:
        raise UsageError("count by time", f"step {width_us} us", "not positive", "give at least one microsecond")
    source = scan.overlapping(filters.since_us, filters.until_us)
    if not source:
        return []
    # The remainder of a negative time is negative; adding the width and taking it again rounds down on both sides.
    start = "epoch_us(time) - (((epoch_us(time) - ?) % ? + ?) % ?)"
    inner = source.select("time, outcome", filters.clause())
    sql = f"SELECT {start} AS start, count(*), {_OUTCOME_COUNTS} FROM {inner.sql} GROUP BY 1 ORDER BY 1 LIMIT {BUCKETS_MAX + 1}"  # noqa: S608
    rows = scan.rows(Clause(sql, (offset_us, width_us, width_us, width_us, *inner.params)), source)
    if len(rows) > BUCKETS_MAX:
        reason = f"more than {BUCKETS_MAX} steps"
        raise UsageError("count by time", f"step {width_us} us", reason, "take longer steps or a shorter time")
    return [Bucket(r[0], r[1], dict(zip(record.OUTCOMES, r[2:], strict=True))) for r in rows]


def top(scan: Scan, filters: Filters, column: str, limit: int) -> list[Group]:
    """The values with the most calls, most first; equal counts in order of value.

    Counts first, over all values; then the durations of the few that are shown: memory does not grow with the number of
    values, which callers choose.
    """
    columns_known([column], GROUP_COLUMNS)
    if not 1 <= limit <= GROUPS_MAX:
        raise UsageError("rank", column, f"limit {limit} is not between 1 and {GROUPS_MAX}")
    source = scan.overlapping(filters.since_us, filters.until_us)
    if not source:
        return []
    inner = source.select(f"{column} AS v, outcome, time", filters.clause())
    sql = (
        f"SELECT v, count(*) AS n, epoch_us(min(time)), epoch_us(max(time)), {_OUTCOME_COUNTS} "  # noqa: S608
        f"FROM {inner.sql} GROUP BY v ORDER BY n DESC, v NULLS LAST LIMIT {int(limit)}"
    )
    rows = scan.rows(Clause(sql, inner.params), source)
    values = [r[0] for r in rows]
    durations = _durations(scan, source, filters, column, values)
    labels = _client_names(scan, source, filters, values) if column == "client_id" else {}
    return [
        Group(
            v, labels.get(v), n, dict(zip(record.OUTCOMES, outcomes, strict=True)), first, last, *durations[v].summary()
        )
        for v, n, first, last, *outcomes in rows
    ]


class _Durations:
    """Counts of durations in logarithmic steps, and the exact ends."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.min_ns: int | None = None
        self.max_ns: int | None = None

    def add(self, step: int, count: int, min_ns: int, max_ns: int) -> None:
        """Take in one step; steps come in ascending order."""
        self.steps.append((step, count))
        self.min_ns = min_ns if self.min_ns is None else min(self.min_ns, min_ns)
        self.max_ns = max_ns if self.max_ns is None else max(self.max_ns, max_ns)

    def summary(self) -> tuple[int | None, int | None, int | None, int | None]:
        """p50, p95, p99 and maximum."""
        return self._percentile(50), self._percentile(95), self._percentile(99), self.max_ns

    def _percentile(self, percent: int) -> int | None:
        if self.min_ns is None or self.max_ns is None:
            return None
        left = -(-percent * sum(n for _, n in self.steps) // 100)  # rounded up
        for step, count in self.steps:
            left -= count
            if left <= 0:
                middle = round(2 ** ((step + 0.5) / STEPS_PER_OCTAVE))
                return min(max(middle, self.min_ns), self.max_ns)
        return self.max_ns


def _among(column: str, values: list[Any]) -> Clause:
    named = [v for v in values if v is not None]
    kind = "SMALLINT[]" if column == "status_code" else "VARCHAR[]"
    clauses = [Clause(f"{column} IN (SELECT unnest(?::{kind}))", (named,))] if named else []
    if None in values:
        clauses.append(Clause(f"{column} IS NULL"))
    return Clause.any_of(clauses)


def _durations(
    scan: Scan, source: Source, filters: Filters, column: str, values: list[Any]
) -> defaultdict[Any, _Durations]:
    found: defaultdict[Any, _Durations] = defaultdict(_Durations)
    if not values:
        return found
    clause = Clause.all_of([filters.clause(), Clause("duration_ns IS NOT NULL"), _among(column, values)])
    inner = source.select(f"{column} AS v, duration_ns AS d", clause)
    sql = (
        f"SELECT v, CAST(floor(log2(greatest(d, 1)) * {STEPS_PER_OCTAVE}) AS INTEGER) AS step, count(*), min(d), max(d) "  # noqa: S608
        f"FROM {inner.sql} GROUP BY 1, 2 ORDER BY 1, 2"
    )
    for value, *step in scan.rows(Clause(sql, inner.params), source):
        found[value].add(*step)
    return found


def _client_names(scan: Scan, source: Source, filters: Filters, values: list[Any]) -> dict[Any, str]:
    """The name last used with each client id; reads newest segments first and stops when older ones cannot know better."""
    left = [v for v in values if v is not None]
    found: dict[Any, tuple[int, str]] = {}
    for part, rest in scan.waves(source.segments, lambda s: s.time_max_us):
        if not left:
            break
        wanted = Clause.all_of([filters.clause(), Clause("client_name IS NOT NULL"), _among("client_id", left)])
        inner = part.select("client_id AS v, client_name, epoch_us(time) AS t", wanted)
        sql = f"SELECT v, max(t), arg_max(client_name, t) FROM {inner.sql} GROUP BY v"  # noqa: S608
        for value, time_us, name in scan.rows(Clause(sql, inner.params), part):
            found[value] = max(found.get(value, (time_us, name)), (time_us, name))
        left = [v for v in left if rest is not None and (v not in found or found[v][0] <= rest)]
    return {value: name for value, (_, name) in found.items()}
