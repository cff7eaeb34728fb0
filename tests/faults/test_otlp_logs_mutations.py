"""Log requests mutated very often: no crash, nothing lost, and log records that were not touched are recorded as before."""

import random
from typing import Final

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit import _otlp_schema as wire
from otel_audit.errors import DecodeError
from otel_audit.otlp import Decoded, Decoder
from tests.faults.test_otlp_mutations import ANYWHERE, IN_PLACE
from tests.logs_support import log_record, logs_request
from tests.otlp_support import check, rows

SHORT: Final = 10_000
LONG: Final = 500_000


def _base(seed: int) -> bytes:
    """Eight log records of four habits, of two resources."""
    made = ExportLogsServiceRequest()
    for service in ("crm", "batch"):
        ids = {"trace_id": bytes([seed + 1] * 16), "span_id": bytes([seed + 1] * 8)}
        call = {"http.request.method": "GET", "http.route": "/a/{id}", "audit.client.id": f"c-{seed}"}
        passed_on = {"otel_audit.seq": seed, "log.record.uid": "u", "audit.record.id": "u", "audit.action": "read"}
        made.MergeFrom(
            logs_request(
                log_record({**call, "audit.duration_ns": seed + 100}, body="x", **ids),
                log_record({**passed_on, "otel_audit.problems": ["end_missing"]}, **ids),
                log_record({"audit.action": "merge", "audit.record.id": f"r-{seed}"}, event_name=""),
                log_record(body={"line": [1, "b"]}, event_name=""),
                resource={"service.name": service},
            )
        )
    data: bytes = made.SerializeToString()
    return data


BODIES: Final = [_base(seed) for seed in range(8)]


def _ranges(body: bytes) -> list[tuple[int, int]]:
    """Where the content of each log record lies in a sound request."""
    found = []
    for _, _, outer, outer_end in wire.fields(body):
        for number, _, start, end in wire.fields(body[outer:outer_end]):
            if number == 2:
                scope = outer + start
                found += [(scope + s, scope + e) for n, _, s, e in wire.fields(body[scope : outer + end]) if n == 2]
    return found


RANGES: Final = [_ranges(body) for body in BODIES]


def _count(decoded: Decoded) -> int:
    records: int = decoded.records.num_rows
    return records + decoded.skipped + sum(not q.recorded for q in decoded.quarantine)


def _stock_count(body: bytes) -> int | None:
    """The number of log records, if the stock classes can read the request at all."""
    try:
        message = ExportLogsServiceRequest.FromString(body)
    except wire.ProtobufError:
        return None
    counts: list[int] = [len(scope.log_records) for r in message.resource_logs for scope in r.scope_logs]
    return sum(counts)


def _anywhere(decoder: Decoder, rng: random.Random) -> None:
    body = bytearray(rng.choice(BODIES))
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(ANYWHERE)(body, 0, max(len(body), 1), rng) if body else None
    expected = _stock_count(bytes(body))
    try:
        decoded = decoder.decode_logs(bytes(body))
    except DecodeError:
        assert not expected, bytes(body).hex()
        return
    assert decoded.spans == _count(decoded), bytes(body).hex()
    assert expected is None or decoded.spans == expected, bytes(body).hex()


def _digests(decoded: Decoded) -> set[str]:
    columns = ("span_id", "duration_ns", "client_id", "action", "attributes")
    return {repr([row[c] for c in columns]) for row in rows(decoded)}


def _some_records(decoder: Decoder, rng: random.Random, untouched: list[list[set[str]]]) -> None:
    """Half of the log records mutated in place; all others must be as before."""
    which = rng.randrange(len(BODIES))
    body = bytearray(BODIES[which])
    mutated = rng.sample(range(len(RANGES[which])), len(RANGES[which]) // 2)
    for k in mutated:
        rng.choice(IN_PLACE)(body, *RANGES[which][k], rng)
    decoded = decoder.decode_logs(bytes(body))
    assert decoded.spans == len(RANGES[which]) == _count(decoded), bytes(body).hex()
    others: set[str] = set().union(*(found for k, found in enumerate(untouched[which]) if k not in mutated))
    assert others <= _digests(decoded), bytes(body).hex()


def _alone(body: bytes) -> list[set[str]]:
    """The record of each log record, if it is one."""
    message = ExportLogsServiceRequest.FromString(body)
    found = []
    for resource_logs in message.resource_logs:
        for record in resource_logs.scope_logs[0].log_records:
            alone = ExportLogsServiceRequest()
            one = alone.resource_logs.add()
            one.resource.CopyFrom(resource_logs.resource)
            one.scope_logs.add().log_records.append(record)
            found.append(_digests(check(Decoder().decode_logs(alone.SerializeToString()))))
    return found


def _run(requests: int, seed: int) -> None:
    rng = random.Random(seed)
    decoder = Decoder()
    sound = [rows(check(decoder.decode_logs(body))) for body in BODIES]
    untouched = [_alone(body) for body in BODIES]
    assert sum(map(len, untouched[0])) == 6, "six of the eight are records"
    for turn in range(requests):
        if turn % 2:
            _some_records(decoder, rng, untouched)
        else:
            _anywhere(decoder, rng)
    assert [rows(check(decoder.decode_logs(body))) for body in BODIES] == sound


def test_some_thousand_mutations_are_survived_and_accounted_for() -> None:
    _run(SHORT, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_very_many_mutations_are_survived_and_accounted_for() -> None:
    _run(LONG, seed=2)


def test_records_of_mutated_requests_are_all_writable() -> None:
    rng = random.Random(3)
    decoder = Decoder()
    for _ in range(2_000):
        body = bytearray(rng.choice(BODIES))
        rng.choice(ANYWHERE)(body, 0, len(body), rng)
        try:
            decoded = decoder.decode_logs(bytes(body))
        except DecodeError:
            continue
        check(decoded)
