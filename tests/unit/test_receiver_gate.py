import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from otel_audit._receiver_answer import TurnedAwayError, Verdict
from otel_audit._receiver_gate import NOT_ALLOWED, AccessSettings, Credentials, Gate
from otel_audit._receiver_intake import Answer, Intake, IntakeSettings, Request
from otel_audit.errors import ConfigError, UnavailableError
from otel_audit.otlp import Decoded, Decoder, DecodeSettings
from otel_audit.senders import Sender, digest_of, new_token
from tests.otlp_support import SPAN, check, encoded, request, span
from tests.receiver_support import FakeLog

TOKEN = new_token()
SHOWN = Credentials(f"Bearer {TOKEN}")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def sender(**limits: object) -> Sender:
    return Sender("crm", (digest_of(TOKEN),), **limits)  # type: ignore[arg-type]


def gate(*senders: Sender, clock: Clock | None = None) -> Gate:
    return Gate(AccessSettings(senders), clock or Clock())


def turned_away(of: Gate, credentials: Credentials, *, certificate_wanted: bool = False) -> TurnedAwayError:
    with pytest.raises(TurnedAwayError) as error:
        of.enter(lambda: credentials, certificate_wanted=certificate_wanted)
    return error.value


# --- the way in ---------------------------------------------------------------------------------------------------------
def test_without_senders_everybody_is_let_in() -> None:
    assert Gate(AccessSettings()).enter(lambda: Credentials("Bearer anything")).name == ""


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_a_bearer_token_opens(scheme: str) -> None:
    assert gate(sender()).enter(lambda: Credentials(f"{scheme}{TOKEN}")).name == "crm"


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        (Credentials(), "credentials_missing"),
        (Credentials("Basic eDp5"), "credentials_missing"),
        (Credentials("Bearer "), "credentials_missing"),
        (Credentials(TOKEN), "credentials_missing"),
        (Credentials("Bearer " + TOKEN[:-1]), "token_unknown"),
        (Credentials("Bearer " + digest_of(TOKEN)), "token_unknown"),
        (Credentials(names=("x",), certified=True), "certificate_unknown"),
        (Credentials("Bearer other", names=("x",), certified=True), "token_unknown"),
    ],
)
def test_anybody_else_is_told_to_come_again_and_why(credentials: Credentials, reason: str) -> None:
    error = turned_away(gate(sender()), credentials)
    assert (error.reason, error.answer.verdict, error.answer.retry_after_s) == (reason, Verdict.RETRY, 10)
    assert error.challenge.startswith("Bearer realm=")
    assert error.answer.message.startswith("unauthenticated: ")


@pytest.mark.parametrize(
    ("credentials", "reason", "said"),
    [
        (Credentials(f"Bearer {TOKEN}"), "certificate_missing", "beside its token, and there is none"),
        (Credentials(f"Bearer {TOKEN}", ("x",), certified=True), "certificate_unknown", "that of x is not its own"),
    ],
)
def test_a_sender_that_must_show_two_things_is_told_which_is_missing(
    credentials: Credentials, reason: str, said: str
) -> None:
    error = turned_away(gate(sender(certificate=("crm",))), credentials)
    assert error.reason == reason
    assert said in error.answer.message


def test_strangers_are_sent_away_for_good_where_that_is_asked_for() -> None:
    strict = Gate(AccessSettings((sender(),), unauthenticated="refuse"))
    assert turned_away(strict, Credentials()).answer.verdict is Verdict.UNAUTHENTICATED


def test_a_token_is_never_told() -> None:
    wrong = new_token()
    error = turned_away(gate(sender()), Credentials(f"Bearer {wrong}", address="192.0.2.1:5"))
    for text in (repr(Credentials(f"Bearer {wrong}")), str(error), error.about, error.challenge):
        assert wrong not in text
        assert wrong[4:12] not in text
    assert digest_of(wrong)[:8] in error.answer.message, "this is how an operator finds out which it was"


def test_a_protocol_that_asks_for_certificates_lets_nobody_in_without() -> None:
    assert turned_away(Gate(AccessSettings()), Credentials(), certificate_wanted=True).reason == "certificate_missing"
    assert turned_away(gate(sender()), SHOWN, certificate_wanted=True).reason == "certificate_missing"
    assert Gate(AccessSettings()).enter(lambda: Credentials(certified=True), certificate_wanted=True)


def test_a_list_and_a_file_of_senders_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="senders_file as well"):
        Gate(AccessSettings((sender(),), "senders.yaml"))


# --- the file -----------------------------------------------------------------------------------------------------------
def line(name: str, token: str, more: str = "") -> str:
    return f"- {{name: {name}, token_sha256: {digest_of(token)}{more}}}\n"


def test_a_token_is_added_and_revoked_while_the_gate_stands(tmp_path: Path) -> None:
    path, newer = tmp_path / "senders.yaml", new_token()
    path.write_text(line("crm", TOKEN))
    watched = Gate(AccessSettings(senders_file=str(path)))
    assert watched.watched
    path.write_text(f"- {{name: crm, token_sha256: [{digest_of(TOKEN)}, {digest_of(newer)}]}}\n")
    watched.watched.poll()
    assert watched.enter(lambda: SHOWN).name == watched.enter(lambda: Credentials(f"Bearer {newer}")).name == "crm"
    path.write_text(line("crm", newer))
    watched.watched.poll()
    assert watched.enter(lambda: Credentials(f"Bearer {newer}")).name == "crm"
    assert turned_away(watched, SHOWN).reason == "token_unknown"


@pytest.mark.parametrize("broken", ["", "- {name: crm}\n", "- [", None])
def test_a_broken_file_changes_nothing_but_is_complained_of_once(
    tmp_path: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "senders.yaml"
    path.write_text(line("crm", TOKEN))
    gate = Gate(AccessSettings(senders_file=str(path)))
    assert gate.watched
    path.unlink() if broken is None else path.write_text(broken)
    for _ in range(3):
        gate.watched.poll()
    assert gate.enter(lambda: SHOWN).name == "crm"
    assert (gate.watched.stale, gate.watched.failures) == (True, 3)
    assert len([r for r in caplog.records if "stay as they were" in r.getMessage()]) == 1
    path.write_text(line("crm", TOKEN) + line("other", new_token()))
    gate.watched.poll()
    assert (gate.watched.stale, gate.watched.reloads) == (False, 1)


def test_a_sender_that_could_never_be_known_is_a_fault_also_later(tmp_path: Path) -> None:
    path = tmp_path / "senders.yaml"
    path.write_text(line("crm", TOKEN))
    gate = Gate(AccessSettings(senders_file=str(path)), certificates=False)
    assert gate.watched
    path.write_text("- {name: edge, certificate: edge}\n")
    gate.watched.poll()
    assert gate.watched.stale
    with pytest.raises(ConfigError, match="no protocol asks for one"):
        Gate(AccessSettings(senders_file=str(path)), certificates=False)


def test_a_file_that_cannot_be_read_at_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"senders\.yaml"):
        Gate(AccessSettings(senders_file=str(tmp_path / "senders.yaml")))


def test_a_debt_outlives_a_new_file_that_does_not_change_the_rate(tmp_path: Path) -> None:
    path, clock = tmp_path / "senders.yaml", Clock()
    path.write_text(line("crm", TOKEN, ", rate_records_per_s: 1"))
    gate = Gate(AccessSettings(senders_file=str(path)), clock)
    assert gate.watched
    answer_of(gate, FakeLog(), body("crm", spans=30))
    path.write_text(line("crm", TOKEN, ", rate_records_per_s: 1, services: [crm]"))
    gate.watched.poll()
    assert turned_away(gate, SHOWN).reason == "rate_limited"
    path.write_text(line("crm", TOKEN, ", rate_records_per_s: 100"))
    gate.watched.poll()
    assert gate.enter(lambda: SHOWN)


# --- what it held -------------------------------------------------------------------------------------------------------
def body(*services: str, spans: int = 1, source: str | None = None) -> bytes:
    """A request of as many spans of each service, numbered if there is a source."""
    whole = b""
    for s, service in enumerate(services):
        resource = {"service.name": service} | ({"audit.source.id": source} if source else {})
        made = [
            span({"audit.source.seq": i + 1} if source else {}, span_id=bytes([s + 1, i + 1]) * 4) for i in range(spans)
        ]
        whole += encoded(request(*made, resource=resource))
    return whole


def answer_of(
    gate: Gate, log: FakeLog, data: bytes, intake: Intake | None = None, decoder: Decoder | None = None
) -> Answer:
    intake = intake or Intake(log, decoder or Decoder())
    visit = gate.enter(lambda: SHOWN)
    with intake.admit() as permit:
        return intake.offer(Request(data, limit_bytes=visit.limit_bytes(1 << 20), visit=visit), permit).result(5)


def test_what_is_not_the_senders_is_kept_but_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    log = FakeLog()
    intake = Intake(log, Decoder())
    allowed = gate(sender(services=("crm", "billing-*")))
    data = body("crm", "payroll", "billing-eu", spans=2)
    assert answer_of(allowed, log, data, intake).verdict is Verdict.ACCEPTED
    (decoded,) = log.taken
    check(decoded)
    assert decoded.records.column("service").to_pylist() == ["crm"] * 2 + ["billing-eu"] * 2
    assert decoded.raw is None, "the request's bytes are not held until it is durable"
    ours = [span(span_id=bytes([2, i + 1]) * 4).SerializeToString() for i in range(2)]
    assert [q.payload for q in decoded.quarantine] == ours
    assert {(q.reason, q.kind, q.service, q.recorded) for q in decoded.quarantine} == {
        (NOT_ALLOWED, "otlp.span+protobuf", "payroll", False)
    }
    assert "the sender crm may not speak for service 'payroll'" in decoded.quarantine[0].detail
    assert intake.stats().not_allowed == 2
    assert "may not speak for service 'payroll'" in caplog.text


def test_the_service_that_counts_is_the_one_the_record_would_have() -> None:
    log = FakeLog()
    data = encoded(request(span({"audit.service": "payroll"}), resource={"service.name": "crm"}))
    answer_of(gate(sender(services=("crm",))), log, data)
    assert log.taken[0].records.num_rows == 0
    assert log.taken[0].quarantine[0].reason == NOT_ALLOWED


def test_the_right_spans_are_kept_when_others_are_left_out() -> None:
    log = FakeLog()
    spans = [
        span(span_id=b"\1" * 8, kind=1),  # no call
        span({"url.path": "/healthz"}, span_id=b"\2" * 8),  # excluded
        span(span_id=b"\3" * 8, start_time_unix_nano=0),  # in quarantine already
        span({"audit.service": "payroll"}, span_id=b"\4" * 8),
        span({"audit.service": "payroll"}, span_id=b"\5" * 8, kind=1),
        span({"audit.service": "payroll", "audit.action": "x"}, span_id=b"\6" * 8, kind=1),
        span(span_id=b"\7" * 8),
    ]
    decoder = Decoder(DecodeSettings(exclude_routes=("/healthz",)))
    answer_of(gate(sender(services=("crm",))), log, encoded(request(*spans)), decoder=decoder)
    (decoded,) = log.taken
    check(decoded)
    assert decoded.records.column("span_id").to_pylist() == [b"\7" * 8]
    assert [(q.reason, q.payload) for q in decoded.quarantine] == [
        ("time_missing", spans[2].SerializeToString()),
        (NOT_ALLOWED, spans[3].SerializeToString()),
        (NOT_ALLOWED, spans[5].SerializeToString()),
    ]


def test_a_span_that_was_kept_as_lossy_is_kept_once_and_not_as_recorded() -> None:
    log = FakeLog()
    data = encoded(request(span({"audit.service": "payroll", "audit.target.id": "x" * 20_000})))
    assert [q.recorded for q in Decoder().decode(data).quarantine] == [True]
    answer_of(gate(sender(services=("crm",))), log, data)
    (decoded,) = log.taken
    assert [(q.reason, q.recorded) for q in decoded.quarantine] == [(NOT_ALLOWED, False)]
    check(decoded)


def test_json_is_kept_as_it_came() -> None:
    import json

    made = {
        "traceId": "01" * 16,
        "spanId": SPAN.hex(),
        "name": "n",
        "kind": 2,
        "startTimeUnixNano": "1795420800000000000",
        "endTimeUnixNano": "1795420800001000000",
    }
    text = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [made]}]}]})
    log = FakeLog()
    intake = Intake(log, Decoder())
    visit = gate(sender(services=("crm",))).enter(lambda: SHOWN)
    with intake.admit() as permit:
        intake.offer(Request(text.encode(), "json", visit=visit), permit).result(5)
    (entry,) = log.taken[0].quarantine
    assert (entry.reason, entry.kind) == (NOT_ALLOWED, "otlp.span+json")
    assert json.loads(entry.payload) == made


def test_a_decoder_that_cannot_give_single_records_has_the_request_kept() -> None:
    class Whole(Decoder):
        def decode(self, body: bytes) -> Decoded:
            return replace(super().decode(body), raw=None)

    log, data = FakeLog(), body("crm", "payroll", spans=2)
    intake = Intake(log, Whole())
    assert answer_of(gate(sender(services=("crm",))), log, data, intake).verdict is Verdict.ACCEPTED
    (entry,) = log.taken[0].quarantine
    assert (entry.payload, entry.kind) == (data, "otlp.request+protobuf")
    assert log.taken[0].records.num_rows == 2


def test_a_sender_speaks_for_its_sources_alone_also_where_a_call_is_left_out() -> None:
    log = FakeLog()
    allowed = gate(sender(sources=("ours-*",)))
    answer_of(allowed, log, body("crm", source="theirs-1", spans=2))
    answer_of(allowed, log, body("crm", source="ours-1", spans=2))
    assert [d.records.num_rows for d in log.taken] == [0, 2]
    assert "as source 'theirs-1'" in log.taken[0].quarantine[0].detail

    def excluded(source: str) -> pa.RecordBatch | None:
        resource = {"service.name": "crm", "audit.source.id": source}
        data = encoded(request(span({"url.path": "/healthz", "audit.source.seq": 1}), resource=resource))
        answer_of(allowed, log, data, decoder=Decoder(DecodeSettings(exclude_routes=("/healthz",))))
        return log.taken[-1].unrecorded

    ours, theirs = excluded("ours-1"), excluded("theirs-1")
    assert ours is not None
    assert ours.num_rows == 1
    assert theirs is None or theirs.num_rows == 0, "it would hide a gap of somebody else's"


def numbers_of(decoded: Decoded) -> list[tuple[str, int]]:
    """Source and number of what came and is no record."""
    rows = [] if decoded.unrecorded is None else decoded.unrecorded.to_pylist()
    return [(row["source_id"], row["source_seq"]) for row in rows]


def test_the_number_of_a_record_that_is_kept_in_quarantine_is_not_taken_for_lost() -> None:
    resource = {"service.name": "crm", "audit.source.id": "ours-1"}
    excluded = span({"url.path": "/healthz", "audit.source.seq": 1}, span_id=b"\1" * 8)
    theirs = [span({"audit.service": "payroll", "audit.source.seq": seq}, span_id=bytes([seq]) * 8) for seq in (2, 4)]
    foreign = span({"audit.source.id": "theirs-1", "audit.source.seq": 5}, span_id=b"\5" * 8)
    mine = span({"audit.source.seq": 3}, span_id=b"\3" * 8)
    log = FakeLog()
    allowed = gate(sender(services=("crm",), sources=("ours-*",)))
    decoder = Decoder(DecodeSettings(exclude_routes=("/healthz",)))
    answer_of(allowed, log, encoded(request(*theirs, mine, foreign, resource=resource)), decoder=decoder)
    answer_of(allowed, log, encoded(request(excluded, *theirs, mine, resource=resource)), decoder=decoder)
    assert numbers_of(log.taken[0]) == [("ours-1", 2), ("ours-1", 4)], "of theirs-1 it would hide a gap"
    assert numbers_of(log.taken[1]) == [("ours-1", 1), ("ours-1", 2), ("ours-1", 4)]
    for decoded in log.taken:
        check(decoded)
        assert decoded.records.column("source_seq").to_pylist() == [3]
    answer_of(allowed, log, body("payroll"))
    assert log.taken[-1].unrecorded is None, "without numbers there is nothing to note"


# --- how much -----------------------------------------------------------------------------------------------------------
def test_a_sender_over_its_rate_is_told_when_to_come_again() -> None:
    log, clock = FakeLog(), Clock()
    limited = gate(sender(rate_records_per_s=2, burst_records=10), clock=clock)
    assert answer_of(limited, log, body("crm", spans=50)).verdict is Verdict.ACCEPTED, "a request is taken whole"
    assert log.taken[0].records.num_rows == 50
    error = turned_away(limited, SHOWN)
    assert (error.reason, error.answer.verdict, error.sender) == ("rate_limited", Verdict.RETRY, "crm")
    assert error.answer.retry_after_s == pytest.approx(20.5)
    clock.now_s += 20.6
    assert limited.enter(lambda: SHOWN)


def test_what_the_log_has_already_counts_a_tenth_but_a_request_counts() -> None:
    log, clock = FakeLog(copies=True, held=True), Clock()
    limited = gate(sender(rate_records_per_s=1, burst_records=10, services=("crm",)), clock=clock)
    intake = Intake(log, Decoder())
    answers = []
    visits = [limited.enter(lambda: SHOWN) for _ in range(2)]
    for visit, data in zip(visits, (body("crm", spans=50), body("payroll", spans=50)), strict=True):
        with intake.admit() as permit:
            answers.append(intake.offer(Request(data, visit=visit), permit))
    assert turned_away(limited, SHOWN).answer.retry_after_s == pytest.approx(91), "until it is known they count in full"
    log.release()
    assert [answer.result(5).verdict for answer in answers] == [Verdict.ACCEPTED] * 2
    assert turned_away(limited, SHOWN).answer.retry_after_s == pytest.approx(1), "10 of 10 are spent"
    clock.now_s += 10
    log.held = False
    for _ in range(10):
        answer_of(limited, log, body("crm"), intake)
    assert turned_away(limited, SHOWN).reason == "rate_limited", "each counts one"


def test_what_is_in_quarantine_counts_and_what_is_not_durable_does_not() -> None:
    clock = Clock()
    limited = gate(sender(rate_records_per_s=1, burst_records=10, services=("crm",)), clock=clock)
    for log in (
        FakeLog(error=UnavailableError("append", "log", "disk full")),
        FakeLog(error=UnavailableError("append", "log", "disk full"), late=True),
        FakeLog(error=MemoryError()),
    ):
        assert answer_of(limited, log, body("crm", spans=50)).verdict is Verdict.RETRY
        assert limited.enter(lambda: SHOWN)
    assert answer_of(limited, FakeLog(), body("payroll", spans=50)).verdict is Verdict.ACCEPTED
    assert turned_away(limited, SHOWN).reason == "rate_limited"
    clock.now_s += 1000
    timeless = [span(span_id=bytes([i + 1]) * 8, start_time_unix_nano=0) for i in range(50)]
    assert answer_of(limited, FakeLog(), encoded(request(*timeless))).verdict is Verdict.ACCEPTED
    assert turned_away(limited, SHOWN).reason == "rate_limited"


def test_requests_without_records_count_too() -> None:
    limited = gate(sender(rate_records_per_s=1, burst_records=3))
    for _ in range(3):
        answer_of(limited, FakeLog(), encoded(request(span(kind=1))))
    assert turned_away(limited, SHOWN).reason == "rate_limited"


def test_each_sender_has_its_own_rate() -> None:
    other = new_token()
    both = gate(sender(rate_records_per_s=1), Sender("other", (digest_of(other),), rate_records_per_s=1))
    answer_of(both, FakeLog(), body("crm", spans=50))
    assert turned_away(both, SHOWN).reason == "rate_limited"
    assert both.enter(lambda: Credentials(f"Bearer {other}")).name == "other"


def test_a_request_over_the_senders_own_size_is_refused() -> None:
    log = FakeLog()
    small = gate(sender(max_request_bytes=50))
    assert answer_of(small, log, body("crm")).verdict is Verdict.TOO_LARGE
    assert log.taken == []
    assert answer_of(gate(sender(max_request_bytes=1 << 30)), log, body("crm")).verdict is Verdict.ACCEPTED
    assert gate(sender(max_request_bytes=1 << 30)).enter(lambda: SHOWN).limit_bytes(10) == 10


# --- what is said -------------------------------------------------------------------------------------------------------
def test_refusals_are_counted_each_and_logged_now_and_then_for_each_sender(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    intake = Intake(FakeLog(), Decoder(), IntakeSettings())
    stranger = turned_away(gate(sender()), Credentials(address="192.0.2.1:5"))
    for _ in range(3):
        intake.turn_away(stranger)
    for name in ("a", "b", "a"):
        intake.turn_away(TurnedAwayError("rate_limited", Answer(Verdict.RETRY, f"{name} sent too much"), sender=name))
    assert intake.stats().refused == {"credentials_missing": 3, "rate_limited": 3}
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 3
    assert "192.0.2.1:5" in told[0]
