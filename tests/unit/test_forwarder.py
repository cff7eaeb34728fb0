import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import otel_audit.forwarder
from otel_audit._forwarder_send import Answer, Fate
from otel_audit.auditlog import AuditLog, LogSettings
from otel_audit.errors import CorruptLogError
from otel_audit.forwarder import Forwarder
from tests.collector.support import wait_for
from tests.forwarder_support import SENT, SETTINGS, Destination, cursor, forwarder, refused
from tests.support import decoded

REFUSED = Answer(Fate.REFUSED, "HTTP 400")
AGAIN = Answer(Fate.AGAIN, "HTTP 503")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel_audit.forwarder, "_BACKOFF_S", (0.001, 0.005))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog.open(tmp_path / "log") as opened:
        yield opened


def run(log: AuditLog, to: Destination, until: int, settings: Any = SETTINGS) -> Forwarder:
    """Forward until the cursor on disk says that all before `until` is done."""
    made = forwarder(log, to, settings)
    made.start()
    try:
        wait_for(lambda: cursor(log.directory) >= until, f"cursor at {until}; {made.stats()}")
    finally:
        made.stop()
    return made


# --- the ordinary way ---------------------------------------------------------------------------------------------------
def test_every_record_arrives_once_and_in_order_across_seals(log: AuditLog) -> None:
    to = Destination()
    log.append(decoded(25, 1))
    log.seal()
    log.append(decoded(13, 2))
    made = run(log, to, 39)
    assert to.taken == list(range(1, 39))
    assert max(len(seqs) for seqs, _ in to.requests) == SETTINGS.batch_records
    stats = made.stats()
    assert (stats.sent, stats.send_failed, stats.lag, stats.next_seq, stats.buffered) == (38, 0, 0, 39, 0)


def test_what_comes_later_is_passed_on_too(log: AuditLog) -> None:
    to = Destination()
    made = forwarder(log, to)
    made.start()
    for turn in range(1, 6):
        log.append(decoded(7, turn))
        if turn % 2:
            log.seal()
        wait_for(lambda turn=turn: cursor(log.directory) == 7 * turn + 1, "cursor")  # type: ignore[misc]
    made.stop()
    assert to.taken == list(range(1, 36))


def test_a_start_goes_on_where_the_last_run_ended(log: AuditLog) -> None:
    log.append(decoded(10, 1))
    run(log, Destination(), 11)
    log.append(decoded(10, 2))
    to = Destination()
    run(log, to, 21)
    assert to.taken == list(range(11, 21))


def test_from_now_leaves_out_what_is_there_and_nothing_after(log: AuditLog) -> None:
    log.append(decoded(10, 1))
    settings = replace(SETTINGS, start="now")
    to = Destination()
    made = forwarder(log, to, settings)
    log.append(decoded(3, 2))  # after the forwarder was made, before it runs
    made.start()
    wait_for(lambda: cursor(log.directory) == 14, "cursor")
    made.stop()
    assert to.taken == [11, 12, 13]
    log.append(decoded(4, 3))
    again = Destination()
    run(log, again, 18, settings)
    assert again.taken == [14, 15, 16, 17], "it is about the first start only"


def test_where_it_stands_is_on_disk_before_the_first_record(log: AuditLog) -> None:
    made = forwarder(log, Destination(), replace(SETTINGS, start="now"))
    made.start()
    wait_for(lambda: cursor(log.directory) == 1, "cursor")
    made.stop()


def test_a_cursor_that_is_damaged_is_an_error_that_says_what_to_do(log: AuditLog) -> None:
    run(log, Destination(), 1)
    path = log.directory / "forward" / "otlp_logs.json"
    for text in ("", "{}", '{"next_seq": 0, "log": "audit"}', '{"next_seq": 1, "log": "other"}', "[1]"):
        path.write_text(text)
        with pytest.raises(CorruptLogError, match="remove the file"):
            forwarder(log, Destination())


def test_a_cursor_past_the_end_of_an_older_copy_loses_nothing_new(
    log: AuditLog, caplog: pytest.LogCaptureFixture
) -> None:
    log.append(decoded(5, 1))
    run(log, Destination(), 6)
    (log.directory / "forward" / "otlp_logs.json").write_text(json.dumps({"next_seq": 100, "log": "audit"}))
    to = Destination()
    made = forwarder(log, to)
    made.start()
    log.append(decoded(5, 2))
    wait_for(lambda: to.taken == [6, 7, 8, 9, 10], "the new ones")
    made.stop()
    assert "it is an older copy" in caplog.text
    assert cursor(log.directory) == 11


# --- a destination that fails ---------------------------------------------------------------------------------------------
def test_the_cursor_is_never_ahead_of_what_was_acknowledged(log: AuditLog) -> None:
    log.append(decoded(60, 1))
    seen: list[tuple[int, int]] = []
    acknowledged = 0

    def decide(seqs: Sequence[int]) -> Answer:
        nonlocal acknowledged
        seen.append((cursor(log.directory), acknowledged))
        if len(seen) % 3:
            return AGAIN
        acknowledged = seqs[-1]
        return SENT

    to = Destination(decide)
    run(log, to, 61)
    assert all(on_disk <= done + 1 for on_disk, done in seen)
    assert to.taken == list(range(1, 61))


def test_a_destination_that_is_away_costs_no_memory_and_holds_nothing_up(tmp_path: Path) -> None:
    to = Destination(lambda _: AGAIN)
    with AuditLog.open(tmp_path / "small", LogSettings(segment_rows=2000)) as log:
        log.append(decoded(500, 0))
        made = forwarder(log, to)
        made.start()
        to.wait_for_requests(1)
        assert made.stats().buffered == 500
        for turn in range(1, 40):
            log.append(decoded(500, turn))
            assert made.stats().buffered == 500, "nothing more is read before what is held is taken"
        to.wait_for_requests(10)
        stats = made.stats()
        assert (stats.lag, stats.buffered, stats.error) == (20_000, 500, "HTTP 503")
        most = 0

        def decide(_: Sequence[int]) -> Answer:
            nonlocal most
            most = max(most, made.stats().buffered)
            return SENT

        to.decide = decide
        wait_for(lambda: cursor(log.directory) == 20_001, "cursor")
        made.stop()
        assert to.taken == list(range(1, 20_001))
        assert made.stats().error == ""
        assert most <= 2000 + SETTINGS.batch_records, "a segment at most"


@pytest.mark.parametrize("fate", [Fate.AGAIN, Fate.MISCONFIGURED])
def test_it_is_tried_again_without_end_and_said_loudly(
    log: AuditLog, caplog: pytest.LogCaptureFixture, fate: Fate
) -> None:
    log.append(decoded(5, 1))
    to = Destination(lambda _: Answer(fate, "no such service"))
    made = forwarder(log, to)
    with caplog.at_level(logging.WARNING):
        made.start()
        to.wait_for_requests(30)
        made.stop()
    assert cursor(log.directory) == 1
    assert refused(log.directory) == []
    assert caplog.text.count("no such service") == 1, "once a minute, not each time"


def test_the_time_that_a_destination_asks_for_is_waited(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append(decoded(5, 1))
    to = Destination(lambda _: Answer(Fate.AGAIN, "busy", 7.5))
    made = forwarder(log, to)
    waited: list[float] = []
    ending = made._ending

    def wait(timeout_s: float | None = None) -> bool:
        waited.append(timeout_s or 0)
        to.decide = lambda _: SENT
        return False

    monkeypatch.setattr(ending, "wait", wait)
    made._step()
    assert waited == [7.5]
    assert to.taken == [1, 2, 3, 4, 5]


# --- what it will not take ------------------------------------------------------------------------------------------------
def refuse(*poison: int, answer: Answer = REFUSED) -> Any:
    return lambda seqs: answer if set(poison) & set(seqs) else SENT


def test_a_poison_record_is_found_noted_and_passed_over(log: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    log.append(decoded(30, 1))
    to = Destination(refuse(17))
    made = run(log, to, 31)
    assert to.taken == [s for s in range(1, 31) if s != 17]
    assert refused(log.directory) == [{"first_seq": 17, "last_seq": 17, "count": 1, "reason": "HTTP 400"}]
    assert (made.stats().sent, made.stats().send_failed) == (29, 1)
    assert "refused 1 of records 17 to 17 (HTTP 400)" in caplog.text


def test_neighbours_refused_for_one_reason_are_one_note(log: AuditLog) -> None:
    log.append(decoded(20, 1))
    to = Destination(refuse(3, 4, 5, 9))
    run(log, to, 21)
    assert [(n["first_seq"], n["last_seq"], n["count"]) for n in refused(log.directory)] == [(3, 5, 3), (9, 9, 1)]
    assert sorted(to.taken) == [s for s in range(1, 21) if s not in (3, 4, 5, 9)]


def test_a_destination_that_refuses_everything_loses_nothing(log: AuditLog) -> None:
    log.append(decoded(25, 1))
    to = Destination(lambda _: REFUSED)
    made = forwarder(log, to)
    made.start()
    to.wait_for_requests(60)
    assert "it refuses every record" in made.stats().error
    assert (cursor(log.directory), refused(log.directory)) == (1, [])
    assert made.stats().next_seq == 1
    to.decide = lambda _: SENT
    wait_for(lambda: cursor(log.directory) == 26, "cursor")
    made.stop()
    assert set(to.taken) == set(range(1, 26))
    assert refused(log.directory) == []


def test_a_destination_that_calls_everything_too_large_loses_nothing(log: AuditLog) -> None:
    log.append(decoded(25, 1))
    to = Destination(lambda _: Answer(Fate.TOO_LARGE, "HTTP 413"))
    made = forwarder(log, to)
    made.start()
    to.wait_for_requests(100)
    assert (cursor(log.directory), refused(log.directory)) == (1, [])
    to.decide = lambda _: SENT
    wait_for(lambda: cursor(log.directory) == 26, "cursor")
    log.append(decoded(50, 2))
    wait_for(lambda: cursor(log.directory) == 76, "cursor")
    made.stop()
    assert (set(to.taken), refused(log.directory)) == (set(range(1, 76)), [])
    assert max(len(seqs) for seqs, _ in to.requests[-10:]) > 5, "the size of requests recovers"


def test_a_batch_that_is_refused_as_a_whole_is_passed_over_if_the_newest_record_is_taken(log: AuditLog) -> None:
    log.append(decoded(30, 1))
    to = Destination(lambda seqs: SENT if min(seqs) > 20 else REFUSED)  # as a backend that takes no old entries
    run(log, to, 31)
    assert [(n["first_seq"], n["last_seq"], n["count"]) for n in refused(log.directory)] == [(1, 10, 10), (11, 20, 10)]
    assert set(to.taken) == set(range(21, 31))


def test_the_only_record_waits_until_another_shows_whose_fault_it_is(log: AuditLog) -> None:
    log.append(decoded(1, 1))
    to = Destination(refuse(1))
    made = forwarder(log, to)
    made.start()
    to.wait_for_requests(5)
    assert (cursor(log.directory), refused(log.directory)) == (1, [])
    log.append(decoded(1, 2))
    wait_for(lambda: cursor(log.directory) == 3, "cursor")
    made.stop()
    assert [n["first_seq"] for n in refused(log.directory)] == [1]
    assert set(to.taken) == {2}


@pytest.mark.parametrize("certain", [True, False])
def test_a_request_that_is_too_large_is_split(log: AuditLog, *, certain: bool) -> None:
    log.append(decoded(30, 1))
    too_large = Answer(Fate.TOO_LARGE, "HTTP 413", certain=certain)
    to = Destination(lambda seqs: too_large if len(seqs) > 3 else SENT)
    run(log, to, 31)
    assert to.taken == list(range(1, 31))
    assert refused(log.directory) == []
    assert to.times(Fate.TOO_LARGE) == (3 if certain else 9), "what is too large is learned"


def test_one_record_that_is_too_large_is_noted(log: AuditLog) -> None:
    log.append(decoded(10, 1))
    to = Destination(refuse(4, answer=Answer(Fate.TOO_LARGE, "HTTP 413")))
    run(log, to, 11)
    assert [(n["first_seq"], n["reason"]) for n in refused(log.directory)] == [(4, "HTTP 413")]
    assert sorted(to.taken) == [1, 2, 3, 5, 6, 7, 8, 9, 10]


def test_one_record_that_may_be_too_large_is_tried_again(log: AuditLog) -> None:
    log.append(decoded(1, 1))
    to = Destination(lambda _: Answer(Fate.TOO_LARGE, "RESOURCE_EXHAUSTED: quota", certain=False))
    made = forwarder(log, to)
    made.start()
    to.wait_for_requests(10)
    to.decide = lambda _: SENT
    wait_for(lambda: cursor(log.directory) == 2, "cursor")
    made.stop()
    assert refused(log.directory) == []


def test_partial_success_is_noted_and_not_sent_again(log: AuditLog) -> None:
    log.append(decoded(20, 1))
    to = Destination(lambda seqs: Answer(Fate.SENT, "too old", None, 3) if 1 in seqs else SENT)
    made = run(log, to, 21)
    assert [seqs for seqs, _ in to.requests] == [list(range(1, 11)), list(range(11, 21))]
    assert refused(log.directory) == [{"first_seq": 1, "last_seq": 10, "count": 3, "reason": "too old"}]
    assert (made.stats().sent, made.stats().send_failed) == (17, 3)


def test_a_note_after_a_torn_line_is_whole(log: AuditLog) -> None:
    run(log, Destination(), 1)
    (log.directory / "forward" / "otlp_logs.refused.jsonl").write_text('{"at": "20')
    log.append(decoded(5, 1))
    run(log, Destination(refuse(2)), 6)
    lines = (log.directory / "forward" / "otlp_logs.refused.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["first_seq"] == 2


def test_a_request_has_2_mib_at_most_unless_one_record_has_more(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel_audit.forwarder, "_BYTES_MAX", 3_000)
    log.append(decoded(10, 1))
    to = Destination()
    run(log, to, 11)
    assert [len(seqs) for seqs, _ in to.requests] == [3, 3, 3, 1] or max(len(s) for s, _ in to.requests) < 10
    assert to.taken == list(range(1, 11))


# --- faults of ours ---------------------------------------------------------------------------------------------------------
def test_a_cursor_that_cannot_be_written_is_tried_again(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append(decoded(5, 1))
    to = Destination()
    made = forwarder(log, to)
    advance = made._state.advance
    failing = [OSError(28, "No space left on device")] * 3

    def sometimes(next_seq: int) -> None:
        if failing:
            raise failing.pop()
        advance(next_seq)

    monkeypatch.setattr(made._state, "advance", sometimes)
    made.start()
    wait_for(lambda: cursor(log.directory) == 6, "cursor")
    made.stop()
    assert set(to.taken) == {1, 2, 3, 4, 5}


def test_a_fault_that_nobody_expected_does_not_end_it(log: AuditLog, caplog: pytest.LogCaptureFixture) -> None:
    log.append(decoded(5, 1))
    faults = [RuntimeError("odd")]

    def decide(_: Sequence[int]) -> Answer:
        if faults:
            raise faults.pop()
        return SENT

    to = Destination(decide)
    run(log, to, 6)
    assert to.taken == [1, 2, 3, 4, 5]
    assert "failed unexpectedly" in caplog.text


def test_what_is_acknowledged_while_stopping_is_not_sent_again(log: AuditLog) -> None:
    log.append(decoded(5, 1))
    made = forwarder(log, to := Destination())

    def decide(_: Sequence[int]) -> Answer:
        made._ending.set()
        return SENT

    to.decide = decide
    made.start()
    made.stop()
    assert cursor(log.directory) == 6
