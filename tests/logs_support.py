"""OTLP log requests for tests, made with the stock classes."""

import base64
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from otel_audit.otlp import Decoded, Decoder
from tests.otlp_support import START_NS, any_value, check, key_values, rows


def log_record(attributes: Mapping[str, Any] | None = None, body: Any = None, **fields: Any) -> LogRecord:
    """A log record of the event `audit.record`; `fields` replace or add."""
    made = LogRecord(**{"time_unix_nano": START_NS, "event_name": "audit.record", **fields})
    made.attributes.extend(key_values(attributes or {}))
    if body is not None:
        made.body.CopyFrom(any_value(body))
    return made


def logs_request(*records: LogRecord, resource: Mapping[str, Any] | None = None) -> ExportLogsServiceRequest:
    """One request of one resource."""
    made = ExportLogsServiceRequest()
    resource_logs = made.resource_logs.add()
    resource_logs.resource.attributes.extend(key_values({"service.name": "crm"} if resource is None else resource))
    resource_logs.scope_logs.add().log_records.extend(records)
    return made


def decode_logs(*records: LogRecord, resource: Mapping[str, Any] | None = None) -> Decoded:
    """What a fresh decoder makes of log records of one resource."""
    return check(Decoder().decode_logs(logs_request(*records, resource=resource).SerializeToString()))


def record_of(log: LogRecord, resource: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The one record of one log record."""
    decoded = decode_logs(log, resource=resource)
    assert [q for q in decoded.quarantine if not q.recorded] == []
    (only,) = rows(decoded)
    return only


def logs_to_json(message: ExportLogsServiceRequest) -> dict[str, Any]:
    """A request as OTLP/JSON: ProtoJSON, but with ids as hex and enums as numbers."""
    made = MessageToDict(message, use_integers_for_enums=True)
    for resource_logs in made.get("resourceLogs", []):
        for scope_logs in resource_logs.get("scopeLogs", []):
            for one in scope_logs.get("logRecords", []):
                for key in ("traceId", "spanId"):
                    if key in one:
                        one[key] = base64.b64decode(one[key]).hex()
    return made
