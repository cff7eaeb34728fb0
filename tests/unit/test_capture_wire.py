"""Bytes written directly say the same as the stock encoder's, and nothing in a span can make them invalid."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanLimits, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from otel_audit.capture import wire
from otel_audit.capture.wire import SPAN_BYTES_MAX, SpanEncoder, add_texts, attributes_of, has_attribute, request

RESOURCE = Resource({"service.name": "crm", "n": 3}, "https://example.com/resource")
SCOPE = InstrumentationScope("fastapi", "1.2", "https://example.com/scope", {"part": "asgi"})


def make_span(
    attributes: dict[str, Any] | None = None,
    *,
    kind: SpanKind = SpanKind.SERVER,
    parent: SpanContext | None = None,
    events: tuple[Event, ...] = (),
    status: Status | None = None,
    name: str = "GET /things",
    state: TraceState | None = None,
    resource: Resource = RESOURCE,
    scope: InstrumentationScope | None = SCOPE,
) -> ReadableSpan:
    context = SpanContext(0x1234 << 64, 0xABCD, is_remote=False, trace_flags=TraceFlags(1), trace_state=state)
    return ReadableSpan(
        name,
        context,
        parent,
        resource,
        attributes or {},
        events,
        (),
        kind,
        None,
        status or Status(),
        1_700_000_000_000_000_001,
        1_700_000_000_000_000_901,
        scope,
    )


def decoded(*spans: ReadableSpan) -> ExportTraceServiceRequest:
    encoder = SpanEncoder("source-1")
    return ExportTraceServiceRequest.FromString(
        request([encoder.encode(s, attributes_of(s), n) for n, s in enumerate(spans, 1)])
    )


def without_number(message: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    for resource in message.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                kept = [a for a in span.attributes if not a.key.startswith("audit.source.")]
                del span.attributes[:]
                span.attributes.extend(kept)
    return message


values = st.recursive(
    st.none()
    | st.booleans()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=6,
)
attribute_maps = st.dictionaries(st.text("abc.é", min_size=1, max_size=8), values, max_size=8)


@given(attribute_maps, attribute_maps, st.sampled_from(list(SpanKind)), st.sampled_from(list(StatusCode)))
def test_bytes_parse_to_what_the_stock_encoder_writes(
    first: dict[str, Any], second: dict[str, Any], kind: SpanKind, code: StatusCode
) -> None:
    description = "went wrong" if code is StatusCode.ERROR else None
    parent = SpanContext(0x1234 << 64, 0x99, is_remote=True)
    spans = (
        make_span(first, kind=kind, status=Status(code, description)),
        make_span(second, parent=parent, state=TraceState([("vendor", "x"), ("other", "y")])),
        make_span(first, scope=None),
    )
    assert without_number(decoded(*spans)) == encode_spans(spans)


def test_attributes_that_are_equal_as_keys_stay_apart() -> None:
    spans = [make_span({"k": v}) for v in (1, True, 1.0, "1", 1, True)]
    assert without_number(decoded(*spans)) == encode_spans(spans)


def test_every_record_carries_its_source_and_number() -> None:
    message = decoded(make_span(), make_span(), make_span())
    numbers = [
        [a.value.int_value for a in span.attributes if a.key == "audit.source.seq"]
        for span in message.resource_spans[0].scope_spans[0].spans
    ]
    sources = {
        a.value.string_value
        for span in message.resource_spans[0].scope_spans[0].spans
        for a in span.attributes
        if a.key == "audit.source.id"
    }
    assert numbers == [[1], [2], [3]]
    assert sources == {"source-1"}


def test_spans_of_one_resource_and_scope_are_sent_under_one() -> None:
    other = Resource({"service.name": "billing"})
    message = decoded(make_span(), make_span(resource=other), make_span(), make_span(scope=None))
    assert [len(r.scope_spans) for r in message.resource_spans] == [2, 1]
    assert len(message.resource_spans[0].scope_spans[0].spans) == 2


def test_an_exception_is_told_without_its_stack_trace_and_other_events_are_left_out() -> None:
    exception = Event("exception", {"exception.type": "ValueError", "exception.stacktrace": "secret"}, timestamp=5)
    span = (
        decoded(make_span(events=(Event("log", {}, timestamp=4), exception))).resource_spans[0].scope_spans[0].spans[0]
    )
    assert [e.name for e in span.events] == ["exception"]
    assert [a.key for a in span.events[0].attributes] == ["exception.type"]
    assert span.events[0].time_unix_nano == 5


class Hostile:
    """A value whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        (2**63, "9223372036854775808"),
        (Hostile(), "(a Hostile that cannot be encoded)"),
        (nested(100_000), "(a list that cannot be encoded)"),
    ],
)
def test_a_value_otlp_cannot_hold_becomes_text(value: object, expected: str) -> None:
    span = decoded(make_span({"k": value})).resource_spans[0].scope_spans[0].spans[0]
    assert span.attributes[0].value.string_value == expected


def test_a_span_of_absurd_size_is_cut_rather_than_refused() -> None:
    attributes = {f"k{i}": "x" * 100_000 for i in range(100)}
    message = decoded(make_span(attributes, name="n" * 2_000_000))
    span = message.resource_spans[0].scope_spans[0].spans[0]
    assert message.ByteSize() < SPAN_BYTES_MAX
    assert len(span.attributes) == 102
    assert span.trace_id.hex() == "00000000000012340000000000000000"


def test_memory_for_repeated_attributes_is_bounded() -> None:
    encoder = SpanEncoder("source-1")
    for i in range(20_000):
        span = make_span({"url": f"/things/{i}", "status": i % 2000})
        encoder.encode(span, attributes_of(span), i)
    assert len(encoder._texts) <= 4096
    assert len(encoder._ints) <= 4096


@pytest.mark.parametrize("limits", [SpanLimits(), SpanLimits(max_span_attributes=3, max_span_attribute_length=4)])
@pytest.mark.parametrize("hidden", [False, True])
def test_adding_texts_does_what_setting_attributes_does(
    limits: SpanLimits, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = TracerProvider(resource=RESOURCE, span_limits=limits, shutdown_on_exit=False).get_tracer("test")
    ours, theirs = (tracer.start_span("s", attributes={"a": "first", "b": 2}) for _ in range(2))
    more = {"audit.client.id": "web-client", "a": "second", "audit.client.auth": "api_key"}
    assert isinstance(ours, Span)
    assert isinstance(theirs, Span)
    if hidden:  # as in an SDK that keeps them otherwise
        monkeypatch.setattr(wire, "getattr", lambda *_: None, raising=False)
    add_texts(ours, more)
    monkeypatch.undo()
    theirs.set_attributes(more)
    assert attributes_of(ours) == attributes_of(theirs)
    assert ours.dropped_attributes == theirs.dropped_attributes
    assert [has_attribute(ours, name) for name in ("audit.client.id", "nothing")] == [True, False]
