"""Requests mutated very often: no crash, nothing lost, and spans that were not touched are recorded as if none had been.

A million mutations in the long run, some thousands otherwise; a request takes several at once, in different spans.
"""

import random
from collections.abc import Callable
from typing import Final

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_audit import _otlp_schema as wire
from otel_audit.errors import DecodeError
from otel_audit.otlp import Decoded, Decoder
from tests.otlp_support import backwards, check, encoded, request, rows, span

SHORT: Final = 20_000
LONG: Final = 1_000_000


def _base(seed: int) -> ExportTraceServiceRequest:
    """Eight spans of four habits, of two resources."""
    n = seed * 10
    ids = [{"trace_id": bytes([n + k + 1] * 16), "span_id": bytes([n + k + 1] * 8)} for k in range(8)]
    new = {
        "http.request.method": "GET",
        "url.path": f"/customers/{seed}",
        "http.route": "/customers/{id}",
        "client.address": "192.0.2.1",
        "client.port": 50_000 + seed,
        "http.response.status_code": 200,
        "audit.client.id": f"client-{seed}",
        "audit.source.seq": 128 + seed,
    }
    old = {"http.method": "POST", "http.target": "/customers?x=1", "net.peer.ip": "192.0.2.2", "http.status_code": 500}
    rpc = {"rpc.system": "grpc", "rpc.service": "crm.v1.C", "rpc.method": "Get", "rpc.grpc.status_code": 0}
    own = {"audit.action": "purge", "audit.note": {"a": [1, "b", b"c", 0.5, True]}, "audit.list": ["x"] * 3}
    made = ExportTraceServiceRequest()
    for service, k in (("crm", 0), ("batch", 4)):
        spans = (
            span(new, parent_span_id=b"p" * 8, **ids[k]),
            span(old, status=2, **ids[k + 1]),
            span(rpc, exception=True, **ids[k + 2]),
            span(own, kind=1, **ids[k + 3]),
        )
        made.MergeFrom(request(*spans, resource={"service.name": service}))
    return made


BODIES: Final = [write(_base(seed)) for seed in range(8) for write in (encoded, backwards)]
"""Each as exporters write it, and as Collectors do."""


def _span_ranges(body: bytes) -> list[tuple[int, int]]:
    """Where the content of each span lies in a sound request."""
    found = []
    for _, _, outer, outer_end in wire.fields(body):
        for number, _, start, end in wire.fields(body[outer:outer_end]):
            if number == 2:
                scope = outer + start
                found += [(scope + s, scope + e) for n, _, s, e in wire.fields(body[scope : outer + end]) if n == 2]
    return found


RANGES: Final = [_span_ranges(body) for body in BODIES]

# --- mutations --------------------------------------------------------------------------------------------------------
INTERESTING: Final = (0x00, 0x01, 0x0A, 0x0B, 0x0C, 0x12, 0x1A, 0x4A, 0x7A, 0x7F, 0x80, 0xFF)


def _flip(body: bytearray, low: int, high: int, rng: random.Random) -> None:
    body[rng.randrange(low, high)] ^= 1 << rng.randrange(8)


def _overwrite(body: bytearray, low: int, high: int, rng: random.Random) -> None:
    at = rng.randrange(low, high)
    for k in range(at, min(at + rng.randint(1, 6), high)):
        body[k] = rng.choice(INTERESTING) if rng.random() < 0.5 else rng.randrange(256)


def _insert(body: bytearray, low: int, high: int, rng: random.Random) -> None:
    at = rng.randrange(low, high)
    body[at:at] = rng.randbytes(rng.randint(1, 4))


def _delete(body: bytearray, low: int, high: int, rng: random.Random) -> None:
    at = rng.randrange(low, high)
    del body[at : at + rng.randint(1, 4)]


def _copy(body: bytearray, low: int, high: int, rng: random.Random) -> None:
    at, to = rng.randrange(low, high), rng.randrange(low, high)
    body[to:to] = body[at : at + rng.randint(1, 40)]


def _cut(body: bytearray, low: int, high: int, rng: random.Random) -> None:
    del body[rng.randrange(low, high) :]


Mutation = Callable[[bytearray, int, int, random.Random], None]
ANYWHERE: Final[tuple[Mutation, ...]] = (_flip, _overwrite, _insert, _delete, _copy, _cut)
IN_PLACE: Final[tuple[Mutation, ...]] = (_flip, _overwrite)


def _count(decoded: Decoded) -> int:
    """What a decoded request accounts for."""
    refused = sum(not q.recorded for q in decoded.quarantine)
    records: int = decoded.records.num_rows
    return records + decoded.skipped + refused


def _stock_spans(body: bytes) -> int | None:
    """The number of spans, if the stock classes can read the request at all."""
    try:
        message = ExportTraceServiceRequest.FromString(body)
    except wire.ProtobufError:
        return None
    counts: list[int] = [len(scope.spans) for r in message.resource_spans for scope in r.scope_spans]
    return sum(counts)


def _mutate_anywhere(decoder: Decoder, rng: random.Random) -> tuple[int, bytes | None]:
    """Decode a request mutated anywhere; how often it was, and the request if it breaks the promise."""
    body = bytearray(rng.choice(BODIES))
    times = rng.choice((1, 1, 2, 4))
    for _ in range(times):
        rng.choice(ANYWHERE)(body, 0, max(len(body), 1), rng) if body else None
    mutated = bytes(body)
    expected = _stock_spans(mutated)
    try:
        decoded = decoder.decode(mutated)
    except DecodeError:
        # The stock classes take a request without resource_spans, from which nothing would be recorded.
        return times, mutated if expected else None
    sound = decoded.spans == _count(decoded) and (expected is None or decoded.spans == expected)
    return times, None if sound else mutated


def _mutate_spans(decoder: Decoder, rng: random.Random, untouched: list[list[bytes]]) -> tuple[int, bytes | None]:
    """Decode a request with half of its spans mutated in place; likewise, and all others must be records as before."""
    which = rng.randrange(len(BODIES))
    body = bytearray(BODIES[which])
    mutated = rng.sample(range(len(RANGES[which])), len(RANGES[which]) // 2)
    for k in mutated:
        rng.choice(IN_PLACE)(body, *RANGES[which][k], rng)
    decoded = decoder.decode(bytes(body))
    others = {row for k, row in enumerate(untouched[which]) if k not in mutated}
    good = decoded.spans == len(RANGES[which]) == _count(decoded) and others <= set(_digests(decoded))
    return len(mutated), None if good else bytes(body)


def _digests(decoded: Decoded) -> list[bytes]:
    """Each row as bytes to compare: the columns a mutation could reach from another span."""
    columns = [
        decoded.records.column(name).to_pylist()
        for name in ("trace_id", "client_id", "target", "attributes", "outcome")
    ]
    return [repr(row).encode() for row in zip(*columns, strict=True)]


def _run(mutations: int, seed: int) -> None:
    rng = random.Random(seed)
    decoder = Decoder()
    sound = [rows(check(decoder.decode(body))) for body in BODIES]
    untouched = [_digests(decoder.decode(body)) for body in BODIES]
    done = requests = 0
    while done < mutations:
        turn = _mutate_spans(decoder, rng, untouched) if requests % 2 else _mutate_anywhere(decoder, rng)
        assert turn[1] is None, f"request {requests} of seed {seed}: {turn[1].hex()}"
        done += turn[0]
        if requests % 5_000 == 0:  # nothing that was remembered along the way shows in a sound request
            assert [rows(check(decoder.decode(body))) for body in BODIES] == sound
        requests += 1


def test_some_thousand_mutations_are_survived_and_accounted_for() -> None:
    _run(SHORT, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_million_mutations_are_survived_and_accounted_for() -> None:
    _run(LONG, seed=2)


def test_records_of_mutated_requests_are_all_writable() -> None:
    rng = random.Random(3)
    decoder = Decoder()
    for _ in range(2_000):
        body = bytearray(rng.choice(BODIES))
        rng.choice(ANYWHERE)(body, 0, len(body), rng)
        try:
            decoded = decoder.decode(bytes(body))
        except DecodeError:
            continue
        check(decoded)
