"""OTLP requests for tests, made with the stock classes, and the promise that holds for every decoded request."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_audit import _otlp_schema as wire
from otel_audit.otlp import Decoded, Decoder, DecodeSettings
from otel_audit.record import canonical, span_schema

START_NS = 1_795_420_800_123_456_789
TRACE = bytes(range(16))
SPAN = bytes(range(8, 16))


def any_value(value: Any) -> AnyValue:
    """A Python value as AnyValue; None is an empty one."""
    if value is None:
        return AnyValue()
    if isinstance(value, AnyValue):
        return value
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    result = AnyValue()
    if isinstance(value, Mapping):
        result.kvlist_value.values.extend(key_values(value))
        result.kvlist_value.SetInParent()
        return result
    result.array_value.values.extend([any_value(v) for v in value])
    result.array_value.SetInParent()
    return result


def key_values(attributes: Mapping[str, Any]) -> list[KeyValue]:
    """Attributes as KeyValue messages."""
    return [KeyValue(key=k, value=any_value(v)) for k, v in attributes.items()]


def span(attributes: Mapping[str, Any] | None = None, **fields: Any) -> Span:
    """A sound SERVER span of 5 ms; `fields` replace or add, `exception=True` adds the event, `status` is a code."""
    exception, status = fields.pop("exception", False), fields.pop("status", None)
    made = Span(
        **{
            "trace_id": TRACE,
            "span_id": SPAN,
            "name": "a call",
            "kind": Span.SPAN_KIND_SERVER,
            "start_time_unix_nano": START_NS,
            "end_time_unix_nano": START_NS + 5_000_000,
            **fields,
        }
    )
    made.attributes.extend(key_values(attributes or {}))
    if status is not None:
        made.status.code = status
    if exception:
        event = made.events.add(name="exception", time_unix_nano=START_NS)
        event.attributes.extend(key_values({"exception.type": "ValueError"}))
    return made


def request(*spans: Span, resource: Mapping[str, Any] | None = None) -> ExportTraceServiceRequest:
    """One request of one resource."""
    made = ExportTraceServiceRequest()
    resource_spans = made.resource_spans.add()
    resource_spans.resource.attributes.extend(key_values({"service.name": "crm"} if resource is None else resource))
    resource_spans.scope_spans.add().spans.extend(spans)
    return made


def encoded(message: ExportTraceServiceRequest) -> bytes:
    """A request's bytes."""
    data: bytes = message.SerializeToString()
    return data


def backwards(message: Any) -> bytes:
    """A message's bytes with the fields of every message in it from the last to the first, as a Collector writes them."""
    parts: list[bytes] = []
    for field, value in reversed(message.ListFields()):
        if field.message_type is None:
            alone = type(message)()
            if field.is_repeated:
                getattr(alone, field.name).extend(value)
            else:
                setattr(alone, field.name, value)
            parts.append(alone.SerializeToString())
        else:
            parts += [wire.field(field.number, backwards(one)) for one in (value if field.is_repeated else [value])]
    return b"".join(parts)


def check(decoded: Decoded) -> Decoded:
    """Nothing lost, nothing counted twice, and every record can be written canonically."""
    refused = sum(not q.recorded for q in decoded.quarantine)
    assert decoded.spans == decoded.records.num_rows + decoded.skipped + refused
    assert decoded.records.schema == span_schema()
    decoded.records.validate(full=True)
    for row in rows(decoded):
        canonical({**row, "recorded_at": 0, "log": "audit", "seq": 0})
    return decoded


def rows(decoded: Decoded) -> list[dict[str, Any]]:
    """Records as dictionaries."""
    found: list[dict[str, Any]] = decoded.records.to_pylist()
    return found


def decode(
    *spans: Span,
    resource: Mapping[str, Any] | None = None,
    exclude_routes: Sequence[str] = (),
    decoder: Decoder | None = None,
) -> Decoded:
    """What a fresh decoder makes of spans of one resource."""
    decoder = decoder or Decoder(DecodeSettings(exclude_routes=tuple(exclude_routes)))
    return check(decoder.decode(encoded(request(*spans, resource=resource))))


def record(
    attributes: Mapping[str, Any] | None = None, *, resource: Mapping[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """The one record of one span."""
    decoded = decode(span(attributes, **fields), resource=resource)
    assert [q for q in decoded.quarantine if not q.recorded] == []
    (only,) = rows(decoded)
    return only


def to_json(message: ExportTraceServiceRequest) -> dict[str, Any]:
    """A request as OTLP/JSON: ProtoJSON, but with ids as hex and enums as numbers."""
    made = MessageToDict(message, use_integers_for_enums=True)
    for resource_spans in made.get("resourceSpans", []):
        for scope_spans in resource_spans.get("scopeSpans", []):
            for one in scope_spans.get("spans", []):
                _hex_ids(one)
                for link in one.get("links", []):
                    _hex_ids(link)
    return made


def _hex_ids(message: dict[str, Any]) -> None:
    for key in ("traceId", "spanId", "parentSpanId"):
        if key in message:
            message[key] = base64.b64decode(message[key]).hex()
