import json
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_audit import _otlp_schema as wire
from otel_audit.errors import DecodeError, TooLargeError
from otel_audit.otlp import Decoder, DecodeSettings
from otel_audit.record import parse_time
from tests.logs_support import decode_logs, log_record, logs_request, logs_to_json, record_of
from tests.otlp_support import SPAN, START_NS, TRACE, backwards, check, encoded, request, rows, span


def attributes_of(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record["attributes"] or "{}")
    return found


# --- what becomes a record ----------------------------------------------------------------------------------------------
def test_the_event_name_or_the_action_makes_a_log_record_an_audit_record() -> None:
    decoded = decode_logs(
        log_record({"http.request.method": "GET", "http.route": "/a/{id}"}),
        log_record({"audit.action": "merge"}, event_name=""),
        log_record({"audit.action": "merge"}, event_name="user.login"),
        log_record({"http.request.method": "GET"}, event_name=""),
        log_record({"audit.action": ""}, event_name=""),
        log_record(body="an ordinary line", event_name=""),
    )
    assert [r["action"] for r in rows(decoded)] == ["read", "merge", "merge"]
    assert (decoded.spans, decoded.skipped, decoded.quarantine) == (6, 3, ())


def test_columns_come_from_where_they_come_from_on_a_span() -> None:
    said = {
        "audit.action": "merge",
        "audit.client.id": "c1",
        "audit.target.id": "/contacts/4",
        "audit.outcome": "denied",
        "audit.duration_ns": 5_000_000,
        "audit.source.seq": 300,
        "audit.note": {"a": [1, "b"]},
        "client.address": "192.0.2.1",
        "http.response.status_code": 403,
    }
    resource = {"service.name": "crm", "service.version": "2", "audit.source.id": "h-1-x", "audit.tenant": "t"}
    record = record_of(log_record(said), resource)
    assert {k: v for k, v in record.items() if v is not None and k not in ("time", "trace_id", "span_id")} == {
        "duration_ns": 5_000_000,
        "client_id": "c1",
        "service": "crm",
        "action": "merge",
        "target": "/contacts/4",
        "outcome": "denied",
        "status_code": 403,
        "client_ip": "192.0.2.1",
        "service_version": "2",
        "source_id": "h-1-x",
        "source_seq": 300,
        "attributes": '{"audit.note":{"a":[1,"b"]},"audit.tenant":"t"}',
    }


def test_without_a_time_it_is_when_it_was_observed() -> None:
    assert record_of(log_record(time_unix_nano=0, observed_time_unix_nano=START_NS)) == {
        **record_of(log_record()),
        "trace_id": record_of(log_record(time_unix_nano=0, observed_time_unix_nano=START_NS))["trace_id"],
        "span_id": record_of(log_record(time_unix_nano=0, observed_time_unix_nano=START_NS))["span_id"],
    }


def test_a_log_record_without_any_time_is_kept_in_quarantine_as_it_came() -> None:
    sound, timeless = log_record(), log_record({"audit.note": "x"}, time_unix_nano=0)
    decoded = decode_logs(sound, timeless, sound)
    (entry,) = decoded.quarantine
    assert (entry.reason, entry.kind, entry.service, entry.recorded) == (
        "time_missing",
        "otlp.log_record+protobuf",
        "crm",
        False,
    )
    assert LogRecord.FromString(entry.payload) == timeless
    assert decoded.records.num_rows == 2


def test_no_duration_is_no_problem_and_a_wrong_one_is_kept_and_named() -> None:
    assert record_of(log_record())["duration_ns"] is None
    assert record_of(log_record())["attributes"] is None
    assert record_of(log_record({"audit.duration_ns": 0}))["duration_ns"] == 0
    assert record_of(log_record({"audit.duration_ns": "12"}))["duration_ns"] == 12
    for wrong in (-1, 2**53, "soon", 1.5):
        record = record_of(log_record({"audit.duration_ns": wrong}))
        assert record["duration_ns"] is None
        assert attributes_of(record)["otel_audit.problems"] == ["invalid:duration_ns"]
        assert str(attributes_of(record)["audit.duration_ns"]) == str(wrong)


def test_the_body_is_kept() -> None:
    assert attributes_of(record_of(log_record(body="said so"))) == {"audit.log.body": "said so"}
    assert attributes_of(record_of(log_record(body={"a": [1, None]}))) == {"audit.log.body": {"a": [1]}}


def test_a_body_that_is_too_long_leaves_the_whole_in_quarantine_as_well() -> None:
    decoded = decode_logs(log_record(body="x" * 100_000))
    assert decoded.records.num_rows == 1
    assert [(q.reason, q.recorded) for q in decoded.quarantine] == [("oversize", True)]
    assert len(decoded.quarantine[0].payload) > 100_000


# --- identity -------------------------------------------------------------------------------------------------------------
def identity(log: LogRecord, resource: dict[str, Any] | None = None) -> tuple[bytes, bytes]:
    record = record_of(log, resource)
    return record["trace_id"], record["span_id"]


def test_what_is_sent_again_has_the_same_identity() -> None:
    for log in (log_record({"audit.note": "x"}), log_record({"audit.record.id": "r-1"}), log_record(trace_id=TRACE)):
        assert identity(log) == identity(log)


def test_two_log_records_of_one_span_and_one_moment_are_two_records() -> None:
    one = log_record({"audit.action": "merge", "audit.note": "1"}, trace_id=TRACE, span_id=SPAN)
    other = log_record({"audit.action": "merge", "audit.note": "2"}, trace_id=TRACE, span_id=SPAN)
    assert identity(one) != identity(other)
    assert identity(one)[0] == identity(other)[0] == TRACE, "the trace is that of the log record"
    assert attributes_of(record_of(one))["audit.log.span_id"] == SPAN.hex()


def test_two_services_that_say_the_same_are_two_records() -> None:
    log = log_record({"audit.action": "start"})
    assert identity(log, {"service.name": "a"}) != identity(log, {"service.name": "b"})


def test_the_record_id_is_the_identity_where_there_is_one() -> None:
    one = log_record({"audit.record.id": "r-1", "audit.note": "1"})
    again = log_record({"audit.record.id": "r-1", "audit.note": "2"})
    assert identity(one) == identity(again, {"service.name": "on another way"})
    assert identity(one) != identity(log_record({"audit.record.id": "r-2", "audit.note": "1"}))
    assert attributes_of(record_of(one))["audit.record.id"] == "r-1"


def test_ids_of_the_wrong_size_are_named_and_the_whole_is_kept() -> None:
    decoded = decode_logs(log_record(trace_id=b"short", span_id=b"x"))
    (record,) = rows(decoded)
    assert attributes_of(record)["otel_audit.problems"] == ["invalid:span_id", "invalid:trace_id"]
    assert [(q.reason, q.recorded) for q in decoded.quarantine] == [("invalid", True)]
    assert LogRecord.FromString(decoded.quarantine[0].payload).trace_id == b"short"


# --- broken and large requests -----------------------------------------------------------------------------------------------
def test_one_that_is_no_log_record_does_not_stop_the_others() -> None:
    good = log_record().SerializeToString()
    scope = b"".join(wire.field(2, raw) for raw in (good, b"\xff\xff", good))
    decoded = check(Decoder().decode_logs(wire.field(1, wire.field(2, scope))))
    assert decoded.records.num_rows == 2
    assert [(q.reason, q.payload, q.kind) for q in decoded.quarantine] == [
        ("log_record_undecodable", b"\xff\xff", "otlp.log_record+protobuf")
    ]


def test_quarantine_names_the_one_that_was_refused_whatever_came_before_it() -> None:
    timeless = log_record({"audit.note": "me"}, time_unix_nano=0)
    good = log_record().SerializeToString()
    scope = b"".join(wire.field(2, raw) for raw in (b"\xff", good, timeless.SerializeToString()))
    decoded = check(Decoder().decode_logs(wire.field(1, wire.field(2, scope))))
    assert LogRecord.FromString(decoded.quarantine[-1].payload) == timeless


def test_bytes_that_are_no_request_are_refused() -> None:
    for body in (b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x00"):
        with pytest.raises(DecodeError):
            Decoder().decode_logs(body)
    with pytest.raises(DecodeError, match="it holds no resource_logs"):
        Decoder().decode_logs(b"\x12\x00")
    with pytest.raises(DecodeError, match="it holds no resourceLogs"):
        Decoder().decode_logs_json(b'{"resourceSpans":[]}')


def test_more_log_records_than_allowed_are_too_large() -> None:
    body = logs_request(*[log_record()] * 11).SerializeToString()
    decoder = Decoder(DecodeSettings(spans_max=10))
    with pytest.raises(TooLargeError):
        decoder.decode_logs(body)


def test_a_log_record_of_very_many_attributes_is_kept_whole_and_not_read() -> None:
    huge = log_record().SerializeToString() + wire.field(6, b"") * 600_000
    scope = wire.field(2, huge) + wire.field(2, log_record().SerializeToString())
    decoded = check(Decoder().decode_logs(wire.field(1, wire.field(2, scope))))
    assert decoded.records.num_rows == 1
    assert [(q.reason, len(q.payload)) for q in decoded.quarantine] == [("oversize", len(huge))]


# --- JSON ---------------------------------------------------------------------------------------------------------------
def test_json_gives_the_same_records() -> None:
    message = logs_request(
        log_record({"audit.action": "merge", "audit.note": {"a": [1, True]}}, body={"x": "y"}, trace_id=TRACE),
        log_record({"audit.duration_ns": 7}, span_id=SPAN, time_unix_nano=0, observed_time_unix_nano=START_NS),
        log_record(body="line", event_name=""),
    )
    one = check(Decoder().decode_logs(message.SerializeToString()))
    other = check(Decoder().decode_logs_json(json.dumps(logs_to_json(message)).encode()))
    made = ["trace_id", "span_id"]  # from the bytes, which differ, where the sender gives no id
    assert one.records.drop_columns(made).equals(other.records.drop_columns(made))
    assert (one.spans, one.skipped) == (other.spans, other.skipped) == (3, 1)


def test_names_in_snake_case_are_understood() -> None:
    text = """{"resource_logs": [{"resource": {"attributes": [{"key": "service.name", "value": {"string_value": "crm"}}]},
        "scope_logs": [{"log_records": [{"time_unix_nano": "1795420800123456789", "event_name": "audit.record",
            "trace_id": "000102030405060708090a0b0c0d0e0f"}]}]}]}"""
    (record,) = rows(check(Decoder().decode_logs_json(text.encode())))
    assert (record["service"], record["trace_id"]) == ("crm", TRACE)


@pytest.mark.parametrize(
    ("text", "kind", "payload"),
    [
        ('{"resourceLogs":[{"scopeLogs":[{"logRecords":[7]}]}]}', "otlp.log_record+json", b"7"),
        (
            '{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":[]}]}]}]}',
            "otlp.log_record+json",
            b'{"timeUnixNano":[]}',
        ),
        (
            '{"resourceLogs":[{"scopeLogs":[{"logRecords":7}]}]}',
            "otlp.logs_request+json",
            b'{"resourceLogs":[{"scopeLogs":[{"logRecords":7}]}]}',
        ),
        ('{"resourceLogs":[{"scopeLogs":[7]}]}', "otlp.logs_request+json", b'{"resourceLogs":[{"scopeLogs":[7]}]}'),
        ('{"resourceLogs":[{"scopeLogs":7}]}', "otlp.logs_request+json", b'{"resourceLogs":[{"scopeLogs":7}]}'),
        ('{"resourceLogs":[7]}', "otlp.logs_request+json", b'{"resourceLogs":[7]}'),
    ],
)
def test_what_is_of_the_wrong_type_goes_to_quarantine(text: str, kind: str, payload: bytes) -> None:
    decoded = check(Decoder().decode_logs_json(text.encode()))
    assert [(q.kind, q.payload) for q in decoded.quarantine] == [(kind, payload)]
    assert decoded.spans == 1


def test_wrong_ids_in_json_are_named() -> None:
    text = '{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"1","eventName":"audit.record","traceId":"xyz"}]}]}]}'
    decoded = check(Decoder().decode_logs_json(text.encode()))
    assert attributes_of(rows(decoded)[0]) == {"otel_audit.problems": ["invalid:trace_id"]}


# --- what another otel-audit passed on --------------------------------------------------------------------------------------
PASSED_ON = {"log.record.uid": "u", "audit.record.id": "u", "otel_audit.log": "audit", "otel_audit.seq": 7}


def test_what_was_passed_on_keeps_its_ids_and_gets_nothing_besides() -> None:
    record = record_of(log_record(PASSED_ON, trace_id=TRACE, span_id=SPAN, body="crm: someone read it"))
    assert (record["trace_id"], record["span_id"], record["attributes"]) == (TRACE, SPAN, None)


def test_an_id_that_the_sender_chose_stays_when_passed_on() -> None:
    record = record_of(log_record({**PASSED_ON, "audit.record.id": "r-1"}, trace_id=TRACE, span_id=SPAN))
    assert attributes_of(record) == {"audit.record.id": "r-1"}


def test_the_same_ids_without_the_mark_are_an_attribute_like_others() -> None:
    record = record_of(log_record({"log.record.uid": "u", "audit.record.id": "u"}))
    assert attributes_of(record) == {"audit.record.id": "u"}


def test_problems_are_taken_over_if_they_look_like_some() -> None:
    said = {**PASSED_ON, "otel_audit.problems": ["oversize:target", "end_missing", "<b>", 7, "x" * 1000]}
    record = record_of(log_record(said, trace_id=TRACE, span_id=SPAN))
    assert attributes_of(record) == {"otel_audit.problems": ["end_missing", "oversize:target"]}


def test_an_empty_request_is_nothing() -> None:
    decoded = check(Decoder().decode_logs(ExportLogsServiceRequest().SerializeToString()))
    assert (decoded.spans, decoded.records.num_rows) == (0, 0)


def test_times_are_kept_to_the_microsecond() -> None:
    assert record_of(log_record())["time"].timestamp() * 1e6 == pytest.approx(parse_time("2026-11-23T08:00:00.123456Z"))


def test_the_order_of_fields_does_not_matter() -> None:
    """A Collector writes the fields of each message from the last to the first."""

    def reversed_fields(raw: bytes) -> bytes:
        return b"".join(raw[tag:end] for _, tag, _, end in reversed(list(wire.fields(raw))))

    log = log_record({**PASSED_ON, "audit.duration_ns": 5, "audit.action": "read"}, trace_id=TRACE, span_id=SPAN)
    attributes = [wire.field(6, reversed_fields(a.SerializeToString())) for a in log.attributes]
    del log.attributes[:]
    raw = b"".join(attributes) + reversed_fields(log.SerializeToString())
    decoded = check(Decoder().decode_logs(wire.field(1, wire.field(2, wire.field(2, raw)))))
    (record,) = rows(decoded)
    assert (record["span_id"], record["duration_ns"], record["attributes"]) == (SPAN, 5, None)


def test_an_attribute_that_cannot_be_read_is_named_and_the_whole_is_kept() -> None:
    raw = log_record({"audit.action": "read"}).SerializeToString() + wire.field(6, b"\xff")
    decoded = check(Decoder().decode_logs(wire.field(1, wire.field(2, wire.field(2, raw)))))
    (record,) = rows(decoded)
    assert (record["action"], attributes_of(record)) == ("read", {"otel_audit.problems": ["undecodable:attributes"]})
    assert [(q.reason, q.payload, q.recorded) for q in decoded.quarantine] == [("undecodable", raw, True)]


# --- sent to the wrong place --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("write", [encoded, backwards])
def test_log_records_sent_as_spans_and_spans_sent_as_log_records_are_kept_in_quarantine_and_never_skipped(
    write: Callable[[Any], bytes],
) -> None:
    spans = write(request(span({"audit.action": "merge"}), span({"a": "b"}, kind=1), span({"http.method": "GET"})))
    logs = write(logs_request(log_record({"audit.action": "merge"}), log_record(body="a line", event_name="")))
    for found, where in ((Decoder().decode(logs), "/v1/logs"), (Decoder().decode_logs(spans), "/v1/traces")):
        assert (check(found).records.num_rows, found.skipped, len(found.quarantine)) == (0, 0, found.spans)
        assert all(f"go to {where}" in q.detail for q in found.quarantine)


def test_what_went_astray_among_others_is_in_quarantine() -> None:
    astray_span, astray_log = span({"audit.action": "merge"}), log_record({"audit.action": "merge"})
    mixed = request(span(), span(kind=1)).SerializeToString() + logs_request(astray_log).SerializeToString()
    found = check(Decoder().decode(mixed))
    assert (found.records.num_rows, found.skipped, [q.reason for q in found.quarantine]) == (1, 1, ["span_undecodable"])
    mixed = logs_request(log_record()).SerializeToString() + request(astray_span).SerializeToString()
    found = check(Decoder().decode_logs(mixed))
    assert (found.records.num_rows, [q.reason for q in found.quarantine]) == (1, ["log_record_undecodable"])
    assert found.quarantine[0].payload == astray_span.SerializeToString()
