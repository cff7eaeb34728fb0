"""DuckDB, shut in: in memory, bounded, no network, no extensions, no files but the log's own."""

import contextlib
import re
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import duckdb

from otel_audit._query_filters import IP6_MACRO
from otel_audit.errors import StorageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Engine", "MemoryLimitError", "QuerySettings", "SnapshotExpiredError", "location", "query_errors"]

UNSEALED: Final = "unsealed"
"""Name under which a connection sees the unsealed records."""

_GLOB: Final = re.compile(r"[*?\[]")
_MEMORY_BYTES_MIN: Final = 64 << 20


class SnapshotExpiredError(StorageError):
    """A sealed file of the snapshot is gone (compacted long ago); a new snapshot has its records elsewhere."""

    retryable = True


class MemoryLimitError(StorageError):
    """A query needs more memory than the engine may use."""


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """Bounds of one engine.

    Args:
        memory_bytes: what DuckDB may hold; grouping beyond it spills to a private temporary folder.
        threads: None for one per processor.
        spill_bytes: what may be spilled.
    """

    memory_bytes: int = 256 << 20
    threads: int | None = None
    spill_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if self.memory_bytes < _MEMORY_BYTES_MIN:
            object.__setattr__(self, "memory_bytes", _MEMORY_BYTES_MIN)


def location(path: str) -> str:
    """How DuckDB is told of a segment: the one place that knows about paths and URLs.

    `read_parquet` takes patterns, so a folder that is really called `audit[1]` is written as `audit[[]1]`.
    """
    return path if "://" in path else _GLOB.sub(lambda m: f"[{m[0]}]", path)


def _folders(path: str) -> set[str]:
    """The folder of a segment as it is and as `location` writes it: DuckDB checks both."""
    return {p.rpartition("/")[0] + "/" for p in (path, location(path))}


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _spill_folder() -> "tempfile.TemporaryDirectory[str] | None":
    """A folder only this user can read, as spilled records are as private as the log; None on a read-only machine."""
    try:
        return tempfile.TemporaryDirectory(prefix="otel-audit-query-", ignore_cleanup_errors=True)
    except OSError:
        return None


def _connect(folders: Sequence[str], spill: str, settings: QuerySettings) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    statements = [
        f"SET memory_limit='{settings.memory_bytes // 1024}KiB'",
        f"SET temp_directory={_literal(spill)}",
        f"SET max_temp_directory_size='{settings.spill_bytes // 1024}KiB'",
        "SET TimeZone='UTC'",
        "SET autoinstall_known_extensions=false",
        "SET autoload_known_extensions=false",
        "SET allow_community_extensions=false",
        "SET python_enable_replacements=false",
        "SET parquet_metadata_cache=true",
        # Export relies on it: rows come out in the order of the file, which is the order of `seq`, without a sort.
        "SET preserve_insertion_order=true",
        IP6_MACRO,
        f"SET allowed_directories=[{', '.join(_literal(f) for f in folders)}]",
        "SET enable_external_access=false",
        "SET lock_configuration=true",
    ]
    if settings.threads is not None:
        statements.insert(0, f"SET threads={int(settings.threads)}")
    for statement in statements:
        connection.execute(statement)
    return connection


class Engine:
    """One in-memory DuckDB for the queries of a process; safe to share between threads.

    Keeps what it learned of the segments (Parquet footers) from query to query.
    """

    def __init__(self, settings: QuerySettings | None = None) -> None:
        self.settings = settings or QuerySettings()
        # _lock guards the two below; a connection is opened again when segments lie in a folder it does not know.
        self._lock = threading.Lock()
        self._root: duckdb.DuckDBPyConnection | None = None
        self._folders: frozenset[str] = frozenset()
        spill = _spill_folder()
        self._spill = spill.name if spill else ""
        self._remove_spill = weakref.finalize(self, spill.cleanup) if spill else None

    def connect(self, paths: Sequence[str], unsealed: "pa.Table") -> duckdb.DuckDBPyConnection:
        """A connection for one thread that can read these segments, and `unsealed` by that name."""
        folders = frozenset[str]().union(*map(_folders, paths))
        with self._lock:
            if self._root is None or not folders <= self._folders:
                self._folders |= folders
                self._root = _connect(sorted(self._folders), self._spill, self.settings)
            connection = self._root.cursor()
        connection.register(UNSEALED, unsealed)
        return connection

    def close(self) -> None:
        """Give back memory and the temporary folder; connections given out end with their last query."""
        with self._lock:
            if self._root is not None:
                self._root.close()
                self._root = None
            if self._remove_spill is not None:
                self._remove_spill()


@contextlib.contextmanager
def query_errors(operation: str, subject: str, paths: Sequence[str]) -> Iterator[None]:
    """Turn DuckDB's errors into ours, telling a segment that vanished from one that cannot be read."""
    try:
        yield
    except (duckdb.Error, OSError, ValueError) as e:  # what Arrow raises from a stream of DuckDB's are the latter two
        text = str(e).strip()
        if isinstance(e, duckdb.OutOfMemoryException) or "Out of Memory" in text:
            raise MemoryLimitError(operation, subject, "it needs more memory than allowed", "narrow it by time") from e
        gone = next((p for p in paths if "://" not in p and not Path(p).exists()), None)
        if gone is not None:
            raise SnapshotExpiredError(operation, subject, f"{gone} is gone", "read the log anew") from e
        hint = "see whether the log's files are readable and whole"
        raise StorageError(operation, subject, text.partition("\n")[0], hint) from e
