"""The client directory: which API client a key belongs to, and what clients are called.

A JSON or CSV file that the operator keeps. Keys may stand in it in clear or as SHA-256; in memory only hashes are kept.
The file is looked at again at most once a second and read in a thread of its own when it has changed, so no request
waits for it; a file that cannot be read leaves the directory as it was.
"""

import csv
import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from otel_audit.errors import ConfigError

__all__ = ["Client", "ClientDirectory"]

_log = logging.getLogger("otel_audit.capture")

_LOOK_INTERVAL_S: Final = 1.0
_FILE_BYTES_MAX: Final = 64 * 1024 * 1024
_HINT: Final = "each client needs an id, and may have a name and key or key_sha256; see docs/capture.md"


class Client(NamedTuple):
    """An API client as the directory knows it."""

    id: str
    name: str | None


class _Contents(NamedTuple):
    by_key: Mapping[bytes, Client]
    by_id: Mapping[str, Client]


_EMPTY: Final = _Contents({}, {})


def _text(value: object) -> str:
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _digests(entry: Mapping[str, Any], where: str) -> Iterable[bytes]:
    for column, hashed in (("key", False), ("keys", False), ("key_sha256", True)):
        values = entry.get(column)
        for value in values if isinstance(values, list) else [values]:
            key = _text(value)
            if not key:
                continue
            if not hashed:
                yield hashlib.sha256(key.encode()).digest()
                continue
            try:
                digest = bytes.fromhex(key.removeprefix("sha256:"))
            except ValueError:
                digest = b""
            if len(digest) != 32:
                raise ConfigError("read client directory", where, "key_sha256 is not 64 hex digits", _HINT)
            yield digest


def _contents(entries: Iterable[object], path: str) -> _Contents:
    by_key: dict[bytes, Client] = {}
    by_id: dict[str, Client] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{path}, client {number}"
        if not isinstance(entry, dict) or not _text(entry.get("id")):
            raise ConfigError("read client directory", where, "no id", _HINT)
        client = Client(_text(entry["id"]), _text(entry.get("name")) or None)
        by_id.setdefault(client.id, client)
        for digest in _digests(entry, where):
            if by_key.setdefault(digest, client).id != client.id:
                raise ConfigError(
                    "read client directory", where, "its key is another client's too", "give each its own"
                )
    return _Contents(by_key, by_id)


def _parse(path: str) -> _Contents:
    with Path(path).open("rb") as file:
        body = file.read(_FILE_BYTES_MAX + 1)
    if len(body) > _FILE_BYTES_MAX:
        raise ConfigError("read client directory", path, "larger than 64 MiB", "split off what is no client")
    try:
        text = body.decode("utf-8-sig")
        if path.lower().endswith(".csv"):
            return _contents(csv.DictReader(text.splitlines()), path)
        entries = json.loads(text)
    except (ValueError, RecursionError, csv.Error) as e:
        raise ConfigError("read client directory", path, f"neither JSON nor CSV: {e}", _HINT) from e
    if isinstance(entries, dict):
        entries = entries.get("clients")
    if not isinstance(entries, list):
        raise ConfigError("read client directory", path, "not a list of clients", _HINT)
    return _contents(entries, path)


class ClientDirectory:
    """The clients of a directory file, or none when there is no file.

    Args:
        path: a `.csv` file with a heading line, or JSON: a list of clients, or an object with the list as `clients`.

    Never raises. Lookups are safe from any thread: `_now` is replaced as a whole, by the one reader thread.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._now = _EMPTY
        self._reading = threading.Lock()  # held by the one thread that reads the file
        self._seen: tuple[int, int, int] | None = None  # the file's state when last read; under `_reading`
        self._look_after_s = 0.0  # written by whoever looks; a race means one more look
        self.version = 0
        """Grows whenever the contents change, so that what was derived from them can be forgotten."""
        if path is not None:
            self._read()

    def by_key(self, key: bytes) -> Client | None:
        """The client that `key` belongs to."""
        return self._now.by_key.get(hashlib.sha256(key).digest())

    def by_id(self, client_id: str) -> Client | None:
        """The client with this id."""
        return self._now.by_id.get(client_id)

    def __len__(self) -> int:
        return len(self._now.by_id)

    def refresh(self) -> None:
        """Have the file read again if it has changed; returns at once."""
        if self._path is None or time.monotonic() < self._look_after_s:
            return
        self._look_after_s = time.monotonic() + _LOOK_INTERVAL_S
        if self._state() != self._seen and not self._reading.locked():
            threading.Thread(target=self._read, name="otel-audit-clients", daemon=True).start()

    def after_fork(self) -> None:
        """Forget a reader thread of the parent process, which this process does not have."""
        self._reading = threading.Lock()

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = Path(self._path or "").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> None:
        with self._reading:
            state = self._state()
            if state is not None and state == self._seen:
                return
            self._seen = state
            try:
                self._now = _parse(self._path or "")
                self.version += 1
            except ConfigError as e:
                _log.warning("%s (clients known so far: %d)", e, len(self))
            except Exception as e:
                hint = "set OTEL_AUDIT_CLIENTS to a file this process can read"
                _log.warning(
                    "read client directory %s: %s; %s (clients known so far: %d)", self._path, e, hint, len(self)
                )
