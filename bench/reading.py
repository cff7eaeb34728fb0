"""Reading ten million sealed records: size, pages of one client, histogram, rankings, single records.

The records are those of `otlpgen`, decoded as the service decodes them and sealed as the log seals them, with their times
spread over thirty days. Run alone with `python -m bench.reading [RECORDS]`.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from bench.otlpgen import START_NS, iter_bodies
from otel_audit.export import FORMATS, Format, export
from otel_audit.lake import Lake
from otel_audit.otlp import Decoder
from otel_audit.query import Engine, Filters, Query
from otel_audit.reader import LogReader, Snapshot
from otel_audit.record import schema

Row = dict[str, Any]

RECORDS: Final = 10_000_000
SEGMENT_ROWS: Final = 262_144
SPREAD_US: Final = 30 * 86_400_000_000
HOUR_US: Final = 3_600_000_000
TABLE_COLUMNS: Final = (
    "time", "client_id", "client_name", "service", "action", "duration_ns", "client_ip", "outcome", "seq",
)  # fmt: skip
_LOG: Final = "audit"
_BODY_SPANS: Final = 4096
_STEP_US: Final = 100  # between two calls in `otlpgen`


# --- the log --------------------------------------------------------------------------------------------------------------
def _batches(records: int) -> Iterator[pa.Table]:
    """Decoded records in tables of a segment each."""
    decoder = Decoder()
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for body in iter_bodies(-(-records // _BODY_SPANS), _BODY_SPANS):
        waiting.append(decoder.decode(body).records)
        rows += waiting[-1].num_rows
        if rows >= SEGMENT_ROWS:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, SEGMENT_ROWS)
            waiting = table.slice(SEGMENT_ROWS).to_batches()
            rows -= SEGMENT_ROWS
    if rows:
        yield pa.Table.from_batches(waiting)


def _stored(table: pa.Table, first_seq: int, stretch: float) -> pa.Table:
    """The records as the log would have stored them, `stretch` times slower than they were made."""
    n = table.num_rows
    start_us = START_NS // 1000
    made = pc.subtract(table.column("time").cast(pa.int64()), start_us)
    times = pc.add(pc.cast(pc.multiply(pc.cast(made, pa.float64()), stretch), pa.int64(), safe=False), start_us)
    columns = {name: table.column(name) for name in table.column_names}
    columns["time"] = times.cast(pa.timestamp("us", "UTC"))
    # A batch of 512 comes every so often, and all of it is recorded at once.
    arrival = [int(first_seq + i - i % 512 + 512) * _STEP_US for i in range(n)]
    arrived = pc.add(pc.cast(pc.multiply(pa.array(arrival, pa.float64()), stretch), pa.int64(), safe=False), start_us)
    columns["recorded_at"] = arrived.cast(pa.timestamp("us", "UTC"))
    columns["log"] = pa.array([_LOG] * n)
    columns["seq"] = pa.array(range(first_seq, first_seq + n), pa.int64())
    return pa.table([columns[f.name] for f in schema()], schema=schema())


def build(folder: Path, records: int = RECORDS) -> LogReader:
    """A sealed log of so many records in `folder`."""
    (folder / "journal").mkdir(parents=True)
    (folder / "log.json").write_text(json.dumps({"name": _LOG, "format": 1}))
    lake = Lake(folder / "lake")
    lake.create(_LOG)
    stretch = SPREAD_US / (records * _STEP_US)
    first = 1
    for table in _batches(records):
        last = first + table.num_rows - 1
        lake.seal(_LOG, _stored(table, first, stretch).combine_chunks().to_batches(), first, last, bytes(32))
        print(f"\r  {last:>10,} of {records:,} records sealed", end="", file=sys.stderr, flush=True)
        first = last + 1
    print(file=sys.stderr)
    return LogReader.open(folder)


# --- measuring ------------------------------------------------------------------------------------------------------------
def _median_ms(work: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def _row(name: str, value: float, unit: str, note: str = "") -> Row:
    return {"name": name, "value": round(value, 2), "unit": unit, "note": note}


def _timed(snapshot: Snapshot, name: str, ask: Callable[[Query], object], note: str = "", runs: int = 11) -> Row:
    """Median with one engine kept, as the service does it; and cold, as each command does it."""
    engine = Engine()
    with Query(snapshot, engine) as query:
        ask(query)
        warm = _median_ms(lambda: ask(query), runs)
    engine.close()

    def cold() -> None:
        with Query(snapshot) as query:
            ask(query)

    cold_ms = _median_ms(cold, 5)
    return _row(name, warm, "ms", ", ".join(filter(None, [f"cold {cold_ms:.0f} ms", note])))


def _clients(query: Query) -> dict[str, tuple[str, int]]:
    """A busy, a middling and the rarest client, with how many records each has."""
    groups = [g for g in query.top("client_id", 1000) if g.value is not None]
    return {
        label: (str(g.value), g.count)
        for label, g in (("busiest", groups[0]), ("middle", groups[len(groups) // 2]), ("rarest", groups[-1]))
    }


def measure(snapshot: Snapshot) -> list[Row]:
    """The table of figures."""
    with Query(snapshot) as query:
        seen = query.overview()
        clients = _clients(query)
        some = query.page(limit=1).records
    trace = some.column("trace_id")[0].as_py().hex()
    target = str(some.column("target")[0].as_py())
    rows = [
        _row("sealed records", seen.sealed, "records", f"{seen.segments} files"),
        _row("size", seen.bytes_per_record or 0, "bytes/record", "Parquet, zstd; 24 of them are random ids"),
    ]
    for label, (client, count) in clients.items():
        filters = Filters(client=(client,))
        for what, columns in (("table", TABLE_COLUMNS), ("whole", tuple(schema().names))):
            note = f"{label} client, {count:,} records, {'columns of find' if what == 'table' else 'all columns'}"
            ask = _page(filters, columns)
            rows.append(_timed(snapshot, f"newest 50 of the {label} client ({what})", ask, note))
    rows += [
        _timed(snapshot, "newest 50 of an unknown client", _page(Filters(client=("nobody",)), TABLE_COLUMNS)),
        _timed(snapshot, "newest 50 of one target", _page(Filters(target=(target,)), TABLE_COLUMNS), "no bloom filter"),
        _timed(snapshot, "newest 50 of all", _page(Filters(), TABLE_COLUMNS)),
        _timed(snapshot, "newest 50 of a network", _page(Filters(ip=("10.3.0.0/16",)), TABLE_COLUMNS)),
        _timed(snapshot, "hourly histogram, all records", lambda q: q.histogram(width_us=HOUR_US), runs=7),
        _timed(snapshot, "top 20 clients with p50/p95/p99", lambda q: q.top("client_id", 20), runs=7),
        _timed(snapshot, "top 20 services with p50/p95/p99", lambda q: q.top("service", 20), runs=7),
        _timed(snapshot, "one trace by its id", lambda q: q.get(trace)),
        _timed(snapshot, "one record by its number", lambda q: q.get(str(seen.last_seq // 2))),
        *(_export(snapshot, form) for form in FORMATS),
    ]
    return rows


def _page(filters: Filters, columns: tuple[str, ...]) -> Callable[[Query], object]:
    return lambda query: query.page(filters, 50, columns=columns)


def _export(snapshot: Snapshot, form: Format) -> Row:
    """The first million records, to nowhere: what reading and writing cost, without the disk."""
    filters = Filters(until_us=_time_of(snapshot, min(1_000_000, snapshot.last_seq)))
    with open(os.devnull, "wb") as nowhere:
        start = time.perf_counter()
        done = export(snapshot, nowhere, form, filters)
        seconds = time.perf_counter() - start
    return _row(f"export as {form}", done.records / seconds, "records/s", f"{done.records:,} records, all columns")


def _time_of(snapshot: Snapshot, seq: int) -> int:
    with Query(snapshot) as query:
        return int(query.get(str(seq)).column("time").cast(pa.int64())[0].as_py())


def run(records: int = RECORDS) -> list[Row]:
    """Build the log in a temporary folder, measure, remove it."""
    with tempfile.TemporaryDirectory(prefix="otel-audit-bench-") as folder:
        return measure(build(Path(folder), records).snapshot())


if __name__ == "__main__":
    for line in run(int(sys.argv[1]) if len(sys.argv) > 1 else RECORDS):
        print(f"{line['name']:<46} {line['value']:>14,.2f} {line['unit']:<13} {line['note']}")
