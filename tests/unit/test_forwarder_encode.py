from typing import Any

import pyarrow as pa
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit._forwarder_encode import RecordEncoder, request_of
from otel_audit.record import schema
from tests.support import rows


def stored(count: int = 1, **columns: Any) -> pa.RecordBatch:
    """Records as a log has them."""
    assigned = {"recorded_at": 1_790_000_000_000_000, "log": "audit"}
    found = [{**row, **assigned, "seq": n, **columns} for n, row in enumerate(rows(count), 1)]
    return pa.RecordBatch.from_pylist(found, schema=schema())


def attributes_of(batch: pa.RecordBatch) -> dict[str, Any]:
    (encoded,) = RecordEncoder().encode(batch)
    message = ExportLogsServiceRequest.FromString(request_of([encoded]))
    return {a.key: a.value for a in message.resource_logs[0].scope_logs[0].log_records[0].attributes}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_record_whose_attributes_are_no_object_is_passed_on_all_the_same(text: str) -> None:
    assert attributes_of(stored(attributes=text))["otel_audit.attributes"].string_value == text


@pytest.mark.parametrize("text", ['{"a": 1.5, "b": null, "c": [null, {"d": 1e400}]}', '{"a": 123456789012345678901}'])
def test_values_that_no_canonical_record_has_do_not_stop_it(text: str) -> None:
    assert "a" in attributes_of(stored(attributes=text))


def test_times_that_a_log_record_cannot_have_become_the_nearest() -> None:
    for time_us, expected in ((0, 1), (-5, 1), (253_402_300_799_999_999, 2**64 - 1)):
        (encoded,) = RecordEncoder().encode(stored(time=time_us))
        message = ExportLogsServiceRequest.FromString(request_of([encoded]))
        assert message.resource_logs[0].scope_logs[0].log_records[0].time_unix_nano == expected


def test_records_of_one_resource_stand_together_in_order() -> None:
    encoder = RecordEncoder()
    encoded = [*encoder.encode(stored(3)), *encoder.encode(stored(2, service="other")), *encoder.encode(stored(2))]
    message = ExportLogsServiceRequest.FromString(request_of(encoded))
    assert [len(r.scope_logs[0].log_records) for r in message.resource_logs] == [5, 2]
    assert sum(e.size for e in encoded) >= len(request_of(encoded))


def test_scope_is_empty_and_severity_is_info() -> None:
    message = ExportLogsServiceRequest.FromString(request_of(RecordEncoder().encode(stored())))
    scope = message.resource_logs[0].scope_logs[0]
    assert not scope.HasField("scope")
    assert (scope.log_records[0].severity_number, scope.log_records[0].severity_text) == (9, "INFO")


def test_the_body_is_a_line_for_people() -> None:
    message = ExportLogsServiceRequest.FromString(
        request_of(
            RecordEncoder().encode(
                stored(
                    client_id="svc-7", client_name="Billing", action="read", target="/contacts/42", outcome="success"
                )
            )
        )
    )
    body = message.resource_logs[0].scope_logs[0].log_records[0].body.string_value
    assert body == "crm: Billing (svc-7): read /contacts/42: success (200)"


def test_what_is_remembered_is_bounded() -> None:
    encoder = RecordEncoder()
    for n in range(20):
        batch = stored(1000)
        ids = pa.array([f"{n}-{k}" for k in range(1000)])
        for column in ("service", "client_id"):
            batch = batch.set_column(schema().get_field_index(column), schema().field(column), ids)
        encoder.encode(batch)
    assert len(encoder._resources) <= 1024
    assert len(encoder._known) <= 16_384
