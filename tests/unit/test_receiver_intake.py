import gzip
import logging
import os
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit._receiver_inflate import inflate
from otel_audit._receiver_intake import Answer, Intake, IntakeSettings, Request, Verdict
from otel_audit.auditlog import Receipt
from otel_audit.errors import (
    DecodeError,
    LogClosedError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)
from otel_audit.otlp import Decoded, Decoder
from tests.receiver_support import NOT_OTLP, FakeLog, body


def offer(intake: Intake, request: Request) -> "Future[Answer]":
    with intake.admit() as permit:
        return intake.offer(request, permit)


class BrokenDecoder:
    """A decoder with a fault."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def decode(self, data: bytes, /) -> Decoded:
        raise self.error

    decode_json = decode_logs = decode_logs_json = decode


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


# --- answers ------------------------------------------------------------------------------------------------------------
def test_success_is_answered_only_once_the_data_is_durable() -> None:
    log = FakeLog(held=True)
    answer = offer(Intake(log, Decoder()), Request(body()))
    assert log.taken[0].records.num_rows == 3
    assert not answer.done()
    log.release()
    assert answer.result(0).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_what_is_not_otlp_is_kept_before_it_is_refused(encoding: str) -> None:
    log = FakeLog(held=True)
    answer = offer(Intake(log, Decoder()), Request(NOT_OTLP, "json" if encoding == "json" else "protobuf"))
    (entry,) = log.taken[0].quarantine
    assert (entry.reason, entry.payload, entry.kind) == ("request_undecodable", NOT_OTLP, f"otlp.request+{encoding}")
    assert not answer.done()
    log.release()
    assert answer.result(0).verdict is Verdict.INVALID
    assert "kept in quarantine" in answer.result(0).message


def test_what_is_not_otlp_is_not_refused_for_good_unless_it_is_kept() -> None:
    log = FakeLog(error=UnavailableError("append", "log", "disk full"))
    assert offer(Intake(log, Decoder()), Request(NOT_OTLP)).result(0).verdict is Verdict.RETRY


def test_damaged_compression_is_kept_as_it_came() -> None:
    log = FakeLog()
    sent = gzip.compress(body())[:-10]
    answer = offer(Intake(log, Decoder()), Request(sent, "protobuf", "gzip")).result(0)
    (entry,) = log.taken[0].quarantine
    assert answer.verdict is Verdict.INVALID
    assert (entry.payload, entry.kind) == (sent, "otlp.request+protobuf+gzip")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), RecursionError(), ValueError("\ud800")])
def test_a_fault_in_decoding_neither_loses_the_request_nor_blocks_its_sender(error: Exception) -> None:
    log = FakeLog(held=True)
    answer = offer(Intake(log, BrokenDecoder(error)), Request(gzip.compress(b"poison"), "protobuf", "gzip"))
    (entry,) = log.taken[0].quarantine
    assert (entry.reason, entry.payload, entry.kind) == ("internal_error", b"poison", "otlp.request+protobuf")
    assert entry.detail.encode(), "it can be written"
    assert not answer.done()
    log.release()
    assert answer.result(0).verdict is Verdict.ACCEPTED


def test_a_refusal_can_be_sent_whatever_it_quotes() -> None:
    error = DecodeError("decode", "request", "the key '\ud800' is odd " * 1000)
    answer = offer(Intake(FakeLog(), BrokenDecoder(error)), Request(b"x")).result(0)
    assert answer.verdict is Verdict.INVALID
    assert len(answer.message.encode()) < 1000


def test_running_out_of_memory_in_decoding_is_no_fault_of_the_request() -> None:
    log = FakeLog()
    assert offer(Intake(log, BrokenDecoder(MemoryError())), Request(body())).result(0).verdict is Verdict.RETRY
    assert log.taken == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnavailableError("append", "log", "disk full"), "unavailable"),
        (OverloadedError("append", "log", "queue full"), "overloaded"),
        (LogClosedError("append", "log", "closed"), "stopping"),
        (RuntimeError("a bug"), "unavailable"),
        (OSError(28, "no space"), "unavailable"),
    ],
)
def test_whatever_keeps_data_from_becoming_durable_is_answered_with_come_again(
    error: Exception, reason: str, late: bool
) -> None:
    intake = Intake(FakeLog(error=error, late=late), Decoder())
    assert offer(intake, Request(body())).result(0).verdict is Verdict.RETRY
    assert intake.stats().refused == {reason: 1}


def test_a_log_that_drops_a_future_gets_no_success_answered() -> None:
    class Dropping:
        def submit(self, _: Decoded, /) -> "Future[Receipt]":
            future: Future[Receipt] = Future()
            future.cancel()
            return future

    assert offer(Intake(Dropping(), Decoder()), Request(body())).result(0).verdict is Verdict.RETRY


# --- limits -------------------------------------------------------------------------------------------------------------
def test_requests_beyond_the_bytes_in_flight_are_told_to_come_again_until_others_are_done() -> None:
    intake = Intake(FakeLog(), Decoder(), IntakeSettings(max_in_flight_bytes=100_000))
    first, second = intake.admit(), intake.admit()
    first.grow(60_000)
    with pytest.raises(OverloadedError):
        second.grow(60_000)
    first.close()
    second.grow(60_000)
    second.close()
    assert intake.stats().in_flight_bytes == 0
    assert intake.stats().in_flight_bytes_max <= 100_000


def test_many_tiny_requests_are_bounded_as_well() -> None:
    intake = Intake(FakeLog(), Decoder(), IntakeSettings(max_in_flight_bytes=100_000))
    permits = [intake.admit() for _ in range(100_000 // 4096)]
    with pytest.raises(OverloadedError):
        intake.admit()
    permits.pop().close()
    intake.admit()


def test_a_permit_that_was_given_back_cannot_grow() -> None:
    intake = Intake(FakeLog(), Decoder())
    permit = intake.admit()
    permit.close()
    with pytest.raises(OverloadedError):
        permit.grow(1)
    assert intake.stats().in_flight_bytes == 0


def test_the_bytes_of_a_request_stay_counted_until_its_data_is_durable() -> None:
    log = FakeLog(held=True)
    intake = Intake(log, Decoder())
    offer(intake, Request(body()))
    assert intake.stats().in_flight_bytes > 0
    log.release()
    assert intake.stats().in_flight_bytes == 0


def test_a_small_body_that_would_inflate_beyond_the_bytes_in_flight_is_told_to_come_again() -> None:
    intake = Intake(FakeLog(), Decoder(), IntakeSettings(max_in_flight_bytes=8 << 20))
    bomb = gzip.compress(bytes(32 << 20))
    assert offer(intake, Request(bomb, "protobuf", "gzip")).result(0).verdict is Verdict.RETRY
    assert intake.stats().in_flight_bytes == 0


def test_a_body_over_its_limit_once_decompressed_is_refused_for_good_and_counted() -> None:
    log = FakeLog()
    intake = Intake(log, Decoder())
    request = Request(gzip.compress(bytes(2 << 20)), "protobuf", "gzip", 1 << 20)
    assert offer(intake, request).result(0).verdict is Verdict.TOO_LARGE
    assert intake.stats().refused == {"too_large": 1}
    assert log.taken == []


def test_a_small_request_need_not_wait_for_a_large_one() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class SlowForLarge(Decoder):
        def decode(self, data: bytes, /) -> Decoded:
            if len(data) > 4 << 20:
                begun.set()
                assert go_on.wait(20)
                return super().decode(body(1))
            return super().decode(data)

    intake = Intake(FakeLog(), SlowForLarge())
    with ThreadPoolExecutor() as pool:
        large = pool.submit(offer, intake, Request(bytes(5 << 20)))
        assert begun.wait(20)
        assert offer(intake, Request(body())).result(0).verdict is Verdict.ACCEPTED
        go_on.set()
        assert large.result(20).result(0).verdict is Verdict.ACCEPTED


def test_nothing_is_taken_once_the_receiver_stops() -> None:
    intake = Intake(FakeLog(), Decoder())
    intake.drain()
    with pytest.raises(LogClosedError):
        intake.admit()
    assert not intake.healthy


# --- decompression ------------------------------------------------------------------------------------------------------
@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=4), repeat=st.sampled_from([1, 700, 9000]))
def test_any_number_of_gzip_members_is_the_data_that_went_in(parts: list[bytes], repeat: int) -> None:
    data = [part * repeat for part in parts]
    taken = 0

    def grow(size: int) -> None:
        nonlocal taken
        taken += size

    packed = b"".join(gzip.compress(d, 1) for d in data)
    assert inflate(packed, "gzip", 1 << 30, grow) == b"".join(data)
    assert taken == sum(map(len, data))


@pytest.mark.parametrize("size", [0, 1, (1 << 16) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
@pytest.mark.parametrize("make", [bytes, os.urandom])
def test_zlib_data_of_any_size_comes_out_whole(make: Callable[[int], bytes], size: int) -> None:
    data = make(size)
    assert inflate(zlib.compress(data, 1), "zlib", max(size, 1), lambda _: None) == data


@given(data=st.binary(min_size=1, max_size=2000), cut=st.integers(1, 8))
def test_compressed_data_that_ends_early_is_an_error(data: bytes, cut: int) -> None:
    with pytest.raises(DecodeError):
        inflate(gzip.compress(data)[:-cut], "gzip", 1 << 20, lambda _: None)


@pytest.mark.parametrize("junk", [b"", b"not gzip at all", gzip.compress(b"x", mtime=0) + b"trailing"])
def test_what_is_not_gzip_is_an_error(junk: bytes) -> None:
    with pytest.raises(DecodeError):
        inflate(junk, "gzip", 1 << 20, lambda _: None)


def test_a_bomb_is_stopped_within_a_block_of_the_limit() -> None:
    held = 0

    def grow(size: int) -> None:
        nonlocal held
        held += size

    with pytest.raises(TooLargeError):
        inflate(gzip.compress(bytes(200 << 20), 9), "gzip", 3 << 20, grow)
    assert held <= 3 << 20


# --- health, counters, messages -----------------------------------------------------------------------------------------
def test_health_is_lost_when_data_cannot_be_made_durable_and_comes_back_by_itself() -> None:
    log, clock = FakeLog(), Clock()
    intake = Intake(log, Decoder(), clock=clock)
    assert intake.stats().healthy
    log.error = UnavailableError("append", "log", "disk full")
    offer(intake, Request(body()))
    assert not intake.stats().healthy
    clock.now_s += 60
    assert intake.stats().healthy, "nobody asks while it is unhealthy, so time must heal it"
    offer(intake, Request(body()))
    assert not intake.stats().healthy
    log.error = None
    offer(intake, Request(body()))
    assert intake.stats().healthy


def test_a_full_queue_is_no_sickness() -> None:
    intake = Intake(FakeLog(error=OverloadedError("append", "log", "queue full")), Decoder())
    offer(intake, Request(body()))
    assert intake.healthy


def test_a_fault_in_a_transport_is_no_sickness_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    intake = Intake(FakeLog(), Decoder())
    assert intake.fail(KeyError("traces")).verdict is Verdict.RETRY
    assert (intake.reasons(), intake.stats().refused) == ([], {"unavailable": 1})
    assert "KeyError: 'traces'" in caplog.text
    intake.fail(UnavailableError("append", "log", "disk full"))
    assert intake.reasons() == ["the log cannot make data durable"]


def test_counters_add_up() -> None:
    intake = Intake(FakeLog(), Decoder())
    offer(intake, Request(body(5)))
    offer(intake, Request(body(2)))
    offer(intake, Request(NOT_OTLP))
    stats = intake.stats()
    assert (stats.requests, stats.spans, stats.records, stats.skipped) == (2, 7, 7, 0)
    assert (stats.quarantined, stats.refused) == (1, {"undecodable": 1})


def test_a_full_disk_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    log, clock = FakeLog(error=UnavailableError("append", "log", "disk full")), Clock()
    intake = Intake(log, Decoder(), clock=clock)
    for _ in range(1000):
        offer(intake, Request(body()))
        clock.now_s += 0.001
    log.error = None
    offer(intake, Request(body()))
    by_level = [r.levelno for r in caplog.records]
    assert by_level.count(logging.ERROR) == 1
    assert "durable again" in caplog.records[-1].message
    assert len(caplog.records) == 3


def test_what_keeps_senders_away_is_said_one_reason_each() -> None:
    log, clock, reasons = FakeLog(), Clock(), ["the disk is nearly full"]
    intake = Intake(log, Decoder(), clock=clock, health=lambda: reasons)
    assert intake.reasons() == ["the disk is nearly full"]
    assert not intake.healthy
    assert not intake.stats().healthy
    log.error = UnavailableError("append to", "log", "disk full")
    assert offer(intake, Request(body())).result(0).verdict is Verdict.RETRY, "it is not ready, but still tries"
    assert intake.reasons() == ["the log cannot make data durable", "the disk is nearly full"]
    reasons.clear()
    clock.now_s += 60
    assert intake.reasons() == []
    assert intake.stats().healthy
    intake.drain()
    assert intake.reasons() == ["the service is stopping"]


def test_accepted_spans_are_counted_by_how_they_came_and_only_when_durable() -> None:
    log = FakeLog()
    intake = Intake(log, Decoder())
    assert intake.stats().spans_by_transport == {"grpc": 0, "http": 0}
    offer(intake, Request(body(3)))
    offer(intake, Request(body(5), transport="http"))
    log.error = UnavailableError("append to", "log", "disk full")
    offer(intake, Request(body(7), transport="http"))
    assert intake.stats().spans_by_transport == {"grpc": 3, "http": 5}
