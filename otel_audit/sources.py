"""What a log says of the sources of its records: which numbers it has of each, which are missing, and why.

A source is one start of one process; it numbers its records from 1 without gaps, begins with a record `otel_audit.start`
and ends in good order with `otel_audit.stop`. Numbers it dropped itself are named by its `otel_audit.loss` records. The
verdicts are explained in `docs/gaps.md`.
"""

import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from otel_audit import names
from otel_audit._query_filters import Clause
from otel_audit._query_scan import Scan
from otel_audit.numbers import Range, Seen, Why
from otel_audit.query import Query
from otel_audit.tracker import host_of

__all__ = ["GAPS_MAX", "Gap", "Source", "State", "Verdict", "survey"]

Verdict = Literal["lost", "dropped", "late"]
State = Literal["running", "clean", "no end"]

GAPS_MAX: Final = 1_000
"""Gaps of one source that are described one by one; of the others only the numbers are counted."""
_BITS: Final = 64
_FULL: Final = 2**_BITS - 1
_OWN: Final = (names.ACTION_START, names.ACTION_STOP, names.ACTION_LOSS)
_AGGREGATES: Final = (
    "count(*) AS n, min(source_seq) AS low, max(source_seq) AS high, min(time) AS t0, max(time) AS t1, "
    "max(recorded_at) AS r1, any_value(service) AS service, any_value(instance) AS instance, "
    f"bit_or(1::UBIGINT << (source_seq % {_BITS})::UBIGINT) AS bits"
)

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Gap:
    """A run of numbers that a source gave and the log has not.

    Args:
        first: the first of them; last: the last.
        verdict: `dropped` by the source, which says so; `late`, it may still come; else `lost`.
        reason: why it was dropped, in the source's words; what is to be known beside the verdict.
        before_us: Execution Time of the record before; None where there is none. after_us: of the record behind.
    """

    first: int
    last: int
    verdict: Verdict
    reason: str = ""
    before_us: int | None = None
    after_us: int | None = None

    @property
    def missing(self) -> int:
        """How many numbers."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Source:
    """One source, times in microseconds since 1970 UTC.

    Args:
        id: names one start of one process.
        service: of its first record; instance: likewise, where it says one.
        state: `clean`, it said that it ended; `running`, its newest record came a short while ago; else `no end`.
        began_us: Execution Time of its start record; None where the log has none.
        first_us: Execution Time of its earliest record in the log; last_us: of its latest.
        arrived_us: when the log took the newest of its records.
        ended_us: Execution Time of its stop record, where nothing came after it.
        records: its numbered records.
        last_seq: its highest number.
        copies: numbers that came on copies of records that are there without a number, from another exporter.
        unrecorded: numbers of calls that the log's settings exclude, or that are in quarantine.
        missing: numbers missing, by verdict.
        gaps: where they are missing, at most `GAPS_MAX`.
    """

    id: str
    service: str
    instance: str | None
    state: State
    began_us: int | None
    first_us: int
    last_us: int
    arrived_us: int
    ended_us: int | None
    records: int
    last_seq: int
    copies: int = 0
    unrecorded: int = 0
    missing: dict[Verdict, int] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()

    @property
    def host(self) -> str:
        """The host it ran on, as far as its id says."""
        return host_of(self.id)

    @property
    def missing_count(self) -> int:
        """Numbers missing, for whatever reason."""
        return sum(self.missing.values())

    def there(self) -> list[Range]:
        """The runs of numbers that are not missing, as far as its gaps are described."""
        runs, below = [], 0
        for gap in self.gaps:
            if gap.first > below + 1:
                runs.append((below + 1, gap.first - 1))
            below = gap.last
        if self.last_seq > below and sum(g.missing for g in self.gaps) == self.missing_count:
            runs.append((below + 1, self.last_seq))
        return runs


@dataclass(frozen=True, slots=True)
class _Loss:
    """What a loss record says."""

    first: int
    last: int
    count: int
    reason: str


@dataclass(slots=True)
class _About:
    """What a source's records about itself say."""

    service: str | None = None
    instance: str | None = None
    began_us: int | None = None
    stopped_us: int | None = None
    losses: list[_Loss] = field(default_factory=list)


@dataclass(slots=True)
class _Noted:
    """Numbers that came and are on no record."""

    ranges: dict[Why, list[Range]] = field(default_factory=lambda: {"copy": [], "unrecorded": []})

    @property
    def all(self) -> list[Range]:
        return self.ranges["copy"] + self.ranges["unrecorded"]


def survey(
    query: Query,
    notes: Iterable[Seen],
    *,
    ids: Collection[str] | None = None,
    late_s: float = 300.0,
    now_us: int | None = None,
) -> list[Source]:
    """Every source of a log that numbers its records, by service, host and begin.

    Args:
        query: to the snapshot.
        notes: numbers that no record carries (`numbers.read_notes`), read after the snapshot was taken.
        ids: only these sources.
        late_s: a number is `late`, not lost, until the log has had a higher one for so long; a source without end is
            `running` until the log has had nothing of it for so long.
        now_us: the log's clock; None for now.

    Raises what a `Query` raises.
    """
    now_us = time.time_ns() // 1000 if now_us is None else now_us
    scan = query.scan
    source = scan.everything
    if not source:
        return []
    wanted = None if ids is None else sorted(set(ids))
    noted = _noted(notes, wanted)
    about = _about(scan, wanted)
    found = [_source(row, about[row[0]], noted[row[0]], now_us - int(late_s * 1e6)) for row in _totals(scan, wanted)]
    incomplete = [s.id for s, distinct in found if _top(s, about[s.id]) > distinct]
    gaps = _missing(scan, incomplete, {s.id: _top(s, about[s.id]) for s, _ in found}, noted)
    sources = []
    for s, _ in found:
        holes = gaps.get(s.id)
        if holes is not None and len(holes):
            s = _judged(s, holes, about[s.id].losses)  # noqa: PLW2901 - the same source, complete
        sources.append(s)
    sources = _placed(scan, sources, now_us - int(late_s * 1e6))
    return sorted(sources, key=lambda s: (s.service, s.host, s.began_us or s.first_us, s.id))


def _top(source: Source, about: _About) -> int:
    """The highest number that the source is known to have given."""
    return max(source.last_seq, *(loss.last for loss in about.losses)) if about.losses else source.last_seq


# --- questions ------------------------------------------------------------------------------------------------------------
def _which(ids: Sequence[str] | None) -> Clause:
    numbered = Clause("source_seq > 0 AND source_id IS NOT NULL")
    if ids is None:
        return numbered
    return Clause.all_of([numbered, Clause("source_id IN (SELECT unnest(?::VARCHAR[]))", (list(ids),))])


def _by_bucket(scan: Scan, ids: Sequence[str] | None, expressions: str, columns: str) -> Clause:
    """Records by source and by 64 numbers: a bit for each number that is there, so that one that is there twice counts once."""
    inner = scan.everything.select(columns, _which(ids))
    return Clause(
        f"(SELECT source_id, source_seq // {_BITS} AS bucket, {expressions} FROM {inner.sql} GROUP BY 1, 2)",  # noqa: S608
        inner.params,
    )


def _totals(scan: Scan, ids: Sequence[str] | None) -> list[tuple[Any, ...]]:
    inner = _by_bucket(scan, ids, _AGGREGATES, "source_id, source_seq, time, recorded_at, service, instance")
    sql = (
        "SELECT source_id, sum(n)::BIGINT, sum(bit_count(bits))::BIGINT, max(high), epoch_us(min(t0)), epoch_us(max(t1)), "  # noqa: S608
        f"epoch_us(max(r1)), any_value(service), any_value(instance) FROM {inner.sql} GROUP BY 1"
    )
    return scan.rows(Clause(sql, inner.params), scan.everything)


def _about(scan: Scan, ids: Sequence[str] | None) -> defaultdict[str, _About]:
    """What sources say of themselves."""
    actions = ", ".join(f"'{a}'" for a in _OWN)
    clause = Clause.all_of([_which(ids), Clause(f"action IN ({actions})")])
    inner = scan.everything.select("source_id, source_seq, action, service, instance, time, attributes", clause)
    sql = (
        "SELECT source_id, source_seq, action, service, instance, epoch_us(time), attributes "  # noqa: S608
        f"FROM {inner.sql} ORDER BY source_seq"
    )
    found: defaultdict[str, _About] = defaultdict(_About)
    for name, seq, action, service, instance, time_us, attributes in scan.rows(
        Clause(sql, inner.params), scan.everything
    ):
        about = found[name]
        if action == names.ACTION_LOSS:
            loss = _loss(attributes, seq)
            if loss is not None:
                about.losses.append(loss)
        elif action == names.ACTION_STOP:
            about.stopped_us = time_us
        elif about.began_us is None:
            about.began_us, about.service, about.instance = time_us, service, instance
    return found


def _loss(attributes: str | None, seq: int) -> _Loss | None:
    """A loss record's content; None where it makes no sense: it can only name numbers that were given before its own."""
    try:
        said = json.loads(attributes or "{}")
        first, last, count = (int(said[n]) for n in (names.LOSS_FIRST_SEQ, names.LOSS_LAST_SEQ, names.LOSS_COUNT))
    except (ValueError, TypeError, KeyError):
        return None
    if not 1 <= first <= last < seq or not 1 <= count <= last - first + 1:
        return None
    return _Loss(first, last, count, str(said.get(names.LOSS_REASON, "")))


def _noted(notes: Iterable[Seen], ids: Sequence[str] | None) -> defaultdict[str, _Noted]:
    found: defaultdict[str, _Noted] = defaultdict(_Noted)
    wanted = None if ids is None else set(ids)
    for seen in notes:
        if seen.why and (wanted is None or seen.source in wanted):
            found[seen.source].ranges[seen.why] += seen.ranges
    return found


def _source(row: tuple[Any, ...], about: _About, noted: _Noted, late_us: int) -> tuple[Source, int]:
    """A source without its gaps, and how many different numbers its records carry."""
    name, records, distinct, high, first_us, last_us, arrived_us, service, instance = row
    copies, unrecorded = (_united(noted.ranges[why]) for why in ("copy", "unrecorded"))
    ended_us = about.stopped_us if about.stopped_us is not None and about.stopped_us >= last_us else None
    alive: State = "running" if arrived_us > late_us else "no end"
    source = Source(
        id=name,
        service=about.service or service,
        instance=about.instance or instance,
        state="clean" if ended_us is not None else alive,
        began_us=about.began_us,
        first_us=first_us,
        last_us=last_us,
        arrived_us=arrived_us,
        ended_us=ended_us,
        records=records,
        last_seq=max(high, *(last for _, last in noted.all)) if noted.all else high,
        copies=_count(copies),
        unrecorded=_count(unrecorded),
    )
    return source, distinct


# --- what is missing --------------------------------------------------------------------------------------------------------
def _missing(scan: Scan, ids: Sequence[str], tops: dict[str, int], noted: dict[str, _Noted]) -> dict[str, Numbers]:
    """The runs of numbers from 1 to the source's highest that nothing carries: by source, shape (n, 2)."""
    if not ids:
        return {}
    inner = _by_bucket(
        scan, ids, f"bit_or(1::UBIGINT << (source_seq % {_BITS})::UBIGINT) AS bits", "source_id, source_seq"
    )
    sql = f"SELECT source_id, bucket, bits FROM {inner.sql} ORDER BY source_id, bucket"  # noqa: S608
    table = scan.table(Clause(sql, inner.params), scan.everything)
    owners = table.column("source_id").combine_chunks().dictionary_encode()
    places = owners.indices.to_numpy()
    buckets, bits = table.column("bucket").to_numpy(), table.column("bits").to_numpy()
    cuts = np.flatnonzero(np.diff(places, prepend=-1)).tolist()
    found = {}
    for start, end in zip(cuts, [*cuts[1:], len(places)], strict=True):
        name = owners.dictionary[int(places[start])].as_py()
        runs = _runs_of_bits(buckets[start:end].astype(np.int64), bits[start:end].astype(np.uint64))
        there = _united([*map(tuple, runs.tolist()), *noted[name].all]) if name in noted else runs
        found[name] = _between(there, tops[name])
    return found


def _runs_of_bits(buckets: Numbers, bits: "npt.NDArray[np.uint64]") -> Numbers:
    """The runs of numbers that are there, ascending, shape (n, 2)."""
    whole = bits == _FULL
    parts = np.flatnonzero(~whole)
    spread = np.unpackbits(bits[parts].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").astype(np.bool_)
    which, offset = np.nonzero(spread)
    single = buckets[parts][which] * _BITS + offset
    firsts = np.concatenate([buckets[whole] * _BITS, single])
    lasts = np.concatenate([buckets[whole] * _BITS + _BITS - 1, single])
    order = np.argsort(firsts, kind="stable")
    return _joined(firsts[order], lasts[order])


def _joined(firsts: Numbers, lasts: Numbers) -> Numbers:
    """Ascending runs, those that touch or overlap made one."""
    if not len(firsts):
        return np.empty((0, 2), np.int64)
    reach = np.maximum.accumulate(lasts)
    starts = np.concatenate([[0], np.flatnonzero(firsts[1:] > reach[:-1] + 1) + 1])
    ends = np.concatenate([starts[1:] - 1, [len(firsts) - 1]])
    return np.stack([firsts[starts], reach[ends]], axis=1)


def _united(ranges: Sequence[Range]) -> Numbers:
    runs = np.array(ranges, np.int64).reshape(-1, 2)
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    return _joined(runs[:, 0], runs[:, 1])


def _count(runs: Numbers) -> int:
    return int((runs[:, 1] - runs[:, 0] + 1).sum())


def _between(there: Numbers, top: int) -> Numbers:
    """The runs from 1 to `top` that are not in `there`."""
    firsts = np.concatenate([[1], there[:, 1] + 1])
    lasts = np.concatenate([there[:, 0] - 1, [top]])
    runs = np.stack([firsts, lasts], axis=1)
    return runs[runs[:, 0] <= runs[:, 1]]


# --- why it is missing ------------------------------------------------------------------------------------------------------
def _judged(source: Source, holes: Numbers, losses: Sequence[_Loss]) -> Source:
    """The source with its gaps, as lost or dropped; whether some are late is known with their neighbours."""
    missing: dict[Verdict, int] = {"lost": _count(holes)}
    gaps = [Gap(first, last, "lost") for first, last in holes[:GAPS_MAX].tolist()]
    for first, last, count, reason in _together(losses):
        named = holes[(holes[:, 0] <= last) & (holes[:, 1] >= first)]
        if not len(named):
            continue
        inside = np.stack([np.maximum(named[:, 0], first), np.minimum(named[:, 1], last)], axis=1)
        exact = _count(inside) <= count
        told = _count(inside) if exact else 0
        missing["lost"] -= told
        missing["dropped"] = missing.get("dropped", 0) + told
        more = f"the source dropped {count} of the numbers {first} to {last}: {reason}"
        gaps = [
            part
            for gap in gaps
            for part in (_split(gap, first, last, reason) if exact else [_remarked(gap, first, last, more)])
        ]
    return replace(source, missing={k: v for k, v in missing.items() if v}, gaps=tuple(gaps))


def _together(losses: Sequence[_Loss]) -> list[tuple[int, int, int, str]]:
    """Losses whose ranges overlap made one: which of them dropped a number there is not known."""
    found: list[tuple[int, int, int, str]] = []
    for loss in sorted(losses, key=lambda x: (x.first, x.last)):
        if found and loss.first <= found[-1][1]:
            first, last, count, reason = found[-1]
            reason = reason if loss.reason in reason else f"{reason}; {loss.reason}"
            found[-1] = (first, max(last, loss.last), count + loss.count, reason)
        else:
            found.append((loss.first, loss.last, loss.count, loss.reason))
    return found


def _split(gap: Gap, first: int, last: int, reason: str) -> list[Gap]:
    """The part of a gap within `first` to `last` as dropped, the rest as it was."""
    if gap.last < first or gap.first > last:
        return [gap]
    parts = [Gap(max(gap.first, first), min(gap.last, last), "dropped", reason)]
    if gap.first < first:
        parts.insert(0, replace(gap, last=first - 1))
    if gap.last > last:
        parts.append(replace(gap, first=last + 1))
    return parts


def _remarked(gap: Gap, first: int, last: int, remark: str) -> Gap:
    return gap if gap.last < first or gap.first > last else replace(gap, reason=remark)


# --- since when it is missing -----------------------------------------------------------------------------------------------
def _placed(scan: Scan, sources: Sequence[Source], late_us: int) -> list[Source]:
    """The sources with the times around their gaps; a gap is late while the record behind it is new."""
    edges = {s.id: {n for gap in s.gaps for n in (gap.first - 1, gap.last + 1)} for s in sources if s.gaps}
    times = _times(scan, edges)
    placed = []
    for source in sources:
        missing, gaps = dict(source.missing), []
        for gap in source.gaps:
            before, after = times.get((source.id, gap.first - 1)), times.get((source.id, gap.last + 1))
            noticed_us = after[1] if after else source.arrived_us
            verdict = gap.verdict
            if verdict == "lost" and noticed_us > late_us:
                verdict = "late"
                missing["lost"] -= gap.missing
                missing["late"] = missing.get("late", 0) + gap.missing
            gaps.append(
                replace(
                    gap,
                    verdict=verdict,
                    before_us=before[0] if before else None,
                    after_us=after[0] if after else None,
                )
            )
        placed.append(replace(source, missing={k: v for k, v in missing.items() if v}, gaps=tuple(gaps)))
    return placed


def _times(scan: Scan, edges: dict[str, set[int]]) -> dict[tuple[str, int], tuple[int, int]]:
    """Execution Time and arrival of the records with these numbers; where there are several, the first."""
    if not edges:
        return {}
    numbers = sorted(set().union(*edges.values()))
    clause = Clause.all_of([_which(sorted(edges)), Clause("source_seq IN (SELECT unnest(?::BIGINT[]))", (numbers,))])
    inner = scan.everything.select("source_id, source_seq, time, recorded_at", clause)
    sql = (
        "SELECT source_id, source_seq, epoch_us(min(time)), epoch_us(min(recorded_at)) "  # noqa: S608
        f"FROM {inner.sql} GROUP BY 1, 2"
    )
    rows = scan.rows(Clause(sql, inner.params), scan.everything)
    return {(name, seq): (time_us, arrived_us) for name, seq, time_us, arrived_us in rows if seq in edges[name]}
