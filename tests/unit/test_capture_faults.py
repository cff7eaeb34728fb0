"""What goes wrong inside of capture is named by a number in the log, and never reaches the application."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context, set_value
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.trace import SpanKind

from otel_audit.capture.call import CALL_KEY, Call
from otel_audit.capture.frames import frames_in
from otel_audit.capture.jobs import audited
from otel_audit.capture.processor import AuditSpanProcessor, Calls
from otel_audit.capture.recorder import Recorder
from otel_audit.capture.settings import Mode
from otel_audit.errors import CaptureError
from tests.spool_support import settings


def calls_in(folder: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode = "async") -> Calls:
    recorder = Recorder(settings(folder, mode=mode), durable=mode != "async")
    monkeypatch.setattr(recorder.shipper, "notify", lambda: None)
    return Calls(recorder, mode=mode)


def spooled(calls: Calls) -> list[bytes]:
    """The spans in the spool, in order."""
    folder = calls.recorder.spool.folder
    return [one.record.span for path in sorted(folder.glob("*.spool")) for one in frames_in(path.read_bytes())]


def tracer_of(calls: Calls) -> Any:
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(AuditSpanProcessor(calls))
    return provider.get_tracer("test")


def serve(calls: Calls, name: str, call: Call | None = None) -> Span:
    context = set_value(CALL_KEY, call or Call({"audit.client.id": "web"}), Context())
    span: Span = tracer_of(calls).start_span(name, context, SpanKind.SERVER)
    return span


def test_a_correction_that_raises_costs_the_correction_and_not_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_in(tmp_path, monkeypatch)
    call = Call({"audit.client.id": "web"})

    def correct(said: dict[str, Any], span: object) -> None:
        raise ValueError("a framework of tomorrow")

    call.correct = correct
    serve(calls, "GET /odd", call).end()
    assert any(b"GET /odd" in span and b"web" in span for span in spooled(calls))


@pytest.mark.parametrize("part", ["source.encoder.encode", "record"])
def test_a_call_that_cannot_be_recorded_is_named_by_a_loss_record(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_in(tmp_path, monkeypatch)
    serve(calls, "GET /first").end()

    def fail(*_: object, **__: object) -> None:
        raise ValueError("a fault")

    owner: Any = calls.recorder
    *path, name = part.split(".")
    for step in path:
        owner = getattr(owner, step)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        serve(calls, "GET /faulty").end()
    serve(calls, "GET /second").end()
    (loss,) = [span for span in spooled(calls) if b"otel_audit.loss" in span]
    assert b"cannot be recorded: ValueError" in loss
    assert calls.recorder.lost == 1


def test_fail_closed_refuses_whatever_the_fault_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_in(tmp_path, monkeypatch, "fail-closed")

    def fail(*_: object, **__: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(calls.recorder.source.encoder, "encode", fail)
    with pytest.raises(CaptureError):
        serve(calls, "GET /refused")
    assert calls.open_calls == 0


def test_the_name_of_a_loss_record_in_a_url_hides_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_in(tmp_path, monkeypatch)
    serve(calls, "GET /?q=otel_audit.loss").end()
    folder = calls.recorder.spool.folder
    batch = [
        one for path in folder.glob("*.spool") for one in frames_in(path.read_bytes()) if b"GET" in one.record.span
    ]
    calls.recorder._refused(batch, 1, "invalid")
    assert sum(b"refused by" in span for span in spooled(calls)) == 1


def test_numbers_that_a_signal_cut_off_are_named_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a handler of SIGTERM runs in the thread that is about to write."""
    calls = calls_in(tmp_path, monkeypatch)
    serve(calls, "GET /first").end()
    monkeypatch.setattr(calls.recorder, "_put", lambda *_: calls.recorder.stop())
    serve(calls, "GET /cut").end()
    assert any(b"the process was ended before it was written" in span for span in spooled(calls))


def test_a_block_that_is_left_in_another_context_ends_its_own_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a dependency of FastAPI that yields, which is entered and left in different threads."""
    block = audited(action="nightly")
    block.__enter__()
    failed: list[BaseException] = []

    def leave() -> None:
        try:
            block.__exit__(None, None, None)
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert failed == []


def test_a_sync_does_not_wait_for_the_applications_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_in(tmp_path, monkeypatch, "durable")
    leave = threading.Event()

    async def answer() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        job = loop.run_in_executor(None, leave.wait, 60)
        span = serve(calls, "GET /")
        call = calls.hold(span)
        span.end()
        assert call is not None
        assert call.sync_wanted
        await asyncio.wait_for(calls.sync_held(call), 30)
        leave.set()
        await job

    asyncio.run(answer())
    assert calls.recorder.spool._synced == calls.recorder.spool.end


def test_a_shipping_thread_that_cannot_start_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(settings(tmp_path))
    calls = Calls(recorder)

    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        serve(calls, "GET /1").end()
        serve(calls, "GET /2").end()
        assert not recorder.shipper.flush(0.1)
    assert caplog.text.count("can't start new thread") == 1
    assert [b"GET /1" in span or b"GET /2" in span for span in spooled(calls)] == [False, True, True]
