"""Names, sums, records; and never raises into the application, unless mode fail-closed refuses a call."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from otel_audit.capture import processor as processor_module
from otel_audit.capture.call import Call
from otel_audit.capture.frames import frames_in
from otel_audit.capture.processor import AuditSpanProcessor, Calls
from otel_audit.capture.recorder import Source
from otel_audit.capture.redact import Redactor
from otel_audit.capture.rules import Rules
from otel_audit.capture.sampler import AuditSampler
from otel_audit.capture.spool import SpoolFullError
from otel_audit.capture.wire import EncodedSpan, request
from otel_audit.errors import CaptureError
from otel_audit.names import ACTION
from tests.capture_support import spans_of
from tests.spool_support import Caught, tracer_of, within

WHO = {"audit.client.id": "web", "audit.client.auth": "api_key"}
RULES = """
[[rule]]
route = "/contacts/{id}"
service = "contacts"
action = "look"
mode = "durable"
[[rule]]
route = "/payments/*"
mode = "fail-closed"
[[redact]]
attribute = "url.path"
do = "truncate"
length = 4
"""


@pytest.fixture
def caught(tmp_path: Path) -> Caught:
    return Caught(tmp_path)


def test_only_server_spans_and_spans_with_an_action_are_recorded(caught: Caught) -> None:
    tracer = tracer_of(caught)
    for kind in SpanKind:
        tracer.start_span(str(kind), kind=kind).end()
    late = tracer.start_span("late")
    late.set_attribute(ACTION, "purge")
    late.end()
    assert [s.name for s in caught.calls()] == ["SpanKind.SERVER", "late"]


def test_the_caller_is_named_on_its_span_and_on_audited_spans_within(caught: Caught) -> None:
    tracer = tracer_of(caught)
    context = within(Call(WHO))
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


def test_the_caller_is_named_on_the_record_also_when_the_sdk_has_dropped_its_attributes(caught: Caught) -> None:
    span = tracer_of(caught).start_span("GET /", within(Call(WHO)), SpanKind.SERVER)
    for i in range(200):
        span.set_attribute(f"app.{i}", i)
    span.end()
    (record,) = caught.calls()
    assert record.attributes.items() >= WHO.items()


# --- numbers and records about itself ----------------------------------------------------------------------------------
def test_calls_that_never_end_leave_no_gap_in_the_numbers(caught: Caught) -> None:
    tracer = tracer_of(caught)
    spans = [tracer.start_span(str(i), kind=SpanKind.SERVER) for i in range(4)]
    spans[3].end()
    spans[1].end()
    caught.stop()
    caught.stop()
    found = [(s.attributes["audit.source.seq"], s.attributes.get(ACTION)) for s in caught.everything()]
    assert found == [(1, "otel_audit.start"), (2, None), (3, None), (4, "otel_audit.stop")]


def test_the_start_says_what_runs_here(caught: Caught) -> None:
    tracer_of(caught).start_span("x", kind=SpanKind.SERVER).end()
    (start,) = caught.about()
    said = start.attributes
    assert said["audit.capture.mode"] == "async"
    assert said["audit.capture.pid"] == os.getpid()
    assert {"audit.capture.version", "audit.capture.sdk", "audit.capture.python"} <= said.keys()


def test_a_full_spool_blocks_one_call_briefly_and_says_in_the_log_what_was_lost(
    caught: Caught, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = tracer_of(caught)
    tracer.start_span("before", kind=SpanKind.SERVER).end()
    append = caught.spool.append
    full = True

    def no_room(seq: int, record: EncodedSpan, *, beyond: bool = False) -> None:
        if full and not beyond:
            raise SpoolFullError("spool a record", "here", "the spool has reached its size")
        append(seq, record, beyond=beyond)

    monkeypatch.setattr(caught.spool, "append", no_room)
    sleeps: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: sleeps.append(s) or sleep(s))  # type: ignore[func-returns-value]
    tracer.start_span("lost", kind=SpanKind.SERVER).end()
    waited = len(sleeps)
    assert waited > 0
    for _ in range(9):
        tracer.start_span("lost", kind=SpanKind.SERVER).end()
    assert len(sleeps) == waited, "only the first call of an outage waits"
    assert caught.lost == 10
    assert caplog.text.count("OTEL_AUDIT_SPOOL_BYTES") == 1, "one report, not one a call"
    full = False
    tracer.start_span("after", kind=SpanKind.SERVER).end()
    assert [s.name for s in caught.calls()] == ["before", "after"]
    loss = caught.about()[-1].attributes
    assert (loss["audit.loss.count"], loss["audit.loss.first_seq"], loss["audit.loss.last_seq"]) == (10, 3, 12)
    assert "reached its size" in loss["audit.loss.reason"]
    numbers = [s.attributes["audit.source.seq"] for s in caught.everything()]
    assert numbers == [1, 2, 13, 14]


def test_losses_are_told_at_the_end_at_the_latest(caught: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    tracer_of(caught).start_span("before", kind=SpanKind.SERVER).end()
    monkeypatch.setattr(caught.spool, "_bytes_max", 0)
    tracer_of(caught).start_span("lost", kind=SpanKind.SERVER).end()
    caught.stop()
    assert [s.attributes[ACTION] for s in caught.about()] == ["otel_audit.start", "otel_audit.loss", "otel_audit.stop"]


# --- what happens within a call ------------------------------------------------------------------------------------------
def test_database_and_outgoing_calls_are_counted_and_summed(caught: Caught) -> None:
    tracer = tracer_of(caught)
    context = within(Call(WHO))
    server = tracer.start_span("GET /", context, SpanKind.SERVER)
    inside = trace.set_span_in_context(tracer.start_span("inner", context), context)
    for attributes, took_ns in (
        ({"db.system": "postgresql"}, 1000),
        ({"db.system.name": "redis"}, 500),
        ({"http.request.method": "GET"}, 70),
        ({"rpc.system": "grpc"}, 7),
        ({"messaging.system": "kafka"}, 9999),
    ):
        tracer.start_span("child", inside, SpanKind.CLIENT, attributes, start_time=10).end(10 + took_ns)
    tracer.start_span("elsewhere", Context(), SpanKind.CLIENT, {"db.system": "x"}, start_time=1).end(9)
    server.end()
    (record,) = caught.calls()
    told = {name: value for name, value in record.attributes.items() if name.startswith(("audit.db", "audit.http"))}
    assert told == {
        "audit.db.calls": 2,
        "audit.db.duration_ns": 1500,
        "audit.http.calls": 2,
        "audit.http.duration_ns": 77,
    }


@pytest.mark.parametrize(("child_spans", "calls"), [(True, 1), (False, None)])
def test_they_are_summed_in_calls_that_nobody_sampled(caught: Caught, child_spans: bool, calls: int | None) -> None:
    tracer = tracer_of(caught, sampler=AuditSampler(trace_off(), child_spans=child_spans))
    context = within(Call(WHO))
    server = tracer.start_span("GET /", context, SpanKind.SERVER)
    child = tracer.start_span("SELECT", trace.set_span_in_context(server, context), SpanKind.CLIENT, {"db.system": "x"})
    assert not child.get_span_context().trace_flags.sampled
    child.end()
    server.end()
    assert caught.calls()[0].attributes.get("audit.db.calls") == calls


def trace_off() -> Any:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    return ALWAYS_OFF


def test_open_calls_are_counted_and_bounded(caught: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(caught)
    tracer = tracer_of(calls)
    spans = [tracer.start_span("x", kind=kind) for kind in (SpanKind.SERVER, SpanKind.INTERNAL)]
    assert calls.open_calls == 1
    for span in spans:
        span.end()
    assert calls.open_calls == 0
    monkeypatch.setattr(processor_module, "_OPEN_MAX", 10)
    many = [tracer.start_span("x", within(Call(WHO)), SpanKind.SERVER) for _ in range(50)]
    assert calls.open_calls == 10
    for span in many:
        span.end()
    assert len(caught.calls()) == 51, "a call that was forgotten while it went on is recorded all the same"
    assert calls.open_calls == 0


def test_what_the_application_said_wins_and_survives(caught: Caught) -> None:
    call = Call(WHO)
    span = tracer_of(caught).start_span("GET /", within(call), SpanKind.SERVER)
    call.annotations = {ACTION: "approve", "audit.reason": "ticket 7"}
    span.end()
    assert caught.calls()[0].attributes.items() >= {ACTION: "approve", "audit.reason": "ticket 7"}.items()


# --- rules and modes ------------------------------------------------------------------------------------------------------
def with_rules(caught: Caught, tmp_path: Path, **more: Any) -> trace.Tracer:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    rules = Rules.load(path)
    return tracer_of(Calls(caught, rules=rules, redactor=Redactor(rules.redactions, b"k"), **more))


def http(route: str) -> dict[str, str]:
    return {"http.request.method": "GET", "http.route": route, "url.path": route}


def test_rules_name_and_redact(caught: Caught, tmp_path: Path) -> None:
    tracer = with_rules(caught, tmp_path, operation_of=lambda _request, _said: "get_contact")
    tracer.start_span("GET", within(Call(WHO, {})), SpanKind.SERVER, http("/contacts/{id}")).end()
    (record,) = caught.calls()
    said = record.attributes
    assert (said["audit.service"], said[ACTION], said["audit.operation"]) == ("contacts", "look", "get_contact")
    assert said["url.path"] == "/con"


def test_a_durable_route_is_synced_and_others_are_not(caught: Caught, tmp_path: Path) -> None:
    tracer = with_rules(caught, tmp_path)
    tracer.start_span("GET", None, SpanKind.SERVER, http("/other")).end()
    assert caught.synced == 0
    tracer.start_span("GET", None, SpanKind.SERVER, http("/contacts/{id}")).end()
    assert caught.synced == 1


def test_fail_closed_notes_the_call_before_it_happens_and_records_it_once(caught: Caught, tmp_path: Path) -> None:
    tracer = with_rules(caught, tmp_path)
    span = tracer.start_span("GET", within(Call(WHO)), SpanKind.SERVER, http("/payments/7"))
    started = list(frames_in((caught.spool.folder / "open").read_bytes()))
    (open_call,) = spans_of(request([started[0].record]))
    assert open_call.attributes["audit.incomplete"] is True
    assert open_call.attributes.items() >= {**WHO, "audit.outcome": "unknown"}.items()
    assert caught.calls() == []
    span.end()
    (record,) = caught.calls()
    assert record.attributes["audit.source.seq"] == open_call.attributes["audit.source.seq"]
    assert (record.span_id, record.attributes.get("audit.incomplete")) == (open_call.span_id, None)
    assert [one.kind for one in frames_in((caught.spool.folder / "open").read_bytes())] == [2, 3]


def test_fail_closed_refuses_what_cannot_be_audited(
    caught: Caught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = with_rules(caught, tmp_path)
    tracer.start_span("GET", None, SpanKind.SERVER, http("/other")).end()
    monkeypatch.setattr(caught.spool, "_bytes_max", 0)
    with pytest.raises(CaptureError, match="make room"):
        tracer.start_span("GET", None, SpanKind.SERVER, http("/payments/7"))
    tracer.start_span("GET", None, SpanKind.SERVER, http("/other")).end()
    monkeypatch.undo()
    tracer.start_span("GET", None, SpanKind.SERVER, http("/other")).end()
    loss = caught.about()[-1].attributes
    assert (loss["audit.loss.count"], loss["audit.loss.first_seq"]) == (2, 3)


# --- faults ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", ["record", "flush"])
def test_a_fault_of_ours_never_reaches_the_application(
    caught: Caught, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> bool:
        raise RuntimeError("bug")

    monkeypatch.setattr(*((caught, "record", fail) if part == "record" else (caught.shipper, "flush", fail)))
    processor = AuditSpanProcessor(Calls(caught))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    for _ in range(50):
        broken = within(Call({"x": "y"} | {7: object()}))  # type: ignore[arg-type]
        provider.get_tracer("test").start_span("x", broken, SpanKind.SERVER).end()
    processor.shutdown()
    assert caplog.text.count("a fault in otel-audit") == 1, "one report, not one a call"


def test_a_source_is_one_process_start() -> None:
    ids = {Source().id for _ in range(9)}
    assert len(ids) == 9
    assert all(re.fullmatch(rf"[\x21-\x7e]+-{os.getpid()}-[0-9a-f]{{8}}", one) for one in ids)


def test_a_forked_process_is_another_source(caught: Caught) -> None:
    tracer_of(caught).start_span("x", kind=SpanKind.SERVER).end()
    before = caught.source.id
    caught.after_fork()
    assert caught.source.id != before
    assert caught.everything() == []
    noted: Callable[[], None] = caught.stop
    noted()
    assert caught.everything() == [], "a process that recorded nothing has no end to record"
