"""OTLP/JSON to the protobuf bytes of the same spans, so that both ways in share one definition of a record.

The mapping is protobuf's JSON mapping as OTLP restricts it: ids are hex, enums are numbers, 64-bit integers are strings
or numbers, keys are lowerCamelCase, unknown fields are ignored. What some senders do besides is understood too: names of
enum values, keys in snake_case. What is wrong within an attribute makes that attribute undecodable; what is wrong with
the rest of a span puts the span into quarantine, as the JSON that was received.

Source: OTLP specification, "JSON Protobuf Encoding"; protobuf, "ProtoJSON Format".
"""

import base64
import binascii
import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, NamedTuple

from otel_audit import _otlp_schema as wire
from otel_audit._otlp_request import Part, Request, check_count
from otel_audit.errors import DecodeError
from otel_audit.record import Quarantined

__all__ = ["LOGS", "TRACES", "Signal", "split"]

_DEPTH_MAX: Final = 20
"""Levels of lists and maps that are passed on: more than a record keeps, so that what is cut here was never seen."""
_UNDECODABLE: Final = b"\xff"  # as an attribute
_KINDS: Final = {
    f"SPAN_KIND_{name}": i
    for i, name in enumerate(["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"])
}
_CODES: Final = {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}
_UINT64_MAX: Final = 2**64 - 1
_INTEGER: Final = re.compile(r"-?[0-9]{1,32}(?:\.[0-9]{1,32})?(?:[eE][-+]?[0-9]{1,3})?")
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})*")


class _WrongTypeError(ValueError):
    """A JSON value is not what its place asks for; the text says what it should be."""


# --- values -----------------------------------------------------------------------------------------------------------
def _member(message: dict[str, Any], name: str) -> Any:
    """A field by its lowerCamelCase name, or else its snake_case one; None when absent or null."""
    value = message.get(name)
    return message.get(_snake(name)) if value is None else value


@cache
def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda m: "_" + m[0].lower(), name)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongTypeError(f"{what} is not an object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _WrongTypeError(f"{what} is not an array")
    return value


def _text(value: Any, what: str) -> bytes:
    """A string as UTF-8; what UTF-8 has no bytes for stays visible as bytes that are not UTF-8."""
    if not isinstance(value, str):
        raise _WrongTypeError(f"{what} is not a string")
    try:
        return value.encode()
    except UnicodeEncodeError:
        return b"".join(_bytes_of(c) for c in value)


def _bytes_of(char: str) -> bytes:
    if "\udc80" <= char <= "\udcff":  # a byte of the request that was not UTF-8
        return char.encode("utf-8", "surrogateescape")
    return char.encode("utf-8", "surrogatepass")


def _integer(value: Any, what: str) -> int:
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value):
            raise _WrongTypeError(f"{what} is not an integer")
        value = float(value) if set(value) & set(".eE") else int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _WrongTypeError(f"{what} is not an integer")
    return value


def _enum(value: Any, names: dict[str, int], what: str) -> int:
    if value is None:
        return 0
    number = names[value] if isinstance(value, str) and value in names else _integer(value, what)
    if not -(2**31) <= number < 2**31:
        raise _WrongTypeError(f"{what} is not an enum value")
    return number


def _id(value: Any) -> bytes:
    """An id of hex digits; anything else is no id, which the record's rules then say."""
    return bytes.fromhex(value) if isinstance(value, str) and _HEX.fullmatch(value) else b""


def _time(value: Any, what: str) -> bytes:
    """A fixed64; a number that does not fit becomes the greatest, which no record takes either."""
    number = 0 if value is None else _integer(value, what)
    return struct.pack("<Q", number if 0 <= number <= _UINT64_MAX else _UINT64_MAX)


# --- attributes -------------------------------------------------------------------------------------------------------
def _string(value: Any, _: int) -> bytes:
    return wire.field(1, _text(value, "stringValue"))


def _bool(value: Any, _: int) -> bytes:
    if value in ("true", "false"):
        value = value == "true"
    if not isinstance(value, bool):
        raise _WrongTypeError("boolValue is not a boolean")
    return b"\x10" + bytes([value])


def _int(value: Any, _: int) -> bytes:
    number = _integer(value, "intValue")
    if not -(2**63) <= number < 2**63:
        return wire.field(1, str(number).encode())  # as records write great integers
    return b"\x18" + wire.varint(number & _UINT64_MAX)


def _double(value: Any, _: int) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _WrongTypeError("doubleValue is not a number")
    try:
        return b"\x21" + struct.pack("<d", float(value))
    except (ValueError, OverflowError) as e:
        raise _WrongTypeError("doubleValue is not a number") from e


def _bytes(value: Any, _: int) -> bytes:
    data = _text(value, "bytesValue").translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return wire.field(7, base64.b64decode(data + b"=" * (-len(data) % 4), validate=True))
    except binascii.Error as e:
        raise _WrongTypeError("bytesValue is not base64") from e


def _array(value: Any, depth: int) -> bytes:
    if depth >= _DEPTH_MAX:
        return wire.field(5, b"")
    values = _list(_member(_object(value, "arrayValue"), "values"), "values")
    return wire.field(5, b"".join(wire.field(1, _any_value(v, depth + 1)) for v in values))


def _kvlist(value: Any, depth: int) -> bytes:
    if depth >= _DEPTH_MAX:
        return wire.field(6, b"")
    values = _list(_member(_object(value, "kvlistValue"), "values"), "values")
    return wire.field(6, b"".join(wire.field(1, _key_value(v, depth + 1)) for v in values))


_VALUES: Final[dict[str, Callable[[Any, int], bytes]]] = {
    "stringValue": _string,
    "boolValue": _bool,
    "intValue": _int,
    "doubleValue": _double,
    "bytesValue": _bytes,
    "arrayValue": _array,
    "kvlistValue": _kvlist,
}


def _any_value(value: Any, depth: int) -> bytes:
    if value is None:
        return b""
    message = _object(value, "value")
    for name, encode in _VALUES.items():
        found = _member(message, name)
        if found is not None:
            return encode(found, depth)
    return b""


def _key_value(value: Any, depth: int) -> bytes:
    pair = _object(value, "attribute")
    key = _member(pair, "key")
    encoded = b"" if key is None else wire.field(1, _text(key, "key"))
    return encoded + wire.field(2, _any_value(_member(pair, "value"), depth))


def _attributes(values: Any, number: int) -> Iterator[bytes]:
    for value in _list(values, "attributes"):
        try:
            yield wire.field(number, _key_value(value, 0))
        except _WrongTypeError:
            yield wire.field(number, _UNDECODABLE)


# --- messages ---------------------------------------------------------------------------------------------------------
def _event(value: Any) -> bytes:
    name = _member(_object(value, "event"), "name")
    return wire.field(11, b"" if name is None else wire.field(2, _text(name, "event name")))


def _span(value: Any) -> bytes:
    """A span's protobuf bytes, of the fields that records are made of, in the order that exporters write them."""
    span = _object(value, "span")
    name = _member(span, "name")
    status = _member(span, "status")
    code = 0 if status is None else _enum(_member(_object(status, "status"), "code"), _CODES, "status code")
    return b"".join(
        (
            wire.field(1, _id(_member(span, "traceId"))),
            wire.field(2, _id(_member(span, "spanId"))),
            wire.field(5, b"" if name is None else _text(name, "name")),
            b"\x30" + wire.varint(_enum(_member(span, "kind"), _KINDS, "kind") & _UINT64_MAX),
            b"\x39" + _time(_member(span, "startTimeUnixNano"), "startTimeUnixNano"),
            b"\x41" + _time(_member(span, "endTimeUnixNano"), "endTimeUnixNano"),
            *_attributes(_member(span, "attributes"), 9),
            *(_event(event) for event in _list(_member(span, "events"), "events")),
            wire.field(15, b"\x18" + wire.varint(code & _UINT64_MAX) if code else b""),
        )
    )


def _log_record(value: Any) -> bytes:
    """A log record's protobuf bytes, of the fields that records are made of."""
    record = _object(value, "log record")
    event_name, body = _member(record, "eventName"), _member(record, "body")
    return b"".join(
        (
            b"\x09" + _time(_member(record, "timeUnixNano"), "timeUnixNano"),
            b"" if body is None else wire.field(5, _body(body)),
            *_attributes(_member(record, "attributes"), 6),
            _wrong_id_shown(9, _member(record, "traceId")),
            _wrong_id_shown(10, _member(record, "spanId")),
            b"\x59" + _time(_member(record, "observedTimeUnixNano"), "observedTimeUnixNano"),
            b"" if event_name is None else wire.field(12, _text(event_name, "eventName")),
        )
    )


def _body(value: Any) -> bytes:
    try:
        return _any_value(value, 0)
    except _WrongTypeError:
        return _UNDECODABLE


def _wrong_id_shown(number: int, value: Any) -> bytes:
    """An id; what is there and is none becomes a byte that is none either, so that the record says so."""
    return wire.field(number, _id(value) or b"?") if value else b""


def _resource(value: Any) -> bytes:
    """A resource's protobuf bytes; bytes that are none when it is not a resource."""
    try:
        message = {} if value is None else _object(value, "resource")
        return b"".join(_attributes(_member(message, "attributes"), 1))
    except _WrongTypeError:
        return _UNDECODABLE


# --- the request ------------------------------------------------------------------------------------------------------
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|[][{}]', re.DOTALL)
_NUMBER: Final = re.compile(r"[-+.0-9eE]+")
_BAD: Final = object()
"""A value that is JSON as far as its brackets go, but too deep or with a number too long to be read."""


class Signal(NamedTuple):
    """What differs between requests of traces and of logs.

    Args:
        resources, scopes, items: names of the lists, outermost first.
        encode: one item as protobuf; raises `_WrongTypeError`.
        item: what one item is called; also begins the reason of a quarantine entry.
        kind: of an item in quarantine; request: of a part of a request there.
    """

    resources: str
    scopes: str
    items: str
    encode: Callable[[Any], bytes]
    item: str
    kind: str
    request: str


TRACES: Final = Signal("resourceSpans", "scopeSpans", "spans", _span, "span", "otlp.span+json", "otlp.request+json")
LOGS: Final = Signal(
    "resourceLogs",
    "scopeLogs",
    "logRecords",
    _log_record,
    "log_record",
    "otlp.log_record+json",
    "otlp.logs_request+json",
)


class _Reader:
    """Reads one request, spans one at a time, so that one that cannot be read does not stop the others.

    What is repeated in protobuf and occurs twice in JSON counts twice.
    """

    def __init__(self, text: str, spans_max: int, signal: Signal) -> None:
        self._text, self._spans_max, self._signal = text, spans_max, signal
        self._scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
        self._where: list[tuple[int, int]] = []  # of each span in `request`
        self.request = Request(kind=signal.kind, payload=lambda index: self._raw(*self._where[index]))

    def read(self) -> Request:
        """The request; raises `DecodeError`."""
        known: list[str] = []
        resources = self._signal.resources

        def field(key: str, at: int) -> int:
            known.append(key)
            if key in (resources, _snake(resources)):
                return self._array(at, self._resource_spans) or self._not_otlp(f"{key} is not an array")
            return self._value(at)[1]

        at = self._skip(0)
        end = self._members(at, field) or self._not_otlp("it is not an object")
        if self._skip(end) != len(self._text):
            self._not_otlp(f"it goes on after its end, at character {end}")
        if known and not {resources, _snake(resources)}.intersection(known):
            self._not_otlp(f"it holds no {resources}")
        return self.request

    def _not_otlp(self, reason: str) -> int:
        raise DecodeError("decode", "OTLP/JSON request", reason)

    def _raw(self, start: int, end: int) -> bytes:
        return self._text[start:end].encode("utf-8", "surrogateescape")

    # --- JSON, level by level
    def _skip(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        assert match is not None
        return match.end()

    def _value(self, at: int) -> tuple[Any, int]:
        """The value at `at` and the offset after it."""
        try:
            value, end = self._scan(self._text, at)
        except (json.JSONDecodeError, StopIteration) as e:
            raise DecodeError("decode", "OTLP/JSON request", f"it is not JSON at character {at}") from e
        except (RecursionError, ValueError):
            return _BAD, self._after(at)
        return value, end

    def _after(self, at: int) -> int:
        """The offset after a value that cannot be read."""
        if number := _NUMBER.match(self._text, at):
            return number.end()
        depth = 0
        for match in _TOKEN.finditer(self._text, at):
            depth += (match[0] in "[{") - (match[0] in "]}")
            if depth == 0:
                return match.end()
        return self._not_otlp(f"it ends amid the value at character {at}")

    def _members(self, at: int, take: Callable[[str, int], int]) -> int:
        """Give each member's key and offset to `take`, which returns the offset after; 0 when there is no object."""

        def member(at: int) -> int:
            key, end = self._value(at)
            colon = self._skip(end)
            if not isinstance(key, str) or not self._text.startswith(":", colon):
                self._not_otlp(f"it is not JSON at character {at}")
            return take(key, self._skip(colon + 1))

        return self._between("{", "}", at, member)

    def _array(self, at: int, take: Callable[[int], int]) -> int:
        """Give each item's offset to `take`, which returns the offset after; 0 when there is no array; null is empty."""
        if self._text.startswith("null", at):
            return at + 4
        return self._between("[", "]", at, take)

    def _between(self, opening: str, closing: str, at: int, take: Callable[[int], int]) -> int:
        if not self._text.startswith(opening, at):
            return 0
        at = self._skip(at + 1)
        if self._text.startswith(closing, at):
            return at + 1
        while True:
            at = self._skip(take(at))
            if self._text.startswith(closing, at):
                return at + 1
            if not self._text.startswith(",", at):
                self._not_otlp(f"it is not JSON at character {at}")
            at = self._skip(at + 1)

    # --- OTLP, level by level
    def _refuse(self, at: int, *above: str) -> int:
        """Put a part of the request that is not what its place asks for into quarantine, in the lists above it."""
        _, end = self._value(at)
        payload = self._raw(at, end)
        for name in reversed(above):
            payload = b'{"%s":%s}' % (name.strip("[]").encode(), b"[%s]" % payload if name.endswith("[]") else payload)
        signal = self._signal
        detail = f"a part of the request that should hold {signal.items} is not of the right type"
        self.request.quarantine.append(Quarantined(f"{signal.item}s_undecodable", detail, payload, signal.request))
        return end

    def _resource_spans(self, at: int) -> int:
        before = len(self.request.spans)
        resource = (0, 0)
        resources, scopes = self._signal.resources, self._signal.scopes

        def field(key: str, at: int) -> int:
            nonlocal resource
            if key in (scopes, _snake(scopes)):
                return self._array(at, self._scope_spans) or self._refuse(at, f"{resources}[]", scopes)
            _, end = self._value(at)
            if key == "resource":
                resource = (at, end)
            return end

        end = self._members(at, field)
        if not end:
            return self._refuse(at, f"{resources}[]")
        if len(self.request.spans) > before:
            self.request.parts.append(self._part(resource, len(self.request.spans) - before))
        return end

    def _part(self, resource: tuple[int, int], spans: int) -> Part:
        start, end = resource
        encoded = _resource(self._value(start)[0]) if end else b""
        around = b'{"%s":[{"resource":' % self._signal.resources.encode() + b"%s}]}"
        return Part(encoded, spans, lambda: around % self._raw(start, end), self._signal.request)

    def _scope_spans(self, at: int) -> int:
        resources, scopes, items = self._signal.resources, self._signal.scopes, self._signal.items

        def field(key: str, at: int) -> int:
            if key in (items, _snake(items)):
                return self._array(at, self._span) or self._refuse(at, f"{resources}[]", f"{scopes}[]", items)
            return self._value(at)[1]

        return self._members(at, field) or self._refuse(at, f"{resources}[]", f"{scopes}[]")

    def _span(self, at: int) -> int:
        value, end = self._value(at)
        try:
            if value is _BAD:
                raise _WrongTypeError("it is nested too deep, or holds a number of too many digits")  # noqa: TRY301
            self.request.spans.append(self._signal.encode(value))
            self._where.append((at, end))
        except _WrongTypeError as e:
            item = self._signal.item
            detail = f"the {item} is not an OTLP {item}: {e}"
            kept = Quarantined(f"{item}_undecodable", detail, self._raw(at, end), self._signal.kind)
            self.request.quarantine.append(kept)
        check_count(len(self.request.spans) + len(self.request.quarantine), self._spans_max)
        return end


def split(body: bytes, spans_max: int, signal: Signal = TRACES) -> Request:
    """The spans, or what else `signal` says, of an OTLP/JSON request, as protobuf.

    Raises `DecodeError` and `TooLargeError`.
    """
    return _Reader(body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"), spans_max, signal).read()
