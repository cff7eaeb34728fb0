"""What was put is delivered, whatever the destination answers; what is lost is counted and said."""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

from otel_audit.capture import shipper as shipper_module
from otel_audit.capture.settings import Destination
from otel_audit.capture.shipper import Shipper
from otel_audit.capture.transport import KEPT, Answer, Fate
from otel_audit.capture.wire import EncodedSpan

AGAIN = Answer(Fate.AGAIN, "away")
REFUSED = Answer(Fate.REFUSED, "no such thing")


class FakeTransport:
    """Answers as told, and remembers what it was sent."""

    def __init__(self, answer: Callable[[bytes], Answer] = lambda _: KEPT) -> None:
        self.answer = answer
        self.sent: list[bytes] = []
        self.kept: list[bytes] = []
        self.changed = threading.Condition()
        self.closed = 0

    def send(self, body: bytes, timeout_s: float) -> Answer:
        answer = self.answer(body)
        with self.changed:
            self.sent.append(body)
            if answer.fate is Fate.KEPT:
                self.kept.append(body)
            self.changed.notify_all()
        return answer

    def close(self) -> None:
        self.closed += 1

    def wait(self, attempts: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.sent) >= attempts, 20)


def record(text: str, size: int = 0) -> EncodedSpan:
    return EncodedSpan(b"", b"", b"", b"", f"<{text}>".encode() + b"." * size)


def texts(bodies: list[bytes]) -> list[str]:
    joined = b"".join(bodies).decode("latin-1")
    return [part.split(">")[0] for part in joined.split("<")[1:]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "_LINGER_S", 0.01)
    monkeypatch.setattr(shipper_module, "_BACKOFF_S_FIRST", 0.01)


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTransport]:
    fake = FakeTransport()
    monkeypatch.setattr(shipper_module, "connect", lambda _: fake)
    yield fake
    fake.answer = lambda _: KEPT  # lets the thread come to rest


def shipper(queue_records: int = 1000) -> Shipper:
    return Shipper(Destination("grpc", "audit:1"), queue_records=queue_records)


def test_records_are_delivered_in_order_and_in_batches(transport: FakeTransport) -> None:
    s = shipper(10_000)
    for i in range(2000):
        assert s.put(record(str(i)))
    assert s.flush(20)
    assert texts(transport.kept) == [str(i) for i in range(2000)]
    assert len(transport.kept) < 20
    assert (s.delivered, s.refused, s.lost, s.pending()) == (2000, 0, 0, 0)


def test_a_batch_is_tried_until_it_is_delivered(transport: FakeTransport, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    transport.answer = lambda _: AGAIN if len(transport.sent) < 8 else KEPT
    s = shipper()
    s.put(record("a"))
    assert s.flush(20)
    assert texts(transport.kept) == ["a"]
    assert len(transport.sent) == 9
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"]
    assert "away" in caplog.text
    assert "delivering again" in caplog.text


def test_the_destination_may_ask_for_a_pause(transport: FakeTransport) -> None:
    moments: list[float] = []

    def answer(_: bytes) -> Answer:
        moments.append(time.monotonic())
        return Answer(Fate.AGAIN, "busy", 0.3) if len(moments) == 1 else KEPT

    transport.answer = answer
    s = shipper()
    s.put(record("a"))
    transport.wait(2)
    assert moments[1] - moments[0] >= 0.3


def test_one_bad_record_does_not_take_others_with_it(
    transport: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    transport.answer = lambda body: REFUSED if b"<13>" in body else KEPT
    s = shipper()
    for i in range(100):
        s.put(record(str(i)))
    assert s.flush(20)
    assert texts(transport.kept) == [str(i) for i in range(100) if i != 13]
    assert (s.delivered, s.refused) == (99, 1)
    assert "no such thing" in caplog.text


def test_a_partial_success_is_counted_as_the_loss_it_is(
    transport: FakeTransport, caplog: pytest.LogCaptureFixture
) -> None:
    transport.answer = lambda _: Answer(Fate.KEPT, "too old", None, 2)
    s = shipper()
    for i in range(5):
        s.put(record(str(i)))
    assert s.flush(20)
    assert (s.delivered, s.refused) == (3, 2)
    assert "dropped 2: too old" in caplog.text


def test_a_full_queue_blocks_one_record_briefly_then_drops_with_a_count(
    transport: FakeTransport, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.answer = lambda _: AGAIN
    s = shipper(queue_records=10)
    s.put(record("in hand"))
    transport.wait(1)
    assert all(s.put(record(str(i))) for i in range(10))
    sleeps: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleeps.append(seconds) or sleep(seconds))  # type: ignore[func-returns-value]
    assert s.put(record("late")) is False
    waited = len(sleeps)
    assert waited > 0
    assert [s.put(record("late")) for _ in range(99)] == [False] * 99
    assert len(sleeps) == waited, "only the first one waits"
    assert s.lost == 100
    said = [r for r in caplog.records if r.levelname == "ERROR"]
    assert len(said) == 1
    assert "OTEL_AUDIT_QUEUE_RECORDS" in said[0].getMessage()

    transport.answer = lambda _: KEPT
    assert s.flush(20)
    assert texts(transport.kept) == ["in hand", *map(str, range(10))]
    assert s.put(record("after"))


def test_the_queue_is_bounded_in_bytes_too(transport: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "_QUEUE_BYTES_MAX", 100_000)
    transport.answer = lambda _: AGAIN
    s = shipper(queue_records=1_000_000)
    taken = sum(s.put(record(str(i), size=1000)) for i in range(500))
    assert 50 < taken < 250
    assert s.lost == 500 - taken


def test_a_flush_in_vain_says_so_and_the_end_counts_what_is_left(transport: FakeTransport) -> None:
    transport.answer = lambda _: AGAIN
    s = shipper()
    for i in range(7):
        s.put(record(str(i)))
    assert s.flush(0.05) is False
    assert s.close(0.05) == 7
    waiting = s._queue.qsize()
    assert s.flush(3600) is False, "the end of a process must not wait twice"
    assert s._queue.qsize() == waiting


def test_nothing_to_do_is_done_at_once() -> None:
    s = shipper()
    assert s.flush(0) is True
    assert s.close(0) == 0


def test_a_fault_in_sending_does_not_end_shipping(transport: FakeTransport, caplog: pytest.LogCaptureFixture) -> None:
    def answer(body: bytes) -> Answer:
        if b"<bad>" in body:
            raise RuntimeError("bug")
        return KEPT

    transport.answer = answer
    s = shipper()
    s.put(record("bad"))
    assert s.flush(20)
    s.put(record("good"))
    assert s.flush(20)
    assert texts(transport.kept) == ["good"]
    assert s.refused == 1
    assert "bug" in caplog.text


def test_a_signal_handler_may_flush_while_the_same_thread_puts(transport: FakeTransport) -> None:
    s = shipper(100_000)
    flushed: list[bool] = []
    before = signal.signal(signal.SIGALRM, lambda *_: flushed.append(s.flush(10)))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        number = 0
        while len(flushed) < 20:
            s.put(record(str(number)))
            number += 1
            if number % 500 == 0:
                s.flush(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all(flushed)
    assert s.flush(20)
    assert texts(transport.kept) == [str(i) for i in range(number)]


def test_a_forked_child_leaves_the_parents_records_to_the_parent(transport: FakeTransport) -> None:
    transport.answer = lambda _: AGAIN
    s = shipper()
    s.put(record("parent"))
    transport.wait(1)
    s.put(record("parent's next"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads; servers do it all the same
        child = os.fork()
    if child == 0:  # pragma: no cover - another process
        status = 1
        try:
            transport.sent.clear()
            transport.changed = threading.Condition()
            transport.answer = lambda _: KEPT
            s.after_fork()
            s.put(record("child"))
            status = 0 if s.flush(10) and texts(transport.sent) == ["child"] else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    transport.answer = lambda _: KEPT
    assert s.flush(20)
    assert texts(transport.kept) == ["parent", "parent's next"]
