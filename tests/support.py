"""Records for tests: made here, so that tests of the log need no OTLP."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from otel_audit.names import ACTION_OWN_PREFIX
from otel_audit.otlp import Decoded
from otel_audit.reader import LogReader, Snapshot
from otel_audit.record import Quarantined, span_schema

EPOCH_US = 1_790_000_000_000_000


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Span parts of `count` records, the same for the same seed."""
    rng = random.Random(seed)
    return [
        {
            "time": EPOCH_US + seed * 1_000_000 + i,
            "duration_ns": rng.randrange(1_000, 10**9),
            "client_id": f"client-{rng.randrange(20)}",
            "client_name": f"Client {rng.randrange(20)}",
            "service": "crm",
            "action": rng.choice(["read", "list", "create"]),
            "target": f"/contacts/{rng.randrange(10_000)}",
            "outcome": rng.choice(["success", "denied", "error"]),
            "status_code": 200,
            "trace_id": rng.randbytes(16),
            "span_id": rng.randbytes(8),
        }
        for i in range(count)
    ]


def batch(count: int, seed: int = 0) -> pa.RecordBatch:
    """A record batch of `rows`."""
    return pa.RecordBatch.from_pylist(rows(count, seed), schema=span_schema())


def decoded(count: int, seed: int = 0, quarantine: Iterable[Quarantined] = ()) -> Decoded:
    """What the decoder would give for `count` spans."""
    return Decoded(batch(count, seed), tuple(quarantine), count, 0)


def ids(count: int, seed: int = 0) -> list[tuple[bytes, bytes]]:
    """The identities of `rows`."""
    return [(r["trace_id"], r["span_id"]) for r in rows(count, seed)]


def all_records(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Every record of a snapshot, in order of number."""
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = []
    for segment in snapshot.segments:
        found += pq.read_table(segment.path, partitioning=None).to_pylist()
    found += snapshot.unsealed.to_pylist()
    return found


def calls_of(directory: Path) -> list[dict[str, Any]]:
    """The calls in a log, in order of number: its records but for those that capture makes about itself."""
    found = all_records(LogReader.open(directory).snapshot())
    return [r for r in found if not r["action"].startswith(ACTION_OWN_PREFIX)]


def check_log(directory: Path) -> list[dict[str, Any]]:
    """Every record of a log, after checking that numbers are contiguous from 1 and no identity is there twice."""
    records = all_records(LogReader.open(directory).snapshot())
    assert [r["seq"] for r in records] == list(range(1, len(records) + 1))
    identities = {(r["trace_id"], r["span_id"]) for r in records}
    assert len(identities) == len(records)
    return records
