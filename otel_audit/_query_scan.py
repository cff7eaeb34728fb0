"""Records of one snapshot as SQL sources and Arrow results: sealed files and unsealed records side by side."""

import bisect
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from otel_audit import record
from otel_audit._query_engine import UNSEALED, Engine, MemoryLimitError, location, query_errors
from otel_audit._query_filters import Clause
from otel_audit.errors import UsageError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from otel_audit.reader import Segment, Snapshot

__all__ = ["ALL_COLUMNS", "Scan", "Source", "columns_known", "schema_of"]

ALL_COLUMNS: Final = tuple(c.name for c in record.COLUMNS)
_FIRST_WAVE: Final = 2


class Source:
    """Where to read: some segments, and perhaps the unsealed records; empty when neither has rows."""

    def __init__(self, segments: "Sequence[Segment]", *, unsealed: bool) -> None:
        self.segments = tuple(segments)
        self.unsealed = unsealed
        self.paths = [s.path for s in segments]

    def __bool__(self) -> bool:
        return bool(self.segments) or self.unsealed

    def select(self, expressions: str, clause: Clause) -> Clause:
        """A parenthesised SELECT over all of it; the condition stands in each branch, so that it is pushed down."""
        parts = []
        if self.segments:
            files = "read_parquet(?, hive_partitioning=false, union_by_name=false)"
            parts.append(Clause(files, ([location(p) for p in self.paths],)))
        if self.unsealed:
            parts.append(Clause(UNSEALED))
        # Only names of columns and expressions of this package stand in the text; values are parameters.
        branches = [f"SELECT {expressions} FROM {p.sql} WHERE {clause.sql}" for p in parts]  # noqa: S608
        params = tuple(v for p in parts for v in (*p.params, *clause.params))
        return Clause("(" + " UNION ALL ".join(branches) + ")", params)


class Scan:
    """One thread's access to one snapshot through an engine."""

    def __init__(self, snapshot: "Snapshot", engine: Engine) -> None:
        self.snapshot = snapshot
        self._engine = engine
        self._stack = contextlib.ExitStack()
        self._connection: duckdb.DuckDBPyConnection | None = None

    def close(self) -> None:
        """End the connection."""
        self._stack.close()
        self._connection = None

    @property
    def everything(self) -> Source:
        """All records."""
        return Source(self.snapshot.segments, unsealed=self.has_unsealed)

    @property
    def has_unsealed(self) -> bool:
        """Whether there are records outside the sealed files."""
        return bool(self.snapshot.unsealed.num_rows)

    def overlapping(self, since_us: int | None, until_us: int | None) -> Source:
        """Segments that can hold records of a time, and the unsealed records."""
        segments = [
            s
            for s in self.snapshot.segments
            if (since_us is None or s.time_max_us >= since_us) and (until_us is None or s.time_min_us < until_us)
        ]
        return Source(segments, unsealed=self.has_unsealed)

    def waves(
        self, segments: "Sequence[Segment]", newest: "Callable[[Segment], int]"
    ) -> Iterator[tuple[Source, int | None]]:
        """Growing groups of segments, newest first, with the newest key of those left; who has enough stops.

        The unsealed records, whose times are not known, come with the first group.
        """
        ordered = sorted(segments, key=newest, reverse=True)
        start, size, unsealed = 0, _FIRST_WAVE, self.has_unsealed
        while start < len(ordered) or unsealed:
            end = start + size
            rest = newest(ordered[end]) if end < len(ordered) else None
            yield Source(ordered[start:end], unsealed=unsealed), rest
            start, size, unsealed = end, size * 2, False

    def holding(self, seqs: Sequence[int]) -> Source:
        """The segments that hold records of these numbers."""
        segments = self.snapshot.segments
        starts = [s.first_seq for s in segments]
        places = {(seq, bisect.bisect_right(starts, seq) - 1) for seq in seqs}
        found = sorted({p for seq, p in places if p >= 0 and seq <= segments[p].last_seq})
        unsealed = self.has_unsealed and any(s > self.snapshot.sealed_seq for s in seqs)
        return Source([segments[p] for p in found], unsealed=unsealed)

    def rows(self, query: Clause, source: Source) -> list[tuple[Any, ...]]:
        """All rows of a query, as Python values (ask for `epoch_us(time)`, not `time`)."""
        with query_errors("query log", self.snapshot.name, source.paths):
            return self._connected().execute(query.sql, list(query.params)).fetchall()

    def table(self, query: Clause, source: Source) -> "pa.Table":
        """All rows of a query, as Arrow."""
        with query_errors("query log", self.snapshot.name, source.paths):
            return self._connected().sql(query.sql, params=list(query.params)).to_arrow_table()

    def stream(self, query: Clause, source: Source, batch_rows: int) -> "Iterator[pa.RecordBatch]":
        """Rows of a query as they come, on a connection of its own so that other queries may run in between."""
        with query_errors("query log", self.snapshot.name, source.paths), contextlib.closing(self._open()) as own:
            reader = own.sql(query.sql, params=list(query.params)).to_arrow_reader(batch_rows)
            yield from reader

    def fetch(self, seqs: Sequence[int], columns: Sequence[str]) -> "pa.Table":
        """The records of these numbers, in this order; numbers that the log has not are left out."""
        import pyarrow as pa

        try:
            return self._fetch(seqs, columns)
        except MemoryLimitError:
            if len(seqs) < 2:
                raise
        middle = len(seqs) // 2  # very long texts: by halves
        return pa.concat_tables([self.fetch(seqs[:middle], columns), self.fetch(seqs[middle:], columns)])

    def _fetch(self, seqs: Sequence[int], columns: Sequence[str]) -> "pa.Table":
        """The numbers are joined rather than listed in an IN: DuckDB then decodes only the rows it needs."""
        import pyarrow as pa

        source = self.holding(seqs)
        if not source:
            return schema_of(columns).empty_table()
        wanted = Clause("seq IN (SELECT unnest(?::BIGINT[]))", (sorted(seqs),))
        table = self.table(source.select(", ".join(dict.fromkeys([*columns, "seq"])), wanted), source)
        row_of = {seq: i for i, seq in enumerate(table.column("seq").to_pylist())}
        ordered = table.take(pa.array([row_of[s] for s in seqs if s in row_of], pa.int64()))
        return ordered.select(list(columns)).cast(schema_of(columns))

    def _open(self) -> "duckdb.DuckDBPyConnection":
        return self._engine.connect([s.path for s in self.snapshot.segments], self.snapshot.unsealed)

    def _connected(self) -> "duckdb.DuckDBPyConnection":
        if self._connection is None:
            self._connection = self._stack.enter_context(contextlib.closing(self._open()))
        return self._connection


def columns_known(columns: Sequence[str], known: Sequence[str] = ALL_COLUMNS) -> tuple[str, ...]:
    """`columns`, all of them in `known`: nothing else may become part of a query's text."""
    for column in columns:
        if column not in known:
            raise UsageError("query", f"column {column!r}", "no such column", f"use one of {', '.join(known)}")
    return tuple(columns)


def schema_of(columns: Sequence[str]) -> "pa.Schema":
    """The record's Arrow schema, cut down to `columns`."""
    import pyarrow as pa

    return pa.schema([record.schema().field(c) for c in columns])
