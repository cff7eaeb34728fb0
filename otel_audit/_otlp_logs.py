"""Log records to the protobuf bytes of spans that say the same, so that all ways in share one definition of a record.

A log record is an audit record when its event name is `audit.record` or it carries `audit.action`; as a span it is of kind
SERVER in the first case. It has one time, so that its duration is what `audit.duration_ns` says, if anything does. What else
it says is kept in `attributes`: the body as `audit.log.body`, the id of the span it was written in as `audit.log.span_id`.

Identity: many log records may be written within one span and one microsecond, so a record's own `span_id` is made from
`audit.record.id`, or where there is none from all the bytes of the log record and its resource; its `trace_id` too, where
the log record has none. What is sent again gets the same ids. A log record that another otel-audit passed on (it carries
`otel_audit.seq`) has ids of its own already, and its body repeats what the attributes say.

Source: opentelemetry-proto 1.x, `logs/v1/logs.proto`; OpenTelemetry, "Logs Data Model".
"""

import hashlib
import re
import struct
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

from otel_audit import _otlp_json, _otlp_request, names
from otel_audit import _otlp_schema as wire
from otel_audit._otlp_attributes import Notes
from otel_audit._otlp_request import Part, Request
from otel_audit._otlp_spans import ATTRIBUTES_MAX, HUGE_BYTES
from otel_audit.record import INT_MAX, Quarantined

__all__ = ["split", "split_json"]

LOG_RECORD: Final = "otlp.log_record+protobuf"
REQUEST: Final = "otlp.logs_request+protobuf"
_INT64_MAX: Final = 2**63 - 1
_INTERNAL: Final = 1
_FIELDS_MAX: Final = 2 * ATTRIBUTES_MAX
_PROBLEM: Final = re.compile(r"[a-z0-9_]{1,40}(?::[a-z0-9_.]{1,40})?")
_PROBLEMS_MAX: Final = 100
_EVENT: Final = names.EVENT_RECORD.encode()
_EMPTY: Final = "a log record has no time, severity, event name or attributes; spans go to /v1/traces or TraceService"
"""The messages of both look alike on the wire, but that a span read as a log record has none of these."""
_SPAN: Final = struct.Struct("<2s16s2s8s2sBBBQBQ")
_SPECIAL: Final = {
    key.encode(): key
    for key in (names.DURATION_NS, names.RECORD_ID, names.LOG_RECORD_UID, names.LOG_SEQ, names.PROBLEMS)
}


def split(body: bytes, records_max: int) -> Request:
    """The log records of an encoded `ExportLogsServiceRequest`, as spans; raises `DecodeError` and `TooLargeError`."""
    request = _otlp_request.split(
        body, records_max, "resource_logs"
    )  # the numbers of the fields are those of a trace request
    entries = [replace(q, reason="log_records_undecodable", kind=REQUEST) for q in request.quarantine]
    parts = [replace(part, kind=REQUEST) for part in request.parts]
    return _translated(replace(request, parts=parts, quarantine=entries, kind=LOG_RECORD))


def split_json(body: bytes, records_max: int) -> Request:
    """The log records of an OTLP/JSON request, as spans; raises `DecodeError` and `TooLargeError`."""
    return _translated(_otlp_json.split(body, records_max, _otlp_json.LOGS))


def _translated(request: Request) -> Request:
    """A request of log records as one of spans; what is no log record goes to quarantine."""
    received: list[int] = []  # index of each span in the request that was received
    made = Request(
        quarantine=request.quarantine,
        kind=request.kind,
        payload=lambda index: request.payload(received[index]),
        open_ended=True,
    )
    at = 0
    for part in request.parts:
        before = len(received)
        for index in range(at, at + part.spans):
            raw = request.spans[index]
            try:
                if len(raw) >= HUGE_BYTES and sum(1 for _ in islice(wire.fields(raw), _FIELDS_MAX + 1)) > _FIELDS_MAX:
                    detail = f"the log record has more than {_FIELDS_MAX} attributes"
                    made.quarantine.append(Quarantined("oversize", detail, request.payload(index), request.kind))
                    continue
                span, notes = _span_of(raw, part.resource)
            except _NoLogRecordError:
                entry = Quarantined("log_record_undecodable", _EMPTY, request.payload(index), request.kind)
                made.quarantine.append(entry)
                continue
            except (wire.ProtobufError, wire.WireError):
                detail = "the log record is not a protobuf message"
                entry = Quarantined("log_record_undecodable", detail, request.payload(index), request.kind)
                made.quarantine.append(entry)
                continue
            if notes is not None:
                made.notes[len(made.spans)] = notes
            made.spans.append(span)
            received.append(index)
        at += part.spans
        if len(received) > before:
            made.parts.append(Part(part.resource, len(received) - before, part.payload, part.kind))
    return made


# --- one log record -------------------------------------------------------------------------------------------------------
class _NoLogRecordError(Exception):
    """It has nothing of a log record."""


@dataclass(slots=True)
class _Said:
    """What a log record's attributes say that a span's do not."""

    duration_ns: int | None = None
    record_id: str | None = None
    record_id_raw: bytes = b""
    uid: str | None = None
    passed_on: bool = False
    notes: Notes = field(default_factory=Notes)


def _span_of(raw: bytes, resource: bytes) -> tuple[bytes, Notes | None]:
    """The span that says what a log record says, and what is to be said about it; raises `ProtobufError`."""
    record = wire.parse_log_record(raw)
    if not (record.time or record.observed or record.severity_number or record.event_name or record.attributes):
        raise _NoLogRecordError
    said = _Said()
    attributes: list[bytes] = []
    for attribute in record.attributes:
        key = _SPECIAL.get(_key_of(attribute))
        if key is None or _take(key, attribute, said):
            attributes.append(attribute)
    own = not said.passed_on or said.record_id is None or said.record_id != said.uid
    if said.record_id_raw and own:
        attributes.append(said.record_id_raw)
    trace_id, span_id = _ids(record, raw, resource, said)
    if not said.passed_on:
        if record.body:
            attributes.insert(0, wire.field(1, names.LOG_BODY.encode()) + wire.field(2, record.body))
        if len(record.span_id) == 8 and any(record.span_id):
            text = wire.field(1, record.span_id.hex().encode())
            attributes.insert(0, wire.field(1, names.LOG_SPAN_ID.encode()) + wire.field(2, text))
    kind = wire.SERVER if record.event_name == _EVENT else _INTERNAL
    start = record.time or record.observed
    end = start + said.duration_ns if said.duration_ns is not None and 0 < start <= _INT64_MAX else 0
    head = _SPAN.pack(b"\x0a\x10", trace_id, b"\x12\x08", span_id, b"\x2a\0", 0x30, kind, 0x39, start, 0x41, end)
    fields = [head]
    for attribute in attributes:
        size = len(attribute)
        fields.append(b"\x4a%c" % size if size < 0x80 else b"\x4a" + wire.varint(size))
        fields.append(attribute)
    fields.append(b"\x7a\0")
    return b"".join(fields), said.notes if said.notes.problems else None


def _key_of(attribute: bytes) -> bytes:
    """The key of an attribute; exporters write it first, a Collector last."""
    if attribute[:1] == b"\x0a" and len(attribute) > 1 and attribute[1] < 0x80:
        return attribute[2 : attribute[1] + 2]
    try:
        key: bytes = wire.parse_key_value(attribute).key
    except wire.ProtobufError:
        return b""  # which the reading of attributes will find and say
    return key


def _take(key: str, attribute: bytes, said: _Said) -> bool:
    """Take what a special attribute says; True when the record must keep the attribute as it is."""
    try:
        value = wire.parse_any_value(wire.parse_key_value(attribute).value)
    except wire.ProtobufError:
        return True  # which the reading of attributes will find and say
    which = value.WhichOneof("value")
    if key == names.LOG_SEQ:
        said.passed_on = which in ("int_value", "string_value")
    elif key == names.DURATION_NS:
        said.duration_ns = _duration(which, value)
        if said.duration_ns is None:
            said.notes.note("invalid:duration_ns", lossy=False)  # `attributes` keeps what was said
            return True
    elif key == names.PROBLEMS:
        _take_problems(which, value, said.notes)
    else:
        text = value.string_value.decode("utf-8", "backslashreplace") if which == "string_value" else None
        if key == names.LOG_RECORD_UID:
            said.uid = text
        else:
            said.record_id, said.record_id_raw = text, attribute
    return False


def _duration(which: str | None, value: Any) -> int | None:
    number = value.int_value if which == "int_value" else -1
    if which == "string_value" and value.string_value.isdigit() and len(value.string_value) <= 16:
        number = int(value.string_value)
    return number if 0 <= number <= INT_MAX else None


def _take_problems(which: str | None, value: Any, notes: Notes) -> None:
    """The problems of the record as another otel-audit knew them."""
    if which != "array_value":
        return
    try:
        for item in wire.parse_array(value.array_value).values[:_PROBLEMS_MAX]:
            text = wire.parse_any_value(item).string_value.decode("ascii", "replace")
            if _PROBLEM.fullmatch(text):
                notes.note(text, lossy=False)
    except wire.ProtobufError:
        return


def _ids(record: Any, raw: bytes, resource: bytes, said: _Said) -> tuple[bytes, bytes]:
    """The record's trace id and span id."""
    trace_id: bytes = record.trace_id if len(record.trace_id) == 16 and any(record.trace_id) else b""
    span_id: bytes = record.span_id if len(record.span_id) == 8 and any(record.span_id) else b""
    if len(record.trace_id) not in (0, 16):
        said.notes.note("invalid:trace_id", lossy=True)
    if len(record.span_id) not in (0, 8):
        said.notes.note("invalid:span_id", lossy=True)
    if said.passed_on and trace_id and span_id:
        return trace_id, span_id
    digest = hashlib.sha256(b"otel-audit log record\0")
    if said.record_id:
        digest.update(b"id\0" + said.record_id.encode("utf-8", "surrogatepass"))
    else:
        digest.update(b"raw\0" + len(resource).to_bytes(8, "big") + resource + raw)
    made = digest.digest()
    return trace_id or made[:16], made[16:24]
