"""For any bytes and any request: no crash, nothing lost; both encodings and an independent reading agree."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_audit import names
from otel_audit._otlp_attributes import FIELDS
from otel_audit.errors import DecodeError
from otel_audit.otlp import Decoder
from otel_audit.record import OUTCOMES, canonical_attributes, outcome_of
from tests.otlp_support import START_NS, any_value, backwards, check, encoded, key_values, rows, to_json

# One decoder for all examples of a test: what it remembers of one request must not show in another.
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

KINDS: list[Any] = [2, 2, 2, 0, 1, 3, 99, -1]
CODES: list[Any] = [0, 1, 2]
texts = st.text(max_size=30)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    texts,
    st.binary(max_size=20),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
known_keys = st.sampled_from(sorted(FIELDS))
keys = st.one_of(known_keys, st.sampled_from(["audit.note", "audit.more", "url.scheme", "client.port", ""]), texts)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    """Any valid span, most of them near what exporters send."""
    made = Span(
        trace_id=draw(st.one_of(st.binary(min_size=16, max_size=16), st.binary(max_size=20))),
        span_id=draw(st.one_of(st.binary(min_size=8, max_size=8), st.binary(max_size=10))),
        parent_span_id=draw(st.binary(max_size=8)),
        trace_state=draw(st.sampled_from(["", "a=b", "x" * 300])),
        name=draw(st.one_of(texts, st.sampled_from(["", "n" * 127, "n" * 128, "n" * 20_000]))),
        kind=draw(st.sampled_from(KINDS)),
        start_time_unix_nano=draw(st.sampled_from([START_NS, START_NS, 0, 2**63, 2**64 - 1])),
        end_time_unix_nano=draw(st.sampled_from([START_NS + 5, START_NS - 5, 0, 2**64 - 1])),
        flags=draw(st.sampled_from([0, 256])),
        dropped_attributes_count=draw(st.sampled_from([0, 3])),
    )
    for key, value in draw(st.lists(st.tuples(keys, values), max_size=8)):
        made.attributes.add(key=key, value=any_value(value))
    for name in draw(st.lists(st.sampled_from(["exception", "message"]), max_size=2)):
        made.events.add(name=name, time_unix_nano=1)
    if draw(st.booleans()):
        made.status.code = draw(st.sampled_from([*CODES, 7]))
        made.status.message = draw(st.sampled_from(["", "exception"]))
    if draw(st.booleans()):
        made.links.add(trace_id=bytes(16))
    return made


@st.composite
def requests(draw: st.DrawFn) -> ExportTraceServiceRequest:
    """Any valid request."""
    made = ExportTraceServiceRequest()
    for _ in range(draw(st.integers(0, 3))):
        resource_spans = made.resource_spans.add()
        resource = draw(st.dictionaries(keys, values, max_size=3))
        resource_spans.resource.attributes.extend(key_values(resource))
        for _ in range(draw(st.integers(0, 2))):
            resource_spans.scope_spans.add().spans.extend(draw(st.lists(spans(), max_size=3)))
    return made


def all_spans(message: ExportTraceServiceRequest) -> list[Span]:
    """The spans of a request, in order."""
    return [s for r in message.resource_spans for scope in r.scope_spans for s in scope.spans]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder()


@QUICK
@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused_or_accounted_for(decoder: Decoder, body: bytes) -> None:
    for decode in (decoder.decode, decoder.decode_json):
        with contextlib.suppress(DecodeError):
            check(decode(body))


@QUICK
@given(message=requests())
def test_the_order_of_fields_makes_no_difference(decoder: Decoder, message: ExportTraceServiceRequest) -> None:
    forwards, other = decoder.decode(encoded(message)), decoder.decode(backwards(message))
    assert rows(other) == rows(forwards)
    assert (other.spans, other.skipped) == (forwards.spans, forwards.skipped)
    assert [q.reason for q in other.quarantine] == [q.reason for q in forwards.quarantine]


@QUICK
@given(message=requests(), data=st.data())
def test_any_mutation_of_a_request_is_refused_or_accounted_for(
    decoder: Decoder, message: ExportTraceServiceRequest, data: st.DataObject
) -> None:
    body = bytearray(encoded(message))
    assume(body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        assume(body)
    with contextlib.suppress(DecodeError):
        check(decoder.decode(bytes(body)))


@QUICK
@given(message=requests(), data=st.data())
def test_any_mutation_of_json_is_refused_or_accounted_for(
    decoder: Decoder, message: ExportTraceServiceRequest, data: st.DataObject
) -> None:
    body = bytearray(json.dumps(to_json(message)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        assume(body)
    with contextlib.suppress(DecodeError):
        check(decoder.decode_json(bytes(body)))


json_keys = st.sampled_from(["key", "value", "stringValue", "intValue", "arrayValue", "values", "code", "name", "x"])
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(json_keys, inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(
    span=st.dictionaries(
        st.sampled_from(
            ["traceId", "spanId", "kind", "startTimeUnixNano", "attributes", "events", "status", "name", "x"]
        ),
        json_values,
    )
)
def test_any_json_in_place_of_a_span_is_accounted_for(decoder: Decoder, span: dict[str, Any]) -> None:
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
    assert check(decoder.decode_json(body.encode())).spans == 1


@QUICK
@given(message=requests())
def test_protobuf_and_json_give_the_same(decoder: Decoder, message: ExportTraceServiceRequest) -> None:
    one = check(decoder.decode(encoded(message)))
    other = check(decoder.decode_json(json.dumps(to_json(message)).encode()))
    assert one.records.equals(other.records)
    assert (one.spans, one.skipped) == (other.spans, other.skipped)
    assert [(q.reason, q.recorded, q.service) for q in one.quarantine] == [
        (q.reason, q.recorded, q.service) for q in other.quarantine
    ]


@QUICK
@given(message=requests())
def test_each_span_ends_where_it_must(decoder: Decoder, message: ExportTraceServiceRequest) -> None:
    decoded = check(decoder.decode(encoded(message)))
    calls, empty, sound = 0, 0, []
    for span in all_spans(message):
        action = {a.key: a.value for a in span.attributes if a.key == names.ACTION}.get(names.ACTION)
        said = action is not None and action.WhichOneof("value") is not None and action.string_value != ""
        if span.kind != Span.SPAN_KIND_SERVER and (said or action is not None):
            assume(said and action is not None and action.WhichOneof("value") == "string_value")
        identified = [len(i) == size and any(i) for i, size in ((span.trace_id, 16), (span.span_id, 8))]
        if span.kind == Span.SPAN_KIND_SERVER or said:
            calls += 1
            if all(identified):
                sound += [span.trace_id] if 0 < span.start_time_unix_nano < 2**63 else []
        elif not any(identified) and not span.start_time_unix_nano:
            empty += 1  # as a log record looks that is read as a span
    assert decoded.spans == len(all_spans(message))
    assert decoded.skipped == decoded.spans - calls - empty
    assert [r["trace_id"] for r in rows(decoded)] == sound


@QUICK
@given(message=requests())
def test_the_bytes_in_quarantine_are_those_of_the_span(decoder: Decoder, message: ExportTraceServiceRequest) -> None:
    known = {s.SerializeToString(deterministic=True) for s in all_spans(message)}
    for entry in check(decoder.decode(encoded(message))).quarantine:
        if entry.kind == "otlp.span+protobuf":
            assert Span.FromString(entry.payload).SerializeToString(deterministic=True) in known


@QUICK
@given(messages=st.lists(requests(), min_size=1, max_size=4))
def test_requests_decode_alike_together_and_apart(messages: list[ExportTraceServiceRequest]) -> None:
    together = ExportTraceServiceRequest()
    apart = []
    for message in messages:
        together.MergeFrom(message)
        apart += rows(check(Decoder().decode(encoded(message))))
    assert rows(check(Decoder().decode(encoded(together)))) == apart


# --- an independent reading of plain spans ------------------------------------------------------------------------------
PLAIN = {
    "http.request.method": st.sampled_from(["GET", "POST", "DELETE", "_OTHER"]),
    "http.method": st.sampled_from(["GET", "PUT"]),
    "http.route": st.sampled_from(["/a/{id}", "/a", "/b/search"]),
    "http.response.status_code": st.sampled_from([200, 302, 401, 404, 500]),
    "http.status_code": st.sampled_from([200, 403, 503]),
    "url.path": st.sampled_from(["/a/1", "/a", "/b/search"]),
    "http.target": st.sampled_from(["/a/2?x=1", "/c"]),
    "client.address": st.sampled_from(["192.0.2.1", "192.0.2.2"]),
    "net.peer.ip": st.sampled_from(["10.0.0.1", "10.0.0.2"]),
    "audit.client.id": texts,
    "audit.client.name": texts,
    "audit.client.auth": st.sampled_from(["jwt", "api_key"]),
    "audit.target.id": texts,
    "audit.outcome": st.sampled_from(OUTCOMES),
    "audit.source.seq": st.integers(0, 2**53 - 1),
    "audit.note": texts,
    "user.id": texts,
    "url.scheme": st.just("http"),
    "client.port": st.integers(0, 65535),
}


def reference(span: Span) -> dict[str, Any]:
    """The plain columns of a span, read the slow way."""
    found = {a.key: getattr(a.value, a.value.WhichOneof("value") or "") for a in span.attributes}
    said = {k: v for k, v in found.items() if v != ""}
    status = said.get("http.response.status_code", said.get("http.status_code"))
    outcome = outcome_of(
        status_code=status,
        rpc=False,
        span_error=span.status.code == 2,
        span_ok=span.status.code == 1,
        exception=any(e.name == "exception" for e in span.events),
    )
    path = said.get("url.path", said.get("http.target", "").partition("?")[0] or None)
    note = {"audit.note": found["audit.note"]} if "audit.note" in found else {}
    claimed, peer = said.get("client.address"), said.get("net.peer.ip")
    if claimed is not None and peer is not None and claimed != peer:
        note["audit.client.ip.claimed"] = claimed
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "duration_ns": span.end_time_unix_nano - span.start_time_unix_nano,
        "client_id": said.get("audit.client.id"),
        "client_name": said.get("audit.client.name"),
        "client_auth": said.get("audit.client.auth"),
        "user_id": said.get("user.id"),
        "target": said.get("audit.target.id", path),
        "outcome": said.get("audit.outcome", outcome),
        "status_code": status,
        "method": said.get("http.request.method", said.get("http.method")),
        "route": said.get("http.route"),
        "client_ip": peer or claimed,
        "client_ip_source": None if peer is None else "untrusted" if "audit.client.ip.claimed" in note else "peer",
        "peer_ip": peer,
        "source_seq": said.get("audit.source.seq"),
        "attributes": canonical_attributes(note) if note else None,
    }


@st.composite
def plain_spans(draw: st.DrawFn) -> Span:
    """A span of plain attributes in any order and number, some more than once."""
    made = Span(
        trace_id=draw(st.binary(min_size=16, max_size=16).filter(any)),
        span_id=draw(st.binary(min_size=8, max_size=8).filter(any)),
        parent_span_id=draw(st.sampled_from([b"", bytes(8)])),
        name="x",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=START_NS,
        end_time_unix_nano=START_NS + draw(st.integers(0, 2**53 - 1)),
    )
    for key in draw(st.lists(st.sampled_from(sorted(PLAIN)), max_size=16)):
        made.attributes.add(key=key, value=any_value(draw(PLAIN[key])))
    made.status.code = draw(st.sampled_from(CODES))
    if draw(st.booleans()):
        made.events.add(name=draw(st.sampled_from(["exception", "other"])))
    return made


@QUICK
@given(several=st.lists(plain_spans(), min_size=1, max_size=70))
def test_an_independent_reading_of_plain_spans_agrees(decoder: Decoder, several: list[Span]) -> None:
    message = ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add().spans.extend(several)
    found = rows(check(decoder.decode(encoded(message))))
    for row, span in zip(found, several, strict=True):
        expected = reference(span)
        assert {k: row[k] for k in expected} == expected
