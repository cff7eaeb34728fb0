"""An ordinary SpanExporter: SUCCESS means durable."""

import threading
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from otel_audit.capture import autoload
from otel_audit.capture import exporter as exporter_module
from otel_audit.capture.exporter import AuditSpanExporter
from otel_audit.capture.transport import KEPT, Answer, Fate

AGAIN = Answer(Fate.AGAIN, "away")


class FakeTransport:
    """Answers as told, and remembers what it was sent."""

    def __init__(self) -> None:
        self.answer: Callable[[], Answer] = lambda: KEPT
        self.bodies: list[bytes] = []
        self.closed = 0
        self.sent = threading.Event()

    def send(self, body: bytes, timeout_s: float) -> Answer:
        self.bodies.append(body)
        self.sent.set()
        return self.answer()

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    fake = FakeTransport()
    monkeypatch.setattr(exporter_module, "connect", lambda _: fake)
    monkeypatch.setattr(exporter_module, "_BACKOFF_S", 0.01)
    return fake


def span(kind: SpanKind = SpanKind.SERVER) -> ReadableSpan:
    context = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    return ReadableSpan("GET /", context, kind=kind, start_time=1, end_time=2)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([KEPT], SpanExportResult.SUCCESS),
        ([AGAIN, AGAIN, KEPT], SpanExportResult.SUCCESS),
        ([Answer(Fate.REFUSED, "no")], SpanExportResult.FAILURE),
        ([Answer(Fate.KEPT, "partly", None, 1)], SpanExportResult.FAILURE),
        ([Answer(Fate.AGAIN, "later", 3600.0)], SpanExportResult.FAILURE),
    ],
)
def test_success_only_when_durable(transport: FakeTransport, answers: list[Answer], expected: SpanExportResult) -> None:
    replies = iter(answers)
    transport.answer = lambda: next(replies)
    assert AuditSpanExporter("http://audit:1").export([span()]) is expected
    assert next(replies, None) is None


def test_failure_when_the_time_is_over(transport: FakeTransport) -> None:
    transport.answer = lambda: AGAIN
    assert AuditSpanExporter("http://audit:1", timeout_s=0.1).export([span()]) is SpanExportResult.FAILURE
    assert len(transport.bodies) > 1


def test_what_is_not_audited_is_not_sent(transport: FakeTransport) -> None:
    assert AuditSpanExporter("http://audit:1").export([span(SpanKind.INTERNAL)]) is SpanExportResult.SUCCESS
    assert transport.bodies == []


def test_after_shutdown_exports_fail_and_the_destination_is_let_go_once(transport: FakeTransport) -> None:
    exporter = AuditSpanExporter("http://audit:1")
    exporter.shutdown()
    exporter.shutdown()
    assert transport.closed == 1
    assert exporter.export([span()]) is SpanExportResult.FAILURE
    assert transport.bodies == []


def test_shutdown_ends_a_retry(transport: FakeTransport) -> None:
    transport.answer = lambda: Answer(Fate.AGAIN, "later", 60.0)
    exporter = AuditSpanExporter("http://audit:1", timeout_s=3600)
    results: list[SpanExportResult] = []
    thread = threading.Thread(target=lambda: results.append(exporter.export([span()])))
    thread.start()
    assert transport.sent.wait(20)
    assert exporter.force_flush(1) is False, "an export is under way"
    exporter.shutdown()
    thread.join(20)
    assert results == [SpanExportResult.FAILURE]
    assert exporter.force_flush(1) is True


@pytest.mark.parametrize("processor", [SimpleSpanProcessor, BatchSpanProcessor])
def test_it_works_behind_the_sdks_processors(
    transport: FakeTransport, processor: type[SimpleSpanProcessor | BatchSpanProcessor]
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor(AuditSpanExporter("http://audit:1")))
    provider.get_tracer("test").start_span("GET /", kind=SpanKind.SERVER).end()
    assert provider.force_flush()
    provider.shutdown()
    assert len(transport.bodies) == 1
    assert b"GET /" in transport.bodies[0]


@pytest.mark.parametrize(("delivered", "expected"), [(True, "SUCCESS"), (False, "FAILURE")])
def test_beside_installed_capture_only_one_ships(
    transport: FakeTransport, monkeypatch: pytest.MonkeyPatch, delivered: bool, expected: str
) -> None:
    monkeypatch.setattr(autoload, "ships_to", lambda to: to.target == "audit:1")
    monkeypatch.setattr(autoload, "flush", lambda _: delivered)
    assert AuditSpanExporter("http://audit:1").export([span()]).name == expected
    assert transport.bodies == []
    assert AuditSpanExporter("http://other:1").export([span()]) is SpanExportResult.SUCCESS
    assert len(transport.bodies) == 1
