"""The sealed part of a log is an ordinary append-only Delta table to other software."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.lake import segment_schema
from otel_audit.record import COLUMNS
from tests.support import check_log, decoded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with AuditLog.open(tmp_path, LogSettings(segment_age_s=3600, compact_least=3, disk_reserve_bytes=0)) as log:
        for seed in range(5):
            log.append(decoded(200, seed))
            log.seal()
    return tmp_path


def test_delta_rs_reads_every_record_with_its_columns(folder: Path) -> None:
    table = DeltaTable(folder / "lake")
    rows = pa.table(table.to_pyarrow_table()).sort_by("seq").to_pylist()
    assert rows == check_log(folder)
    assert [f.name for f in table.schema().fields] == [c.name for c in COLUMNS]


def test_delete_update_and_overwrite_are_refused(folder: Path) -> None:
    table = DeltaTable(folder / "lake")
    with pytest.raises(DeltaError, match="append-only"):
        table.delete("seq = 1")
    with pytest.raises(DeltaError, match="append-only"):
        table.update(updates={"service": "'other'"}, predicate="seq = 1")
    one = pq.read_table(next((folder / "lake").glob("*.parquet")), schema=segment_schema()).slice(0, 1)
    with pytest.raises(DeltaError, match="append-only"):
        write_deltalake(table, one, mode="overwrite")
    assert len(check_log(folder)) == 1_000


def test_each_seal_carries_its_transaction_and_merges_change_no_data(folder: Path) -> None:
    table = DeltaTable(folder / "lake")
    assert table.transaction_version("audit") == 1_000
    commits = [p.read_text() for p in sorted((folder / "lake" / "_delta_log").glob("*.json"))]
    merges = [c for c in commits if '"remove"' in c]
    assert merges
    assert all('"dataChange":true' not in c for c in merges)


def test_segments_hold_bloom_filters_and_sorted_numbers(folder: Path) -> None:
    relation = duckdb.sql(
        f"SELECT path_in_schema, bloom_filter_offset FROM parquet_metadata('{folder}/lake/*.parquet')"
        " WHERE path_in_schema IN ('trace_id', 'client_id')"
    )
    assert relation is not None
    found = relation.fetchall()
    assert found
    assert all(offset is not None for _, offset in found)
    for path in (folder / "lake").glob("*.parquet"):
        numbers = pq.read_table(path, columns=["seq"]).column("seq").to_pylist()
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_full_segments_stay_under_45_bytes_a_record(tmp_path: Path) -> None:
    from bench.otlpgen import iter_bodies
    from otel_audit.otlp import Decoder

    decoder = Decoder()
    with AuditLog.open(tmp_path, LogSettings(segment_age_s=3600)) as log:
        for body in iter_bodies(128, 1024):
            log.append(decoder.decode(body))
        log.seal()
    size = sum(p.stat().st_size for p in (tmp_path / "lake").glob("*.parquet"))
    assert size / (128 * 1024) < 45
