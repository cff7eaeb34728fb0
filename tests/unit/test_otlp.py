"""A span becomes the record that the design says."""

import json
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_audit import _otlp_schema as wire
from otel_audit._otlp_spans import Spans
from otel_audit.errors import DecodeError, TooLargeError
from otel_audit.otlp import Decoder, DecodeSettings
from tests.otlp_support import SPAN, START_NS, TRACE, backwards, check, decode, encoded, record, request, rows, span

# The attribute sets that instrumentations were seen to send for `GET /customers/7?x=1`, old conventions and new.
_SERVER = {"http.server_name": "127.0.0.1:8701", "http.flavor": "1.1", "http.scheme": "http"}
OLD = {
    "fastapi": {
        **_SERVER,
        "http.host": "127.0.0.1:8701",
        "net.host.port": 8701,
        "http.target": "/customers/7",
        "http.url": "http://127.0.0.1:8701/customers/7?x=1",
        "http.method": "GET",
        "http.user_agent": "curl/7.88.1",
        "net.peer.ip": "203.0.113.9",
        "http.route": "/customers/{cid}",
        "http.status_code": 200,
    },
    "flask": {
        **_SERVER,
        "http.method": "GET",
        "net.host.name": "127.0.0.1:8702",
        "http.host": "127.0.0.1:8702",
        "net.host.port": 8702,
        "http.target": "/customers/7?x=1",
        "net.peer.ip": "203.0.113.9",
        "net.peer.port": 45572,
        "http.user_agent": "curl/7.88.1",
        "http.route": "/customers/<int:cid>",
        "http.status_code": 200,
    },
    "django": {
        **_SERVER,
        "http.method": "GET",
        "http.url": "http://127.0.0.1:8703/customers/7?x=1",
        "net.peer.ip": "203.0.113.9",
        "http.route": "customers/<int:cid>",
        "http.status_code": 200,
    },
    "aiohttp": {
        **_SERVER,
        "http.method": "GET",
        "http.target": "/customers/7?x=1",
        "http.url": "http://127.0.0.1:8704/customers/7?x=1",
        "http.route": "/customers/{cid}",
        "http.status_code": 200,
    },
}
_NEW = {
    "url.scheme": "http",
    "server.address": "127.0.0.1",
    "server.port": 8701,
    "network.protocol.version": "1.1",
    "url.path": "/customers/7",
    "url.query": "x=1",
    "http.request.method": "GET",
    "user_agent.original": "curl/7.88.1",
    "http.response.status_code": 200,
}
NEW = {
    "fastapi": {**_NEW, "client.address": "203.0.113.9", "http.route": "/customers/{cid}"},
    "flask": {**_NEW, "client.address": "203.0.113.9", "client.port": 56734, "http.route": "/customers/<int:cid>"},
    "django": {**_NEW, "client.address": "203.0.113.9", "http.route": "customers/<int:cid>"},
    "aiohttp": {**_NEW, "http.route": "/customers/{cid}"},
}


@pytest.mark.parametrize("conventions", ["old", "new"])
@pytest.mark.parametrize("framework", ["fastapi", "flask", "django", "aiohttp"])
def test_every_framework_gives_the_same_call(framework: str, conventions: str) -> None:
    attributes: dict[str, Any] = (OLD if conventions == "old" else NEW)[framework]
    found = record(attributes)
    assert found["method"] == "GET"
    assert found["target"] == "/customers/7"
    assert found["route"] == attributes["http.route"]
    assert found["action"] == "read"
    assert found["status_code"] == 200
    assert found["outcome"] == "success"
    assert found["client_ip"] == (None if framework == "aiohttp" else "203.0.113.9")
    from_peer = conventions == "old" and framework != "aiohttp"
    assert found["client_ip_source"] == ("peer" if from_peer else None)
    assert found["peer_ip"] == ("203.0.113.9" if from_peer else None)
    assert found["attributes"] is None


def test_identity_and_times_come_from_the_span() -> None:
    found = record({})
    assert (found["trace_id"], found["span_id"]) == (TRACE, SPAN)
    assert found["time"] == datetime(2026, 11, 23, 8, 0, 0, 123456, tzinfo=UTC)
    assert found["duration_ns"] == 5_000_000


def test_a_call_whose_end_nobody_saw_has_no_duration() -> None:
    at_once = {"end_time_unix_nano": START_NS}
    incomplete = {"audit.incomplete": True, "audit.outcome": "unknown"}
    spans = [
        span(incomplete, **at_once),
        span({}, **at_once),
        span({"audit.incomplete": False}, **at_once),
        span({"audit.incomplete": "true"}, **at_once),
        span(incomplete),
    ]
    found = rows(decode(*spans))
    assert [r["duration_ns"] for r in found] == [None, 0, 0, 0, 5_000_000]
    assert json.loads(found[0]["attributes"]) == {"audit.incomplete": True}, "that is no defect of the span"
    excluded = span({"url.path": "/x", "http.request.method": "GET"}, kind=Span.SPAN_KIND_CLIENT)
    assert [r["duration_ns"] for r in rows(decode(excluded, spans[1], spans[0]))] == [0, None]


def test_new_names_win_over_old_ones() -> None:
    both = {
        "http.method": "GET",
        "http.request.method": "POST",
        "http.status_code": 200,
        "http.response.status_code": 403,
        "http.target": "/old",
        "url.path": "/new",
        "http.client_ip": "192.0.2.1",
        "client.address": "192.0.2.2",
        "net.peer.ip": "192.0.2.3",
        "network.peer.address": "192.0.2.4",
        "enduser.id": "old",
        "user.id": "new",
    }
    found = record(both)
    assert (found["method"], found["status_code"], found["target"]) == ("POST", 403, "/new")
    assert (found["client_ip"], found["peer_ip"], found["user_id"]) == ("192.0.2.4", "192.0.2.4", "new")


def test_a_key_that_occurs_twice_counts_as_it_occurs_last() -> None:
    twice = span({"http.route": "/first", "audit.client.id": "a", "audit.note": "first"})
    twice.attributes.extend(span({"http.route": "/last", "audit.client.id": "b", "audit.note": "last"}).attributes)
    (found,) = rows(decode(twice))
    assert (found["route"], found["client_id"]) == ("/last", "b")
    assert json.loads(found["attributes"]) == {"audit.note": "last"}


def test_explicit_audit_attributes_fill_their_columns() -> None:
    said = {
        "audit.client.id": "cl_1",
        "audit.client.name": "Billing",
        "audit.client.auth": "api_key",
        "audit.client.ip": "198.51.100.7",
        "audit.client.ip.source": "forwarded",
        "audit.peer.ip": "10.0.0.1",
        "audit.service": "crm-public",
        "audit.action": "contact.merge",
        "audit.outcome": "denied",
        "audit.target.id": "contact 7",
        "audit.source.id": "crm-1",
        "audit.source.seq": 42,
    }
    found = record({**NEW["flask"], **said})
    expected = {
        "client_id": "cl_1",
        "client_name": "Billing",
        "client_auth": "api_key",
        "client_ip": "198.51.100.7",
        "client_ip_source": "forwarded",
        "peer_ip": "10.0.0.1",
        "service": "crm-public",
        "action": "contact.merge",
        "outcome": "denied",
        "target": "contact 7",
        "source_id": "crm-1",
        "source_seq": 42,
        "attributes": None,
    }
    assert {name: found[name] for name in expected} == expected


def test_the_resource_names_service_version_instance_environment_and_source() -> None:
    resource = {
        "service.name": "crm",
        "service.version": "1.2",
        "service.instance.id": "crm-7d9f",
        "host.name": "node-3",
        "deployment.environment": "staging",
        "deployment.environment.name": "production",
        "audit.source.id": "crm-1",
    }
    found = record({}, resource=resource)
    names = ("service", "service_version", "instance", "environment", "source_id")
    assert tuple(found[n] for n in names) == ("crm", "1.2", "crm-7d9f", "production", "crm-1")


def test_service_falls_back_step_by_step() -> None:
    both = {"service.name": "crm", "audit.service": "crm-public"}
    assert record({"audit.service": "span's own"}, resource=both)["service"] == "span's own"
    assert record({}, resource=both)["service"] == "crm-public"
    assert record({}, resource={"service.name": "crm"})["service"] == "crm"
    assert record({}, resource={})["service"] == "unknown_service"
    assert record({}, resource={"host.name": "node-3"})["instance"] == "node-3"


def test_each_row_keeps_its_own_resource() -> None:
    message = request(span({}), span({"audit.service": "own"}), resource={"service.name": "one"})
    message.MergeFrom(request(span({}, kind=Span.SPAN_KIND_INTERNAL), span({}), resource={"service.name": "two"}))
    message.MergeFrom(request(resource={"service.name": "without spans"}))
    decoded = check(Decoder().decode(encoded(message)))
    assert [r["service"] for r in rows(decoded)] == ["one", "own", "two"]
    assert (decoded.spans, decoded.skipped) == (4, 1)


# --- which spans are records ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [0, 1, 3, 4, 5, 17, -1])
def test_only_server_spans_are_records(kind: int) -> None:
    decoded = decode(span({"http.route": "/x"}, kind=kind), span({}))
    assert (decoded.spans, decoded.skipped, decoded.records.num_rows) == (2, 1, 1)
    assert rows(decoded)[0]["route"] is None, "nothing of a skipped span may reach another's record"


@pytest.mark.parametrize("kind", [0, 1, 3, 17, -1])
def test_a_span_of_any_kind_that_carries_an_action_is_a_record(kind: int) -> None:
    (found,) = rows(decode(span({"audit.action": "nightly.purge"}, kind=kind)))
    assert found["action"] == "nightly.purge"


def test_an_action_of_no_text_and_a_mention_of_the_name_make_no_record() -> None:
    empty = span({"audit.action": ""}, kind=1)
    mention = span({"note": "audit.action"}, kind=1, name="audit.action")
    assert decode(empty, mention).skipped == 2


def test_excluded_routes_are_skipped_but_never_an_explicit_action() -> None:
    health = {"http.request.method": "GET", "http.route": "/healthz", "url.path": "/healthz"}
    decoded = decode(
        span(health), span({**health, "audit.action": "probe"}), span(NEW["flask"]), exclude_routes=["/healthz"]
    )
    assert (decoded.skipped, [r["action"] for r in rows(decoded)]) == (1, ["probe", "read"])
    assert rows(decoded)[1]["target"] == "/customers/7"


@pytest.mark.parametrize(
    ("attributes", "skipped"),
    [
        ({"http.route": "/internal/{x}", "url.path": "/internal/7"}, True),
        ({"url.path": "/internal/7"}, True),
        ({"url.path": "/internal/../customers/7"}, False),
        ({"url.path": "/internal/%2e%2e/customers/7"}, False),
        ({"url.path": "/internal//customers/7"}, False),
        ({"url.path": "/internal/7", "http.route": "/{anything}"}, False),
        ({"url.path": "/sub/healthz", "http.route": "/sub"}, True),
        ({"http.url": "http://h/sub/healthz?a=b"}, True),
        ({"url.path": "/sub/healthzz"}, False),
        ({"rpc.system": "grpc", "rpc.service": "grpc.health.v1.Health", "rpc.method": "Check"}, True),
        ({"rpc.system": "grpc", "rpc.service": "grpc.health.v1.Health", "rpc.method": "Watch"}, False),
    ],
)
def test_a_path_cannot_dress_up_as_an_excluded_one(attributes: dict[str, Any], skipped: bool) -> None:
    patterns = ["/internal/*", "/sub/healthz", "grpc.health.v1.Health/Check"]
    assert decode(span({"http.request.method": "GET", **attributes}), exclude_routes=patterns).skipped == skipped


# --- action, outcome, rpc ---------------------------------------------------------------------------------------------
def test_without_route_the_path_decides_read_or_list() -> None:
    one = record({"http.request.method": "GET", "url.path": "/customers/7"})
    many = record({"http.request.method": "GET", "url.path": "/customers"})
    assert (one["action"], many["action"]) == ("read", "list")


def test_without_http_and_rpc_the_span_name_is_the_action() -> None:
    assert record({}, name="HTTP /ws")["action"] == "HTTP /ws"
    assert record({}, name="")["action"] == "unknown"


RPC_OLD = {"rpc.system": "grpc", "rpc.service": "crm.v1.Customers", "rpc.method": "Get", "rpc.grpc.status_code": 0}


def test_a_grpc_call() -> None:
    peer = {"net.peer.ip": "127.0.0.1", "net.peer.port": "47068", "net.peer.name": "localhost"}
    found = record({**RPC_OLD, **peer})
    assert (found["method"], found["action"], found["route"]) == ("crm.v1.Customers/Get", "Get", None)
    assert (found["target"], found["status_code"], found["outcome"]) == (None, 0, "success")
    assert (found["client_ip"], found["client_ip_source"]) == ("127.0.0.1", "peer")


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        ("OK", 0, "success"),
        ("DEADLINE_EXCEEDED", 4, "error"),
        ("not_found", 5, "failure"),
        ("canceled", 1, "failure"),
        (7, 7, "denied"),
        ("16", 16, "denied"),
    ],
)
def test_new_rpc_conventions(status: str | int, code: int, outcome: str) -> None:
    said = {"rpc.system.name": "grpc", "rpc.method": "crm.v1.Customers/Get", "rpc.response.status_code": status}
    found = record(said)
    assert (found["method"], found["action"]) == ("crm.v1.Customers/Get", "Get")
    assert (found["status_code"], found["outcome"]) == (code, outcome)


def test_an_exception_without_a_status_is_an_error_and_so_is_grpcs_status_0_beside_one() -> None:
    assert record({"http.request.method": "GET"}, exception=True)["outcome"] == "error"
    assert record(RPC_OLD, exception=True)["outcome"] == "error"
    assert record(RPC_OLD, exception=True, status=1)["outcome"] == "success"
    assert record({"http.request.method": "GET"}, status=2)["outcome"] == "error"
    assert record({"http.request.method": "GET"})["outcome"] == "unknown"


def test_only_an_exception_event_counts_as_an_exception() -> None:
    other = span(RPC_OLD)
    other.events.add(name="message")
    other.events.add(name="exception handled")
    named = span({**RPC_OLD, "note": "\x12\texception"})
    named.events.add(name="message")
    assert [r["outcome"] for r in rows(decode(other, named))] == ["success", "success"]


def test_statuses_and_exceptions_stay_with_their_own_spans() -> None:
    calls = [span({"http.request.method": "GET"}, status=n % 3, exception=n % 5 == 0) for n in range(200)]
    expected = ["error" if n % 5 == 0 or n % 3 == 2 else "success" if n % 3 == 1 else "unknown" for n in range(200)]
    assert [r["outcome"] for r in rows(decode(*calls))] == expected


# --- addresses --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:5678", "192.0.2.1"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("ipv6:%5B::1%5D:50051", "::1"),
        ("ipv4:192.0.2.1:50051", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("crm.example:443", "crm.example"),
        ("unix:/run/crm.sock", "unix:/run/crm.sock"),
        (" 192.0.2.1 ", "192.0.2.1"),
    ],
)
def test_addresses_lose_port_and_brackets(said: str, address: str) -> None:
    found = record({"audit.client.ip": said, "net.sock.peer.addr": said})
    assert (found["client_ip"], found["peer_ip"]) == (address, address)


def test_the_source_of_an_address_is_told_row_by_row() -> None:
    spans = [
        span({"audit.client.ip": "192.0.2.1", "audit.client.ip.source": "forwarded", "net.peer.ip": "10.0.0.1"}),
        span({"client.address": "192.0.2.2", "net.peer.ip": "10.0.0.1"}),
        span({"net.peer.ip": "10.0.0.1"}),
        span({}),
    ]
    found = [(r["client_ip"], r["client_ip_source"]) for r in rows(decode(*spans))]
    assert found == [("192.0.2.1", "forwarded"), ("10.0.0.1", "untrusted"), ("10.0.0.1", "peer"), (None, None)]


@pytest.mark.parametrize("name", ["client.address", "http.client_ip"])
def test_an_address_that_a_caller_may_have_written_is_not_the_client_where_the_peer_is_known(name: str) -> None:
    found = record({name: "6.6.6.6", "network.peer.address": "10.0.0.1", "audit.note": "n"})
    assert (found["client_ip"], found["client_ip_source"], found["peer_ip"]) == ("10.0.0.1", "untrusted", "10.0.0.1")
    assert json.loads(found["attributes"]) == {"audit.client.ip.claimed": "6.6.6.6", "audit.note": "n"}
    found = record({name: "10.0.0.1", "network.peer.address": "10.0.0.1"})
    assert (found["client_ip"], found["client_ip_source"], found["attributes"]) == ("10.0.0.1", "peer", None)
    found = record({name: "6.6.6.6"})
    assert (found["client_ip"], found["client_ip_source"]) == ("6.6.6.6", None), "nobody says whose it is"


# --- developer attributes ---------------------------------------------------------------------------------------------
def test_other_audit_attributes_are_kept_as_canonical_json() -> None:
    said = {
        "audit.reason": "asked by phone",
        "audit.amount": 12.5,
        "audit.count": 3,
        "audit.big": 2**53,
        "audit.flag": True,
        "audit.raw": b"\x00\xff",
        "audit.list": ["a", 1, None, [True]],
        "audit.map": {"z": 1, "a": {"n": 0.1}},
        "audit.nothing": None,
        "audit.empty": "",
        "other": "not ours",
    }
    found = record(said)
    assert found["attributes"] == (
        '{"audit.amount":"12.5","audit.big":"9007199254740992","audit.count":3,"audit.empty":"","audit.flag":true,'
        '"audit.list":["a",1,[true]],"audit.map":{"a":{"n":"0.1"},"z":1},"audit.raw":"AP8=","audit.reason":"asked by phone"}'
    )


def test_what_a_resource_says_with_audit_names_reaches_each_record() -> None:
    resource = {"service.name": "crm", "audit.tenant": "eu", "audit.client.id": "batch"}
    plain, own = rows(decode(span({}), span({"audit.tenant": "us", "audit.client.id": "c"}), resource=resource))
    assert json.loads(plain["attributes"]) == {"audit.client.id": "batch", "audit.tenant": "eu"}
    assert json.loads(own["attributes"]) == {"audit.client.id": "batch", "audit.tenant": "us"}
    assert (plain["client_id"], own["client_id"]) == (None, "c")


def test_attributes_stay_with_their_own_rows() -> None:
    spans = [span({"audit.n": n} if n % 7 == 0 else {}, kind=1 if n % 10 == 3 else 2) for n in range(300)]
    decoded = decode(*spans)
    kept = [n for n in range(300) if n % 10 != 3]
    found = [r["attributes"] and json.loads(r["attributes"]) for r in rows(decoded)]
    assert found == [{"audit.n": n} if n % 7 == 0 else None for n in kept]


# --- requests ---------------------------------------------------------------------------------------------------------
def test_an_empty_request_is_fine() -> None:
    for body in (b"", encoded(request())):
        decoded = check(Decoder().decode(body))
        assert (decoded.spans, decoded.records.num_rows, decoded.quarantine) == (0, 0, ())


@pytest.mark.parametrize("body", [b"\x00", b"\xff" * 9, b"GET / HTTP/1.1\r\n\r\n", b"\x0a\x05abc", b"\x08\x01", b"{}"])
def test_what_is_no_request_is_refused_whole(body: bytes) -> None:
    with pytest.raises(DecodeError):
        Decoder().decode(body)


def test_too_many_spans_are_refused_whole() -> None:
    with pytest.raises(TooLargeError):
        Decoder(DecodeSettings(spans_max=2)).decode(encoded(request(*[span({})] * 3)))


def test_a_resource_that_would_swell_its_records_is_refused_whole() -> None:
    settings = DecodeSettings(expanded_bytes_max=10_000)
    with pytest.raises(TooLargeError):
        Decoder(settings).decode(encoded(request(*[span({})] * 3, resource={"service.name": "x" * 5000})))


def test_many_threads_may_use_one_decoder() -> None:
    decoder = Decoder()
    bodies = {
        k: encoded(request(*(span({"audit.client.id": f"{k}-{n}", "audit.n": n}) for n in range(300))))
        for k in range(8)
    }
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(20):
            found = [r["client_id"] for r in rows(decoder.decode(bodies[k]))]
            if found != [f"{k}-{n}" for n in range(300)]:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_times_are_cut_to_microseconds() -> None:
    assert record({}, start_time_unix_nano=START_NS)["time"].microsecond == 123456


# --- as Collectors write: every message from its end --------------------------------------------------------------------
def _calls(count: int) -> list[Span]:
    return [
        span(
            {**NEW["fastapi"], "audit.source.seq": n + 1, "url.path": f"/customers/{n}", "audit.note": f"n{n}"},
            trace_id=n.to_bytes(16, "big"),
            span_id=(n + 1).to_bytes(8, "big"),
            start_time_unix_nano=START_NS + n * 1_000,
            kind=Span.SPAN_KIND_SERVER if n % 3 else Span.SPAN_KIND_CLIENT,
            exception=n % 5 == 0,
            status=n % 3,
        )
        for n in range(count)
    ]


def test_spans_written_from_their_end_are_the_same_records_and_are_read_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = request(*_calls(150))
    expected = rows(Decoder().decode(encoded(message)))

    def one_by_one(self: Spans, index: int) -> None:
        raise AssertionError(f"span {index} was read on its own")

    monkeypatch.setattr(Spans, "_read_one", one_by_one)
    assert rows(check(Decoder().decode(backwards(message)))) == expected


def _fields(raw: bytes) -> list[tuple[int, bytes]]:
    return [(number, raw[tag:end]) for number, tag, _, end in wire.fields(raw)]


def _moved(count: int, take: int, give: int, number: int) -> bytes:
    """Spans written from their end, of which one has another's head field beside its own."""
    raws = [backwards(s) for s in _calls(count)]
    moved = b"".join(part for n, part in _fields(raws[take]) if n == number)
    raws[take] = b"".join(part for n, part in _fields(raws[take]) if n != number)
    raws[give] = raws[give] + moved if give < take else moved + raws[give]
    return wire.field(1, wire.field(2, b"".join(wire.field(2, raw) for raw in raws)))


@pytest.mark.parametrize("number", [1, 2, 6, 7, 8])
@pytest.mark.parametrize(("take", "give"), [(4, 5), (5, 4), (4, 7), (0, 1)])
def test_what_one_span_lacks_and_the_next_has_twice_does_not_move_over(
    number: int, take: int, give: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = _moved(12, take, give, number)
    found = Decoder().decode(body)
    monkeypatch.setattr(Spans, "_read_together", lambda *_, **__: False)
    alone = Decoder().decode(body)
    assert rows(found) == rows(alone)
    assert [(q.reason, q.payload) for q in found.quarantine] == [(q.reason, q.payload) for q in alone.quarantine]


@pytest.mark.parametrize("size", [124, 125, 127, 128, 130, 200, 252, 260])
@pytest.mark.parametrize("end", ["\n", "x"])
def test_an_attribute_of_any_length_is_the_same_written_from_its_end(size: int, end: str) -> None:
    message = request(span({"audit.why": "x" * size + end, "http.body": "y" * size + end}))
    assert rows(Decoder().decode(backwards(message))) == rows(Decoder().decode(encoded(message)))


def test_a_huge_span_keeps_what_is_ours_also_when_written_from_its_end() -> None:
    attributes = {f"other.{n}": "x" * 120 for n in range(9_000)} | {"audit.client.id": "c1", "audit.note": "n"}
    (found,) = rows(Decoder().decode(backwards(request(span(attributes)))))
    assert (found["client_id"], json.loads(found["attributes"])["audit.note"]) == ("c1", "n")
