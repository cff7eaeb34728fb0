"""Any record the decoder can make is the same record again after it was passed on as an OTLP log record."""

import json
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_audit._forwarder_encode import RecordEncoder, request_of
from otel_audit.otlp import Decoder
from otel_audit.record import ASSIGNED, schema
from tests.logs_support import logs_to_json
from tests.otlp_support import check, encoded, rows
from tests.property import test_otlp_logs_property as logs
from tests.property import test_otlp_property as traces

QUICK = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])


def as_stored(records: pa.RecordBatch) -> pa.RecordBatch:
    """Records as a log has them."""
    numbered = [
        {**row, "recorded_at": row["time"], "log": "audit", "seq": i} for i, row in enumerate(records.to_pylist())
    ]
    return pa.RecordBatch.from_pylist(numbered, schema=schema())


def passed_on(records: pa.RecordBatch, *, as_json: bool = False) -> list[dict[str, Any]]:
    """Records after they were passed on, in order."""
    encoded_records = RecordEncoder().encode(as_stored(records))
    assert [e.seq for e in encoded_records] == list(range(records.num_rows))
    found = []
    for one in encoded_records:  # each alone: a request groups them by resource
        body = request_of([one])
        message = ExportLogsServiceRequest.FromString(body)
        if as_json:
            decoded = check(Decoder().decode_logs_json(json.dumps(logs_to_json(message)).encode()))
        else:
            decoded = check(Decoder().decode_logs(body))
        assert decoded.quarantine == ()
        found += rows(decoded)
    together = check(Decoder().decode_logs(request_of(encoded_records)))
    assert sorted(map(repr, rows(together))) == sorted(map(repr, found)) or as_json
    return found


def same(records: pa.RecordBatch) -> None:
    expected = records.to_pylist()
    assert passed_on(records) == expected
    assert passed_on(records, as_json=True) == expected


@QUICK
@given(message=traces.requests())
def test_records_of_any_spans(message: ExportTraceServiceRequest) -> None:
    same(check(Decoder().decode(encoded(message))).records)


@QUICK
@given(message=logs.requests())
def test_records_of_any_log_records(message: ExportLogsServiceRequest) -> None:
    same(check(Decoder().decode_logs(message.SerializeToString())).records)


PLAIN = st.fixed_dictionaries(
    {},
    optional={
        "http.request.method": st.sampled_from(["GET", "a/b", "/x/y", "/"]),
        "rpc.system": st.just("grpc"),
        "rpc.service": st.sampled_from(["p.S", "/p.S"]),
        "rpc.method": st.sampled_from(["Get", "p.S/Get", "//p.S/Get", "a/b/c"]),
        "rpc.grpc.status_code": st.sampled_from([0, 5, 16, 17, 99, 100, 404, -3]),
        "http.response.status_code": st.sampled_from([200, 404, 99, -1, 0]),
        "client.address": st.sampled_from(
            ["192.0.2.1", "[a:1]", "ipv4:ipv4:1.2.3.4", "[[x]", "::ffff:1.2.3.4", "] [", "[ b]"]
        ),
        "network.peer.address": st.sampled_from(["10.0.0.1", "[c:22]", "::1"]),
        "audit.peer.ip": st.sampled_from(["10.0.0.2", "[d:1]"]),
        "audit.client.ip.source": st.sampled_from(["forwarded", "peer"]),
        "audit.outcome": st.sampled_from(["denied", "strange"]),
        "audit.duration_ns": st.sampled_from([5, -1, "x"]),
        "audit.record.id": st.sampled_from(["r-1", 7]),
        "audit.incomplete": st.booleans(),
        "audit.log.body": st.just("own"),
        "audit.db.calls": st.integers(0, 9),
    },
)


@QUICK
@given(
    attributes=PLAIN,
    resource=st.fixed_dictionaries(
        {},
        optional={
            "audit.client.id": st.just("of resource"),
            "audit.source.seq": st.just(5),
            "service.name": st.just("crm"),
            "host.name": st.just("h"),
        },
    ),
)
def test_records_of_odd_calls(attributes: dict[str, Any], resource: dict[str, Any]) -> None:
    from tests.otlp_support import decode, span

    same(decode(span(attributes), span(attributes, end_time_unix_nano=0), resource=resource).records)


def test_all_columns_are_compared() -> None:
    assert {f.name for f in schema()} - set(ASSIGNED) == set(Decoder().decode(b"").records.schema.names)
