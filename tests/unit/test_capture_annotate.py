"""What the application says is on the record, never raises, and is bounded; what is audited outside of calls is recorded."""

import asyncio
import contextvars
import inspect
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, assert_type, get_type_hints

import pytest
from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from otel_audit import annotate, audited
from otel_audit.capture import annotate as annotate_module
from otel_audit.capture.call import Call, current_call
from otel_audit.capture.jobs import Audited
from otel_audit.capture.processor import AuditSpanProcessor, Calls
from otel_audit.capture.sampler import AuditSampler
from otel_audit.errors import CaptureError
from otel_audit.names import ACTION
from tests.capture_support import Span
from tests.spool_support import Caught, within

WHO = {"audit.client.id": "web"}


@pytest.fixture
def caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caught:
    """What this process records."""
    annotate_module._warned.clear()
    recorder = Caught(tmp_path)
    use(Calls(recorder), monkeypatch)
    return recorder


def use(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.sampler = AuditSampler(provider.sampler, child_spans=True)
    provider.add_span_processor(AuditSpanProcessor(calls))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return provider


@contextmanager
def call(identity: dict[str, str] = WHO, *, handed_on: bool = True) -> Iterator[Any]:
    """A call that is being served; without `handed_on` only its span is current, as under aiohttp."""
    context = within(Call(identity))
    with trace.get_tracer("test").start_as_current_span("GET /", context, SpanKind.SERVER) as span:
        token = attach(trace.set_span_in_context(span, context)) if handed_on else None
        try:
            yield span
        finally:
            if token is not None:
                detach(token)


def one(caught: Caught) -> Span:
    (found,) = caught.calls()
    return found


# --- annotate --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("handed_on", [True, False])
def test_what_a_handler_says_is_on_the_record_and_what_was_said_last_counts(caught: Caught, handed_on: bool) -> None:
    with call(handed_on=handed_on) as span:
        assert annotate(
            "merge", 7, reason="because", outcome="denied", user="kim", service="crm", note="x", left_out=None
        )
        with trace.get_tracer("test").start_as_current_span("inner"):
            assert annotate(target="8", ok=True, count=3, share=0.5, **{"audit.full": "name"})
        assert span.attributes[ACTION] == "merge", "the user's own exporters see it too"
    said = {k: v for k, v in one(caught).attributes.items() if not k.startswith("audit.source")}
    assert said == {
        **WHO,
        "audit.action": "merge",
        "audit.target.id": "8",
        "audit.reason": "because",
        "audit.outcome": "denied",
        "user.id": "kim",
        "audit.service": "crm",
        "audit.note": "x",
        "audit.ok": True,
        "audit.count": 3,
        "audit.share": "0.5",
        "audit.full": "name",
    }


def test_it_works_below_spans_that_nobody_sampled_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    caught = Caught(tmp_path)
    provider = use(Calls(caught), monkeypatch)
    provider.sampler = AuditSampler(ALWAYS_OFF, child_spans=True)
    tracer = provider.get_tracer("test")
    with call(handed_on=False), tracer.start_as_current_span("inner") as inner:
        assert not inner.get_span_context().trace_flags.sampled
        assert annotate("merge")
        with tracer.start_as_current_span("SELECT", kind=SpanKind.CLIENT, attributes={"db.system": "x"}):
            pass
    assert one(caught).attributes[ACTION] == "merge"
    assert one(caught).attributes["audit.db.calls"] == 1


def test_other_threads_that_have_the_context_annotate_too(caught: Caught) -> None:
    with call(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(contextvars.copy_context().run, annotate, "merge").result()
        assert not pool.submit(annotate, "lost").result(), "a thread without the context is outside of the call"
    assert one(caught).attributes[ACTION] == "merge"


def test_outside_of_calls_and_after_the_record_it_says_no(caught: Caught) -> None:
    assert annotate("x") is False
    with call():
        context = contextvars.copy_context()
    assert context.run(annotate, "late") is False
    assert ACTION not in one(caught).attributes


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("given", "attribute"),
    [
        ({"note": Unspeakable()}, "audit.note"),
        ({"action": Unspeakable()}, "audit.action"),
        ({"outcome": "fine"}, "audit.outcome"),
        ({"outcome": 3}, "audit.outcome"),
        ({"source.seq": 3}, "audit.source.seq"),
        ({"loss.count": 3}, "audit.loss.count"),
        ({"incomplete": True}, "audit.incomplete"),
        ({"action": ""}, "audit.action"),
    ],
)
def test_what_cannot_be_said_is_left_out_and_the_rest_is_not(caught: Caught, given: Any, attribute: str) -> None:
    with call():
        assert annotate(**{"more": "x", **given})
    said = one(caught).attributes
    assert said["audit.more"] == "x"
    assert said.get(attribute) in (None, 2), "2 is the record's own number"


def test_values_and_their_number_are_bounded(caught: Caught, caplog: pytest.LogCaptureFixture) -> None:
    with call():
        many: dict[str, Any] = {f"n{n}": n for n in range(200)}
        annotate(**many)
        annotate(n0="again", big="b", huge=1 << 70)
        annotate(n1="t" * 10_000)
    said = one(caught).attributes
    assert sum(name.startswith("audit.n") for name in said) == 64
    assert (said["audit.n0"], len(said["audit.n1"]), said.get("audit.big")) == ("again", 4096, None)
    assert caplog.text.count("over 64 annotations") == 1


def test_a_fault_of_ours_is_not_the_handlers(caught: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotate_module, "current_call", lambda: 1 / 0)
    assert annotate("x") is False


# --- audited, within a call ------------------------------------------------------------------------------------------------
def test_within_a_call_audited_annotates_it_and_makes_no_other_record(caught: Caught) -> None:
    @audited(action="merge", target=lambda contact_id: contact_id, reason="asked")
    def merge(other: str, *, contact_id: str = "7") -> str:
        return other

    with call():
        assert merge("8") == "8"
        with audited("nested", note="y"):
            pass
    assert (
        one(caught).attributes.items()
        >= {
            ACTION: "nested",
            "audit.target.id": "7",
            "audit.reason": "asked",
            "audit.note": "y",
        }.items()
    )


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("fixed", "fixed"),
        (9, "9"),
        (lambda: "none asked for", "none asked for"),
        (lambda b, a: f"{a}-{b}", "1-2"),
        (lambda *args, **kwargs: f"{args}{kwargs}", "(1,){'b': 2}"),
        (lambda unknown, b: f"{unknown}-{b}", "1-2"),
        (lambda a: 1 / 0, None),
        (str.upper, None),
        (None, None),
    ],
)
def test_the_target_comes_from_the_arguments(caught: Caught, target: Any, expected: str | None) -> None:
    @audited("x", target)
    def work(a: int, b: int = 0) -> None:
        pass

    with call():
        work(1, b=2)
    assert one(caught).attributes.get("audit.target.id") == expected


# --- audited, outside of calls ---------------------------------------------------------------------------------------------
def returned(value: int) -> int:
    return value


@audited
def plain(value: int) -> int:
    """A docstring."""
    assert annotate(note="from within")
    return value


@audited
async def coroutine(value: int) -> int:
    await asyncio.sleep(0)
    assert annotate(note="from within")
    return value


@audited
def generator(value: int) -> Generator[int, str, int]:
    assert annotate(note="from within")
    got = yield value
    assert got == "sent"
    with suppress(KeyError):
        yield value
    return value


@audited
async def async_generator(value: int) -> AsyncIterator[int]:
    assert annotate(note="from within")
    yield value
    await asyncio.sleep(0)
    yield value


def drive_generator(value: int) -> int:
    made = generator(value)
    assert next(made) == value
    assert current_call() is None, "who iterates is not the job"
    assert made.send("sent") == value
    with pytest.raises(StopIteration) as end:
        made.throw(KeyError())
    return int(end.value.value)


def drive_async_generator(value: int) -> int:
    async def drive() -> int:
        found = [item async for item in async_generator(value)]
        return found[0] if len(found) == 2 else -1

    return asyncio.run(drive())


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (plain, "plain"),
        (lambda value: asyncio.run(coroutine(value)), "coroutine"),
        (drive_generator, "generator"),
        (drive_async_generator, "async_generator"),
    ],
)
def test_outside_of_calls_each_run_is_a_record_of_its_own(caught: Caught, run: Callable[[int], int], name: str) -> None:
    assert run(3) == 3
    assert run(4) == 4
    assert [s.attributes.get(ACTION) for s in caught.calls()] == [name, name]
    assert {s.attributes["audit.note"] for s in caught.calls()} == {"from within"}
    assert {s.kind for s in caught.calls()} == {1}
    assert current_call() is None


def test_the_function_keeps_its_kind_its_name_and_its_signature() -> None:
    assert (plain.__name__, plain.__doc__) == ("plain", "A docstring.")
    assert str(inspect.signature(plain)) == "(value: int) -> int"
    assert get_type_hints(plain) == {"value": int, "return": int}, "FastAPI looks at these"
    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(async_generator)
    assert not inspect.iscoroutinefunction(plain)


def test_a_job_that_fails_is_an_error_and_the_exception_goes_on(caught: Caught) -> None:
    @audited("job", "t")
    def fail() -> None:
        raise KeyError("x")

    @audited("job")
    async def fail_later() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(KeyError):
        asyncio.run(fail_later())
    with pytest.raises(KeyError), audited("job"):
        raise KeyError("x")
    assert [s.events for s in caught.calls()] == [["exception"]] * 3
    assert current_call() is None


def test_closing_a_generator_and_leaving_in_good_order_are_no_errors(caught: Caught) -> None:
    made = generator(1)
    next(made)
    made.close()

    async def close() -> None:
        opened: Any = async_generator(1)
        await opened.asend(None)
        await opened.aclose()

    asyncio.run(close())
    with pytest.raises(SystemExit), audited("job"):
        sys.exit(0)
    assert [s.events for s in caught.calls()] == [[], [], []]


def test_a_job_sums_what_it_asks_others_and_survives_the_cap_on_attributes(caught: Caught) -> None:
    with audited("sync", "7", note="n"):
        annotate(late="l")
        span: Any = trace.get_current_span()
        for n in range(300):
            span.set_attribute(f"app.{n}", n)
        with trace.get_tracer("db").start_as_current_span("x", kind=SpanKind.CLIENT, attributes={"db.system": "x"}):
            pass
    said = one(caught).attributes
    assert said.items() >= {ACTION: "sync", "audit.target.id": "7", "audit.note": "n", "audit.late": "l"}.items()
    assert said["audit.db.calls"] == 1


def test_a_job_within_a_job_is_another_record_and_what_a_call_leaves_running_names_its_caller(caught: Caught) -> None:
    with call():
        after = contextvars.copy_context()
    after.run(plain, 1)
    with audited("outer"):
        plain(2)
        annotate(note="outer's own")
    found = {s.attributes.get(ACTION): s for s in caught.calls()[1:]}
    late, inner, outer = caught.calls()[1:]
    assert list(found) == ["plain", "outer"]
    assert late.attributes.items() >= WHO.items()
    assert late.trace_id == caught.calls()[0].trace_id
    assert (inner.trace_id, inner.attributes["audit.note"]) == (outer.trace_id, "from within")
    assert outer.attributes["audit.note"] == "outer's own"


def test_one_audited_serves_many_threads_and_tasks_at_once(caught: Caught) -> None:
    shared = audited("shared")
    both = threading.Barrier(2)

    def work() -> None:
        with shared:
            both.wait(20)
            annotate(thread=threading.get_ident())
            both.wait(20)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def task(n: int) -> None:
        with shared:
            await asyncio.sleep(0)
            annotate(task=n)

    async def run() -> None:
        await asyncio.gather(*(task(n) for n in range(3)))

    asyncio.run(run())
    found = caught.calls()
    assert len(found) == 5
    assert len({s.attributes.get("audit.thread") for s in found} - {None}) == 2
    assert {s.attributes.get("audit.task") for s in found} - {None} == {0, 1, 2}


def test_a_job_that_cannot_be_audited_does_not_begin_in_mode_fail_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Caught(tmp_path, mode="fail-closed")
    use(Calls(recorder, mode="fail-closed"), monkeypatch)
    annotate_module._warned.clear()
    ran: list[int] = []
    job = audited("job")(ran.append)
    job(1)
    monkeypatch.setattr(recorder.spool, "_bytes_max", 0)
    with pytest.raises(CaptureError, match="fail-closed"):
        job(2)
    assert ran == [1]
    assert current_call() is None


def test_without_capture_the_function_runs_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    annotate_module._warned.clear()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider(shutdown_on_exit=False))
    job = audited("job")(returned)
    assert [job(1), job(2)] == [1, 2]
    assert caplog.text.count("NOT AUDITED") == 1


def test_a_fault_of_ours_is_not_the_jobs(caught: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr("otel_audit.capture.jobs.said_of", fail)
    assert audited("job")(returned)(5) == 5


# --- the public face -------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("caught")
def test_the_types_of_what_is_audited_stay() -> None:
    """Checked by mypy, with the rest of the tests."""
    assert_type(plain(1), int)
    assert_type(audited("x"), Audited)
    assert_type(audited("x")(returned)(1), int)
    assert_type(asyncio.run(coroutine(1)), int)
    assert_type(annotate("x", 7, note=1), bool)
    with pytest.raises(TypeError):
        plain("not", "these")  # type: ignore[arg-type, call-arg]


def test_importing_the_package_costs_nothing_and_unknown_names_are_unknown() -> None:
    code = (
        "import sys, otel_audit; assert not any('opentelemetry' in m for m in sys.modules), 'loaded'\n"
        "assert otel_audit.annotate is otel_audit.annotate and otel_audit.audited.__name__ == 'audited'\n"
        "try: otel_audit.unknown\n"
        "except AttributeError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "has no attribute 'unknown'" in done.stdout
