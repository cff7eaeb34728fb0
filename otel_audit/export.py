"""Records out of the log, as files other programs read: CSV, canonical JSON lines, Parquet.

An export is of one snapshot, in ascending order of number, in bounded memory. A file appears under its name only when it
is whole and synced.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal, Protocol

from otel_audit import record
from otel_audit.errors import StorageError, UsageError
from otel_audit.query import Engine, Filters, Progress, Query, SnapshotExpiredError

if TYPE_CHECKING:
    import pyarrow as pa

    from otel_audit.reader import Snapshot

__all__ = ["FORMATS", "Exported", "Format", "export", "export_file"]

Format = Literal["csv", "jsonl", "parquet"]
FORMATS: Final[tuple[Format, ...]] = ("csv", "jsonl", "parquet")

Refresh = Callable[[], "Snapshot"]

_ROW_GROUP: Final = 65_536
_ROW_GROUP_BYTES: Final = 64 << 20
_FORMULA: Final = r"^[\p{Z}\p{C}]*[=+\-@＝＋－＠]|^[\t\r\n]"  # noqa: RUF001 - the full-width forms are meant
"""Text that a spreadsheet would take for a formula, also behind blanks or invisible characters (OWASP, CSV Injection)."""
_QUOTED: Final = r'[",\r\n]'


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: records, and the numbers of the first and last."""

    records: int = 0
    first_seq: int | None = None
    last_seq: int | None = None


class _Writer(Protocol):
    """Writes batches of whole records to a stream."""

    def write(self, batch: "pa.RecordBatch") -> None: ...

    def finish(self) -> None: ...


def export(
    snapshot: "Snapshot",
    stream: BinaryIO,
    format: Format,  # noqa: A002 - the word its users say
    filters: Filters | None = None,
    *,
    progress: Progress | None = None,
    refresh: Refresh | None = None,
    engine: Engine | None = None,
) -> Exported:
    """Write matching records to a stream.

    Args:
        snapshot: what exists; later records are not exported.
        stream: binary, and need not be able to seek.
        format: `csv`, `jsonl` or `parquet`.
        filters: which records.
        progress: told how many records were looked at, of how many.
        refresh: gives a newer snapshot of the same log, for an export that outlasts a compaction: the same records are
            then read from their new files.
        engine: shared, to stay warm.

    Raises:
        UsageError: no such format.
        StorageError: the log cannot be read.
    """
    writer = _writer(format, stream)
    records, first, last = 0, None, None
    for batch in _batches(snapshot, filters, progress, refresh, engine):
        if batch.num_rows:
            writer.write(batch)
            records += batch.num_rows
            seqs = batch.column("seq")
            first, last = first or seqs[0].as_py(), seqs[-1].as_py()
    writer.finish()
    return Exported(records, first, last)


def export_file(
    snapshot: "Snapshot",
    path: str | os.PathLike[str],
    format: Format,  # noqa: A002
    filters: Filters | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
    refresh: Refresh | None = None,
) -> Exported:
    """Write matching records to a file, which appears when it is whole and synced, or not at all.

    Args:
        snapshot: what exists.
        path: the file.
        format: `csv`, `jsonl` or `parquet`.
        filters: which records.
        force: replace an existing file.
        progress: as for `export`.
        refresh: as for `export`.

    Raises:
        UsageError: the file exists and `force` is not given.
        StorageError: the file cannot be written, or the log cannot be read.
    """
    target = Path(path)
    if not force:
        _refuse_existing(target)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "xb") as stream:  # noqa: PTH123
                done = export(snapshot, stream, format, filters, progress=progress, refresh=refresh)
                stream.flush()
                os.fsync(stream.fileno())
            _publish(temporary, target, force=force)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        hint = "nothing was left under that name; choose another place with -o"
        raise StorageError("write export", target, e.strerror or str(e), hint) from e
    return done


def _batches(
    snapshot: "Snapshot",
    filters: Filters | None,
    progress: Progress | None,
    refresh: Refresh | None,
    engine: Engine | None,
) -> "Iterator[pa.RecordBatch]":
    """Matching records of the snapshot; where a file of it vanished, the rest comes from a newer snapshot."""
    after, until, now = 0, snapshot.last_seq, snapshot
    stuck = -1
    while True:
        with Query(now, engine) as query:
            try:
                for batch in query.iter_batches(filters, after_seq=after, until_seq=until, progress=progress):
                    yield batch
                    after = batch.column("seq")[-1].as_py() if batch.num_rows else after
            except SnapshotExpiredError:
                if refresh is None or after == stuck:
                    raise
                now, stuck = refresh(), after
            else:
                return


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise UsageError("write export", target, "the file exists", "give --force to replace it, or another -o")


def _publish(temporary: Path, target: Path, *, force: bool) -> None:
    """Give the finished file its name; a link fails where a file came up meanwhile, a rename would replace it."""
    if force:
        temporary.replace(target)
    else:
        try:
            os.link(temporary, target)
        except FileExistsError:
            _refuse_existing(target)
        except OSError:  # a file system without links
            _refuse_existing(target)
            temporary.replace(target)
    with contextlib.suppress(OSError):  # a file system that cannot sync folders
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# --- formats --------------------------------------------------------------------------------------------------------------
def _writer(format: str, stream: BinaryIO) -> _Writer:  # noqa: A002
    makers: dict[str, Callable[[BinaryIO], _Writer]] = {"csv": _Csv, "jsonl": _Jsonl, "parquet": _Parquet}
    if format not in makers:
        raise UsageError("export", f"format {format!r}", "no such format", f"use {', '.join(FORMATS)}")
    return makers[format](stream)


class _Jsonl:
    """Canonical lines, as they are hashed, each with a line feed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, batch: "pa.RecordBatch") -> None:
        self._stream.write(b"\n".join(record.canonical_lines(batch)) + b"\n")

    def finish(self) -> None:
        return


class _Csv:
    """RFC 4180 in UTF-8 with a header of column names; text that a spreadsheet would calculate gets an apostrophe."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._stream.write(",".join(c.name for c in record.COLUMNS).encode() + b"\r\n")

    def write(self, batch: "pa.RecordBatch") -> None:
        import pyarrow.compute as pc

        cells = [_cells(batch.column(c.name), c.kind) for c in record.COLUMNS]
        lines = pc.binary_join_element_wise(*cells, ",").to_pylist()
        self._stream.write("".join(line + "\r\n" for line in lines).encode())

    def finish(self) -> None:
        return


def _cells(values: Any, kind: str) -> Any:
    """A column as text of CSV cells, quoted where RFC 4180 wants it; what is absent is empty."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if kind == "time":
        text = values.cast(pa.timestamp("us")).cast(pa.string())
        return pc.binary_join_element_wise(pc.utf8_replace_slice(text, 10, 11, "T"), "Z", "")
    if kind in ("bytes16", "bytes8"):
        return pa.array([v.hex() for v in values.to_pylist()], pa.string())
    if kind in ("string", "json"):
        values = values.fill_null("")
        values = _where(values, _FORMULA, lambda risky: pc.binary_join_element_wise("'", risky, ""))
        return _where(values, _QUOTED, _quoted)
    return values.cast(pa.string()).fill_null("")


def _quoted(values: Any) -> Any:
    import pyarrow.compute as pc

    return pc.binary_join_element_wise('"', pc.replace_substring(values, '"', '""'), '"', "")


def _where(values: Any, pattern: str, change: Callable[[Any], Any]) -> Any:
    """`values` with those changed that match; most columns have none."""
    import pyarrow.compute as pc

    found = pc.match_substring_regex(values, pattern)
    return pc.if_else(found, change(values), values) if pc.any(found).as_py() else values


class _Parquet:
    """Parquet with the record's own schema, zstd; row groups of a bounded size, as memory holds one."""

    def __init__(self, stream: BinaryIO) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetWriter(stream, record.schema(), compression="zstd")
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, batch: "pa.RecordBatch") -> None:
        self._waiting.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _ROW_GROUP or self._bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._file.write_table(pa.Table.from_batches(self._waiting), row_group_size=_ROW_GROUP)
        self._waiting, self._rows, self._bytes = [], 0, 0

    def finish(self) -> None:
        self._flush()
        self._file.close()
