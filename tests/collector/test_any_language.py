"""What `any-language.yaml` makes of a span: who called, from where, and that no secret gets past it."""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_audit import quarantine
from tests.collector.config_pipeline import Pipeline, environment, pipeline, send
from tests.collector.support import CONFIGS, Collector, Service, free_port, wait_for
from tests.otlp_support import request, span
from tests.support import calls_of, check_log

KEY = "k-web-0123456789"
HASH_KEY = "pepper"
SETTINGS = {
    "AUDIT_CLIENT_KEYS": f"{hashlib.sha256(KEY.encode()).hexdigest()}=web",
    "AUDIT_CLIENT_NAMES": "web=Web front end;crm-batch=Batch jobs",
    "AUDIT_CLIENT_HEADER": "x-client-id",
    "AUDIT_HASH_KEY": HASH_KEY,
    "AUDIT_TRUSTED_PROXIES": "10.1.0.0/16,fd00::/8",
}


def jwt(**claims: Any) -> str:
    """A JWT with these claims; its signature is nonsense."""
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256"}, claims)]
    return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), "c2ln"])


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def unknown(key: str) -> str:
    """The id of a client whose key is in no directory."""
    return "key:" + hashlib.sha256((HASH_KEY + key).encode()).hexdigest()[:16]


def header(name: str, *values: str) -> dict[str, list[str]]:
    """A captured request header, by semantic conventions."""
    return {f"http.request.header.{name}": list(values)}


def authorization(value: str) -> dict[str, list[str]]:
    return header("authorization", value)


PROXY = {"network.peer.address": "10.1.2.3"}
STRANGER = {"network.peer.address": "203.0.113.9"}


@dataclass(frozen=True)
class Case:
    """A span's attributes, and what its record says."""

    attributes: Mapping[str, Any]
    expected: Mapping[str, Any]


def _client(ident: str | None, auth: str | None, name: str | None = None, **more: Any) -> dict[str, Any]:
    return {"client_id": ident, "client_auth": auth, "client_name": name, **more}


def _ip(address: str | None, source: str | None) -> dict[str, Any]:
    return {"client_ip": address, "client_ip_source": source}


JWT = jwt(azp="crm-batch", sub="alice")
CASES = {
    # --- who
    "known key": Case(header("x-api-key", KEY), _client("web", "api_key", "Web front end")),
    "known key, capture of old": Case({"http.request.header.x_api_key": KEY}, _client("web", "api_key", "Web front end")),
    "known key of a gRPC call": Case(
        {"rpc.system": "grpc", "rpc.grpc.request.metadata.x-api-key": [KEY]}, _client("web", "api_key", "Web front end")
    ),
    "known key in Authorization": Case(authorization(f"ApiKey {KEY}"), _client("web", "api_key", "Web front end")),
    "known key as bearer token": Case(authorization(f"Bearer {KEY}"), _client("web", "api_key", "Web front end")),
    "unknown key": Case(header("x-api-key", "guess"), _client(unknown("guess"), "api_key (unverified)")),
    "empty key": Case(header("x-api-key", ""), _client(None, None)),
    "opaque bearer token": Case(authorization("bearer  abc.def"), _client(unknown("abc.def"), "bearer (unverified)")),
    "JWT": Case(authorization(f"Bearer {JWT}"), _client("crm-batch", "jwt (unverified)", "Batch jobs", user_id="alice")),
    "JWT of the client itself": Case(
        authorization("Bearer " + jwt(client_id="svc", sub="svc")), _client("svc", "jwt (unverified)", user_id=None)
    ),
    "JWT beside the user that the service names": Case(
        {**authorization(f"Bearer {JWT}"), "enduser.id": "bob"},
        _client("crm-batch", "jwt (unverified)", "Batch jobs", user_id="bob"),
    ),
    "JWT whose claim is no text": Case(authorization("Bearer " + jwt(azp=7)), _client(None, "other (unverified)")),
    "JWT that is none": Case(authorization("Bearer eyJx.!!!.c2ln"), _client(unknown("eyJx.!!!.c2ln"), "bearer (unverified)")),
    "JWT of nonsense": Case(authorization("Bearer eyJx.bm9wZQ.c2ln"), _client(None, "other (unverified)")),
    "Basic": Case(authorization(basic("carol", "pass:word")), _client("carol", "basic (unverified)")),
    "Basic of nonsense": Case(authorization("Basic !!!"), _client(None, "other (unverified)")),
    "another scheme": Case(authorization("Digest realm=x"), _client(None, "other (unverified)")),
    "two credentials in one": Case(authorization(f"Bearer {KEY}, Bearer x"), _client(None, "other (unverified)")),
    "client header from anyone": Case(
        {**STRANGER, **header("x-client-id", "web")}, _client("web", "header (unverified)", "Web front end")
    ),
    "client header from a proxy": Case(
        {**PROXY, **header("x-client-id", "partner")}, _client("partner", "header")
    ),
    "a known key goes before a proxy's header": Case(
        {**PROXY, **header("x-client-id", "partner"), **header("x-api-key", KEY)}, _client("web", "api_key", "Web front end")
    ),
    "a proxy's header goes before an unknown key": Case(
        {**PROXY, **header("x-client-id", "partner"), **header("x-api-key", "guess")}, _client("partner", "header")
    ),
    "an unknown key goes before anyone's header": Case(
        {**STRANGER, **header("x-client-id", "web"), **header("x-api-key", "guess")},
        _client(unknown("guess"), "api_key (unverified)"),
    ),
    "certificate": Case({"tls.client.subject": "CN=batch"}, _client("CN=batch", "mtls (unverified)")),
    "user alone": Case({"enduser.id": "bob"}, _client("bob", "user", user_id="bob")),
    "nothing": Case({}, _client(None, None)),
    "what the service says": Case(
        {"audit.client.id": "crm-batch", **header("x-api-key", KEY)}, _client("crm-batch", None, "Batch jobs")
    ),
    "what otel-audit in the service says": Case(
        {"audit.client.auth": "none", **header("x-client-id", "web")}, _client(None, "none")
    ),
    # --- from where
    "peer": Case({**STRANGER, "client.address": "203.0.113.9"}, _ip("203.0.113.9", "peer")),
    "peer, conventions of old": Case({"net.peer.ip": "203.0.113.9"}, _ip("203.0.113.9", "peer")),
    "peer in IPv6": Case(
        {"network.peer.address": "::ffff:203.0.113.9", "client.address": "::ffff:203.0.113.9"}, _ip("203.0.113.9", "peer")
    ),
    "anyone's forwarding header": Case(
        {**STRANGER, "client.address": "192.0.2.1", **header("x-forwarded-for", "192.0.2.1")},
        _ip("203.0.113.9", "untrusted"),
    ),
    "a forwarding header that was not captured": Case(
        {**PROXY, "client.address": "192.0.2.1"}, _ip("10.1.2.3", "untrusted")
    ),
    "a proxy's": Case(
        {**PROXY, "client.address": "192.0.2.1", **header("x-forwarded-for", "192.0.2.1, 198.51.100.7")},
        _ip("198.51.100.7", "forwarded"),
    ),
    "a proxy's, in a line of its own": Case(
        {**PROXY, **header("x-forwarded-for", "192.0.2.1", "198.51.100.7")}, _ip("198.51.100.7", "forwarded")
    ),
    "a proxy's, with port": Case({**PROXY, **header("x-forwarded-for", "198.51.100.7:4711")}, _ip("198.51.100.7", "forwarded")),
    "a proxy's, IPv6": Case(
        {"network.peer.address": "fd00::1", **header("x-forwarded-for", "[2001:db8::1]:443")}, _ip("2001:db8::1", "forwarded")
    ),
    "a proxy's, no address": Case({**PROXY, **header("x-forwarded-for", "unknown")}, _ip("10.1.2.3", "untrusted")),
    "a proxy without header": Case({**PROXY, "client.address": "10.1.2.3"}, _ip("10.1.2.3", "peer")),
    "no peer": Case({"client.address": "192.0.2.1"}, _ip("192.0.2.1", "untrusted")),
    "no address": Case({}, _ip(None, None)),
    "what the service says of the address": Case(
        {**STRANGER, "audit.client.ip": "192.0.2.5", "audit.client.ip.source": "forwarded"}, _ip("192.0.2.5", "forwarded")
    ),
}  # fmt: skip
SECRETS = (KEY, "guess", "abc.def", JWT, "pass:word", base64.b64encode(b"carol:pass:word").decode())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with pipeline("any-language.yaml", tmp_path_factory.mktemp("any-language"), SETTINGS) as found:
        yield found


@pytest.fixture(scope="module")
def records(running: Pipeline) -> dict[str, dict[str, Any]]:
    """The record of each case."""
    ids = {name: secrets.token_bytes(8) for name in CASES}
    spans = [span({"http.request.method": "GET", **case.attributes}, span_id=ids[name]) for name, case in CASES.items()]
    running.send(request(*spans))
    of_id = {record["span_id"]: record for record in running.calls(len(CASES))}
    return {name: of_id[ident] for name, ident in ids.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_span_says_who_called_and_from_where(name: str, records: dict[str, dict[str, Any]]) -> None:
    record, expected = records[name], CASES[name].expected
    assert {key: record[key] for key in expected} == expected


def test_the_forwarding_header_is_kept_for_a_person_to_judge(records: dict[str, dict[str, Any]]) -> None:
    attributes = json.loads(records["anyone's forwarding header"]["attributes"])
    assert attributes["audit.client.ip.chain"] == "192.0.2.1"


@pytest.mark.parametrize("kind", [Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_INTERNAL])
def test_no_secret_gets_past_it(kind: int, running: Pipeline) -> None:
    """What cannot be a record is kept whole in quarantine, and so shows what the Collector let past."""
    token, mark = secrets.token_hex(16), secrets.token_hex(8)
    names = ("x-api-key", "X-Api-Key", "x_api_key", "authorization", "cookie", "proxy-authorization")
    attributes: dict[str, Any] = {f"http.request.header.{name}": [token] for name in names}
    attributes |= {
        "http.response.header.set-cookie": [token],
        "rpc.grpc.request.metadata.authorization": [f"Bearer {token}"],
        "rpc.request.metadata.x-api-key": [token],
        "url.query": f"api_key={token}",
        "url.full": f"https://crm.example/contacts?api_key={token}",
        "http.url": f"https://crm.example/contacts?api_key={token}",
        "http.target": f"/contacts?api_key={token}",
        "http.request.method": "GET",
        "audit.action": "read",
    }
    running.send(request(span(attributes, kind=kind, trace_id=bytes(16), name=mark)))

    def kept() -> list[bytes]:
        return [e.payload for e in quarantine.read(running.service.directory) if mark.encode() in e.payload]

    wait_for(kept, "the span is in quarantine")
    (payload,) = kept()
    assert b"/contacts" in payload
    assert token.encode() not in payload


def test_no_secret_is_in_the_log_nor_in_what_the_collector_says(
    running: Pipeline, records: dict[str, dict[str, Any]]
) -> None:
    text = repr(list(records.values())) + running.collector.said()
    assert [secret for secret in SECRETS if secret in text] == []


PROXIES = {
    "two that append": ({"AUDIT_TRUSTED_PROXIES": "10.1.0.0/16", "AUDIT_TRUSTED_HOPS": "2"}, "192.0.2.2", "forwarded"),
    "more than there are hops": (
        {"AUDIT_TRUSTED_PROXIES": "10.1.0.0/16", "AUDIT_TRUSTED_HOPS": "4"}, "10.1.2.3", "untrusted",
    ),
    "a setting that is no CIDR": ({"AUDIT_TRUSTED_PROXIES": "10.1.2.3"}, "10.1.2.3", "untrusted"),
    "no setting": ({}, "10.1.2.3", "untrusted"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROXIES)
def test_only_declared_proxies_are_believed(name: str, tmp_path: Path) -> None:
    settings, address, source = PROXIES[name]
    with pipeline("any-language.yaml", tmp_path, settings) as running:
        running.send(request(span({**PROXY, **header("x-forwarded-for", "192.0.2.1, 192.0.2.2 , 192.0.2.3")})))
        (record,) = running.calls(1)
    assert (record["client_ip"], record["client_ip_source"]) == (address, source)


def test_nothing_is_lost_while_the_log_is_away_and_the_collector_is_killed(tmp_path: Path) -> None:
    """The queue is that of a Collector for services with otel-audit, and what was derived is in it."""
    address, ids = f"127.0.0.1:{free_port()}", [secrets.token_bytes(8) for _ in range(300)]
    variables, _, http, health = environment(AUDIT_ENDPOINT=address, **SETTINGS)
    with Collector([CONFIGS / "any-language.yaml"], tmp_path, variables, health) as collector:
        for some in (ids[:100], ids[100:200], ids[200:]):
            send(http, request(*(span(header("x-api-key", KEY), span_id=ident) for ident in some)))
        collector.kill()
    with (
        Service(tmp_path / "audit-log", grpc=address) as service,
        Collector([CONFIGS / "any-language.yaml"], tmp_path, variables, health),
    ):
        wait_for(lambda: len(calls_of(service.directory)) >= len(ids), "all calls are in the log")
        found = check_log(service.directory)
    assert sorted(r["span_id"] for r in found) == sorted(ids)
    assert {r["client_id"] for r in found} == {"web"}


def test_its_variables_are_told_at_its_head() -> None:
    text = (CONFIGS / "any-language.yaml").read_text()
    told = set(re.findall(r"^# \| (AUDIT_\w+) \|", text, re.MULTILINE))
    derived, _, _ = text.partition("exporters:")
    _, _, used = derived.partition("transform/audit:")
    assert told == set(re.findall(r"\$\{env:(AUDIT_\w+)", used))


def test_without_a_setting_no_header_names_the_client(tmp_path: Path) -> None:
    with pipeline("any-language.yaml", tmp_path, {"AUDIT_TRUSTED_PROXIES": "10.1.0.0/16"}) as running:
        running.send(request(span({**PROXY, **header("x-client-id", "web")})))
        (record,) = running.calls(1)
    assert (record["client_id"], record["client_auth"]) == (None, None)


def test_a_mistake_in_the_settings_loses_no_span(tmp_path: Path) -> None:
    """Statements that fail are passed over; nothing of what they would have said is made up."""
    settings = {
        "AUDIT_CLIENT_KEYS": "no pairs at all",
        "AUDIT_CLIENT_NAMES": "web",
        "AUDIT_TRUSTED_PROXIES": "none, of, it",
    }
    with pipeline("any-language.yaml", tmp_path, settings) as running:
        running.send(request(span({**PROXY, **header("x-api-key", KEY), **header("x-forwarded-for", "192.0.2.1")})))
        (record,) = running.calls(1)
    assert record["client_auth"] == "api_key (unverified)"
    assert (record["client_ip"], record["client_ip_source"]) == ("10.1.2.3", "untrusted")
