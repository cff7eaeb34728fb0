"""Sealed segments: immutable Parquet files in an append-only Delta table.

The table is a folder or an object-store URL; any Delta reader can work on it. Each commit that adds a segment carries the
application transaction (log, last number), so a seal repeated after a crash is seen and does nothing.

On a local disk delta-rs syncs nothing, so the order is: Parquet file written and synced, committed, commit file and folder
synced; only then may the journal go. A crash between any two of these leaves either an unreferenced file, which the repeated
seal writes again, or a finished seal.
"""

import heapq
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction
from pyarrow import fs

from otel_audit.errors import CorruptLogError, StorageError, UnavailableError
from otel_audit.journal import fsync_path
from otel_audit.record import format_time, parse_time, schema

__all__ = ["Lake", "Segment", "segment_schema"]

_ROW_GROUP: Final = 131_072
_CONFIGURATION: Final = {
    "delta.appendOnly": "true",
    # The table's own history is evidence too.
    "delta.enableExpiredLogCleanup": "false",
    "delta.checkpointInterval": "100",
}
_LISTED: Final = ["path", "size_bytes", "num_records", "min.time", "max.time", "max.recorded_at", "min.seq", "max.seq"]
_HEAD: Final = "otel_audit.journal_head"


@dataclass(frozen=True, slots=True)
class Segment:
    """One sealed Parquet file.

    Args:
        path: absolute path or URL, readable as it is.
        rows: records in it; their numbers are `first_seq` to `last_seq` without a gap.
        bytes: its size.
        time_min_us: earliest `time` in it, microseconds since 1970 UTC; time_max_us: latest.
        recorded_max_us: latest `recorded_at`.
    """

    path: str
    rows: int
    bytes: int
    first_seq: int
    last_seq: int
    time_min_us: int
    time_max_us: int
    recorded_max_us: int = 0


def segment_schema() -> pa.Schema:
    """The record's schema as Delta knows it: ids are plain binary, for Delta has no fixed-size type."""
    return pa.schema([f.with_type(pa.binary()) if pa.types.is_fixed_size_binary(f.type) else f for f in schema()])


def _file_name(first_seq: int, last_seq: int) -> str:
    return f"segment-{first_seq:020d}-{last_seq:020d}.parquet"


@dataclass(slots=True)
class _Written:
    """What a Parquet file holds, gathered while it was written."""

    name: str
    rows: int = 0
    first_seq: int = 0
    last_seq: int = 0
    time_min_us: int = 2**63 - 1
    time_max_us: int = -(2**63)
    recorded_min_us: int = 0
    recorded_max_us: int = 0
    bytes: int = 0

    def take(self, table: pa.Table) -> None:
        """Count the rows of a row group; they must carry on the numbering."""
        seq = table.column("seq")
        first, last = seq[0].as_py(), seq[-1].as_py()
        if (self.rows and first != self.last_seq + 1) or last - first + 1 != table.num_rows:
            raise StorageError("seal", self.name, f"records {first} to {last} do not follow {self.last_seq}")
        times = pc.min_max(table.column("time").cast(pa.int64())).as_py()
        recorded = pc.min_max(table.column("recorded_at").cast(pa.int64())).as_py()
        self.first_seq = self.first_seq if self.rows else first
        self.recorded_min_us = self.recorded_min_us if self.rows else recorded["min"]
        self.last_seq = last
        self.rows += table.num_rows
        self.time_min_us = min(self.time_min_us, times["min"])
        self.time_max_us = max(self.time_max_us, times["max"])
        self.recorded_max_us = recorded["max"]

    def add_action(self, *, data_change: bool) -> AddAction:
        """The Delta action that puts the file into the table, with statistics to the microsecond."""
        stats = {
            "numRecords": self.rows,
            "minValues": {
                "time": format_time(self.time_min_us),
                "recorded_at": format_time(self.recorded_min_us),
                "seq": self.first_seq,
            },
            "maxValues": {
                "time": format_time(self.time_max_us),
                "recorded_at": format_time(self.recorded_max_us),
                "seq": self.last_seq,
            },
            "nullCount": {"time": 0, "recorded_at": 0, "seq": 0},
        }
        return AddAction(self.name, self.bytes, {}, time.time_ns() // 1_000_000, data_change, json.dumps(stats))


class Lake:
    """The sealed part of a log. One writer (the log's sealer thread); any number of readers, each with its own object.

    Args:
        url: folder, or object-store URL such as `s3://bucket/prefix`.
        storage_options: credentials and endpoint of an object store, as delta-rs names them.
    """

    def __init__(self, url: str | os.PathLike[str], storage_options: Mapping[str, str] | None = None) -> None:
        self.url = os.fspath(url)
        self._local = None if "://" in self.url else Path(self.url).absolute()
        self._options = dict(storage_options or {})
        self._table: DeltaTable | None = None
        self._listed: tuple[int, tuple[Segment, ...]] = (-1, ())

    # --- open -----------------------------------------------------------------------------------------------------------
    def create(self, log: str) -> None:
        """Open the table, making it if there is none."""
        if self._open():
            return
        try:
            if self._local:
                self._local.mkdir(mode=0o750, exist_ok=True)
            self._table = DeltaTable.create(
                str(self._local or self.url),
                segment_schema(),
                name=log,
                configuration=_CONFIGURATION,
                storage_options=self._options or None,
            )
            self._sync_log()
            if self._local:
                fsync_path(self._local.parent)
        except (OSError, DeltaError) as e:
            raise StorageError("create", self.url, str(e), "choose a place this user may write to") from e

    def _open(self) -> bool:
        """Load or refresh the table; False when there is none yet."""
        try:
            if self._table is None:
                self._table = DeltaTable(str(self._local or self.url), storage_options=self._options or None)
            else:
                self._table.update_incremental()
        except TableNotFoundError:
            return False
        except DeltaError as e:
            raise StorageError("open", self.url, str(e), "restore the folder _delta_log from a copy") from e
        return True

    def _loaded(self) -> DeltaTable:
        if not self._open() or self._table is None:
            raise StorageError("open", self.url, "there is no Delta table")
        return self._table

    # --- read -----------------------------------------------------------------------------------------------------------
    def sealed_seq(self, log: str) -> int:
        """Number of the last sealed record; 0 before the first seal. Looks at the table as it is now."""
        return (self._loaded().transaction_version(log) or 0) if self._open() else 0

    def segments(self) -> tuple[Segment, ...]:
        """The sealed segments as last loaded by `sealed_seq`, ascending; checks that they join without a gap.

        Raises:
            CorruptLogError: numbers are missing or doubled between two segments.
        """
        if self._table is None:
            return ()
        version = self._table.version()
        if self._listed[0] != version:
            actions = pa.table(self._table.get_add_actions(flatten=True))
            self._listed = (version, self._checked(actions.select(_LISTED)))
        return self._listed[1]

    def _checked(self, actions: pa.Table) -> tuple[Segment, ...]:
        found = sorted((self._segment(row) for row in actions.to_pylist()), key=lambda s: s.first_seq)
        expected = 1 if found else 0
        for segment in found:
            if segment.first_seq != expected:
                kind = "are missing" if segment.first_seq > expected else "are there twice"
                low, high = sorted((expected, segment.first_seq))
                raise CorruptLogError(segment.path, 0, f"records {low} to {high - 1} {kind} before this segment")
            expected = segment.last_seq + 1
        return tuple(found)

    def _segment(self, action: dict[str, Any]) -> Segment:
        def micros(value: datetime) -> int:
            return parse_time(value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

        return Segment(
            path=self.path_of(action["path"]),
            rows=action["num_records"],
            bytes=action["size_bytes"],
            first_seq=action["min.seq"],
            last_seq=action["max.seq"],
            time_min_us=micros(action["min.time"]),
            time_max_us=micros(action["max.time"]),
            recorded_max_us=micros(action["max.recorded_at"]),
        )

    def path_of(self, name: str) -> str:
        """Absolute path or URL of a file of the table."""
        return str(self._local / name) if self._local else f"{self.url.rstrip('/')}/{name}"

    def journal_head(self, log: str) -> bytes | None:
        """Chain digest of the journal where the last seal ended; None before the first."""
        table = self._loaded()
        for limit in (32, None):  # the whole history is long; the answer is nearly always among the last commits
            for commit in table.history(limit):
                if _HEAD in commit and commit.get("otel_audit.log") == log:
                    return bytes.fromhex(commit[_HEAD])
        return None

    def read(self, segment: Segment, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of a segment, in batches, in order of number."""
        filesystem, path = self._filesystem(segment.path)
        with filesystem.open_input_file(path) as source:
            yield from pq.ParquetFile(source).iter_batches(batch_size=65_536, columns=list(columns), use_threads=False)

    # --- seal -----------------------------------------------------------------------------------------------------------
    def seal(
        self, log: str, batches: Iterable[pa.RecordBatch], first_seq: int, last_seq: int, journal_head: bytes
    ) -> bool:
        """Make a segment of the batches, durably; False when a seal up to `last_seq` was there already.

        Args:
            log: name of the log, the application of the transaction.
            batches: records `first_seq` to `last_seq` in order.
            first_seq: number of the first.
            last_seq: number of the last.
            journal_head: chain digest of the journal after `last_seq`.

        Raises:
            UnavailableError: the store cannot be written now; nothing is in the table, the journal must stay.
        """
        try:
            if self.sealed_seq(log) >= last_seq:
                self._sync_log()
                return False
            table = self._loaded()
            written = self._write(batches, first_seq, last_seq)
            properties = CommitProperties(
                app_transactions=[Transaction(log, last_seq)],
                custom_metadata={_HEAD: journal_head.hex(), "otel_audit.log": log},
            )
            self._commit(table, [written.add_action(data_change=True)], properties)
        except (OSError, pa.ArrowException, DeltaError) as e:
            raise UnavailableError("seal", self.url, str(e), "the journal keeps the records; it is tried again") from e
        return True

    def _write(self, batches: Iterable[pa.RecordBatch], first_seq: int, last_seq: int) -> _Written:
        """Write one Parquet file: on a disk beside its name, synced, then renamed; an object store shows it whole only."""
        written = _Written(_file_name(first_seq, last_seq))
        target = self.path_of(written.name)
        filesystem, path = self._filesystem(self.path_of(f".segment-{os.getpid()}.tmp") if self._local else target)
        try:
            with filesystem.open_output_stream(path) as sink, _writer(sink) as writer:
                for table in _groups(batches):
                    written.take(table)
                    writer.write_table(table.cast(segment_schema()), row_group_size=_ROW_GROUP)
        except OSError:
            if self._local:  # half a file would keep the full disk full
                Path(path).unlink(missing_ok=True)
            raise
        if (written.first_seq, written.last_seq) != (first_seq, last_seq):
            found = f"holds records {written.first_seq} to {written.last_seq}"
            raise StorageError("seal", self.url, f"the journal of records {first_seq} to {last_seq} {found}")
        if self._local:
            fsync_path(path)
            Path(path).replace(target)
            fsync_path(self._local)
        written.bytes = filesystem.get_file_info(self._filesystem(target)[1]).size
        return written

    def _commit(self, table: DeltaTable, actions: list[AddAction | RemoveAction], properties: CommitProperties) -> None:
        table.create_write_transaction(
            actions,
            "append",
            segment_schema(),
            commit_properties=properties,
            post_commithook_properties=PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False),
        )
        self._sync_log()
        self._open()

    def _sync_log(self) -> None:
        """Sync the newest files of the table's log and the folder; delta-rs leaves that to the caller."""
        if self._local is None:
            return
        folder = self._local / "_delta_log"
        # One commit writes three files at most: itself, a checkpoint and, last by name, the pointer to it.
        for path in heapq.nlargest(8, (p for p in folder.iterdir() if p.is_file())):
            fsync_path(path)
        fsync_path(folder)
        fsync_path(self._local)

    def _filesystem(self, path: str) -> tuple[fs.FileSystem, str]:
        if self._local:
            return fs.LocalFileSystem(), path
        filesystem, inner = fs.FileSystem.from_uri(path)
        return filesystem, inner

    # --- compact --------------------------------------------------------------------------------------------------------
    def compact(self, segment_rows: int, least: int) -> int:
        """Merge the newest run of small neighbours into one segment; gives how many went, 0 when there was no need.

        The rows, their order and numbers stay; the commit says `dataChange: false`. The small files stay on disk for
        readers that hold an older snapshot, until `vacuum`.

        Args:
            segment_rows: size of a full segment in records.
            least: how many small neighbours are worth a merge.
        """
        table = self._loaded()
        small = _mergeable(self.segments(), segment_rows, least)
        if not small:
            return 0
        names = [f.name for f in segment_schema()]
        try:
            rows = (batch for segment in small for batch in self.read(segment, names))
            written = self._write(rows, small[0].first_seq, small[-1].last_seq)
            now_ms = time.time_ns() // 1_000_000
            gone = [
                RemoveAction(Path(s.path).name, data_change=False, deletion_timestamp=now_ms, size=s.bytes)
                for s in small
            ]
            self._commit(
                table,
                [*gone, written.add_action(data_change=False)],
                CommitProperties(custom_metadata={"otel_audit.compacted": str(len(small))}),
            )
        except (OSError, pa.ArrowException, DeltaError) as e:
            raise UnavailableError("compact", self.url, str(e), "the small segments stay; it is tried again") from e
        return len(small)

    def vacuum(self, older_than_s: float) -> int:
        """Delete files that left the table through compaction that long ago; gives how many."""
        if self._local is None:
            return 0
        live = {s.path for s in self.segments()} if self._open() else set()
        before = time.time() - older_than_s
        gone = 0
        for entry in os.scandir(self._local):
            ours = entry.name.endswith((".parquet", ".tmp")) and entry.is_file()
            # A file's own time is its writing, before it left; its neighbour that replaced it is younger.
            if (
                ours
                and entry.path not in live
                and entry.stat().st_mtime < before
                and self._replaced(entry.name, before)
            ):
                Path(entry.path).unlink()
                gone += 1
        return gone

    def _replaced(self, name: str, before: float) -> bool:
        """Whether what the file holds is in a younger file of the table since before that time."""
        if name.endswith(".tmp"):
            return True
        first, last = (int(part) for part in name.removesuffix(".parquet").split("-")[1:])
        return any(
            s.first_seq <= first and last <= s.last_seq and Path(s.path).stat().st_mtime < before
            for s in self.segments()
        )


def _mergeable(segments: Sequence[Segment], segment_rows: int, least: int) -> list[Segment]:
    """The newest neighbours worth a merge: an older one joins while it is no larger than what was collected.

    That makes sizes grow by multiples, so that each record is rewritten a few times only, whatever the rate.
    """
    chosen: list[Segment] = []
    rows = 0
    for segment in reversed(segments):
        if rows + segment.rows > segment_rows or (len(chosen) >= least and segment.rows > rows):
            break
        chosen.append(segment)
        rows += segment.rows
    return chosen[::-1] if len(chosen) >= least else []


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The batches joined into tables of at most a row group each, so that memory stays bounded."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        while rows >= _ROW_GROUP:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, _ROW_GROUP)
            waiting = table.slice(_ROW_GROUP).to_batches()
            rows -= _ROW_GROUP
    if rows:
        yield pa.Table.from_batches(waiting)


def _writer(sink: Any) -> pq.ParquetWriter:
    plain = ("trace_id", "span_id", "time", "duration_ns", "seq", "source_seq", "recorded_at")
    return pq.ParquetWriter(
        sink,
        segment_schema(),
        compression="zstd",
        compression_level=3,
        use_dictionary=[f.name for f in schema() if f.name not in plain],
        column_encoding={
            "trace_id": "DELTA_LENGTH_BYTE_ARRAY",
            "span_id": "DELTA_LENGTH_BYTE_ARRAY",
            "time": "DELTA_BINARY_PACKED",
            "duration_ns": "DELTA_BINARY_PACKED",
            "seq": "DELTA_BINARY_PACKED",
            "source_seq": "DELTA_BINARY_PACKED",
            "recorded_at": "DELTA_BINARY_PACKED",
        },
        bloom_filter_options={"trace_id": {"ndv": _ROW_GROUP, "fpp": 0.05}, "client_id": {"ndv": 4096, "fpp": 0.01}},
        write_page_index=True,
        # The size of a page is looked at once in so many values: long texts, which callers choose, must not make it huge.
        write_batch_size=64,
        store_schema=False,
    )
