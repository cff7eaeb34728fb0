"""Names, numbers, hands on; and never raises into the application."""

import os
import re
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, set_value
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from otel_audit.capture.call import CALL_KEY, Call
from otel_audit.capture.processor import AuditSpanProcessor, Source
from otel_audit.capture.settings import Destination
from otel_audit.capture.shipper import Shipper
from otel_audit.capture.wire import EncodedSpan
from otel_audit.names import ACTION

WHO = {"audit.client.id": "web", "audit.client.auth": "api_key"}


class Caught(Shipper):
    """A shipper that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__(Destination("grpc", "audit:1"))
        self.records: list[EncodedSpan] = []

    def put(self, record: EncodedSpan) -> bool:
        self.records.append(record)
        return True


def tracer_of(shipper: Shipper) -> trace.Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(AuditSpanProcessor(Source(), shipper))
    return provider.get_tracer("test")


def test_only_server_spans_and_spans_with_an_action_are_recorded() -> None:
    caught = Caught()
    tracer = tracer_of(caught)
    for kind in SpanKind:
        tracer.start_span(str(kind), kind=kind).end()
    late = tracer.start_span("late")
    late.set_attribute(ACTION, "purge")
    late.end()
    assert len(caught.records) == 2
    assert b"SpanKind.SERVER" in caught.records[0].span
    assert b"purge" in caught.records[1].span


def test_the_caller_is_named_on_its_span_and_on_audited_spans_within() -> None:
    tracer = tracer_of(Caught())
    context = set_value(CALL_KEY, Call(WHO), Context())
    server: Any = tracer.start_span("GET /", context, SpanKind.SERVER)
    token = attach(trace.set_span_in_context(server, context))
    try:
        action: Any = tracer.start_span("purge", attributes={ACTION: "purge"})
        inner: Any = tracer.start_span("inner")
    finally:
        detach(token)
    assert dict(server.attributes) == WHO
    assert dict(action.attributes) == {ACTION: "purge", **WHO}
    assert dict(inner.attributes) == {}


def test_calls_that_never_end_leave_no_gap_in_the_numbers() -> None:
    caught = Caught()
    tracer = tracer_of(caught)
    spans = [tracer.start_span(str(i), kind=SpanKind.SERVER) for i in range(4)]
    spans[3].end()
    spans[1].end()
    numbers = [r.span.partition(b"audit.source.seq\x12\x02\x18")[2][0] for r in caught.records]
    assert numbers == [1, 2]


def test_open_calls_are_counted() -> None:
    source = Source()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(AuditSpanProcessor(source, Caught()))
    spans = [provider.get_tracer("test").start_span("x", kind=kind) for kind in (SpanKind.SERVER, SpanKind.INTERNAL)]
    assert source.open_calls == 1
    for span in spans:
        span.end()
    assert source.open_calls == 0


@pytest.mark.parametrize("part", ["put", "flush"])
def test_a_fault_of_ours_never_reaches_the_application(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("bug")

    shipper = Caught()
    monkeypatch.setattr(shipper, part, fail)
    processor = AuditSpanProcessor(Source(), shipper)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    for _ in range(50):
        broken_identity = set_value(CALL_KEY, Call({"x": "y"} | {7: object()}), Context())  # type: ignore[dict-item]
        provider.get_tracer("test").start_span("x", broken_identity, SpanKind.SERVER).end()
    assert processor.force_flush(10) is (part == "put")
    processor.shutdown()
    assert caplog.text.count("a fault in otel-audit") == 1, "one report, not one a call"


def test_a_source_is_one_process_start() -> None:
    source = Source()
    assert re.fullmatch(rf"[\x21-\x7e]+-{os.getpid()}-[0-9a-f]{{8}}", source.id)
    before = source.id
    source.after_fork()
    assert source.id != before
    assert Source().id != Source().id
