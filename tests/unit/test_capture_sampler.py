"""No sampler and no caller can keep a call out of the audit; what the user's exporters see does not change."""

from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBasedTraceIdRatio,
    Sampler,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

from otel_audit.capture.sampler import AuditSampler
from otel_audit.names import ACTION

UNSAMPLED_CALLER = set_span_in_context(NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0))))


class Kept(SpanProcessor):
    """Remembers every span that ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


@pytest.mark.parametrize("inner", [ALWAYS_OFF, DEFAULT_OFF, DEFAULT_ON, ParentBasedTraceIdRatio(0.0)])
def test_a_server_span_is_recorded_with_its_attributes_and_stays_unsampled(inner: Sampler) -> None:
    exporter, kept = InMemorySpanExporter(), Kept()
    provider = TracerProvider(sampler=AuditSampler(inner), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(kept)
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("GET /", UNSAMPLED_CALLER, SpanKind.SERVER, {"http.method": "GET"}) as span:
        assert not span.get_span_context().trace_flags.sampled
        with tracer.start_as_current_span("inner") as child:
            assert not child.is_recording()
    assert [s.name for s in kept.spans] == ["GET /"]
    assert dict(kept.spans[0].attributes or {}) == {"http.method": "GET"}
    assert exporter.get_finished_spans() == ()


def test_a_span_that_starts_with_an_action_is_recorded() -> None:
    sampler = AuditSampler(ALWAYS_OFF)
    decide: Callable[..., Decision] = lambda **kw: sampler.should_sample(None, 1, "x", **kw).decision  # noqa: E731
    assert decide(kind=SpanKind.INTERNAL, attributes={ACTION: "purge"}) is Decision.RECORD_ONLY
    assert decide(kind=SpanKind.INTERNAL, attributes={"k": 1}) is Decision.DROP
    assert decide(kind=SpanKind.CLIENT) is Decision.DROP


def test_what_is_sampled_stays_sampled() -> None:
    result = AuditSampler(ALWAYS_ON).should_sample(None, 1, "x", SpanKind.SERVER, {"k": 1})
    assert result.decision is Decision.RECORD_AND_SAMPLE
    assert result.attributes == {"k": 1}


def test_the_description_names_the_users_sampler() -> None:
    assert AuditSampler(ALWAYS_OFF).get_description() == "AuditSampler{AlwaysOffSampler}"
