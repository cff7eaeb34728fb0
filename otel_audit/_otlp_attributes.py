"""Attributes: from the raw bytes of one key-value pair to the column it fills, remembered by those bytes.

`Memo` is a dictionary from raw attribute to (slot, value). Most attributes of a request have been seen before, byte for
byte, and cost one look-up; what was not is read here, quickly when it has the plain form every exporter writes, else
through the parser, with every oddity turned into text, a problem, or both.
"""

import base64
import json
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from otel_audit import _otlp_rules as rules
from otel_audit import _otlp_schema as wire
from otel_audit import names
from otel_audit.record import INT_MAX

__all__ = [
    "ATTRIBUTES_BYTES_MAX",
    "COLUMN_BYTES_MAX",
    "DEPTH_MAX",
    "MARK",
    "Extra",
    "Memo",
    "Notes",
    "Slot",
    "cut",
    "fragment",
    "text_of",
]

COLUMN_BYTES_MAX: Final = 16 * 1024
"""Longest text of one column, in bytes of UTF-8; what is longer is cut and noted."""
ATTRIBUTES_BYTES_MAX: Final = 64 * 1024
"""Longest JSON of developer attributes; what does not fit is left out and noted."""
DEPTH_MAX: Final = 16
"""Deepest nesting of developer attributes; what lies deeper is left out and noted."""


class Slot:
    """Numbers of the values that a record is made of; several may fill one column, the better source winning."""

    END, IGNORED, EXTRA = -1, 0, 1
    CLIENT_ID, CLIENT_NAME, CLIENT_AUTH, CLIENT_IP, CLIENT_IP_SOURCE, AUDIT_PEER_IP = 2, 3, 4, 5, 6, 7
    SERVICE, ACTION, OUTCOME, TARGET_ID, SOURCE_ID, SOURCE_SEQ = 8, 9, 10, 11, 12, 13
    METHOD, METHOD_OLD, ROUTE, STATUS, STATUS_OLD = 14, 15, 16, 17, 18
    URL_PATH, HTTP_TARGET, URL_FULL, HTTP_URL = 19, 20, 21, 22
    RPC_SYSTEM, RPC_SERVICE, RPC_METHOD, RPC_STATUS, RPC_STATUS_OLD = 23, 24, 25, 26, 27
    CLIENT_ADDRESS, HTTP_CLIENT_IP, PEER, PEER_SOCK, PEER_NET = 28, 29, 30, 31, 32
    USER_ID, ENDUSER_ID = 33, 34
    SERVICE_NAME, SERVICE_VERSION, INSTANCE, HOST, ENVIRONMENT, ENVIRONMENT_OLD = 35, 36, 37, 38, 39, 40
    SPAN_STATUS, EXCEPTION = 41, 42  # of the span itself
    COUNT = 43

    LATE = frozenset({SOURCE_SEQ, URL_FULL, HTTP_URL})
    """Slots whose value is the raw attribute: read a column at a time, or only where nothing better is said."""


class Extra(NamedTuple):
    """An attribute that does more than fill a slot.

    Args:
        slot: the slot it fills, or IGNORED.
        value: the slot's value.
        key: attribute name, when it goes into the column `attributes`.
        json: its member there, `"key":value`, canonical; None when it has no value.
        problems: what the record must say about it.
        lossy: why the record does not hold all of it, so that the span must be kept as well; empty if it does.
    """

    slot: int
    value: Any
    key: str | None
    json: str | None
    problems: tuple[str, ...]
    lossy: tuple[str, ...]


Entry = tuple[int, Any]
MARK: Final = secrets.token_bytes(16)
"""Stands where an attribute may, to tell the attributes of one span from the next; no sender can know it."""
_NOTHING: Final[Entry] = (Slot.IGNORED, None)


# --- text ---------------------------------------------------------------------------------------------------------------
class Notes:
    """Problems met while reading one value; `lossy` ones mean that the record does not hold all of it."""

    __slots__ = ("lossy", "problems")

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.lossy: list[str] = []

    def note(self, problem: str, *, lossy: bool) -> None:
        """Remember a problem once."""
        if problem not in self.problems:
            self.problems.append(problem)
        if lossy and problem not in self.lossy:
            self.lossy.append(problem)

    def take(self, problems: Iterable[str], lossy: Iterable[str]) -> None:
        """Add what was met elsewhere."""
        self.problems.extend(p for p in problems if p not in self.problems)
        self.lossy.extend(p for p in lossy if p not in self.lossy)


def text_of(data: bytes, column: str, notes: Notes) -> str:
    """`data` as text; bytes that are not UTF-8 become backslash escapes and are noted."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        notes.note(f"invalid_utf8:{column}", lossy=False)
        return data.decode("utf-8", "backslashreplace")


def cut(text: str, column: str, notes: Notes) -> str:
    """`text`, cut to `COLUMN_BYTES_MAX` bytes if it is longer, which is noted."""
    if len(text) * 4 <= COLUMN_BYTES_MAX:
        return text
    data = text.encode()
    if len(data) <= COLUMN_BYTES_MAX:
        return text
    notes.note(f"oversize:{column}", lossy=True)
    return data[:COLUMN_BYTES_MAX].decode("utf-8", "ignore")


def _double(value: float) -> str:
    if value != value:  # noqa: PLR0124 - NaN alone differs from itself
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


# --- AnyValue ---------------------------------------------------------------------------------------------------------
def _json_value(data: bytes, notes: Notes, depth: int) -> Any:
    """An AnyValue as JSON-able value: floats, great integers and bytes as text; None when it is empty.

    Lists and maps count as one level of `depth` each, down to `DEPTH_MAX`. Raises `ProtobufError`.
    """
    value = wire.parse_any_value(data)
    which = value.WhichOneof("value")
    if which is None:
        return None
    found = getattr(value, which)
    if which not in ("array_value", "kvlist_value"):
        return _json_scalar(which, found, notes)
    if depth >= DEPTH_MAX:
        notes.note("depth:attributes", lossy=True)
        return None
    if which == "array_value":
        items = [_json_value(item, notes, depth + 1) for item in wire.parse_array(found).values]
        return [item for item in items if item is not None]
    members = {}
    for item in wire.parse_kvlist(found).values:
        pair = wire.parse_key_value(item)
        member = _json_value(pair.value, notes, depth + 1)
        if member is not None:
            members[text_of(pair.key, "attributes", notes)] = member
    return members


def _json_scalar(which: str, found: Any, notes: Notes) -> str | int | bool:
    if which == "string_value":
        return text_of(found, "attributes", notes)
    if which == "bytes_value":
        return base64.b64encode(found).decode()
    if which == "double_value":
        return _double(found)
    if which == "int_value" and not -INT_MAX <= found <= INT_MAX:
        return str(found)
    return found  # type: ignore[no-any-return]


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value, key=_utf16)}
    return [_sorted(v) for v in value] if isinstance(value, list) else value


_dump: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def fragment(key: str, value: Any) -> str:
    """One member of the column `attributes`, as `record.canonical_attributes` writes it."""
    return f"{_dump(key)}:{_dump(_sorted(value))}"


def _column_value(data: bytes, column: str, notes: Notes) -> str | int | float | None:
    """An AnyValue for a column: text, or the number it holds; bool, bytes, lists and maps become text."""
    value = wire.parse_any_value(data)
    which = value.WhichOneof("value")
    if which is None:
        return None
    found: Any = getattr(value, which)
    if which == "string_value":
        return text_of(found, column, notes)
    if which in ("int_value", "double_value"):
        return found  # type: ignore[no-any-return]
    if which == "bool_value":
        return "true" if found else "false"
    if which == "bytes_value":
        return base64.b64encode(found).decode()
    notes.note(f"invalid:{column}", lossy=True)
    if len(found) > COLUMN_BYTES_MAX:
        return None
    inside = Notes()
    return fragment("", _json_value(data, inside, 0)).partition(":")[2]


# --- what becomes of a column's value -----------------------------------------------------------------------------------
def _as_text(value: str | float, column: str, notes: Notes) -> str | None:
    text = value if isinstance(value, str) else _double(value) if isinstance(value, float) else str(value)
    return cut(text, column, notes) or None


def _as_int(value: str | float, column: str, notes: Notes, bound: int) -> int | None:
    """A whole number within ±`bound`; text of one counts; anything else is noted and left out."""
    try:
        number = int(value) if not isinstance(value, str) or len(value) <= 32 else None
    except (ValueError, OverflowError):  # not a number; NaN, infinity
        number = None
    if number is None or (isinstance(value, float) and number != value):
        notes.note(f"invalid:{column}", lossy=True)
        return None
    if not -bound <= number <= bound:
        notes.note(f"out_of_range:{column}", lossy=True)
        return None
    return number


def _as_status(value: str | float, column: str, notes: Notes) -> int | None:
    return _as_int(value, column, notes, 2**15 - 1)


def _as_rpc_status(value: str | float, column: str, notes: Notes) -> int | None:
    code = rules.rpc_status(value) if isinstance(value, str) else None
    return code if code is not None else _as_status(value, column, notes)


def _as_seq(value: str | float, column: str, notes: Notes) -> int | None:
    return _as_int(value, column, notes, INT_MAX)


def _as_address(value: str | float, column: str, notes: Notes) -> str | None:
    text = _as_text(value, column, notes)
    return rules.address(text) or None if text else None


def _as_path(value: str | float, column: str, notes: Notes) -> str | None:
    text = value if isinstance(value, str) else str(value)
    return cut(rules.path_of_target(text), column, notes) or None


def _as_url(value: str | float, column: str, notes: Notes) -> str | None:
    text = value if isinstance(value, str) else str(value)
    return cut(rules.path_of_url(text), column, notes) or None


def _as_outcome(value: str | float, column: str, notes: Notes) -> str | None:
    found = rules.outcome(value) if isinstance(value, str) else None
    if found is None and value != "":
        notes.note(f"invalid:{column}", lossy=False)  # `_extra` keeps what was said
    return found


Convert = Callable[[str | float, str, Notes], Any]


class _Field(NamedTuple):
    """Where an attribute goes: its slot, the column (for problems), how its value is read."""

    slot: int
    column: str
    convert: Convert
    key: str


def _fields() -> dict[str, _Field]:
    text, addr, status, rpc = _as_text, _as_address, _as_status, _as_rpc_status
    table: list[tuple[str, int, str, Convert]] = [
        (names.CLIENT_ID, Slot.CLIENT_ID, "client_id", text),
        (names.CLIENT_NAME, Slot.CLIENT_NAME, "client_name", text),
        (names.CLIENT_AUTH, Slot.CLIENT_AUTH, "client_auth", text),
        (names.CLIENT_IP, Slot.CLIENT_IP, "client_ip", addr),
        (names.CLIENT_IP_SOURCE, Slot.CLIENT_IP_SOURCE, "client_ip_source", text),
        (names.PEER_IP, Slot.AUDIT_PEER_IP, "peer_ip", addr),
        (names.SERVICE, Slot.SERVICE, "service", text),
        (names.ACTION, Slot.ACTION, "action", text),
        (names.OUTCOME, Slot.OUTCOME, "outcome", _as_outcome),
        (names.TARGET_ID, Slot.TARGET_ID, "target", text),
        (names.SOURCE_ID, Slot.SOURCE_ID, "source_id", text),
        (names.SOURCE_SEQ, Slot.SOURCE_SEQ, "source_seq", _as_seq),
        (names.HTTP_METHOD[0], Slot.METHOD, "method", text),
        (names.HTTP_METHOD[1], Slot.METHOD_OLD, "method", text),
        (names.HTTP_ROUTE[0], Slot.ROUTE, "route", text),
        (names.HTTP_STATUS[0], Slot.STATUS, "status_code", status),
        (names.HTTP_STATUS[1], Slot.STATUS_OLD, "status_code", status),
        (names.URL_PATH[0], Slot.URL_PATH, "target", _as_path),
        (names.HTTP_TARGET[0], Slot.HTTP_TARGET, "target", _as_path),
        (names.HTTP_URL[0], Slot.URL_FULL, "target", _as_url),
        (names.HTTP_URL[1], Slot.HTTP_URL, "target", _as_url),
        (names.RPC_SYSTEM[0], Slot.RPC_SYSTEM, "method", text),
        (names.RPC_SYSTEM[1], Slot.RPC_SYSTEM, "method", text),
        (names.RPC_SERVICE[0], Slot.RPC_SERVICE, "method", text),
        (names.RPC_METHOD[0], Slot.RPC_METHOD, "method", text),
        (names.RPC_STATUS[0], Slot.RPC_STATUS, "status_code", rpc),
        (names.RPC_STATUS[1], Slot.RPC_STATUS_OLD, "status_code", rpc),
        (names.CLIENT_ADDRESS[0], Slot.CLIENT_ADDRESS, "client_ip", addr),
        (names.CLIENT_ADDRESS[1], Slot.HTTP_CLIENT_IP, "client_ip", addr),
        (names.PEER_ADDRESS[0], Slot.PEER, "peer_ip", addr),
        (names.PEER_ADDRESS[1], Slot.PEER_SOCK, "peer_ip", addr),
        (names.PEER_ADDRESS[2], Slot.PEER_NET, "peer_ip", addr),
        (names.USER_ID[0], Slot.USER_ID, "user_id", text),
        (names.USER_ID[1], Slot.ENDUSER_ID, "user_id", text),
        (names.SERVICE_NAME, Slot.SERVICE_NAME, "service", text),
        (names.SERVICE_VERSION, Slot.SERVICE_VERSION, "service_version", text),
        (names.SERVICE_INSTANCE, Slot.INSTANCE, "instance", text),
        (names.HOST_NAME, Slot.HOST, "instance", text),
        (names.ENVIRONMENT[0], Slot.ENVIRONMENT, "environment", text),
        (names.ENVIRONMENT[1], Slot.ENVIRONMENT_OLD, "environment", text),
    ]
    return {key: _Field(slot, column, convert, key) for key, slot, column, convert in table}


FIELDS: Final = _fields()
_VARYING: Final = (
    "client.port", "net.peer.port", "net.sock.peer.port", "network.peer.port", "url.query", "thread.id",
    "http.request.body.size", "http.response.body.size", "http.request_content_length", "http.response_content_length",
)  # fmt: skip
"""Attributes that no column takes and that seldom repeat."""


def _prefix(key: str) -> bytes:
    """The bytes that begin an attribute in its plain form: the key, then the tag of the value."""
    return b"\x0a" + bytes([len(key)]) + key.encode() + b"\x12"


_PREFIXES: Final = {_prefix(k): f for k, f in FIELDS.items()}
_AUDIT: Final = names.AUDIT_PREFIX.encode()
_KEYS: Final = {k.encode(): f for k, f in FIELDS.items()}

# Attributes that differ from call to call: remembering them would cost more than reading them, and push out the rest.
_PATH, _LATE, _PASS = 0, 1, 2
_ONCE: Final = {
    **{_prefix(f.key): (f.slot, _LATE) for f in FIELDS.values() if f.slot in Slot.LATE},
    **{_prefix(key): (FIELDS[key].slot, _PATH) for key in (*names.URL_PATH, *names.HTTP_TARGET)},
    **{_prefix(key): (Slot.IGNORED, _PASS) for key in _VARYING},
}
_PATH_HEADS: Final = [bytes([max(n - 1, 0) % 256, 0x0A, max(n - 3, 0) % 256, ord("/")]) for n in range(131)]
"""What a path of the plain form begins with after its prefix, by the number of bytes after the prefix."""


# --- one attribute ------------------------------------------------------------------------------------------------------
def _extra(field: _Field, value: Any, said: Any, notes: Notes) -> Entry:
    """An entry for a column's value that brought problems; a refused outcome is kept among the other attributes."""
    keep = field.key if field.slot == Slot.OUTCOME and value is None else None
    member = fragment(keep, _as_text(said, field.column, notes)) if keep else None
    return Slot.EXTRA, Extra(field.slot, value, keep, member, tuple(notes.problems), tuple(notes.lossy))


def _developer(key: bytes, data: bytes) -> Entry:
    """An `audit.*` attribute that no column takes."""
    notes = Notes()
    name = text_of(key, "attributes", notes)
    if len(data) > ATTRIBUTES_BYTES_MAX:
        notes.note("oversize:attributes", lossy=True)
        member = None
    else:
        value = _json_value(data, notes, 0)
        member = None if value is None else fragment(name, value)
    return Slot.EXTRA, Extra(Slot.IGNORED, None, name, member, tuple(notes.problems), tuple(notes.lossy))


def read(raw: bytes) -> Entry:
    """The entry of one attribute, whatever it holds, also of those that are read late; never raises."""
    try:
        pair = wire.parse_key_value(raw)
        field = _KEYS.get(pair.key)
        if field is None:
            return _developer(pair.key, pair.value) if pair.key.startswith(_AUDIT) else _NOTHING
        notes = Notes()
        said = _column_value(pair.value, field.column, notes)
    except wire.ProtobufError:
        problems = ("undecodable:attributes",)
        return Slot.EXTRA, Extra(Slot.IGNORED, None, None, None, problems, problems)
    value = None if said is None else field.convert(said, field.column, notes)
    return _extra(field, value, said, notes) if notes.problems else (field.slot, value)


class _Noted(Exception):  # noqa: N818 - a signal, never seen outside
    pass


class _NoNotes(Notes):
    """For where no problem is expected: the first one ends the attempt."""

    def note(self, problem: str, *, lossy: bool) -> None:
        raise _Noted(problem, lossy)


_NO_NOTES: Final = _NoNotes()


def _key_first(raw: bytes) -> bytes:
    """An attribute of the plain form with its key before its value: Collectors write every message from its end."""
    at = raw[1] + 2  # after the value
    if raw[0] == 0x12 and raw[1] < 0x80 and raw[at] == 0x0A and raw[at + 1] == len(raw) - at - 2:
        return raw[at:] + raw[:at]
    return raw


def _read_first(raw: bytes) -> Entry:
    """The entry of an attribute that was not seen before, quickly when it has the plain form that exporters write."""
    size = len(raw)
    if size < 130:  # then every length in it is one byte
        try:
            at = raw[1] + 3  # after key and the value's tag
            field = _PREFIXES.get(raw[:at])
            if raw[at] == size - at - 1:  # the value is all that follows
                is_text = raw[at + 1] == 0x0A and raw[at + 2] == size - at - 3
                if field is not None:
                    if is_text:
                        return field.slot, field.convert(raw[at + 3 :].decode(), field.column, _NO_NOTES)
                elif raw[0] == 0x0A and raw[at - 1] == 0x12:
                    if raw[2:8] != _AUDIT:
                        return _NOTHING
                    if is_text:
                        key = raw[2 : at - 1].decode()
                        member = fragment(key, raw[at + 3 :].decode())
                        return Slot.EXTRA, Extra(Slot.IGNORED, None, key, member, (), ())
        except (IndexError, UnicodeDecodeError, _Noted):
            pass
    entry = read(raw)
    slot = entry[1].slot if entry[0] == Slot.EXTRA else entry[0]
    return entry if slot not in Slot.LATE else (slot, raw)


class Memo(dict[bytes, Entry]):
    """Entries of attributes by their raw bytes; look up with `memo[raw]`, which never fails.

    Bounded by two generations: when this one is full it takes nothing more, and `next` gives a fresh one that falls back
    on it, so that what is in use moves over and what is not is forgotten. A flood of distinct attributes costs reading
    each, never memory.

    Any thread may look up at any time without a lock: a dictionary's own operations are atomic, entries never change, and
    two threads that read the same attribute store equal entries. `_cost` may lose an update then; it is an estimate.
    """

    __slots__ = ("_cost", "_older", "full")

    COST_MAX = 16 * 1024 * 1024
    """Estimated bytes of memory that one generation may take."""
    RAW_MAX = 256
    """Longest attribute that is remembered, in bytes."""

    def __init__(self, older: "Memo | None" = None) -> None:
        super().__init__()
        self[MARK] = (Slot.END, None)
        self._older = older
        self._cost = 0
        self.full = False

    def next(self) -> "Memo":
        """The generation after this one; this one's own older generation is let go."""
        self._older = None
        return Memo(self)

    def __missing__(self, raw: bytes) -> Entry:
        plain = raw
        try:
            if raw[0] == 0x12:
                plain = _key_first(raw)
            at = plain[1] + 3
            slot, how = _ONCE[plain[:at]]
            if not how:  # _PATH
                if plain[at : at + 4] == _PATH_HEADS[len(plain) - at]:
                    path = plain[at + 3 :].decode()
                    if "?" not in path and "#" not in path:
                        return slot, path
            elif how == _LATE:
                return slot, plain
            elif plain[at] == len(plain) - at - 1:  # _PASS; nothing follows the value, no other key for one
                return _NOTHING
        except (KeyError, IndexError, UnicodeDecodeError):
            pass
        return self._remember(raw, plain)

    def _remember(self, raw: bytes, plain: bytes) -> Entry:
        older = self._older
        entry = None if older is None else older.get(raw)
        if entry is None:
            entry = _read_first(plain)
        if not self.full and len(raw) <= self.RAW_MAX and entry[0] not in Slot.LATE:
            self._cost += 240 + 2 * len(raw)
            if entry[0] == Slot.EXTRA:
                self._cost += 600 + 2 * len(entry[1].json or "")
            self[raw] = entry
            self.full = self._cost > self.COST_MAX
        return entry
