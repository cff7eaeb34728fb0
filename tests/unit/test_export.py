"""What leaves the log is whole, checkable, and harmless to open."""

import csv
import dataclasses
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_audit import export as export_module
from otel_audit import record
from otel_audit.errors import StorageError, UsageError
from otel_audit.export import FORMATS, Exported, Format, export, export_file
from otel_audit.query import Engine, Filters, SnapshotExpiredError
from otel_audit.reader import Snapshot
from tests.recordlog import NOON_US, row, rows, snapshot, table

ENGINE = Engine()


def written(snap: Snapshot, form: Format, filters: Filters | None = None) -> bytes:
    stream = io.BytesIO()
    export(snap, stream, form, filters, engine=ENGINE)
    return stream.getvalue()


def files(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()]


def csv_rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


@pytest.fixture(scope="module")
def snap(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    records = rows([{"client_id": f"c{n % 3}", "time": NOON_US - n, "attributes": '{"audit.n":1}'} for n in range(30)])
    return snapshot(tmp_path_factory.mktemp("log"), records, [7, 20])


# --- jsonl ----------------------------------------------------------------------------------------------------------------
def test_each_jsonl_line_is_the_canonical_record_in_order_of_number(snap: Snapshot) -> None:
    lines = written(snap, "jsonl").split(b"\n")
    assert lines.pop() == b""
    assert [record.parse(line)["seq"] for line in lines] == list(range(1, 31))


TEXT = st.text(max_size=8) | st.sampled_from(["=1+1", "a,b", 'q"q', "x\r\ny", "\0", "'", "\u202e", "", "  -3"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(TEXT, min_size=1, max_size=6))
def test_any_text_survives_every_format(texts: list[str]) -> None:
    records = rows([{"client_id": t, "user_id": t or None} for t in texts])
    snap = Snapshot("audit", (), table(records), 0, len(records))
    assert written(snap, "jsonl") == b"".join(record.canonical(r) + b"\n" for r in records)
    assert pq.read_table(io.BytesIO(written(snap, "parquet"))).equals(table(records))
    for text, cells in zip(texts, csv_rows(written(snap, "csv")), strict=True):
        assert cells["client_id"] in (text, "'" + text)


# --- csv ------------------------------------------------------------------------------------------------------------------
FORMULAS = [
    '=HYPERLINK("http://evil.example","x")',
    "+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\u00a0=1",
    "\u3000=1",
    "\u200b=1",
    "\ufeff=1",
    "\x00=1",
    "\u202e=1",
    "\uff1d1+1",
    "\uff0b1",
    "\uff0d1",
    "\uff20x",
    "\tx",
    "=cmd|' /C calc'!A0",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_calculate_gets_an_apostrophe(text: str) -> None:
    one = row(1, client_id=text, target=text)
    cells = csv_rows(written(Snapshot("audit", (), table([one]), 0, 1), "csv"))[0]
    assert cells["client_id"] == cells["target"] == "'" + text


@pytest.mark.parametrize("text", ["acme", "a=b", "1-2", "", "user@example.com", "'x", "{}", "\u00e9", "a\n=1"])
def test_harmless_text_is_left_alone(text: str) -> None:
    one = row(1, client_id=text)
    assert csv_rows(written(Snapshot("audit", (), table([one]), 0, 1), "csv"))[0]["client_id"] == text


def test_numbers_stay_numbers_even_below_zero() -> None:
    one = row(1, duration_ns=-5, status_code=-1, source_seq=None)
    cells = csv_rows(written(Snapshot("audit", (), table([one]), 0, 1), "csv"))[0]
    assert (cells["duration_ns"], cells["status_code"], cells["source_seq"], cells["seq"]) == ("-5", "-1", "", "1")


def test_csv_has_the_columns_of_the_record_and_crlf_line_ends(snap: Snapshot) -> None:
    data = written(snap, "csv")
    header, first, *_ = data.split(b"\r\n")
    assert header.decode().split(",") == [c.name for c in record.COLUMNS]
    assert data.count(b"\r\n") == 31
    assert not data.replace(b"\r\n", b"").count(b"\n")
    assert first.startswith(b"2026-11-23T12:00:00.000000Z,12345678,c0,")
    assert csv_rows(data)[0]["trace_id"] == "0" * 31 + "1"


# --- parquet --------------------------------------------------------------------------------------------------------------
def test_parquet_has_the_records_schema_and_bounded_row_groups(snap: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "_ROW_GROUP", 10)
    file = pq.ParquetFile(io.BytesIO(written(snap, "parquet")))
    assert file.schema_arrow.equals(record.schema())
    assert file.metadata.num_row_groups == 3
    assert {file.metadata.row_group(0).column(n).compression for n in range(file.metadata.num_columns)} == {"ZSTD"}


# --- all formats ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_export_is_a_valid_file(tmp_path: Path, form: Format) -> None:
    data = written(snapshot(tmp_path, []), form)
    if form == "csv":
        assert data.split(b"\r\n") == [",".join(c.name for c in record.COLUMNS).encode(), b""]
    elif form == "jsonl":
        assert data == b""
    else:
        assert pq.read_table(io.BytesIO(data)).equals(record.schema().empty_table())


@pytest.mark.parametrize("form", FORMATS)
def test_filters_hold_and_the_count_is_told(snap: Snapshot, tmp_path: Path, form: Format) -> None:
    told: list[tuple[int, int]] = []
    done = export_file(
        snap, tmp_path / "out", form, Filters(client=("c1",)), progress=lambda done, total: told.append((done, total))
    )
    assert done == Exported(10, 2, 29)
    assert told == [(7, 30), (20, 30), (30, 30)]


def test_an_unknown_format_names_the_known_ones(snap: Snapshot) -> None:
    with pytest.raises(UsageError, match="csv, jsonl, parquet"):
        written(snap, "ocsf")  # type: ignore[arg-type]


# --- files ----------------------------------------------------------------------------------------------------------------
def test_an_existing_file_is_kept_unless_forced(snap: Snapshot, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        export_file(snap, target, "csv")
    assert target.read_text() == "mine"
    export_file(snap, target, "csv", force=True)
    assert len(csv_rows(target.read_bytes())) == 30
    assert files(tmp_path) == ["out.csv"]


def test_a_file_that_comes_up_meanwhile_is_kept(
    snap: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.csv"
    real = os.fsync

    def meanwhile(fd: int) -> None:
        target.write_text("theirs")
        real(fd)

    monkeypatch.setattr(os, "fsync", meanwhile)
    with pytest.raises(UsageError, match="exists"):
        export_file(snap, target, "csv")
    assert target.read_text() == "theirs"
    assert files(tmp_path) == ["out.csv"]


def test_a_failed_export_leaves_no_file(snap: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        assert [n for n in files(tmp_path) if n.startswith(".out")]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        export_file(snap, tmp_path / "out", "parquet")
    assert files(tmp_path) == []


def test_an_interrupted_export_leaves_no_file(snap: Snapshot, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_file(snap, tmp_path / "out", "jsonl", progress=interrupt)
    assert files(tmp_path) == []


def test_a_folder_that_is_not_there_is_an_error_of_ours(snap: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        export_file(snap, tmp_path / "no" / "out", "csv")


def test_the_file_is_synced_before_it_gets_its_name(
    snap: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def note_sync(fd: int) -> None:
        events.append("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"sync file of {os.fstat(fd).st_size}")
        fsync(fd)

    def note_link(src: Any, dst: Any) -> None:
        events.append("name")
        link(src, dst)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "link", note_link)
    export_file(snap, tmp_path / "out", "jsonl")
    assert events == [f"sync file of {(tmp_path / 'out').stat().st_size}", "name", "sync folder"]


def test_a_file_system_without_links_is_served_too(
    snap: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(src: Any, dst: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    export_file(snap, tmp_path / "out", "jsonl")
    assert files(tmp_path) == ["out"]


# --- a log that changes meanwhile -----------------------------------------------------------------------------------------
def test_an_export_goes_on_where_compaction_took_its_file(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    records = rows([{"client_id": f"c{n % 3}"} for n in range(40)])
    old = snapshot(tmp_path / "old", records[:30], [10, 20, 30])
    new = snapshot(tmp_path / "new", records, [30])

    def lose(done: int, total: int) -> None:
        for segment in old.segments[1:]:
            Path(segment.path).unlink(missing_ok=True)

    stream = io.BytesIO()
    export(old, stream, "jsonl", progress=lose, refresh=lambda: new)
    assert [record.parse(line)["seq"] for line in stream.getvalue().splitlines()] == list(range(1, 31))


def test_an_export_that_cannot_go_on_fails(tmp_path: Path) -> None:
    old = snapshot(tmp_path, rows([{}] * 4), [2, 4])
    Path(old.segments[1].path).unlink()
    asked: Iterator[Snapshot] = iter([old, old, old])
    with pytest.raises(SnapshotExpiredError):
        export(old, io.BytesIO(), "jsonl", refresh=lambda: next(asked))
    with pytest.raises(SnapshotExpiredError):
        export(old, io.BytesIO(), "jsonl")


def test_a_log_larger_than_a_batch_is_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    many = table(rows([{}] * 100))
    snap = Snapshot("audit", (), pa.concat_tables([many]), 0, 100)
    sizes: list[int] = []
    monkeypatch.setattr("otel_audit.query._BATCH_ROWS", 10)
    monkeypatch.setattr(export_module._Jsonl, "write", lambda _, batch: sizes.append(batch.num_rows))
    assert export(snap, io.BytesIO(), "jsonl").records == 100
    assert len(sizes) >= 1
    assert max(sizes) <= 2048  # DuckDB's vector, the least it hands out
    assert dataclasses.asdict(Exported()) == {"records": 0, "first_seq": None, "last_seq": None}
