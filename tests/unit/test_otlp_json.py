"""OTLP/JSON says the same as protobuf, and what is wrong in it is kept as it came."""

import json
from typing import Any

import pytest

from otel_audit._otlp_json import _any_value
from otel_audit.errors import DecodeError, TooLargeError
from otel_audit.otlp import Decoded, Decoder, DecodeSettings
from tests.otlp_support import SPAN, START_NS, TRACE, check, encoded, request, rows, span, to_json

SOUND = {
    "traceId": TRACE.hex(),
    "spanId": SPAN.hex(),
    "name": "GET /x",
    "kind": 2,
    "startTimeUnixNano": str(START_NS),
    "endTimeUnixNano": str(START_NS + 5_000_000),
    "attributes": [{"key": "http.route", "value": {"stringValue": "/x"}}],
}


def decode_text(text: str | bytes) -> Decoded:
    """What a fresh decoder makes of JSON text."""
    return check(Decoder().decode_json(text.encode() if isinstance(text, str) else text))


def decode_spans(*spans: Any) -> Decoded:
    """What it makes of JSON spans of one resource."""
    return decode_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}))


def text_of(*spans: str) -> str:
    """A request of spans that are JSON text."""
    return '{"resourceSpans":[{"scopeSpans":[{"spans":[' + ",".join(spans) + "]}]}]}"


def with_value(value: Any, key: str = "audit.value") -> dict[str, Any]:
    """A sound span with one attribute."""
    return {**SOUND, "attributes": [{"key": key, "value": value}]}


def test_json_and_protobuf_give_the_same_records() -> None:
    said = {
        "http.request.method": "GET",
        "url.path": "/customers/7",
        "http.response.status_code": 200,
        "audit.client.id": "clé",
        "audit.number": 2**60,
        "audit.small": -3,
        "audit.double": 0.1,
        "audit.nan": float("nan"),
        "audit.infinite": float("-inf"),
        "audit.flag": False,
        "audit.bytes": b"\x00\xfb\xff",
        "audit.list": [1, "a", None, {"k": [True]}],
        "audit.empty": "",
        "audit.none": None,
    }
    message = request(
        span(said, exception=True, status=2), span({}, kind=1), resource={"service.name": "crm", "audit.x": 1}
    )
    one, other = check(Decoder().decode(encoded(message))), decode_text(json.dumps(to_json(message)))
    assert one.records.equals(other.records)
    assert (one.spans, one.skipped) == (other.spans, other.skipped)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "SPAN_KIND_SERVER"),
        ("kind", "2"),
        ("startTimeUnixNano", START_NS),
        ("endTimeUnixNano", float(START_NS)),
        ("traceId", TRACE.hex().upper()),
        ("status", {"code": "STATUS_CODE_OK"}),
        ("status", {"code": 1, "message": "fine"}),
        ("status", {}),
        ("status", None),
        ("events", [{"name": "x", "timeUnixNano": "1"}]),
        ("attributes", None),
        ("unknown", {"nested": [1]}),
        ("links", 5),
    ],
)
def test_what_senders_write_otherwise_is_understood(field: str, value: Any) -> None:
    decoded = decode_spans({**SOUND, field: value})
    assert (decoded.records.num_rows, decoded.quarantine) == (1, ())


def test_keys_in_snake_case_are_understood() -> None:
    one = {"trace_id": TRACE.hex(), "span_id": SPAN.hex(), "kind": 2, "start_time_unix_nano": START_NS}
    text = json.dumps({"resource_spans": [{"scope_spans": [{"spans": [one]}]}]})
    assert decode_text(text).records.num_rows == 1


@pytest.mark.parametrize(
    "bad",
    [
        5,
        None,
        "span",
        [],
        {**SOUND, "kind": "SPAN_KIND_SIDEWAYS"},
        {**SOUND, "kind": 2.5},
        {**SOUND, "kind": True},
        {**SOUND, "kind": 2**40},
        {**SOUND, "startTimeUnixNano": "soon"},
        {**SOUND, "startTimeUnixNano": []},
        {**SOUND, "attributes": {"a": "b"}},
        {**SOUND, "attributes": "none"},
        {**SOUND, "events": "none"},
        {**SOUND, "events": [5]},
        {**SOUND, "name": 5},
        {**SOUND, "status": 5},
        {**SOUND, "status": {"code": "FINE"}},
    ],
)
def test_a_bad_span_is_quarantined_as_it_came_and_spoils_no_other(bad: Any) -> None:
    decoded = decode_spans(SOUND, bad, SOUND)
    assert decoded.records.num_rows == 2
    (entry,) = decoded.quarantine
    assert (entry.reason, entry.kind, entry.recorded) == ("span_undecodable", "otlp.span+json", False)
    assert json.loads(entry.payload) == bad


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("traceId", "xyz", "trace_id_invalid"),
        ("traceId", "abcdefghijklmnop", "trace_id_invalid"),
        ("traceId", "AAECAwQFBgcICQoLDA0ODw==", "trace_id_invalid"),
        ("traceId", 5, "trace_id_invalid"),
        ("spanId", "0" * 16, "span_id_invalid"),
        ("spanId", None, "span_id_invalid"),
        ("startTimeUnixNano", None, "time_missing"),
        ("startTimeUnixNano", "-1", "time_out_of_range"),
        ("startTimeUnixNano", 2**70, "time_out_of_range"),
        ("startTimeUnixNano", "1e30", "time_out_of_range"),
    ],
)
def test_a_span_without_identity_or_time_is_kept_as_json(field: str, value: Any, reason: str) -> None:
    bad = {**SOUND, field: value}
    decoded = decode_spans(SOUND, bad)
    assert decoded.records.num_rows == 1
    (entry,) = decoded.quarantine
    assert (entry.reason, entry.kind, json.loads(entry.payload)) == (reason, "otlp.span+json", bad)


@pytest.mark.parametrize(
    "value",
    [
        {"intValue": "many"},
        {"intValue": 1.5},
        {"intValue": []},
        {"doubleValue": "x"},
        {"doubleValue": []},
        {"boolValue": 1},
        {"bytesValue": "!"},
        {"bytesValue": 5},
        {"stringValue": 5},
        {"arrayValue": 5},
        {"arrayValue": {"values": 5}},
        {"kvlistValue": {"values": [5]}},
        5,
    ],
)
def test_a_value_of_the_wrong_type_costs_an_attribute_and_no_record(value: Any) -> None:
    decoded = decode_spans(with_value(value))
    (row,) = rows(decoded)
    assert json.loads(row["attributes"]) == {"otel_audit.problems": ["undecodable:attributes"]}
    (entry,) = decoded.quarantine
    assert (entry.recorded, json.loads(entry.payload)) == (True, with_value(value))


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"intValue": "9223372036854775808"}, "9223372036854775808"),
        ({"intValue": -(10**30)}, str(-(10**30))),
        ({"intValue": 3.0}, 3),
        ({"doubleValue": 1}, "1.0"),
        ({"doubleValue": "NaN"}, "NaN"),
        ({"doubleValue": float("inf")}, "Infinity"),
        ({"boolValue": "true"}, True),
        ({"bytesValue": "-_8"}, "+/8="),
        ({"stringValue": "\ud800"}, "\\xed\\xa0\\x80"),
        ({"string_value": "x"}, "x"),
        ({"arrayValue": {}}, []),
    ],
)
def test_values_at_the_edge(value: Any, kept: Any) -> None:
    (row,) = rows(decode_spans(with_value(value)))
    assert json.loads(row["attributes"])["audit.value"] == kept


@pytest.mark.parametrize("value", [{}, None, {"stringValue": None}, {"futureValue": 5}])
def test_an_empty_value_is_no_value(value: Any) -> None:
    (row,) = rows(decode_spans(with_value(value)))
    assert row["attributes"] is None


def test_bytes_that_are_no_utf8_are_the_trouble_of_their_own_span() -> None:
    text = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [SOUND, with_value({"stringValue": "@"})]}]}]})
    first, second = rows(decode_text(text.encode().replace(b"@", b"\xff")))
    assert first["attributes"] is None
    assert json.loads(second["attributes"]) == {
        "audit.value": "\\xff",
        "otel_audit.problems": ["invalid_utf8:attributes"],
    }


@pytest.mark.parametrize("deep", ["[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "9" * 10_000])
def test_a_span_too_deep_or_too_long_to_be_read_spoils_no_other(deep: str) -> None:
    sound = json.dumps(SOUND)
    bad = '{"kind":2,"x":' + deep + ',"s":"]}\\""}'
    decoded = decode_text(f'{{"x":{deep},' + text_of(sound + " ", bad, sound)[1:])
    assert decoded.records.num_rows == 2
    (entry,) = decoded.quarantine
    assert (entry.reason, entry.payload) == ("span_undecodable", bad.encode())


def test_a_number_too_long_to_be_read_in_place_of_a_span_hides_no_other() -> None:
    sound = json.dumps(SOUND)
    decoded = decode_text(text_of("9" * 10_000, sound))
    assert (decoded.records.num_rows, len(decoded.quarantine)) == (1, 1)


def test_no_nesting_exhausts_the_stack() -> None:
    lists: Any = {"stringValue": "bottom"}
    maps: Any = lists
    for _ in range(5_000):
        lists = {"arrayValue": {"values": [lists]}}
        maps = {"kvlistValue": {"values": [{"key": "k", "value": maps}]}}
    assert len(_any_value(lists, 0)) < 200
    assert len(_any_value(maps, 0)) < 400


@pytest.mark.parametrize("depth", [17, 40, 200])
def test_nesting_beyond_the_bound_is_noted_as_in_protobuf(depth: int) -> None:
    value: Any = {"stringValue": "bottom"}
    for _ in range(depth):
        value = {"arrayValue": {"values": [value]}}
    (row,) = rows(decode_spans(with_value(value)))
    assert json.loads(row["attributes"])["otel_audit.problems"] == ["depth:attributes"]


@pytest.mark.parametrize(
    "part",
    [
        '{"resourceSpans":[5]}',
        '{"resourceSpans":[{"scopeSpans":5}]}',
        '{"resourceSpans":[{"scopeSpans":["x"]}]}',
        '{"resourceSpans":[{"scopeSpans":[{"spans":{"a":1}}]}]}',
    ],
)
def test_a_part_of_the_wrong_type_is_quarantined_in_its_place(part: str) -> None:
    decoded = decode_text(part)
    (entry,) = decoded.quarantine
    assert (entry.reason, entry.kind, entry.payload) == ("spans_undecodable", "otlp.request+json", part.encode())


def test_a_resource_of_the_wrong_type_is_kept_and_its_spans_say_so() -> None:
    decoded = decode_text(text_of(json.dumps(SOUND)).removesuffix("}]}") + ',"resource":5}]}')
    (row,) = rows(decoded)
    assert json.loads(row["attributes"])["otel_audit.problems"] == ["undecodable:resource"]
    (entry,) = decoded.quarantine
    assert (entry.payload, entry.recorded) == (b'{"resourceSpans":[{"resource":5}]}', True)


def test_a_resource_counts_wherever_it_stands() -> None:
    resource = '"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"crm"}}]}'
    spans = f'"scopeSpans":[{{"spans":[{json.dumps(SOUND)}]}}]'
    (row,) = rows(decode_text(f'\ufeff{{"resourceSpans" : [ {{{spans}, {resource} , "schemaUrl":"x"}} ] }} \n'))
    assert row["service"] == "crm"


@pytest.mark.parametrize("text", ["{}", '{"resourceSpans":[]}', '{"resourceSpans":null}', '{"resourceSpans":[{}]}'])
def test_an_empty_request_is_fine(text: str) -> None:
    assert decode_text(text).spans == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[]",
        '"x"',
        '{"resourceSpans":5}',
        '{"resourceLogs":[]}',
        '{"resourceSpans":[]',
        '{"resourceSpans":[{]}',
        '{"resourceSpans":[{}}',
        '{"resourceSpans":[],}',
        '{"resourceSpans" []}',
        "{5:[]}",
        '{"resourceSpans":[]} {}',
        "[" * 100_000,
        '{"resourceSpans":[{"scopeSpans":[{"spans":[' + "[" * 100_000,
        "\x00",
    ],
)
def test_what_is_no_request_is_refused_whole(text: str) -> None:
    with pytest.raises(DecodeError):
        Decoder().decode_json(text.encode())


def test_too_many_spans_are_refused_whole() -> None:
    text = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [SOUND] * 3}]}]})
    with pytest.raises(TooLargeError):
        Decoder(DecodeSettings(spans_max=2)).decode_json(text.encode())
