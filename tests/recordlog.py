"""Logs for tests of reading: made of given rows, sealed where the test says, without a server."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from otel_audit import record
from otel_audit.lake import Lake
from otel_audit.reader import Snapshot

LOG = "audit"
NOON_US = 1_795_435_200_000_000  # 2026-11-23T12:00:00Z
HOUR_US = 3_600_000_000

DEFAULTS: dict[str, Any] = {
    "duration_ns": 12_345_678,
    "client_id": "acme",
    "client_name": "Acme CRM Sync",
    "service": "contacts",
    "action": "read",
    "outcome": "success",
    "client_ip": "192.0.2.7",
    "log": LOG,
}


def row(seq: int, **values: Any) -> dict[str, Any]:
    """One record; what is not given has a plain value, or one that follows from its number."""
    time = values.pop("time", NOON_US + seq * 1000)
    ids = {"trace_id": seq.to_bytes(16, "big"), "span_id": seq.to_bytes(8, "big")}
    return {**DEFAULTS, **ids, "time": time, "recorded_at": time, "seq": seq, **values}


def rows(values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records numbered from 1."""
    return [row(i, **v) for i, v in enumerate(values, 1)]


def table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The records as `record.schema()`."""
    return pa.Table.from_pylist([dict(r) for r in records], schema=record.schema())


def snapshot(folder: Path, records: Sequence[Mapping[str, Any]], cuts: Sequence[int] = ()) -> Snapshot:
    """A snapshot of a log made in `folder`: sealed after each of `cuts` (row counts), the rest unsealed."""
    (folder / "log.json").write_text(json.dumps({"name": LOG, "format": 1}))
    lake = Lake(folder / "lake")
    lake.create(LOG)
    whole = table(records)
    first = 0
    for cut in cuts:
        if cut > first:
            lake.seal(LOG, whole.slice(first, cut - first).combine_chunks().to_batches(), first + 1, cut, bytes(32))
            first = cut
    lake.sealed_seq(LOG)
    return Snapshot(LOG, lake.segments(), whole.slice(first), first, len(records))
