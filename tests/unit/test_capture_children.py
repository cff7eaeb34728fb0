"""What a call asks of others is summed once, from any thread, in bounded memory."""

import asyncio
import contextvars
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from otel_audit.capture import children as children_module
from otel_audit.capture.call import Call
from otel_audit.capture.children import ALL_MAX, OPEN_MAX
from otel_audit.capture.processor import AuditSpanProcessor, Calls
from tests.capture_support import Span
from tests.spool_support import Caught, within

DB = {"db.system": "sqlite"}
HTTP = {"http.request.method": "GET"}


class Rig:
    def __init__(self, folder: Path) -> None:
        self.caught = Caught(folder)
        self.calls = Calls(self.caught)
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(AuditSpanProcessor(self.calls))

    @contextmanager
    def call(self) -> Iterator[Call]:
        call = Call({})
        context = within(call)
        with self.tracer("server").start_as_current_span("GET /", context, SpanKind.SERVER) as span:
            token = attach(trace.set_span_in_context(span, context))
            try:
                yield call
            finally:
                detach(token)

    def tracer(self, library: str) -> trace.Tracer:
        return self.provider.get_tracer(library)

    def child(self, attributes: dict[str, str], library: str = "lib", took_ns: int = 10) -> None:
        start = self.start(attributes, library)
        start.end(1000 + took_ns)

    def start(self, attributes: dict[str, str], library: str = "lib") -> trace.Span:
        return self.tracer(library).start_span("child", kind=SpanKind.CLIENT, attributes=attributes, start_time=1000)

    def sums(self) -> tuple[Any, ...]:
        record: Span = self.caught.calls()[-1]
        said = record.attributes
        return tuple(said.get(f"audit.{k}") for k in ("db.calls", "db.duration_ns", "http.calls", "http.duration_ns"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_the_sums_are_on_the_record_as_the_log_has_it(rig: Rig) -> None:
    with rig.call():
        rig.child(DB)
        rig.child(HTTP)
    (row,) = rig.caught.decoded()
    assert json.loads(row["attributes"]) == {
        "audit.db.calls": 1,
        "audit.db.duration_ns": 10,
        "audit.http.calls": 1,
        "audit.http.duration_ns": 10,
    }


@pytest.mark.parametrize("attributes", [DB, HTTP])
def test_a_call_within_a_call_of_the_same_kind_counts_once(rig: Rig, attributes: dict[str, str]) -> None:
    with rig.call():
        outer = rig.start(attributes)
        with trace.use_span(outer):
            rig.child(attributes, "driver", took_ns=5)
        outer.end(1000 + 50)
    assert [x for x in rig.sums() if x is not None] == [1, 50]


def test_a_database_that_is_reached_by_http_counts_as_both(rig: Rig) -> None:
    with rig.call():
        outer = rig.start(DB)
        with trace.use_span(outer):
            rig.child(HTTP, "urllib", took_ns=5)
        outer.end(1000 + 50)
    assert rig.sums() == (1, 50, 1, 5)


def test_a_driver_below_a_library_whose_span_is_not_its_parent_counts_once(rig: Rig) -> None:
    with rig.call():
        outer = rig.start(DB, "sqlalchemy")
        rig.child(DB, "sqlite3", took_ns=5)
        outer.end(1000 + 50)
        rig.child(DB, "sqlite3", took_ns=5)
    assert rig.sums() == (2, 55, None, None)


def test_a_statement_that_never_ends_hides_no_other_of_its_library(rig: Rig) -> None:
    with rig.call():
        rig.start(DB, "lib")
        rig.child(DB, "lib", took_ns=5)
        rig.child(DB, "lib", took_ns=5)
    assert rig.sums() == (2, 10, None, None)


def test_an_open_stream_hides_no_other_outgoing_call(rig: Rig) -> None:
    with rig.call():
        stream = rig.start({"rpc.system": "grpc"}, "grpc")
        rig.child(HTTP, "httpx", took_ns=5)
        stream.end(1000 + 50)
    assert rig.sums() == (None, None, 2, 55)


def test_tasks_and_threads_at_the_same_time_all_count(rig: Rig) -> None:
    both = threading.Barrier(2)

    def in_thread(library: str) -> None:
        span = rig.start(DB, library)
        both.wait(20)
        span.end(1000 + 10)

    async def in_task(library: str) -> None:
        span = rig.start(DB, library)
        await asyncio.sleep(0)
        span.end(1000 + 10)

    async def run() -> None:
        await asyncio.gather(*(in_task(f"library {n}") for n in range(20)))

    with rig.call(), ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(contextvars.copy_context().run, in_thread, f"library {n}") for n in range(2)]:
            one.result(20)
        asyncio.run(run())
    assert rig.sums() == (22, 220, None, None)


def test_no_addition_is_missed_between_threads(rig: Rig) -> None:
    def work() -> None:
        for _ in range(500):
            rig.child(HTTP, took_ns=1)

    with rig.call(), ThreadPoolExecutor(8) as pool:
        for one in [pool.submit(contextvars.copy_context().run, work) for _ in range(8)]:
            one.result(60)
    assert rig.sums() == (None, None, 4000, 4000)


def test_what_goes_on_after_the_record_counts_no_more_and_is_forgotten(rig: Rig) -> None:
    with rig.call() as call:
        rig.child(DB)
        left = rig.start(DB)
        after = contextvars.copy_context()
    assert rig.sums() == (1, 10, None, None)
    assert len(rig.calls.children) == 0
    left.end()
    after.run(rig.child, DB)
    assert (call.db_calls, call.children, len(rig.calls.children)) == (1, {}, 0)


def test_spans_that_never_end_do_not_fill_the_memory(rig: Rig) -> None:
    with rig.call() as call:
        for n in range(200_000):
            rig.start(DB)
            if n % 10_000 == 0:
                assert len(rig.calls.children) <= OPEN_MAX
        assert len(call.children) == len(rig.calls.children) == OPEN_MAX
        rig.child(HTTP)
    assert rig.sums() == (None, None, 1, 10)
    assert len(rig.calls.children) == 0


def test_calls_that_never_end_with_spans_that_never_end_do_not_either(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ALL_MAX >= 10_000
    monkeypatch.setattr(children_module, "ALL_MAX", 100)
    calls = [Call({}) for _ in range(300)]
    for call in calls:
        span = rig.tracer("server").start_span("GET /", within(call), SpanKind.SERVER)
        context = trace.set_span_in_context(span, within(call))
        for _ in range(3):
            rig.tracer("lib").start_span("child", context, SpanKind.CLIENT, DB)
    assert len(rig.calls.children) == 100
    assert sum(len(call.children) for call in calls) == 100


def test_a_forked_process_forgets_the_calls_of_its_parent(rig: Rig) -> None:
    with rig.call():
        rig.start(DB)
        rig.calls.after_fork()
        assert len(rig.calls.children) == 0
