"""Questions to one snapshot of the log: pages, single records, counts, rankings, and everything in order.

Sealed Parquet files and unsealed records are read together by DuckDB; the snapshot decides what exists, so every answer
of one `Query` is about the same records.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Self

from otel_audit._query_engine import Engine, MemoryLimitError, QuerySettings, SnapshotExpiredError
from otel_audit._query_filters import Clause, Filters
from otel_audit._query_groups import GROUP_COLUMNS, Bucket, Group, histogram, top
from otel_audit._query_scan import ALL_COLUMNS, Scan, Source, columns_known, schema_of
from otel_audit.errors import CorruptLogError, NotFoundError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from otel_audit.reader import Segment, Snapshot

__all__ = [
    "GROUP_COLUMNS",
    "PAGE_ROWS_MAX",
    "Bucket",
    "Cursor",
    "Engine",
    "Filters",
    "Group",
    "Overview",
    "Page",
    "Query",
    "QuerySettings",
    "SnapshotExpiredError",
]

PAGE_ROWS_MAX: Final = 10_000
_BATCH_ROWS: Final = 4096
_CAREFUL_ROWS: Final = 256

_CURSOR: Final = re.compile(r"(-?[0-9]{1,18})\.([0-9]{1,18})\Z")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}\Z")
_IDS: Final = re.compile(r"(?:([0-9a-f]{32})[/:\-.]?)?([0-9a-f]{16})?\Z")
_SEQ: Final = re.compile(r"#?([0-9]{1,15})\Z")

Order = Literal["time", "arrival"]
Progress = Callable[[int, int], None]
"""Called with the records looked at so far, and how many there are to look at."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two records in newest-first order; stays right when records arrive.

    Args:
        key: Execution Time in microseconds, or the number where the order is that of arrival.
        seq: number of the record just before the place.
    """

    key: int
    seq: int

    def __str__(self) -> str:
        return f"{self.key}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor that `str` wrote; `UsageError` on anything else."""
        match = _CURSOR.match(text)
        if not match:
            raise UsageError("page from", repr(text), "not a cursor", "give the one printed with the page before")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Page:
    """Records newest first, and where the next page begins; `next` is None on the last one."""

    records: "pa.Table"
    next: Cursor | None


@dataclass(frozen=True, slots=True)
class Overview:
    """What the snapshot holds, known without reading a record."""

    log: str
    sealed: int
    unsealed: int
    last_seq: int
    segments: int
    bytes: int
    time_min_us: int | None
    time_max_us: int | None

    @property
    def records(self) -> int:
        """All records."""
        return self.sealed + self.unsealed

    @property
    def bytes_per_record(self) -> float | None:
        """Size of the sealed files per sealed record."""
        return self.bytes / self.sealed if self.sealed else None


@dataclass(slots=True)
class _Best:
    """The newest (key, seq) pairs found so far, at most `limit`."""

    limit: int
    keys: list[tuple[int, int]] = field(default_factory=list)

    def add(self, found: Sequence[tuple[int, int]]) -> None:
        self.keys = sorted([*self.keys, *found], reverse=True)[: self.limit]

    def beats(self, bound: int) -> bool:
        """Whether nothing with a key up to `bound` can still get in."""
        return len(self.keys) >= self.limit and self.keys[-1][0] > bound


class Query:
    """Questions to one snapshot; for one thread. Close it, or use it as a context manager.

    Args:
        snapshot: what exists.
        engine: shared between queries to stay warm; without one the query has its own and closes it.

    Raises:
        SnapshotExpiredError: from any method, when a sealed file vanished: take a new snapshot, ask again.
        StorageError: from any method, when a file cannot be read.
    """

    def __init__(self, snapshot: "Snapshot", engine: Engine | None = None) -> None:
        self.snapshot = snapshot
        self._own = Engine() if engine is None else None
        self._scan = Scan(snapshot, engine or self._own or Engine())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def scan(self) -> Scan:
        """The snapshot's records as SQL sources, for modules with questions of their own."""
        return self._scan

    def close(self) -> None:
        """Give back what the query holds."""
        self._scan.close()
        if self._own is not None:
            self._own.close()

    def page(
        self,
        filters: Filters | None = None,
        limit: int = 50,
        before: Cursor | None = None,
        *,
        order: Order = "time",
        columns: Sequence[str] = ALL_COLUMNS,
    ) -> Page:
        """Newest records first: by Execution Time and number, or by order of arrival.

        Args:
            filters: which records.
            limit: rows of the page, 1 to 10,000.
            before: `next` of the page before, of the same order.
            order: `time`, or `arrival` for the order in which the log accepted them.
            columns: what to read; a list of eight columns comes sooner than whole records.
        """
        if not 1 <= limit <= PAGE_ROWS_MAX:
            raise UsageError("page", "records", f"limit {limit} is not between 1 and {PAGE_ROWS_MAX}")
        wanted = columns_known(columns)
        keys = self._newest(filters or Filters(), limit + 1, before, order)
        more = len(keys) > limit
        table = self._scan.fetch([seq for _, seq in keys[:limit]], wanted)
        return Page(table, Cursor(*keys[limit - 1]) if more else None)

    def get(self, identity: str, limit: int = PAGE_ROWS_MAX) -> "pa.Table":
        """The records an id means, oldest first.

        Args:
            identity: a record's number; a trace id (32 hex digits) for all records of the trace; a span id (16);
                both, as `trace/span`; or a W3C `traceparent`.
            limit: records at most.

        Raises:
            UsageError: not an id.
            NotFoundError: the log has no such record.
        """
        text = identity.strip().lower()
        seq = _SEQ.match(text)
        if seq:
            return self._by_seq(int(seq[1]))
        match = _TRACEPARENT.match(text) or _IDS.match(text)
        trace, span = match.groups() if match else (None, None)
        if not trace and not span:
            hint = "give a record's number, a trace id of 32 hex digits, a span id of 16, or trace/span"
            raise UsageError("show record", repr(identity), "not an id", hint)
        clauses = [Clause("trace_id = ?", (bytes.fromhex(trace),))] if trace else []
        clauses += [Clause("span_id = ?", (bytes.fromhex(span),))] if span else []
        seqs = self._seqs(Clause.all_of(clauses), int(limit))
        if not seqs:
            kind = "trace and span" if trace and span else "trace" if trace else "span"
            raise NotFoundError("show record", identity, f"the log has no record of this {kind}")
        return self._scan.fetch(seqs, ALL_COLUMNS)

    def count(self, filters: Filters | None = None) -> int:
        """How many records match."""
        chosen = filters or Filters()
        source = self._scan.overlapping(chosen.since_us, chosen.until_us)
        if (not chosen.active and not chosen.calls) or not source:
            return sum(s.rows for s in source.segments) + (self.snapshot.unsealed.num_rows if source.unsealed else 0)
        inner = source.select("1", chosen.clause())
        return int(self._scan.rows(Clause(f"SELECT count(*) FROM {inner.sql}", inner.params), source)[0][0])  # noqa: S608

    def histogram(self, filters: Filters | None = None, *, width_us: int, offset_us: int = 0) -> list[Bucket]:
        """Calls per step of Execution Time, ascending; a step without calls is left out.

        Args:
            filters: which records.
            width_us: length of a step.
            offset_us: moves the steps, which otherwise begin at 1970 UTC: days of a time zone begin at its offset.

        Raises:
            UsageError: more than 10,000 steps.
        """
        return histogram(self._scan, filters or Filters(), width_us, offset_us)

    def top(self, column: str, limit: int = 10, filters: Filters | None = None) -> list[Group]:
        """The values of one of `GROUP_COLUMNS` with the most calls, 1 to 1,000 of them, most first."""
        return top(self._scan, filters or Filters(), column, limit)

    def values(self, column: str, prefix: str, limit: int = 50) -> list[str]:
        """Values of a text column that begin with `prefix`, from the newest records; for completion."""
        columns_known([column], GROUP_COLUMNS)
        newest = sorted(self.snapshot.segments, key=lambda s: s.last_seq)[-2:]
        source = Source(newest, unsealed=self._scan.has_unsealed)
        if not source:
            return []
        inner = source.select(f"{column} AS v", Clause(f"starts_with({column}, ?)", (prefix,)))
        sql = f"SELECT v FROM {inner.sql} GROUP BY v ORDER BY count(*) DESC, v LIMIT {int(limit)}"  # noqa: S608
        return [str(r[0]) for r in self._scan.rows(Clause(sql, inner.params), source)]

    def overview(self) -> Overview:
        """What the snapshot holds."""
        import pyarrow as pa
        import pyarrow.compute as pc

        snapshot = self.snapshot
        times = [t for s in snapshot.segments for t in (s.time_min_us, s.time_max_us)]
        if self._scan.has_unsealed:
            ends = pc.min_max(snapshot.unsealed.column("time").cast(pa.int64()))
            times += [ends["min"].as_py(), ends["max"].as_py()]
        return Overview(
            log=snapshot.name,
            sealed=sum(s.rows for s in snapshot.segments),
            unsealed=snapshot.unsealed.num_rows,
            last_seq=snapshot.last_seq,
            segments=len(snapshot.segments),
            bytes=sum(s.bytes for s in snapshot.segments),
            time_min_us=min(times, default=None),
            time_max_us=max(times, default=None),
        )

    def iter_batches(
        self,
        filters: Filters | None = None,
        *,
        after_seq: int = 0,
        until_seq: int | None = None,
        columns: Sequence[str] = ALL_COLUMNS,
        progress: Progress | None = None,
    ) -> "Iterator[pa.RecordBatch]":
        """Matching records by ascending number, in batches; memory does not grow with the size of the log.

        Args:
            filters: which records.
            after_seq: only records with a greater number.
            until_seq: and up to this one, included.
            columns: what to read; `seq` must be among it.
            progress: told how far it is.

        Raises:
            CorruptLogError: a sealed file does not hold its records in order.
        """
        chosen = filters or Filters()
        wanted = columns_known(columns)
        if "seq" not in wanted:
            raise UsageError("walk", "records", "the column seq is not among those asked for", "add it")
        last = self.snapshot.last_seq if until_seq is None else until_seq
        numbers = Clause("seq > ? AND seq <= ?", (after_seq, last))
        parts = self._parts(chosen, after_seq, last)
        total = sum(rows for _, rows in parts)
        done = 0
        for source, rows in parts:
            for batch in self._walk(source, Clause.all_of([chosen.clause(), numbers]), wanted):
                after_seq = _ascending(batch, after_seq, source)
                yield batch.cast(schema_of(wanted))
            done += rows
            if progress is not None:
                progress(done, total)

    def _walk(self, source: Source, clause: Clause, columns: Sequence[str]) -> "Iterator[pa.RecordBatch]":
        """Matching records in the order of the file; where texts are too long for that, a few at a time by number."""
        last = 0
        try:
            for batch in self._scan.stream(source.select(", ".join(columns), clause), source, _BATCH_ROWS):
                yield batch
                last = batch.column("seq")[-1].as_py() if batch.num_rows else last
        except MemoryLimitError:
            rest = source.select("seq", Clause.all_of([clause, Clause("seq > ?", (last,))]))
            for batch in self._scan.stream(rest, source, _CAREFUL_ROWS):
                seqs = batch.column("seq").to_pylist()
                for at in range(0, len(seqs), _CAREFUL_ROWS):
                    yield from self._scan.fetch(seqs[at : at + _CAREFUL_ROWS], columns).to_batches()

    # --- private ----------------------------------------------------------------------------------------------------------
    def _newest(self, filters: Filters, limit: int, before: Cursor | None, order: Order) -> list[tuple[int, int]]:
        """(key, seq) of the newest matches; reads segments newest first and stops when the rest is older."""
        key = "epoch_us(time)" if order == "time" else "seq"
        clause = Clause.all_of([filters.clause(), *_earlier(before, order)])
        best = _Best(limit)
        for source, rest in self._scan.waves(self._candidates(filters, before, order), lambda s: _bound(s, order)):
            inner = source.select(f"{key} AS k, seq", clause)
            sql = f"SELECT k, seq FROM {inner.sql} ORDER BY k DESC, seq DESC LIMIT {int(limit)}"  # noqa: S608
            best.add([(k, seq) for k, seq in self._scan.rows(Clause(sql, inner.params), source)])
            if rest is not None and best.beats(rest):
                break
        return best.keys

    def _candidates(self, filters: Filters, before: Cursor | None, order: Order) -> "list[Segment]":
        """Segments that can hold matches."""
        found = list(self._scan.overlapping(filters.since_us, filters.until_us).segments)
        if before is not None:
            found = [s for s in found if (s.time_min_us if order == "time" else s.first_seq) <= before.key]
        return found

    def _seqs(self, clause: Clause, limit: int) -> list[int]:
        source = self._scan.everything
        if not source:
            return []
        inner = source.select("time, seq", clause)
        sql = f"SELECT seq FROM {inner.sql} ORDER BY time, seq LIMIT {limit}"  # noqa: S608
        return [r[0] for r in self._scan.rows(Clause(sql, inner.params), source)]

    def _by_seq(self, seq: int) -> "pa.Table":
        last = self.snapshot.last_seq
        table = self._scan.fetch([seq], ALL_COLUMNS)
        if not table.num_rows:
            hint = f"records are numbered 1 to {last}" if last else "it has none yet"
            raise NotFoundError("show record", seq, "the log has no record of this number", hint)
        return table

    def _parts(self, filters: Filters, after_seq: int, last: int) -> list[tuple[Source, int]]:
        """What to read for `iter_batches`, one after the other, and how many rows each has."""
        found = self._scan.overlapping(filters.since_us, filters.until_us)
        wanted = [s for s in found.segments if s.last_seq > after_seq and s.first_seq <= last]
        parts = [(Source([s], unsealed=False), s.rows) for s in wanted]
        if found.unsealed and last > self.snapshot.sealed_seq:
            parts.append((Source([], unsealed=True), self.snapshot.unsealed.num_rows))
        return parts


def _bound(segment: "Segment", order: Order) -> int:
    return segment.time_max_us if order == "time" else segment.last_seq


def _earlier(before: Cursor | None, order: Order) -> list[Clause]:
    if before is None:
        return []
    if order == "arrival":
        return [Clause("seq < ?", (before.seq,))]
    return [
        Clause("time <= make_timestamptz(?)", (before.key,)),
        Clause("(time < make_timestamptz(?) OR seq < ?)", (before.key, before.seq)),
    ]


def _ascending(batch: "pa.RecordBatch", after_seq: int, source: Source) -> int:
    """The last number of a batch, after checking that numbers only rise."""
    seqs = batch.column("seq").to_numpy()
    if len(seqs) and (seqs[0] <= after_seq or (seqs[1:] <= seqs[:-1]).any()):
        path = source.paths[0] if source.paths else "the journal"
        raise CorruptLogError(
            path, 0, "its records are not in the order of their numbers", "keep the file and report it"
        )
    return int(seqs[-1]) if len(seqs) else after_seq
