"""The audit record: which columns exist, what an outcome means, and how a record is written canonically.

Nothing else defines a column. `otlp` fills the columns that come from a span, `auditlog` adds the three it assigns
(`recorded_at`, `log`, `seq`); the canonical line is what is hashed and what the JSONL export prints.

This module needs the standard library alone, except `schema()` and `canonical_lines()`, which work on Arrow.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

from otel_audit.errors import RecordError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ASSIGNED",
    "CANONICAL_FORM",
    "COLUMNS",
    "INT_MAX",
    "OUTCOMES",
    "Column",
    "Outcome",
    "Quarantined",
    "canonical",
    "canonical_attributes",
    "canonical_lines",
    "format_time",
    "leaf_hash",
    "outcome_of",
    "parse",
    "parse_time",
    "schema",
    "span_schema",
]

CANONICAL_FORM: Final = "otel-audit-json/1"
INT_MAX: Final = 2**53 - 1
"""Largest magnitude of an integer that every JSON reader keeps exactly (RFC 8785, section 3.2.2.3)."""

Outcome = Literal["success", "denied", "failure", "error", "unknown"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("success", "denied", "failure", "error", "unknown")

Kind = Literal["string", "int64", "int16", "time", "bytes16", "bytes8", "json"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the record.

    Args:
        name: column name and canonical key.
        kind: value type; `time` is microseconds since 1970 UTC, `json` a canonical JSON object as text.
        required: whether every record has a value.
        title: what people call it; the first seven are the words of the API Audit Logs page.
    """

    name: str
    kind: Kind
    required: bool
    title: str


COLUMNS: Final[tuple[Column, ...]] = (
    Column("time", "time", True, "Execution Time"),
    Column("duration_ns", "int64", False, "Duration"),
    Column("client_id", "string", False, "API Client ID"),
    Column("client_name", "string", False, "API Client Name"),
    Column("client_auth", "string", False, "Credential"),
    Column("user_id", "string", False, "User"),
    Column("service", "string", True, "Service"),
    Column("action", "string", True, "Action"),
    Column("target", "string", False, "Target"),
    Column("outcome", "string", True, "Outcome"),
    Column("status_code", "int16", False, "Status"),
    Column("method", "string", False, "Method"),
    Column("route", "string", False, "Route"),
    Column("client_ip", "string", False, "Client IP Address"),
    Column("client_ip_source", "string", False, "Client IP Source"),
    Column("peer_ip", "string", False, "Peer IP Address"),
    Column("trace_id", "bytes16", True, "Trace"),
    Column("span_id", "bytes8", True, "Span"),
    Column("environment", "string", False, "Environment"),
    Column("service_version", "string", False, "Service Version"),
    Column("instance", "string", False, "Instance"),
    Column("source_id", "string", False, "Source"),
    Column("source_seq", "int64", False, "Source Number"),
    Column("attributes", "json", False, "Attributes"),
    Column("recorded_at", "time", True, "Recorded At"),
    Column("log", "string", True, "Log"),
    Column("seq", "int64", True, "Number"),
)
ASSIGNED: Final = ("recorded_at", "log", "seq")
"""Columns that the log assigns on append; all others come from the span."""

_BY_NAME: Final = {c.name: c for c in COLUMNS}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_MIN_US: Final = -62_135_596_800_000_000  # 0001-01-01
_TIME_MAX_US: Final = 253_402_300_799_999_999  # 9999-12-31


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Data that could not become a record, or not wholly; kept as it came, with the reason.

    Args:
        reason: short machine-readable word, e.g. `span_undecodable`, `trace_id_invalid`, `time_missing`, `oversize`.
        detail: one sentence for a person.
        payload: the bytes as received (one span, or a whole request).
        kind: what the payload is: `otlp.span+protobuf`, `otlp.span+json`, `otlp.request+protobuf`, `otlp.request+json`,
            and of logs `otlp.log_record+…` and `otlp.logs_request+…`; with `+gzip` or `+zlib` behind it where it could
            not be decompressed.
        service: `service.name` of the sender where known.
        recorded: whether a record of the call exists all the same (with `otel_audit.problems` naming this).
    """

    reason: str
    detail: str
    payload: bytes
    kind: str
    service: str | None = None
    recorded: bool = False


# --- outcome ------------------------------------------------------------------------------------------------------------
_HTTP_DENIED: Final = frozenset({401, 403, 407, 429, 451})
_RPC_DENIED: Final = frozenset({7, 16})  # PERMISSION_DENIED, UNAUTHENTICATED
_RPC_ERROR: Final = frozenset({2, 4, 12, 13, 14, 15})  # the server's fault, by the RPC semantic conventions


def outcome_of(*, status_code: int | None, rpc: bool, span_error: bool, span_ok: bool, exception: bool) -> Outcome:
    """The outcome of a call from what its span says.

    A call that was refused (no credential, no right, over its allowance) is `denied`; one that was the caller's mistake
    is `failure`; one that was the service's is `error`. An exception that left no status, or gRPC's misleading status 0
    beside an exception, is an `error`: a call that ended in an exception never counts as a success.

    Args:
        status_code: HTTP or gRPC status; None when the span has none.
        rpc: whether `status_code` is a gRPC status.
        span_error: span status is ERROR.
        span_ok: span status is OK, which only the application sets.
        exception: the span carries an exception event.

    Source: OpenTelemetry semantic conventions for HTTP and gRPC server spans, "Status".
    """
    if status_code is None or (rpc and not 0 <= status_code <= 16) or (not rpc and not 100 <= status_code <= 599):
        if span_error or exception:
            return "error"
        return "success" if span_ok else "unknown"
    if rpc:
        if status_code == 0:
            return "error" if (exception and not span_ok) or span_error else "success"
        if status_code in _RPC_DENIED:
            return "denied"
        return "error" if status_code in _RPC_ERROR else "failure"
    if status_code >= 500:
        return "error"
    if status_code in _HTTP_DENIED:
        return "denied"
    if status_code >= 400:
        return "failure"
    return "error" if span_error else "success"


# --- times --------------------------------------------------------------------------------------------------------------
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z")


def format_time(us: int) -> str:
    """RFC 3339 with six decimals and `Z`, from microseconds since 1970 UTC (years 1 to 9999)."""
    if not _TIME_MIN_US <= us <= _TIME_MAX_US:
        raise RecordError("format time", us, "outside the years 1 to 9999")
    return (_EPOCH + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


def parse_time(text: str) -> int:
    """Microseconds since 1970 UTC of a canonical time."""
    if not _TIME.match(text):
        raise RecordError("parse time", text, "not of the form 2026-11-23T08:00:00.000000Z")
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError as e:
        raise RecordError("parse time", text, str(e)) from e
    return (moment - _EPOCH) // timedelta(microseconds=1)


# --- canonical form -----------------------------------------------------------------------------------------------------
def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _canonical_value(value: object, subject: str) -> object:
    """`value` with every object's keys in RFC 8785 order; raises `RecordError` on what the form does not allow."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if not -INT_MAX <= value <= INT_MAX:
            raise RecordError("write canonically", subject, f"integer {value} is outside ±(2^53-1)", "pass it as text")
        return value
    if isinstance(value, list | tuple):
        return [_canonical_value(v, subject) for v in value]
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise RecordError("write canonically", subject, "an object key is not a string")
        return {k: _canonical_value(value[k], subject) for k in sorted(value, key=_utf16)}
    kind = type(value).__name__
    raise RecordError("write canonically", subject, f"{kind} has no canonical form", "pass it as text")


def canonical_attributes(attributes: Mapping[str, object]) -> str:
    """The canonical JSON object of developer attributes: str, bool, int, and lists and objects of them.

    Keys are in RFC 8785 order (UTF-16 code units). Raises `RecordError` on floats, null and integers outside ±(2^53-1):
    `otlp` turns those into text first.
    """
    return _dump(_canonical_value(attributes, "attributes"))


def _hex(value: Any, column: Column) -> str:
    size = 16 if column.kind == "bytes16" else 8
    if isinstance(value, str):
        try:
            value = bytes.fromhex(value)
        except ValueError as e:
            raise RecordError("write canonically", column.name, "not lower-case hex") from e
    if not isinstance(value, bytes) or len(value) != size:
        raise RecordError("write canonically", column.name, f"needs {size} bytes")
    return value.hex()


def _column_text(column: Column, value: Any) -> str:
    if column.kind == "time":
        if isinstance(value, datetime):
            value = (value - _EPOCH) // timedelta(microseconds=1)
        return _dump(value if isinstance(value, str) and parse_time(value) is not None else format_time(value))
    if column.kind in ("bytes16", "bytes8"):
        return _dump(_hex(value, column))
    if column.kind == "json":
        parsed = json.loads(value) if isinstance(value, str) else value
        return canonical_attributes(parsed)
    if column.kind == "string":
        if not isinstance(value, str):
            raise RecordError("write canonically", column.name, f"needs text, not {type(value).__name__}")
        return _dump(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecordError("write canonically", column.name, f"needs an integer, not {type(value).__name__}")
    return _dump(_canonical_value(value, column.name))


_SORTED: Final = tuple(sorted(COLUMNS, key=lambda c: c.name))


def canonical(record: Mapping[str, Any]) -> bytes:
    """The canonical line of one record, UTF-8, without a line end.

    Args:
        record: column name to value; None and absent are the same. Times are int microseconds, aware datetimes or
            canonical text; ids are bytes or hex; `attributes` is a mapping or its JSON text.

    Raises:
        RecordError: unknown column, missing required column, or a value that has no canonical form.

    Source: RFC 8785, restricted as `CANONICAL_FORM` says: no floats, no null, integers within ±(2^53-1).
    """
    unknown = record.keys() - _BY_NAME.keys()
    if unknown:
        raise RecordError("write canonically", ", ".join(sorted(unknown)), "no such column")
    parts = []
    for column in _SORTED:
        value = record.get(column.name)
        if value is not None:
            parts.append(f'"{column.name}":{_column_text(column, value)}')
        elif column.required:
            raise RecordError("write canonically", column.name, "every record needs this column")
    try:
        return ("{" + ",".join(parts) + "}").encode()
    except UnicodeEncodeError as e:
        raise RecordError("write canonically", "record", "text holds a lone surrogate, which UTF-8 has not") from e


def parse(line: bytes) -> dict[str, Any]:
    """The record of one canonical line: times as int microseconds, ids as bytes, `attributes` as canonical text.

    Raises `RecordError` unless the line is byte for byte canonical.
    """
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise RecordError("parse record", "line", f"not JSON: {e}") from e
    if not isinstance(raw, dict):
        raise RecordError("parse record", "line", "not a JSON object")
    if canonical(raw) != line:
        raise RecordError("parse record", "line", f"not in canonical form {CANONICAL_FORM}")
    record: dict[str, Any] = {}
    for name, value in raw.items():
        kind = _BY_NAME[name].kind
        if kind == "time":
            record[name] = parse_time(value)
        elif kind in ("bytes16", "bytes8"):
            record[name] = bytes.fromhex(value)
        else:
            record[name] = canonical_attributes(value) if kind == "json" else value
    return record


def leaf_hash(line: bytes) -> bytes:
    """SHA-256 of 0x00 and the canonical line: the record as a Merkle leaf (RFC 6962, section 2.1)."""
    return hashlib.sha256(b"\x00" + line).digest()


# --- Arrow --------------------------------------------------------------------------------------------------------------
@cache
def schema() -> "pa.Schema":
    """Arrow schema of a whole record, columns in the order of `COLUMNS`."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "json": pa.string(),
        "int64": pa.int64(),
        "int16": pa.int16(),
        "time": pa.timestamp("us", "UTC"),
        "bytes16": pa.binary(16),
        "bytes8": pa.binary(8),
    }
    return pa.schema([pa.field(c.name, types[c.kind], nullable=not c.required) for c in COLUMNS])


@cache
def span_schema() -> "pa.Schema":
    """Arrow schema of a record as it comes from a span: `schema()` without the assigned columns."""
    import pyarrow as pa

    return pa.schema([f for f in schema() if f.name not in ASSIGNED])


@cache
def _line_encoder() -> Any:
    """A msgspec Struct with the columns in key order, and the function that encodes one as a canonical line."""
    import msgspec

    struct = msgspec.defstruct(
        "Line", [(c.name, Any, None) for c in _SORTED], omit_defaults=True, gc=False, frozen=True
    )
    return struct, msgspec.json.Encoder(), msgspec.Raw


def canonical_lines(batch: "pa.RecordBatch | pa.Table") -> "Iterator[bytes]":
    """The canonical line of each row, in order; the fast equal of `canonical` for rows that are already records.

    Args:
        batch: rows of `schema()`; ids may be fixed-size or plain binary; column order does not matter.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    struct, encoder, raw = _line_encoder()
    encode = encoder.encode
    columns: list[Any] = []
    for column in _SORTED:
        values = batch.column(column.name)
        if column.kind == "time":
            text = values.cast(pa.timestamp("us")).cast(pa.string())  # 2026-11-23 08:00:00.000000
            columns.append(pc.binary_join_element_wise(pc.utf8_replace_slice(text, 10, 11, "T"), "Z", "").to_pylist())
        elif column.kind in ("bytes16", "bytes8"):
            columns.append([None if v is None else v.hex() for v in values.cast(pa.binary()).to_pylist()])
        elif column.kind == "json":
            columns.append([None if v is None else raw(v.encode()) for v in values.to_pylist()])
        else:
            columns.append(values.to_pylist())
    return (encode(struct(*row)) for row in zip(*columns, strict=True))
