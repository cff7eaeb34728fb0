"""OTLP trace messages trimmed to what an audit record needs, built at run time, and the wire format below them.

Three things differ from the published `.proto` files, and none of them on the wire:

- spans and attributes are `repeated bytes`: the parser hands them over unread, so that an attribute seen before costs one
  dictionary look-up, and a span that cannot be decoded does not fail the request around it;
- strings are `bytes`: invalid UTF-8 cannot fail the parse;
- fields nobody reads are declared as plain bytes, which is cheaper than leaving them unknown.

Source: opentelemetry-proto 1.x, `trace/v1/trace.proto`, `logs/v1/logs.proto`, `common/v1/common.proto`; protobuf encoding specification.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError as ProtobufError

__all__ = [
    "SERVER",
    "ProtobufError",
    "WireError",
    "field",
    "fields",
    "parse_any_value",
    "parse_array",
    "parse_events",
    "parse_key_value",
    "parse_kvlist",
    "parse_log_record",
    "parse_many_spans",
    "parse_request",
    "parse_resource",
    "parse_span",
    "parse_status",
    "varint",
]

SERVER: Final = 2
"""`SpanKind.SPAN_KIND_SERVER`."""

_Field = descriptor_pb2.FieldDescriptorProto
_BYTES: Final = _Field.TYPE_BYTES
_INT32: Final = _Field.TYPE_INT32
_FIXED64: Final = _Field.TYPE_FIXED64


class _F(NamedTuple):
    """One field of a trimmed message: name, number, type (or the name of a message), whether it is repeated."""

    name: str
    number: int
    type: Any
    repeated: bool = False


_SPAN: Final = (
    _F("trace_id", 1, _BYTES),
    _F("span_id", 2, _BYTES),
    _F("trace_state", 3, _BYTES),
    _F("parent_span_id", 4, _BYTES),
    _F("name", 5, _BYTES),
    _F("kind", 6, _INT32),
    _F("start", 7, _FIXED64),
    _F("end", 8, _FIXED64),
    _F("attributes", 9, _BYTES, repeated=True),
    _F("events", 11, _BYTES, repeated=True),
    _F("status", 15, _BYTES),
    _F("flags", 16, _Field.TYPE_FIXED32),
)
_SINGLE: Final = frozenset({"trace_state", "parent_span_id", "name", "flags"})

_MESSAGES: Final[dict[str, tuple[_F, ...]]] = {
    "Request": (_F("resource_spans", 1, "ResourceSpans", repeated=True),),
    # `resource` is repeated so that a resource sent in pieces can be joined: joined bytes are the merged message.
    "ResourceSpans": (_F("resource", 1, _BYTES, repeated=True), _F("scope_spans", 2, "ScopeSpans", repeated=True)),
    "ScopeSpans": (_F("spans", 2, _BYTES, repeated=True),),
    "Resource": (_F("attributes", 1, _BYTES, repeated=True),),
    "Span": _SPAN,
    # Messages written one after another are one message: what is repeated in it holds the values of all of them. So one
    # parse gives the attributes of many spans, in order, and tells how often each other field was there.
    "ManySpans": tuple(f if f.name in _SINGLE else f._replace(repeated=True) for f in _SPAN),
    "Events": (_F("events", 11, "Event", repeated=True),),  # a span again, for its events alone
    "Event": (_F("name", 2, _BYTES),),
    "Status": (_F("code", 3, _INT32),),
    "KeyValue": (_F("key", 1, _BYTES), _F("value", 2, _BYTES)),
    "AnyValue": (
        _F("string_value", 1, _BYTES),
        _F("bool_value", 2, _Field.TYPE_BOOL),
        _F("int_value", 3, _Field.TYPE_INT64),
        _F("double_value", 4, _Field.TYPE_DOUBLE),
        _F("array_value", 5, _BYTES),
        _F("kvlist_value", 6, _BYTES),
        _F("bytes_value", 7, _BYTES),
    ),
    "ArrayValue": (_F("values", 1, _BYTES, repeated=True),),
    "KeyValueList": (_F("values", 1, _BYTES, repeated=True),),
    "LogRecord": (
        _F("time", 1, _FIXED64),
        _F("severity_number", 2, _INT32),
        _F("severity_text", 3, _BYTES),
        _F("body", 5, _BYTES),
        _F("attributes", 6, _BYTES, repeated=True),
        _F("flags", 8, _Field.TYPE_FIXED32),
        _F("trace_id", 9, _BYTES),
        _F("span_id", 10, _BYTES),
        _F("observed", 11, _FIXED64),
        _F("event_name", 12, _BYTES),
    ),
}
_PACKAGE: Final = "otel_audit.otlp"


def _build() -> Callable[[str], Callable[[bytes], Any]]:
    """A function from message name to that message's parser, in a descriptor pool of our own."""
    file = descriptor_pb2.FileDescriptorProto(name="otel_audit/otlp.proto", package=_PACKAGE, syntax="proto3")
    for name, members in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if name == "AnyValue":
            message.oneof_decl.add(name="value")
        for f in members:
            label = _Field.LABEL_REPEATED if f.repeated else _Field.LABEL_OPTIONAL
            added = message.field.add(name=f.name, number=f.number, label=label)
            if isinstance(f.type, str):
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{f.type}"
            else:
                added.type = f.type
            if name == "AnyValue":
                added.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())

    def parser(name: str) -> Callable[[bytes], Any]:
        message = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        parse: Callable[[bytes], Any] = message.FromString
        return parse

    return parser


_parser: Final = _build()
parse_request: Final = _parser("Request")
parse_resource: Final = _parser("Resource")
parse_span: Final = _parser("Span")
parse_many_spans: Final = _parser("ManySpans")
parse_events: Final = _parser("Events")
parse_status: Final = _parser("Status")
parse_key_value: Final = _parser("KeyValue")
parse_any_value: Final = _parser("AnyValue")
parse_array: Final = _parser("ArrayValue")
parse_kvlist: Final = _parser("KeyValueList")
parse_log_record: Final = _parser("LogRecord")


# --- the wire, by hand: where a parser would refuse the whole, and for the OTLP/JSON way in ----------------------------
class WireError(ValueError):
    """Bytes at `offset` are not a protobuf field; everything before it was."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset, self.reason = offset, reason


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at `at` and the offset after it; raises IndexError when the data ends, `WireError` over ten bytes."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
        if shift > 63:
            raise WireError(at, "a varint is longer than ten bytes")


def _read_tag(data: bytes, at: int) -> tuple[int, int]:
    tag, start = _read_varint(data, at)
    if not 8 <= tag <= 0xFFFF_FFFF:
        raise WireError(at, "no such field number")
    return tag, start


_FIXED_BYTES: Final = {1: 8, 5: 4}


def _read_content(data: bytes, at: int, wire_type: int) -> tuple[int, int]:
    """Where the content of a field that is no group starts and ends, from the offset after its tag."""
    if wire_type == 2:
        length, start = _read_varint(data, at)
        return start, start + length
    if wire_type == 0:
        return at, _read_varint(data, at)[1]
    if wire_type in _FIXED_BYTES:
        return at, at + _FIXED_BYTES[wire_type]
    raise WireError(at, "no such wire type")


def fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Each field of one message as (number, offset of its tag, start of its content, end).

    The content of a length-delimited field is its bytes; of any other, all that follows the tag. A group is one field.
    Raises `WireError` at the first field that is not well formed.
    """
    at, size, open_groups = 0, len(data), 0
    field_at = number = 0  # of the outermost field being read
    while at < size:
        if not open_groups:
            field_at = at
        try:
            tag, start = _read_tag(data, at)
            if not open_groups:
                number = tag >> 3
            wire_type = tag & 7
            if wire_type == 3 or (wire_type == 4 and open_groups):
                open_groups += 1 if wire_type == 3 else -1
                at = start
            else:
                start, at = _read_content(data, start, wire_type)
        except (IndexError, WireError) as e:
            raise WireError(field_at, "a field ends too early" if isinstance(e, IndexError) else e.reason) from e
        if at > size:
            raise WireError(field_at, "a field is longer than what holds it")
        if not open_groups:
            yield number, field_at, start, at
    if open_groups:
        raise WireError(field_at, "a group does not end")


def varint(n: int) -> bytes:
    """`n`, from 0 to 2^64-1, as a varint."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number: int, data: bytes) -> bytes:
    """`data` as a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data
