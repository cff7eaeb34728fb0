"""The client directory: which API client a key belongs to, and what clients are called.

A YAML, JSON or CSV file that the operator keeps, or a callable of the service's own. Keys may stand in it in clear or as
SHA-256; in memory only hashes are kept. It is read again when it changes, in a thread of its own, so no request waits for
it; one that cannot be read leaves the directory as it was.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from otel_audit import names
from otel_audit.capture._watch import Watched, load_callable, read_file
from otel_audit.errors import ConfigError

__all__ = ["Client", "ClientDirectory"]

_READ: Final = "read client directory"
_FILE_BYTES_MAX: Final = 64 * 1024 * 1024
_HINT: Final = "each client needs an id, and may have a name and key or key_sha256; see docs/identity.md"


class Client(NamedTuple):
    """An API client as the directory knows it."""

    id: str
    name: str | None


class _Contents(NamedTuple):
    by_key: Mapping[bytes, Client]
    by_id: Mapping[str, Client]


_EMPTY: Final = _Contents({}, {})


# --- one entry ----------------------------------------------------------------------------------------------------------
def _text(value: object) -> str:
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _digests(entry: Mapping[str, Any], where: str) -> Iterator[bytes]:
    for column, hashed in (("key", False), ("keys", False), ("key_sha256", True)):
        values = entry.get(column)
        for value in values if isinstance(values, list | tuple) else [values]:
            key = _text(value)
            if not key:
                continue
            if not hashed:
                yield hashlib.sha256(key.encode("utf-8", "backslashreplace")).digest()
                continue
            try:
                digest = bytes.fromhex(key.removeprefix("sha256:"))
            except ValueError:
                digest = b""
            if len(digest) != 32:
                raise ConfigError(_READ, where, "key_sha256 is not 64 hex digits", _HINT)
            yield digest


def _contents(entries: Iterable[tuple[str, object]]) -> _Contents:
    """The directory that these entries make; with each entry, where it stands."""
    by_key: dict[bytes, Client] = {}
    by_id: dict[str, Client] = {}
    for where, entry in entries:
        if not isinstance(entry, Mapping) or not _text(entry.get("id")):
            raise ConfigError(_READ, where, "no id", _HINT)
        client = Client(_text(entry["id"]), _text(entry.get("name")) or None)
        known = by_id.setdefault(client.id, client)
        if known.name is None and client.name is not None:
            by_id[client.id] = client
        for digest in _digests(entry, where):
            if by_key.setdefault(digest, client).id != client.id:
                raise ConfigError(_READ, where, "its key is another client's too", "give each its own")
    return _Contents({digest: by_id[client.id] for digest, client in by_key.items()}, by_id)


# --- formats ------------------------------------------------------------------------------------------------------------
def _csv(text: str, path: str) -> Iterator[tuple[str, object]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if "id" not in (reader.fieldnames or ()):
        raise ConfigError(_READ, f"{path}, line 1", "the heading has no column id", _HINT)
    for entry in reader:
        yield f"{path}, line {reader.line_num}", entry


def _json(text: str, path: str) -> Iterator[tuple[str, object]]:
    return _numbered(json.loads(text), path)


def _yaml(text: str, path: str) -> Iterator[tuple[str, object]]:
    try:
        import yaml
    except ImportError as e:
        hint = "install pyyaml, or write the directory as JSON or CSV"
        raise ConfigError(_READ, path, "YAML needs PyYAML, which is not installed", hint) from e
    try:
        # Makes no objects, and leaves every scalar as it is written: an id 007 or a key 1e5 is no number.
        document = yaml.load(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))  # noqa: S506
    except yaml.YAMLError as e:  # whose own text quotes the file, in which there may be keys
        mark, problem = getattr(e, "problem_mark", None), getattr(e, "problem", None) or type(e).__name__
        where = f"{path}, line {mark.line + 1}" if mark is not None else path
        raise ConfigError(_READ, where, f"not YAML: {problem}", _HINT) from e
    return _numbered(document, path)


def _numbered(document: object, where: str) -> Iterator[tuple[str, object]]:
    entries = document.get("clients") if isinstance(document, Mapping) else document
    if isinstance(entries, str | bytes | Mapping) or not isinstance(entries, Iterable):
        raise ConfigError(_READ, where, "not a list of clients", _HINT)
    return ((f"{where}, client {number}", entry) for number, entry in enumerate(entries, 1))


def _parse(path: str) -> _Contents:
    body = read_file(path, _READ, _FILE_BYTES_MAX)
    ending = path.lower().rpartition(".")[2]
    kind, parse = {"csv": ("CSV", _csv), "yaml": ("YAML", _yaml), "yml": ("YAML", _yaml)}.get(ending, ("JSON", _json))
    try:
        return _contents(parse(body.decode("utf-8-sig"), path))
    except RecursionError as e:
        raise ConfigError(_READ, path, "nested too deeply", _HINT) from e
    except (ValueError, csv.Error) as e:
        hint = "the ending says the format: .yaml, .yml, .csv, else JSON"
        raise ConfigError(_READ, path, f"not {kind}: {e}", hint) from e


class ClientDirectory(Watched):
    """The clients of a directory, or none when there is no source.

    Args:
        source: a file, `.csv` with a heading line, `.yaml` or `.yml`, else JSON: a list of clients, or an object with the
            list as `clients`; or `module:callable`, which gives the same without an argument.

    Never raises. Lookups are safe from any thread: `_now` is replaced as a whole, by the one reader thread.
    """

    def __init__(self, source: str | None = None) -> None:
        hint = f"set {names.ENV_CLIENTS} to a file this process can read, or to module:callable"
        super().__init__(source, "client directory", hint, callable_allowed=True)
        self._now = _EMPTY
        self._callable: Callable[[], object] | None = None  # under `_reading`
        if source is not None and not self._calls:
            self._read()

    def by_key(self, key: bytes) -> Client | None:
        """The client that `key` belongs to."""
        return self._now.by_key.get(hashlib.sha256(key).digest())

    def by_id(self, client_id: str) -> Client | None:
        """The client with this id."""
        return self._now.by_id.get(client_id)

    def __len__(self) -> int:
        return len(self._now.by_id)

    def _take(self, source: str) -> bool:
        if self._calls:
            if self._callable is None:
                self._callable = load_callable(source, names.ENV_CLIENTS)
            found = _contents(_numbered(self._callable(), source))
        else:
            found = _parse(source)
        if found == self._now and self.version:
            return False
        self._now = found
        return True
