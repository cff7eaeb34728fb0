"""What cannot be a record, or not wholly, is kept with its reason; what is sound beside it becomes records."""

import json
from typing import Any

import numpy as np
import pytest

from otel_audit import _otlp_schema as wire
from otel_audit._otlp_attributes import ATTRIBUTES_BYTES_MAX, COLUMN_BYTES_MAX, Memo, Slot
from otel_audit._otlp_spans import ATTRIBUTES_MAX, HUGE_BYTES, Heads
from otel_audit.otlp import Decoded, Decoder
from otel_audit.record import INT_MAX
from tests.otlp_support import SPAN, START_NS, TRACE, any_value, check, decode, encoded, request, rows, span

GOOD = span({"http.route": "/good", "audit.client.id": "good"})


def spans_request(*raws: bytes, resource: bytes = b"") -> bytes:
    """A request of spans that need not be sound."""
    resource = resource or wire.field(1, b"\x0a\x0cservice.name\x12\x05\x0a\x03crm")
    return wire.field(1, wire.field(1, resource) + wire.field(2, b"".join(wire.field(2, raw) for raw in raws)))


def with_attribute(raw: bytes) -> bytes:
    """A sound span with one more attribute, as raw bytes."""
    return bytes(span({"audit.client.id": "me"}).SerializeToString()) + wire.field(9, raw)


def attribute(key: bytes, value: bytes) -> bytes:
    """A KeyValue of a string value."""
    return wire.field(1, key) + wire.field(2, wire.field(1, value))


def problems(row: dict[str, Any]) -> list[str]:
    """The problems that a record names."""
    return [] if row["attributes"] is None else list(json.loads(row["attributes"]).get("otel_audit.problems", []))


def only_with_problem(decoded: Decoded, problem: str) -> dict[str, Any]:
    """The one record, which names that problem alone."""
    (row,) = rows(decoded)
    assert problems(row) == [problem]
    return row


def reasons(decoded: Decoded) -> list[tuple[str, bool]]:
    """Reasons in quarantine and whether there is a record all the same."""
    return [(q.reason, q.recorded) for q in decoded.quarantine]


# --- spans that cannot be records -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"trace_id": b""}, "trace_id_invalid"),
        ({"trace_id": bytes(16)}, "trace_id_invalid"),
        ({"trace_id": TRACE[:15]}, "trace_id_invalid"),
        ({"trace_id": TRACE + b"x"}, "trace_id_invalid"),
        ({"span_id": b""}, "span_id_invalid"),
        ({"span_id": bytes(8)}, "span_id_invalid"),
        ({"span_id": SPAN * 2}, "span_id_invalid"),
        ({"start_time_unix_nano": 0}, "time_missing"),
        ({"start_time_unix_nano": 2**63}, "time_out_of_range"),
        ({"start_time_unix_nano": 2**64 - 1}, "time_out_of_range"),
    ],
)
def test_a_span_without_identity_or_time_is_quarantined_as_it_came(fields: dict[str, Any], reason: str) -> None:
    bad = span({"http.route": "/bad"}, **fields)
    decoded = decode(GOOD, bad, GOOD)
    assert [r["route"] for r in rows(decoded)] == ["/good", "/good"]
    (entry,) = decoded.quarantine
    assert (entry.reason, entry.recorded, entry.kind, entry.service) == (reason, False, "otlp.span+protobuf", "crm")
    assert entry.payload == bad.SerializeToString()
    assert entry.detail


@pytest.mark.parametrize(
    "raw",
    [
        GOOD.SerializeToString()[:-3],
        GOOD.SerializeToString() + b"\x4a\x7f",
        GOOD.SerializeToString() + b"\x4a\x12",  # as long as the mark that `otlp` writes behind a span
        GOOD.SerializeToString() + b"\x4a\x24",
        GOOD.SerializeToString() + b"\x80",
        GOOD.SerializeToString() + b"\x0b",
        GOOD.SerializeToString() + b"\x0c",
        b"\xff\xff",
    ],
)
@pytest.mark.parametrize("place", [0, 1, 70, 149])
def test_an_undecodable_span_spoils_no_other(raw: bytes, place: int) -> None:
    sound = [span({"audit.client.id": str(n)}).SerializeToString() for n in range(150)]
    body = spans_request(*sound[:place], raw, *sound[place:])
    decoded = check(Decoder().decode(body))
    assert [r["client_id"] for r in rows(decoded)] == [str(n) for n in range(150)]
    (entry,) = decoded.quarantine
    assert (entry.reason, entry.payload, entry.recorded) == ("span_undecodable", raw, False)


def test_a_head_is_never_completed_by_what_follows_it() -> None:
    sound = bytes(span({}, parent_span_id=SPAN, trace_state="a=b").SerializeToString())
    head = max(end for number, _, _, end in wire.fields(sound) if number == 8)
    for cut in range(len(sound) + 1):
        pieces = [sound[:cut], sound[cut:], b"\x41" * 64]
        sizes = np.array([len(p) for p in pieces])
        assert Heads(pieces, sizes).sound[0] == (cut >= head), cut


def test_a_span_written_in_another_order_gives_the_same_record() -> None:
    sound = bytes(GOOD.SerializeToString())
    parts = [sound[tag:end] for _, tag, _, end in wire.fields(sound)]
    backwards = b"".join(reversed(parts[:-2])) + b"".join(parts[-2:])
    one, other = rows(check(Decoder().decode(spans_request(sound, backwards))))
    assert one == other


def test_a_field_that_occurs_twice_counts_as_it_occurs_last() -> None:
    twice = bytes(GOOD.SerializeToString()) + wire.field(1, b"\x01" * 16) + wire.field(2, b"\x02" * 8)
    first, second = rows(check(Decoder().decode(spans_request(twice, GOOD.SerializeToString()))))
    assert (first["trace_id"], first["span_id"]) == (b"\x01" * 16, b"\x02" * 8)
    assert (second["trace_id"], second["span_id"]) == (TRACE, SPAN)


def test_ids_of_one_span_never_pass_to_the_next() -> None:
    twice = bytes(GOOD.SerializeToString()) + wire.field(1, b"\x01" * 16)
    none = bytes(span({}, trace_id=b"").SerializeToString())
    decoded = check(Decoder().decode(spans_request(twice, none)))
    assert [r["trace_id"] for r in rows(decoded)] == [b"\x01" * 16]
    assert reasons(decoded) == [("trace_id_invalid", False)]


def test_a_span_that_is_refused_or_excluded_is_counted_once() -> None:
    said = {"http.route": "/healthz", "http.response.status_code": "oops"}
    decoded = decode(span({**said, "http.route": "/x"}, trace_id=bytes(16)), span(said), exclude_routes=["/healthz"])
    assert (reasons(decoded), decoded.skipped) == ([("trace_id_invalid", False)], 1)
    decoded = decode(span(said, trace_id=bytes(16), start_time_unix_nano=0), exclude_routes=["/healthz"])
    assert (reasons(decoded), decoded.skipped) == ([], 1)


# --- broken requests --------------------------------------------------------------------------------------------------
def test_a_broken_part_of_a_request_is_quarantined_and_the_rest_recorded() -> None:
    sound = bytes(GOOD.SerializeToString())
    resource = wire.field(1, wire.field(1, b"\x0a\x0cservice.name\x12\x05\x0a\x03crm"))
    broken_scope = wire.field(2, wire.field(2, sound) + b"\x12\x7fcut")
    broken_resource = resource + wire.field(2, wire.field(2, sound)) + b"\x12\x7fcut"
    body = wire.field(1, resource + broken_scope) + wire.field(1, broken_resource) + spans_request(sound)
    decoded = check(Decoder().decode(body))
    assert [(r["route"], r["service"]) for r in rows(decoded)] == [("/good", "crm")] * 3
    assert reasons(decoded) == [("spans_undecodable", False)] * 2
    for entry in decoded.quarantine:
        assert entry.kind == "otlp.request+protobuf"
        assert entry.payload.endswith(b"\x12\x7fcut")
        assert b"service.name" in entry.payload


def test_a_broken_resource_is_kept_and_its_spans_say_so() -> None:
    body = spans_request(GOOD.SerializeToString(), GOOD.SerializeToString(), resource=b"\x0a\x7fcut")
    decoded = check(Decoder().decode(body))
    assert [problems(r) for r in rows(decoded)] == [["undecodable:resource"]] * 2
    assert reasons(decoded) == [("undecodable", True)]


# --- records that do not hold all ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("key", "column"),
    [
        (b"audit.client.id", "client_id"),
        (b"http.route", "route"),
        (b"url.path", "target"),
        (b"http.target", "target"),
        (b"http.url", "target"),
        (b"audit.target.id", "target"),
        (b"audit.service", "service"),
        (b"http.request.method", "method"),
    ],
)
def test_invalid_utf8_is_written_visibly(key: bytes, column: str) -> None:
    value = b"/a\xff\xc3("
    decoded = check(Decoder().decode(spans_request(with_attribute(attribute(key, value)))))
    row = only_with_problem(decoded, f"invalid_utf8:{column}")
    assert row[column] == "/a\\xff\\xc3("
    assert decoded.quarantine == ()


def test_invalid_utf8_elsewhere() -> None:
    name = span({}, name="").SerializeToString() + wire.field(5, b"job \xff")
    assert (
        only_with_problem(check(Decoder().decode(spans_request(name))), "invalid_utf8:action")["action"] == "job \\xff"
    )
    key = with_attribute(attribute(b"audit.\xff", b"v"))
    row = only_with_problem(check(Decoder().decode(spans_request(key))), "invalid_utf8:attributes")
    assert json.loads(row["attributes"])["audit.\\xff"] == "v"
    surrogate = with_attribute(attribute(b"audit.note", b"\xed\xa0\x80"))
    only_with_problem(check(Decoder().decode(spans_request(surrogate))), "invalid_utf8:attributes")


def test_end_before_start_or_missing_leaves_no_duration() -> None:
    for end, problem in ((START_NS - 1, "end_before_start"), (0, "end_missing")):
        decoded = decode(span({}, end_time_unix_nano=end), GOOD)
        first, second = rows(decoded)
        assert (first["duration_ns"], problems(first)) == (None, [problem])
        assert (second["duration_ns"], problems(second)) == (5_000_000, [])
        assert decoded.quarantine == ()


def test_a_duration_beyond_what_json_readers_keep_is_left_out_and_the_span_kept() -> None:
    decoded = decode(span({}, end_time_unix_nano=START_NS + INT_MAX + 1))
    assert only_with_problem(decoded, "out_of_range:duration_ns")["duration_ns"] is None
    assert reasons(decoded) == [("out_of_range", True)]
    assert rows(decode(span({}, end_time_unix_nano=START_NS + INT_MAX)))[0]["duration_ns"] == INT_MAX


@pytest.mark.parametrize(
    ("key", "value", "column", "found"),
    [
        ("http.response.status_code", "200", "status_code", 200),
        ("http.response.status_code", 200.0, "status_code", 200),
        ("rpc.grpc.status_code", "NOT_FOUND", "status_code", None),  # no rpc call, so no rpc status
        ("audit.source.seq", "12", "source_seq", 12),
        ("audit.source.seq", INT_MAX, "source_seq", INT_MAX),
        ("audit.source.seq", -5, "source_seq", -5),
        ("audit.client.id", 42, "client_id", "42"),
        ("audit.client.id", True, "client_id", "true"),
        ("audit.client.id", 1.5, "client_id", "1.5"),
        ("audit.client.id", b"\x00\xff", "client_id", "AP8="),
        ("audit.client.id", "", "client_id", None),
        ("audit.client.id", None, "client_id", None),
        ("http.route", "", "route", None),
        ("url.path", 7, "target", "7"),
    ],
)
def test_a_value_of_another_type_is_understood(key: str, value: Any, column: str, found: Any) -> None:
    decoded = decode(span({key: value}))
    (row,) = rows(decoded)
    assert (row[column], problems(row), decoded.quarantine) == (found, [], ())


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("http.response.status_code", 2**15, "out_of_range:status_code"),
        ("http.response.status_code", -(2**40), "out_of_range:status_code"),
        ("http.response.status_code", "two hundred", "invalid:status_code"),
        ("http.response.status_code", "9" * 5000, "invalid:status_code"),
        ("http.response.status_code", 200.5, "invalid:status_code"),
        ("http.response.status_code", float("nan"), "invalid:status_code"),
        ("http.response.status_code", float("inf"), "invalid:status_code"),
        ("http.response.status_code", True, "invalid:status_code"),
        ("rpc.response.status_code", "SO_SO", "invalid:status_code"),
        ("audit.source.seq", INT_MAX + 1, "out_of_range:source_seq"),
        ("audit.source.seq", -(2**63), "out_of_range:source_seq"),
        ("audit.source.seq", "many", "invalid:source_seq"),
        ("audit.client.id", ["a", "b"], "invalid:client_id"),
        ("audit.client.id", {"a": 1}, "invalid:client_id"),
    ],
)
def test_a_value_that_a_column_cannot_hold_is_named_and_the_span_kept(key: str, value: Any, problem: str) -> None:
    bad = span({key: value})
    decoded = decode(bad)
    only_with_problem(decoded, problem)
    (entry,) = decoded.quarantine
    assert (entry.reason, entry.recorded, entry.payload) == (problem.partition(":")[0], True, bad.SerializeToString())


def test_source_numbers_of_any_length_side_by_side() -> None:
    numbers = [0, 1, 127, 128, 2**14, 2**21 - 1, 2**28, 2**35, 2**42, 2**49, INT_MAX, None, 7] * 9
    spans = [span({} if n is None else {"audit.source.seq": n}) for n in numbers]
    assert [r["source_seq"] for r in rows(decode(*spans))] == numbers


def test_an_outcome_outside_the_vocabulary_is_noted_and_kept_as_said() -> None:
    decoded = decode(span({"audit.outcome": "fine", "http.response.status_code": 200}))
    (row,) = rows(decoded)
    assert row["outcome"] == "success"
    assert json.loads(row["attributes"]) == {"audit.outcome": "fine", "otel_audit.problems": ["invalid:outcome"]}
    assert decoded.quarantine == ()


@pytest.mark.parametrize(
    ("key", "column"), [("url.path", "target"), ("http.route", "route"), ("audit.client.name", "client_name")]
)
def test_an_oversize_text_is_cut_and_the_span_kept(key: str, column: str) -> None:
    long = "/" + "é" * COLUMN_BYTES_MAX
    decoded = decode(span({key: long}), GOOD)
    first, second = rows(decoded)
    assert problems(first) == [f"oversize:{column}"]
    assert len(first[column].encode()) in (COLUMN_BYTES_MAX, COLUMN_BYTES_MAX - 1)
    assert long.startswith(first[column])
    assert reasons(decoded) == [("oversize", True)]
    assert problems(second) == []


def test_oversize_developer_attributes_are_left_out_one_by_one() -> None:
    said = {"audit.a": "x" * 10_000, "audit.b": "y" * ATTRIBUTES_BYTES_MAX, "audit.c": "z" * 60_000, "audit.d": "kept"}
    decoded = decode(span(said))
    (row,) = rows(decoded)
    kept = json.loads(row["attributes"])
    assert sorted(kept) == ["audit.a", "audit.d", "otel_audit.problems"]
    assert kept["otel_audit.problems"] == ["oversize:attributes"]
    assert len(row["attributes"].encode()) <= ATTRIBUTES_BYTES_MAX
    assert reasons(decoded) == [("oversize", True)]


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = "bottom"
    for _ in range(depth):
        value = any_value([value])
    return value


def test_nesting_is_kept_to_its_bound_and_noted_beyond_it() -> None:
    (row,) = rows(decode(span({"audit.deep": nested(16)})))
    assert problems(row) == []
    decoded = decode(span({"audit.deep": nested(17), "audit.client.id": "me"}))
    assert only_with_problem(decoded, "depth:attributes")["client_id"] == "me"
    assert reasons(decoded) == [("depth", True)]


def test_bottomless_nesting_neither_crashes_nor_hides_the_call() -> None:
    value = wire.field(1, b"x")
    for _ in range(5_000):
        value = wire.field(5, wire.field(1, value))
    raw = with_attribute(wire.field(1, b"audit.deep") + wire.field(2, value))
    decoded = check(Decoder().decode(spans_request(raw)))
    assert only_with_problem(decoded, "depth:attributes")["client_id"] == "me"


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff",
        b"\x0a\x7fx",
        b"\x0a\x0aaudit.note\x12\x02\x0a\x05",
        b"\x0c",
        b"\x0a\x0faudit.client.id\x12\x05\x0a\x02me",
        b"\x0a\x0faudit.client.id\x12\x03\x0a\x02me",
    ],
)
def test_an_undecodable_attribute_costs_no_record(bad: bytes) -> None:
    decoded = check(Decoder().decode(spans_request(with_attribute(bad))))
    assert only_with_problem(decoded, "undecodable:attributes")["client_id"] == "me"
    assert reasons(decoded) == [("undecodable", True)]


@pytest.mark.parametrize("count", [3, 100])
@pytest.mark.parametrize(
    "bad",
    [
        wire.field(2, b"\x18\x05\x05"),
        wire.field(2, b"\x18\x85"),
        wire.field(2, b"\x18\x05") + attribute(b"http.route", b"/other"),
        wire.field(2, b"\x18\x05") + wire.field(1, b"other"),
    ],
)
def test_a_source_number_that_is_none_is_noted_and_all_others_kept(bad: bytes, count: int) -> None:
    sound = [span({"audit.source.seq": n}).SerializeToString() for n in range(count)]
    decoded = check(Decoder().decode(spans_request(*sound, with_attribute(wire.field(1, b"audit.source.seq") + bad))))
    assert [r["source_seq"] for r in rows(decoded)] == [*range(count), None]
    assert problems(rows(decoded)[-1]) == ["undecodable:attributes"]
    assert reasons(decoded) == [("undecodable", True)]


def test_an_attribute_of_two_keys_counts_as_the_last_whatever_the_first() -> None:
    for first in (b"client.port", b"url.path", b"url.scheme", b"audit.client.name"):
        raw = attribute(first, b"/x") + attribute(b"audit.client.id", b"last")
        (row,) = rows(check(Decoder().decode(spans_request(with_attribute(raw)))))
        assert (row["client_id"], row["client_name"]) == ("last", None)


def test_an_undecodable_status_costs_no_record() -> None:
    raw = bytes(GOOD.SerializeToString()) + wire.field(15, b"\x18")
    decoded = check(Decoder().decode(spans_request(raw, GOOD.SerializeToString())))
    assert [problems(r) for r in rows(decoded)] == [["undecodable:outcome"], []]


# --- floods -----------------------------------------------------------------------------------------------------------
def test_a_flood_of_attributes_hides_neither_the_call_nor_the_caller() -> None:
    flood = wire.field(9, b"\x0a\x01k\x12\x03\x0a\x01v") * (HUGE_BYTES // 8)
    raw = bytes(span({}).SerializeToString()) + flood + wire.field(9, attribute(b"audit.client.id", b"me"))
    decoded = check(Decoder().decode(spans_request(raw, GOOD.SerializeToString())))
    first, second = rows(decoded)
    assert (first["client_id"], problems(first)) == ("me", ["oversize:attributes"])
    assert (second["client_id"], problems(second)) == ("good", [])
    (entry,) = decoded.quarantine
    assert (entry.payload == raw, entry.recorded) == (True, True)


def test_a_flood_before_an_action_of_a_span_that_is_no_server_span_is_quarantined() -> None:
    flood = wire.field(9, b"\x0a\x07audit.x\x12\x03\x0a\x01v") * max(ATTRIBUTES_MAX * 2, HUGE_BYTES // 16)
    raw = bytes(span({}, kind=1).SerializeToString()) + flood + wire.field(9, attribute(b"audit.action", b"purge"))
    decoded = check(Decoder().decode(spans_request(raw)))
    assert (decoded.skipped, reasons(decoded)) == (0, [("oversize", False)])


def test_a_huge_span_of_few_attributes_is_read_whole() -> None:
    (row,) = rows(decode(span({"http.request.body": "x" * (HUGE_BYTES + 10), "audit.client.id": "me"})))
    assert (row["client_id"], problems(row)) == ("me", [])


def test_memory_of_attributes_is_bounded_and_keeps_what_is_in_use() -> None:
    memo = Memo()
    useful = attribute(b"http.request.method", b"GET")
    generations = 0
    for n in range(300_000):
        _ = memo[attribute(b"audit.client.id", b"%032d" % n)]
        if n % 100 == 0:
            assert memo[useful] == (Slot.METHOD, "GET")
            assert memo.full or dict.__contains__(memo, useful)
        if memo.full:
            generations += 1
            known = memo[useful]
            memo = memo.next()
            assert memo[useful] is known
        assert len(memo) < 100_000
    assert generations >= 2


def test_a_remembered_problem_is_told_each_time_and_of_its_own_span_alone() -> None:
    decoder = Decoder()
    bad, good = span({"http.response.status_code": "oops"}), span({"http.response.status_code": 200})
    for _ in range(3):
        decoded = decode(bad, good, bad, decoder=decoder)
        assert [problems(r) for r in rows(decoded)] == [["invalid:status_code"], [], ["invalid:status_code"]]
        assert len(decoded.quarantine) == 2


def test_quarantine_names_the_service_of_each_span() -> None:
    message = request(span({}, trace_id=b""), resource={"service.name": "one"})
    message.MergeFrom(request(span({}), span({}, trace_id=b""), resource={"service.name": "two"}))
    assert [q.service for q in check(Decoder().decode(encoded(message))).quarantine] == ["one", "two"]
