"""What was spooled is delivered, whatever the destination answers, and whoever spooled it."""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from otel_audit.capture import delivery as delivery_module
from otel_audit.capture import shipper as shipper_module
from otel_audit.capture.frames import Frame, frames_in
from otel_audit.capture.settings import Destination
from otel_audit.capture.shipper import Shipper
from otel_audit.capture.spool import folder_of
from otel_audit.capture.transport import KEPT, Answer, Fate
from tests.capture_support import wait_until
from tests.spool_support import FakeTransport, fill, put, shipper, spool, texts

AGAIN = Answer(Fate.AGAIN, "away")
REFUSED = Answer(Fate.REFUSED, "no such thing")
ELSEWHERE = Answer(Fate.ELSEWHERE, "another process has it")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper_module, "_LINGER_S", 0.01)
    monkeypatch.setattr(shipper_module, "_STAND_BACK_S", 0.02)
    monkeypatch.setattr(delivery_module, "_BACKOFF_S_FIRST", 0.01)


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTransport]:
    fake = FakeTransport()
    monkeypatch.setattr(delivery_module, "connect", lambda _: fake)
    yield fake
    fake.answer = lambda _: KEPT  # lets the thread come to rest


def test_records_are_delivered_in_order_and_in_batches(transport: FakeTransport, tmp_path: Path) -> None:
    s = shipper(tmp_path)
    fill(s.spool, *range(2000))
    s.notify()
    assert s.flush(20)
    assert texts(transport.kept) == [str(i) for i in range(2000)]
    assert len(transport.kept) < 20
    assert (s.delivery.delivered, s.delivery.refused, s.pending()) == (2000, 0, False)


def test_what_comes_while_it_rests_wakes_it(transport: FakeTransport, tmp_path: Path) -> None:
    s = shipper(tmp_path)
    for i in range(30):
        put(s, i)
        transport.wait(1)
        wait_until(lambda n=i: len(texts(transport.kept)) == n + 1)  # type: ignore[misc]
    assert texts(transport.kept) == [str(i) for i in range(30)]


def test_a_batch_is_tried_until_it_is_delivered(
    transport: FakeTransport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    transport.answer = lambda _: AGAIN if len(transport.sent) < 8 else KEPT
    s = shipper(tmp_path)
    put(s, "a")
    assert s.flush(20)
    assert texts(transport.kept) == ["a"]
    assert len(transport.sent) == 9
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"]
    assert "away" in caplog.text
    assert "delivering again" in caplog.text


def test_the_destination_may_ask_for_a_pause(transport: FakeTransport, tmp_path: Path) -> None:
    moments: list[float] = []

    def answer(_: bytes) -> Answer:
        moments.append(time.monotonic())
        return Answer(Fate.AGAIN, "busy", 0.3) if len(moments) == 1 else KEPT

    transport.answer = answer
    put(shipper(tmp_path), "a")
    transport.wait(2)
    assert moments[1] - moments[0] >= 0.3


def test_one_bad_record_does_not_take_others_with_it_and_is_kept(
    transport: FakeTransport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transport.answer = lambda body: REFUSED if b"<13>" in body else KEPT
    told: list[tuple[int, str]] = []

    def refused(batch: Sequence[Frame], count: int, reason: str) -> None:
        assert count == len(batch)
        told.extend((one.seq, reason) for one in batch)

    s = Shipper(Destination("grpc", "audit:1"), spool(tmp_path), on_refused=refused)
    fill(s.spool, *range(100))
    s.notify()
    assert s.flush(20)
    assert texts(transport.kept) == [str(i) for i in range(100) if i != 13]
    assert (s.delivery.delivered, s.delivery.refused) == (99, 1)
    assert told == [(14, "no such thing")]
    kept = tmp_path / "refused.spool"
    assert str(kept) in caplog.text
    assert [one.seq for one in frames_in(kept.read_bytes())] == [14]


def test_what_a_partial_success_drops_is_named_and_kept(
    transport: FakeTransport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The destination says how many, not which, and it must not be sent them again (OTLP, "Partial Success")."""
    transport.answer = lambda _: Answer(Fate.KEPT, "too old", None, 2)
    told: list[tuple[list[int], int, str]] = []
    s = Shipper(
        Destination("grpc", "audit:1"),
        spool(tmp_path),
        on_refused=lambda batch, count, reason: told.append(([one.seq for one in batch], count, reason)),
    )
    fill(s.spool, *range(5))
    s.notify()
    assert s.flush(20)
    assert (s.delivery.delivered, s.delivery.refused) == (3, 2)
    assert "2 refused: partial success: too old" in caplog.text
    assert told == [([1, 2, 3, 4, 5], 2, "partial success: too old")]
    assert len(list(frames_in((tmp_path / "refused.spool").read_bytes()))) == 5


def test_a_flush_in_vain_says_so_and_the_records_stay(transport: FakeTransport, tmp_path: Path) -> None:
    transport.answer = lambda _: AGAIN
    s = shipper(tmp_path)
    put(s, *range(7))
    assert s.flush(0.05) is False
    assert s.close(0.05) is False
    assert s.flush(3600) is False, "the end of a process must not wait twice"
    assert s.pending()
    assert s.spool.folder.exists()


def test_the_end_clears_away_what_is_delivered_and_later_records_still_go(
    transport: FakeTransport, tmp_path: Path
) -> None:
    s = shipper(tmp_path)
    put(s, "a")
    assert s.close(20) is True
    assert not s.spool.folder.exists()
    put(s, "late")
    assert s.flush(20)
    assert texts(transport.kept) == ["a", "late"]


def test_nothing_to_do_is_done_at_once(tmp_path: Path) -> None:
    s = shipper(tmp_path)
    assert s.flush(0) is True
    assert s.close(0) is True
    assert list(tmp_path.iterdir()) == [], "a process that records nothing leaves nothing"


def test_a_fault_in_sending_does_not_end_shipping(
    transport: FakeTransport, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_: bytes) -> Answer:
        if not transport.closed:
            transport.closed = 1
            raise RuntimeError("bug")
        return KEPT

    transport.answer = answer
    s = shipper(tmp_path)
    put(s, "a", "b")
    assert s.flush(20)
    assert texts(transport.kept) == ["a", "b"]
    assert "bug" in caplog.text


# --- what others have spooled -------------------------------------------------------------------------------------------
def test_what_the_dead_left_is_shipped_and_cleared_away(transport: FakeTransport, tmp_path: Path) -> None:
    for name in ("dead-1-aa", "dead-2-bb"):
        dead = spool(tmp_path, name)
        fill(dead, f"{name} first", f"{name} last")
        dead.let_go()
    s = shipper(tmp_path, "own-3-cc")
    put(s, "own")
    wait_until(lambda: len(texts(transport.kept)) == 5)
    assert sorted(texts(transport.kept)) == [
        "dead-1-aa first", "dead-1-aa last", "dead-2-bb first", "dead-2-bb last", "own",
    ]  # fmt: skip
    wait_until(lambda: [p.name for p in tmp_path.iterdir()] == ["own-3-cc"])


def test_what_the_living_spool_is_left_to_them(transport: FakeTransport, tmp_path: Path) -> None:
    alive = spool(tmp_path, "alive-1-aa")
    fill(alive, "theirs")
    s = shipper(tmp_path, "own-3-cc")
    put(s, "own")
    assert s.flush(20)
    s._look_after_s = 0.0
    put(s, "own again")
    assert s.flush(20)
    assert texts(transport.kept) == ["own", "own again"]


def test_whoever_has_the_local_log_ships_for_all(transport: FakeTransport, tmp_path: Path) -> None:
    """Two processes spool for one log; the first cannot open it, the second can."""
    log = Destination("log", str(tmp_path / "log"))
    parent = folder_of(tmp_path, log)
    without, holder = Shipper(log, spool(parent, "a-1-aa")), Shipper(log, spool(parent, "b-2-bb"))
    locked = FakeTransport(lambda _: ELSEWHERE)
    without.delivery.transport = locked
    put(without, "from the first")
    locked.wait(1)
    put(holder, "from the second")
    assert without.flush(20), "its records are in the log, though it could not open it"
    assert holder.flush(20)
    assert sorted(texts(transport.kept)) == ["from the first", "from the second"]
    assert not locked.kept


def test_a_log_that_nobody_ships_to_is_complained_about(
    transport: FakeTransport, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper_module, "_NOBODY_SHIPS_S", 0.1)
    transport.answer = lambda _: ELSEWHERE
    s = shipper(tmp_path)
    put(s, "a")
    wait_until(lambda: "another process has it open" in caplog.text)
    transport.answer = lambda _: KEPT
    assert s.flush(20)


# --- signals and forks ----------------------------------------------------------------------------------------------------
def test_a_signal_handler_may_flush_while_the_same_thread_puts(transport: FakeTransport, tmp_path: Path) -> None:
    s = shipper(tmp_path)
    flushed: list[bool] = []
    before = signal.signal(signal.SIGALRM, lambda *_: flushed.append(s.flush(10)))
    number = 0
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        while len(flushed) < 20:
            put(s, number)
            number += 1
            if number % 500 == 0:
                s.flush(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all(flushed)
    assert s.flush(20)
    assert texts(transport.kept) == [str(i) for i in range(number)]


def test_a_forked_child_leaves_the_parents_records_to_the_parent(transport: FakeTransport, tmp_path: Path) -> None:
    transport.answer = lambda _: AGAIN
    s = shipper(tmp_path)
    put(s, "parent")
    transport.wait(1)
    put(s, "parent's next")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads; servers do it all the same
        child = os.fork()
    if child == 0:  # pragma: no cover - another process
        status = 1
        try:
            transport.sent.clear()
            transport.changed = threading.Condition()
            transport.answer = lambda _: KEPT
            s.after_fork(spool(tmp_path, "child-2-bb"))
            put(s, "child")
            status = 0 if s.flush(10) and texts(transport.sent) == ["child"] else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    transport.answer = lambda _: KEPT
    assert s.flush(20)
    assert texts(transport.kept) == ["parent", "parent's next"]
