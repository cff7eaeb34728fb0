"""For any bytes and any logs request: no crash, nothing lost, and both encodings agree."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_audit._otlp_attributes import FIELDS
from otel_audit.errors import DecodeError
from otel_audit.otlp import Decoder
from tests.logs_support import logs_to_json
from tests.otlp_support import START_NS, any_value, check, key_values

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
texts = st.text(max_size=30)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), texts, st.binary(max_size=20)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
special = ["audit.duration_ns", "audit.record.id", "log.record.uid", "otel_audit.seq", "otel_audit.problems"]
keys = st.one_of(
    st.sampled_from(sorted(FIELDS)), st.sampled_from([*special, "audit.note", "audit.log.body", ""]), texts
)


@st.composite
def log_records(draw: st.DrawFn) -> LogRecord:
    """Any valid log record, most of them near what senders send."""
    made = LogRecord(
        trace_id=draw(st.one_of(st.just(b""), st.binary(min_size=16, max_size=16), st.binary(max_size=20))),
        span_id=draw(st.one_of(st.just(b""), st.binary(min_size=8, max_size=8), st.binary(max_size=10))),
        event_name=draw(st.sampled_from(["audit.record", "audit.record", "", "user.login"])),
        time_unix_nano=draw(st.sampled_from([START_NS, START_NS, 0, 1, 2**63, 2**64 - 1])),
        observed_time_unix_nano=draw(st.sampled_from([START_NS + 5, 0, 2**64 - 1])),
        severity_text=draw(texts),
        flags=draw(st.sampled_from([0, 1])),
    )
    for key, value in draw(st.lists(st.tuples(keys, values), max_size=8)):
        made.attributes.add(key=key, value=any_value(value))
    body = draw(values)
    if body is not None:
        made.body.CopyFrom(any_value(body))
    return made


@st.composite
def requests(draw: st.DrawFn) -> ExportLogsServiceRequest:
    """Any valid request."""
    made = ExportLogsServiceRequest()
    for _ in range(draw(st.integers(0, 3))):
        resource_logs = made.resource_logs.add()
        resource_logs.resource.attributes.extend(key_values(draw(st.dictionaries(keys, values, max_size=3))))
        for _ in range(draw(st.integers(0, 2))):
            resource_logs.scope_logs.add().log_records.extend(draw(st.lists(log_records(), max_size=3)))
    return made


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder()


def all_records(message: ExportLogsServiceRequest) -> list[LogRecord]:
    return [r for resource in message.resource_logs for scope in resource.scope_logs for r in scope.log_records]


@QUICK
@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused_or_accounted_for(decoder: Decoder, body: bytes) -> None:
    for decode in (decoder.decode_logs, decoder.decode_logs_json):
        with contextlib.suppress(DecodeError):
            check(decode(body))


@QUICK
@given(message=requests())
def test_counts_add_up_for_any_request(decoder: Decoder, message: ExportLogsServiceRequest) -> None:
    decoded = check(decoder.decode_logs(message.SerializeToString()))
    sent = all_records(message)
    assert decoded.spans == len(sent)
    recorded = decoded.records.num_rows + sum(not q.recorded for q in decoded.quarantine)
    assert recorded >= sum(r.event_name == "audit.record" for r in sent)
    assert recorded <= sum(r.event_name == "audit.record" or _has_action(r) or _is_empty(r) for r in sent)


def _is_empty(record: LogRecord) -> bool:
    """As a span looks that is read as a log record."""
    times = record.time_unix_nano or record.observed_time_unix_nano
    return not (times or record.severity_number or record.event_name or record.attributes)


def _has_action(record: LogRecord) -> bool:
    return any(a.key == "audit.action" for a in record.attributes)


@QUICK
@given(message=requests())
def test_protobuf_and_json_give_the_same(decoder: Decoder, message: ExportLogsServiceRequest) -> None:
    one = check(decoder.decode_logs(message.SerializeToString()))
    other = check(decoder.decode_logs_json(json.dumps(logs_to_json(message)).encode()))
    # Ids made from the bytes differ: the severity, for one, is not in the bytes that JSON is turned into.
    made = ["trace_id", "span_id"]
    assert one.records.drop_columns(made).equals(other.records.drop_columns(made))
    assert (one.spans, one.skipped) == (other.spans, other.skipped)
    assert [(q.reason, q.recorded, q.service) for q in one.quarantine] == [
        (q.reason, q.recorded, q.service) for q in other.quarantine
    ]


@QUICK
@given(message=requests())
def test_the_bytes_in_quarantine_are_those_of_the_log_record(
    decoder: Decoder, message: ExportLogsServiceRequest
) -> None:
    known = {r.SerializeToString(deterministic=True) for r in all_records(message)}
    for entry in check(decoder.decode_logs(message.SerializeToString())).quarantine:
        if entry.kind == "otlp.log_record+protobuf":
            assert LogRecord.FromString(entry.payload).SerializeToString(deterministic=True) in known


@QUICK
@given(message=requests(), data=st.data())
def test_any_mutation_of_a_request_is_refused_or_accounted_for(
    decoder: Decoder, message: ExportLogsServiceRequest, data: st.DataObject
) -> None:
    body = bytearray(message.SerializeToString())
    assume(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        assume(body)
    with contextlib.suppress(DecodeError):
        check(decoder.decode_logs(bytes(body)))


json_keys = st.sampled_from(["key", "value", "stringValue", "intValue", "arrayValue", "values", "x"])
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(json_keys, inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(
    record=st.dictionaries(
        st.sampled_from(["traceId", "spanId", "eventName", "timeUnixNano", "attributes", "body", "x"]), json_values
    )
)
def test_any_json_in_place_of_a_log_record_is_accounted_for(decoder: Decoder, record: dict[str, Any]) -> None:
    body = json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]})
    assert check(decoder.decode_logs_json(body.encode())).spans == 1
