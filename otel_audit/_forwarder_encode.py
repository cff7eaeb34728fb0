"""Audit records as OTLP log records, of which `_otlp_logs` makes the same records again.

Attributes are semantic conventions where one exists and `audit.*` otherwise; the resource says service, version, instance
and environment. What a record's `attributes` say under the name of a column (a resource said it, and not the call) stands on
the resource again.

Source: opentelemetry-proto 1.x, `logs/v1/logs.proto`; OpenTelemetry, "Logs Data Model".
"""

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import pyarrow as pa

from otel_audit import names
from otel_audit._otlp_attributes import FIELDS
from otel_audit._otlp_rules import RPC_CODES, address
from otel_audit._otlp_schema import varint

__all__ = ["Encoded", "RecordEncoder", "request_of"]

_RESOURCES_MAX: Final = 1024
_KEYS_MAX: Final = 4096
_ADDRESSES_MAX: Final = 4096
_KNOWN_MAX: Final = 16_384
_KNOWN_BYTES_MAX: Final = 200
_EVER_NEW: Final = frozenset(
    {names.LOG_RECORD_UID, names.RECORD_ID, names.TARGET_ID, names.SOURCE_SEQ, names.DURATION_NS, names.LOG_SEQ}
)
"""Attributes whose values rarely come again: they would only push others out of what is remembered."""
_UINT64_MAX: Final = 2**64 - 1
_INFO: Final = b"\x10\x09\x1a\x04INFO"
_RESOURCES_OWN: Final = frozenset({*FIELDS, names.DURATION_NS})
"""Names that would fill a column, or the duration, on a log record."""
_TIME: Final = struct.Struct("<BQ")


def field(number: int, data: bytes) -> bytes:
    """`data` as a length-delimited field of a number below 16; quicker than the general one for what is short."""
    size = len(data)
    if size < 0x80:
        return b"%c%c%b" % (number << 3 | 2, size, data)
    return b"%c%b%b" % (number << 3 | 2, varint(size), data)


_EVENT: Final = field(12, names.EVENT_RECORD.encode())


class Encoded(NamedTuple):
    """One record, encoded.

    Args:
        seq: its number in the log.
        resource: a `Resource` message; records of one resource have the same object mostly.
        record: a `LogRecord` message.
    """

    seq: int
    resource: bytes
    record: bytes

    @property
    def size(self) -> int:
        """Bytes it takes in a request, at most."""
        return len(self.record) + len(self.resource) + 32


def request_of(records: Iterable[Encoded]) -> bytes:
    """An `ExportLogsServiceRequest`; records of one resource stand together, otherwise in order."""
    by_resource: dict[bytes, list[bytes]] = {}
    for encoded in records:
        by_resource.setdefault(encoded.resource, []).append(field(2, encoded.record))
    return b"".join(field(1, field(1, resource) + field(2, b"".join(logs))) for resource, logs in by_resource.items())


# --- values -----------------------------------------------------------------------------------------------------------------
_keys: dict[str, bytes] = {}  # field 1 of `KeyValue`; only ever added to


def _any_value(value: Any) -> bytes:
    if isinstance(value, str):
        return field(1, value.encode("utf-8", "backslashreplace"))
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            return field(1, str(value).encode())
        return b"\x18" + varint(value & _UINT64_MAX)
    if isinstance(value, list):
        return field(5, b"".join(field(1, _any_value(v)) for v in value))
    if isinstance(value, Mapping):
        return field(6, b"".join(field(1, _pair(k, v)) for k, v in value.items()))
    if isinstance(value, float):
        return b"\x21" + struct.pack("<d", value)
    return b""  # null; neither it nor a float is in a canonical record


def _pair(key: str, value: Any) -> bytes:
    """A `KeyValue` message."""
    encoded = _keys.get(key)
    if encoded is None:
        encoded = field(1, key.encode("utf-8", "backslashreplace"))
        if len(_keys) < _KEYS_MAX:
            _keys[key] = encoded
    return encoded + field(2, _any_value(value))


@lru_cache(_ADDRESSES_MAX)
def _address(text: str) -> str:
    """An address so that reading it gives the same text again, also where it is none."""
    return text if address(text) == text else f"[{text}]"


def _rpc_status(code: int) -> str:
    return RPC_CODES[code] if 0 <= code < len(RPC_CODES) else str(code)


# --- records -----------------------------------------------------------------------------------------------------------------
Row = dict[str, Any]
_PLAIN: Final = (
    ("action", names.ACTION),
    ("outcome", names.OUTCOME),
    ("client_id", names.CLIENT_ID),
    ("client_name", names.CLIENT_NAME),
    ("client_auth", names.CLIENT_AUTH),
    ("user_id", names.USER_ID[0]),
    ("target", names.TARGET_ID),
    ("route", names.HTTP_ROUTE[0]),
    ("client_ip_source", names.CLIENT_IP_SOURCE),
    ("source_id", names.SOURCE_ID),
    ("source_seq", names.SOURCE_SEQ),
    ("duration_ns", names.DURATION_NS),
)
"""Columns that are an attribute as they are."""
_OF_RESOURCE: Final = (
    ("service", names.SERVICE_NAME),
    ("service_version", names.SERVICE_VERSION),
    ("instance", names.SERVICE_INSTANCE),
    ("environment", names.ENVIRONMENT[0]),
)
_TEXT: Final[dict[str, Callable[[Any], Any]]] = {
    "time": lambda column: column.cast(pa.int64()),
    "recorded_at": lambda column: column.cast(pa.int64()),
    "trace_id": lambda column: column.cast(pa.binary()),
    "span_id": lambda column: column.cast(pa.binary()),
}
"""How columns become what is encoded, where they are not already."""


class RecordEncoder:
    """Encodes records; used by one thread."""

    def __init__(self) -> None:
        self._resources: dict[tuple[Any, ...], bytes] = {}
        # Attributes that come again and again, as field 6 of `LogRecord`, by type, key and value; emptied when full.
        self._known: dict[tuple[type, str, Any], bytes] = {}

    def encode(self, batch: pa.RecordBatch) -> list[Encoded]:
        """Each row of a batch of `record.schema()`, or of a segment's."""
        columns = {
            name: (_TEXT[name](column) if name in _TEXT else column).to_pylist()
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        return [self._encode(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    def _encode(self, row: Row) -> Encoded:
        uid = f"{row['trace_id'].hex()}-{row['span_id'].hex()}-{row['log']}-{row['seq']}"
        said: dict[str, Any] = {names.LOG_RECORD_UID: uid, names.RECORD_ID: uid}
        said |= {key: row[column] for column, key in _PLAIN if row[column] is not None}
        said |= _call(row)
        of_resource: dict[str, Any] = {}
        if row["attributes"] is not None:
            for key, value in _members(row["attributes"]).items():
                (of_resource if key in _RESOURCES_OWN else said)[key] = value
        said |= {names.LOG_NAME: row["log"], names.LOG_SEQ: row["seq"]}
        parts = [
            # No record has no time; 1 ns is the same microsecond as 0, which would mean "unknown".
            _TIME.pack(0x09, min(max(row["time"] * 1000, 1), _UINT64_MAX)),
            _INFO,
            field(5, field(1, _sentence(row).encode())),
            *map(self._attribute, said.items()),
            field(9, row["trace_id"]),
            field(10, row["span_id"]),
            _TIME.pack(0x59, min(max(row["recorded_at"] * 1000, 1), _UINT64_MAX)),
            _EVENT,
        ]
        return Encoded(row["seq"], self._resource(row, of_resource), b"".join(parts))

    def _attribute(self, pair: tuple[str, Any]) -> bytes:
        """An attribute as field 6 of `LogRecord`, remembered when it is likely to come again."""
        key, value = pair
        kind = type(value)
        if key in _EVER_NEW or not (kind is str or kind is int):
            return field(6, _pair(key, value))
        known = self._known.get((kind, key, value))
        if known is None:
            known = field(6, _pair(key, value))
            if len(known) <= _KNOWN_BYTES_MAX:
                if len(self._known) >= _KNOWN_MAX:
                    self._known.clear()
                self._known[kind, key, value] = known
        return known

    def _resource(self, row: Row, more: Mapping[str, Any]) -> bytes:
        key = (*(row[column] for column, _ in _OF_RESOURCE), json.dumps(more) if more else "")
        known = self._resources.get(key)
        if known is None:
            said = {name: row[column] for column, name in _OF_RESOURCE if row[column] is not None}
            known = b"".join(field(1, _pair(name, value)) for name, value in {**said, **more}.items())
            if len(self._resources) >= _RESOURCES_MAX:
                self._resources.clear()
            self._resources[key] = known
        return known


def _members(attributes: str) -> dict[str, Any]:
    """The members of the column `attributes`; one record that cannot be read must not hold up the others."""
    try:
        members = json.loads(attributes)
    except (ValueError, RecursionError):
        members = None
    return members if isinstance(members, dict) else {names.ATTRIBUTES_TEXT: attributes}


def _call(row: Row) -> dict[str, Any]:
    """The attributes that say method, status and addresses, under the names of HTTP or of rpc."""
    said: dict[str, Any] = {}
    method, status = row["method"], row["status_code"]
    rpc = method is not None and "/" in method[1:] and not method.startswith("/")
    if method is not None:
        said[names.RPC_METHOD[0] if rpc else names.HTTP_METHOD[0]] = method
    if status is not None:
        if rpc and status < 100:
            said[names.RPC_STATUS[0]] = _rpc_status(status)
        else:
            said[names.HTTP_STATUS[0]] = status
    if row["client_ip"] is not None:
        said[names.CLIENT_ADDRESS[0]] = _address(row["client_ip"])
        if row["peer_ip"] is not None:  # beside a peer `client.address` alone is not believed
            said[names.CLIENT_IP] = said[names.CLIENT_ADDRESS[0]]
    if row["peer_ip"] is not None:
        # A peer alone would be taken for the client's address as well.
        key = names.PEER_IP if row["client_ip"] is None else names.PEER_ADDRESS[0]
        said[key] = _address(row["peer_ip"])
    return said


def _sentence(row: Row) -> str:
    """What happened, for a person: `crm: Billing (svc-7) reads…` without grammar."""
    name, client, user = row["client_name"], row["client_id"], row["user_id"]
    who = f"{name} ({client})" if name and client else name or client or user or "unknown client"
    target = f" {row['target']}" if row["target"] else ""
    status = "" if row["status_code"] is None else f" ({row['status_code']})"
    return f"{row['service']}: {who}: {row['action']}{target}: {row['outcome']}{status}"
