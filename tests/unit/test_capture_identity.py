"""Who is calling, from each kind of credential; secrets never leave, malformed credentials never raise."""

import base64
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context

from otel_audit.capture.address import TrustedProxies
from otel_audit.capture.call import call_in
from otel_audit.capture.carriers import CURRENT_SCOPE, PEER_KEY, Request
from otel_audit.capture.clients import Client, ClientDirectory, _Contents
from otel_audit.capture.identity import IdentityPropagator, IdentityReader
from otel_audit.capture.tokens import Checked, TokenVerifier


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def jwt(**claims: object) -> str:
    return f"{part({'alg': 'none'})}.{part(claims)}.c2ln"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


class Directory(ClientDirectory):
    """A directory without a file."""

    def __init__(self, keys: dict[bytes, Client]) -> None:
        super().__init__()
        self.keys = keys
        self._now = _Contents({}, {c.id: c for c in keys.values()})

    def by_key(self, key: bytes) -> Client | None:
        return self.keys.get(key)


WEB = Client("web", "Web front end")
READER = IdentityReader(Directory({b"web-key": WEB}), TrustedProxies(("10.0.0.0/8",)), hash_key=b"secret")


def request(authorization: str | None = None, api_key: str | None = None) -> Request:
    given = {"authorization": authorization, "x-api-key": api_key}
    return Request(None, {name: value for name, value in given.items() if value is not None})


def read(
    authorization: str | None = None, api_key: str | None = None
) -> tuple[str | None, str | None, str, str | None]:
    return READER.credential(request(authorization, api_key))[:4]


@pytest.mark.parametrize(
    ("authorization", "api_key", "expected"),
    [
        (None, None, (None, None, "none", None)),
        ("", "", (None, None, "none", None)),
        (None, "web-key", ("web", "Web front end", "api_key", None)),
        (None, " web-key ", ("web", "Web front end", "api_key", None)),
        ("ApiKey web-key", None, ("web", "Web front end", "api_key", None)),
        ("Token web-key", None, ("web", "Web front end", "api_key", None)),
        ("Bearer web-key", None, ("web", "Web front end", "bearer", None)),
        (f"Bearer {jwt(azp='web')}", None, ("web", "Web front end", "jwt (unverified)", None)),
        (f"bearer {jwt(client_id='ops')}", None, ("ops", None, "jwt (unverified)", None)),
        (f"Bearer {jwt(azp='app', sub='alice')}", None, ("app", None, "jwt (unverified)", "alice")),
        (f"Bearer {jwt(azp='app', sub='app')}", None, ("app", None, "jwt (unverified)", None)),
        (f"Bearer {jwt(azp='app', sub='app@clients')}", None, ("app", None, "jwt (unverified)", None)),
        (f"Bearer {jwt(sub='alice')}", None, (None, None, "jwt (unverified)", "alice")),
        (f"Bearer {jwt(azp=['x'], client_id={'a': 1}, sub=True)}", None, (None, None, "jwt (unverified)", None)),
        # a browser application: the key names the application, the token the person
        (f"Bearer {jwt(azp='idp', sub='alice')}", "web-key", ("web", "Web front end", "api_key", "alice")),
        (basic("partner:pw"), None, ("partner", None, "basic (unverified)", None)),
        (basic("partner:with:colons"), None, ("partner", None, "basic (unverified)", None)),
        (basic("no colon"), None, (None, None, "basic (malformed)", None)),
        (basic(":pw"), None, (None, None, "basic (malformed)", None)),
        ("Basic !!!", None, (None, None, "basic (malformed)", None)),
        ("Bearer eyJ.!!.x", None, (None, None, "jwt (malformed)", None)),
        ("Digest username=x", None, (None, None, "other (unverified)", None)),
        ("nonsense", None, (None, None, "other (malformed)", None)),
        ("Bearer " + "x" * 100_000, None, (None, None, "oversize (malformed)", None)),
    ],
)
def test_credentials(authorization: str | None, api_key: str | None, expected: tuple[object, ...]) -> None:
    assert read(authorization, api_key) == expected


def test_an_unknown_key_is_followed_by_its_keyed_hash_and_never_shown() -> None:
    first, again, other = read(None, "stolen"), read("ApiKey stolen"), read(None, "another")
    assert first[0] == again[0] != other[0]
    assert first[0] is not None
    assert first[0].startswith("key:")
    assert len(first[0]) == 20
    assert first[2] == "api_key (unverified)"
    elsewhere = IdentityReader(Directory({}), TrustedProxies(), hash_key=b"other secret")
    assert elsewhere.credential(request(None, "stolen")).client_id != first[0]


@pytest.mark.parametrize("long", ["authorization", "x-forwarded-client-cert"])
def test_nobody_hides_behind_a_long_credential(long: str) -> None:
    headers = {"x-api-key": "web-key", long: "x" * 20_000}
    assert READER.credential(Request("203.0.113.9", headers)).client_id == "web"
    assert READER.credential(Request(None, {}, "x" * 20_000)).auth == "oversize (malformed)"


def test_ids_are_bounded_and_can_be_encoded_by_any_exporter() -> None:
    client_id, _, _, user = read("Bearer " + jwt(azp="x" * 10_000, sub="lone \ud800"))
    assert client_id == "x" * 256
    assert user == "lone \\ud800"


def test_no_secret_is_kept_between_requests() -> None:
    reader = IdentityReader(Directory({}), TrustedProxies())
    reader.credential(request(basic("partner:hunter2-hunter2"), "top-secret-key"))
    assert "hunter2" not in repr(reader._cache)
    assert "top-secret-key" not in repr(reader._cache)


def test_memory_for_credentials_is_bounded() -> None:
    reader = IdentityReader(Directory({}), TrustedProxies())
    for i in range(10_000):
        reader.credential(request(None, f"key {i}"))
    assert len(reader._cache) <= 4096


def test_a_flood_of_forged_keys_pushes_out_nothing_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = IdentityReader(Directory({b"web-key": WEB}), TrustedProxies())
    looked_up: list[bytes] = []
    by_key = reader._clients.by_key

    def counted(key: bytes) -> Client | None:
        looked_up.append(key)
        return by_key(key)

    monkeypatch.setattr(reader._clients, "by_key", counted)
    for i in range(10_000):
        reader.credential(request(None, f"key {i}"))
        if i % 100 == 0:
            assert reader.credential(request(None, "web-key")).client_id == "web"
    assert looked_up.count(b"web-key") == 1


def test_a_changed_directory_counts_for_credentials_seen_before() -> None:
    directory = Directory({})
    reader = IdentityReader(directory, TrustedProxies())
    by_key = request(None, "web-key")
    assert reader.credential(by_key).auth == "api_key (unverified)"
    directory.keys[b"web-key"] = WEB
    directory.version += 1
    assert reader.credential(by_key).client_id == "web"


# --- JWTs that are verified ----------------------------------------------------------------------------------------------
class Verifier(TokenVerifier):
    """Gives the answers it is told to."""

    def __init__(self, *answers: Checked | None) -> None:
        super().__init__()
        self.answers = list(answers)
        self.checks = 0

    def check(self, token: str) -> Checked | None:
        self.checks += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def verifying(*answers: Checked | None, **options: Any) -> tuple[IdentityReader, Verifier]:
    tokens = Verifier(*answers)
    proxies = TrustedProxies(("10.0.0.0/8",))
    return IdentityReader(Directory({b"web-key": WEB}), proxies, tokens=tokens, **options), tokens


BEARER = f"Bearer {jwt(azp='web', sub='alice')}"


@pytest.mark.parametrize(
    ("answer", "authorization", "expected"),
    [
        (Checked(None), BEARER, ("web", "Web front end", "jwt", "alice", None)),
        (Checked(None), f"Bearer {jwt(sub='alice')}", (None, None, "jwt", "alice", None)),
        (None, BEARER, ("web", "Web front end", "jwt (unverified)", "alice", None)),
        # not a word of a token that was found wanting is believed
        (Checked("expired"), BEARER, (None, None, "jwt (expired)", None, "web")),
        (
            Checked("wrong signature"),
            f"Bearer {jwt(sub='alice')}",
            (None, None, "jwt (wrong signature)", None, "alice"),
        ),
        (Checked("unknown key"), f"Bearer {jwt()}", (None, None, "jwt (unknown key)", None, None)),
    ],
)
def test_a_refused_token_names_its_client_as_claimed_only(
    answer: Checked | None, authorization: str, expected: tuple[str | None, ...]
) -> None:
    reader, _ = verifying(answer)
    assert reader.credential(request(authorization))[:5] == expected
    found = reader.attributes(scope((b"authorization", authorization.encode())))
    assert found is not None
    said = ("audit.client.id", "audit.client.name", "audit.client.auth", "user.id", "audit.client.claimed_id")
    assert tuple(map(found.get, said)) == expected


def test_a_key_names_the_client_and_a_refused_token_beside_it_no_person() -> None:
    reader, _ = verifying(Checked("expired"))
    found = reader.credential(request(f"Bearer {jwt(azp='admin', sub='root')}", "web-key"))
    assert found[:5] == ("web", "Web front end", "api_key", None, "admin")


def test_a_token_is_checked_once_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("otel_audit.capture.identity.time", SimpleNamespace(time=lambda: now[0]))
    reader, tokens = verifying(Checked(None, 1060), Checked("expired"))
    for _ in range(3):
        assert reader.credential(request(BEARER)).auth == "jwt"
    assert tokens.checks == 1
    now[0] = 1060
    for _ in range(3):
        found = reader.credential(request(BEARER))
        assert (found.auth, found.client_id, found.claimed_id) == ("jwt (expired)", None, "web")
    assert tokens.checks == 2


def test_a_token_beside_a_key_expires_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("otel_audit.capture.identity.time", SimpleNamespace(time=lambda: now[0]))
    reader, _ = verifying(Checked(None, 1060), Checked("expired"))
    assert reader.credential(request(BEARER, "web-key")).user_id == "alice"
    now[0] = 1061
    assert reader.credential(request(BEARER, "web-key")).user_id is None


def test_changed_keys_count_for_tokens_seen_before() -> None:
    reader, tokens = verifying(Checked("unknown key"), Checked(None))
    assert reader.credential(request(BEARER)).auth == "jwt (unknown key)"
    tokens.version += 1
    assert reader.credential(request(BEARER)).auth == "jwt"


# --- certificates, a header of the user's choice ---------------------------------------------------------------------------
PROXY, STRANGER = "10.1.1.1", "203.0.113.9"
XFCC = "x-forwarded-client-cert"
OWN = 'By=spiffe://mesh/crm;Hash=468ed33be74eee65;Subject="CN=batch,O=Acme";URI=spiffe://mesh/jobs'


def vouched(peer: str | None, headers: dict[str, str], **options: Any) -> tuple[str | None, ...]:
    reader, _ = verifying(None, **options)
    return reader.credential(Request(peer, headers))[:5]


NONE = (None, None, "none", None, None)


@pytest.mark.parametrize(
    ("peer", "declared", "value", "expected"),
    [
        (PROXY, XFCC, OWN, ("spiffe://mesh/jobs", None, "mtls", None, None)),
        # the proxy may know nothing of the header, and pass on what the caller wrote
        (PROXY, None, OWN, ("spiffe://mesh/jobs", None, "mtls (unverified)", None, None)),
        (STRANGER, XFCC, OWN, NONE),
        (STRANGER, None, OWN, NONE),
        (None, XFCC, OWN, NONE),
        (PROXY, XFCC, 'Subject="CN=admin",' + OWN, ("spiffe://mesh/jobs", None, "mtls", None, None)),
        (PROXY, XFCC, 'Subject="CN=admin,' + OWN, ("spiffe://mesh/jobs", None, "mtls", None, None)),
        (PROXY, XFCC, 'Subject="CN=web,O=Acme"', ("web", "Web front end", "mtls", None, None)),
        (PROXY, XFCC, 'URI=spiffe://x;Subject="CN=web"', ("web", "Web front end", "mtls", None, None)),
        (PROXY, XFCC, "Hash=468ED33BE74EEE6556D90C", ("cert:468ed33be74eee65", None, "mtls", None, None)),
        (PROXY, XFCC, "nonsense", (None, None, "mtls (malformed)", None, None)),
        (PROXY, XFCC, " ", NONE),
    ],
)
def test_envoys_certificate_header_counts_from_a_trusted_proxy(
    peer: str | None, declared: str | None, value: str, expected: tuple[str | None, ...]
) -> None:
    assert vouched(peer, {XFCC: value}, certificate_header=declared) == expected


@pytest.mark.parametrize(
    ("peer", "verdict", "expected"),
    [
        (PROXY, None, ("batch", None, "mtls", None, None)),
        (PROXY, "SUCCESS", ("batch", None, "mtls", None, None)),
        (PROXY, "FAILED:self-signed certificate", (None, None, "mtls (invalid)", None, "batch")),
        (PROXY, "NONE", (None, None, "mtls (invalid)", None, "batch")),
        (PROXY, "FAILED:x,SUCCESS", (None, None, "mtls (invalid)", None, "batch")),
        (STRANGER, "SUCCESS", NONE),
    ],
)
@pytest.mark.parametrize(
    ("header", "verdict_header"),
    [("ssl-client-subject-dn", "ssl-client-verify"), ("x-ssl-client-s-dn", "x-ssl-client-verify")],
)
def test_nginxs_subject_header_counts_from_a_trusted_proxy(
    peer: str, verdict: str | None, expected: tuple[str | None, ...], header: str, verdict_header: str
) -> None:
    headers = {header: "CN=batch,O=Acme"} | ({verdict_header: verdict} if verdict is not None else {})
    assert vouched(peer, headers, certificate_header=header) == expected
    assert vouched(peer, headers) == NONE, "nobody named it"
    assert vouched(peer, {XFCC: OWN}, certificate_header=header) == NONE, "another one is named"


@pytest.mark.parametrize(
    ("peer", "value", "expected"),
    [
        (PROXY, "web", ("web", "Web front end", "header", None, None)),
        (STRANGER, "web", ("web", "Web front end", "header (unverified)", None, None)),
        (None, "web", ("web", "Web front end", "header (unverified)", None, None)),
        (PROXY, "admin,web", (None, None, "header (malformed)", None, None)),
        (PROXY, "x" * 1000, ("x" * 256, None, "header", None, None)),
        (PROXY, "", NONE),
    ],
)
def test_a_header_of_the_users_choice(peer: str | None, value: str, expected: tuple[str | None, ...]) -> None:
    assert vouched(peer, {"x-client": value}, client_header="x-client") == expected
    assert vouched(peer, {"x-client": value}) == NONE


def test_what_a_proxy_said_is_not_remembered_for_a_stranger() -> None:
    reader, _ = verifying(None, client_header="x-client", certificate_header=XFCC)
    for peer, auth in ((PROXY, "mtls"), (STRANGER, "header (unverified)"), (PROXY, "mtls")):
        assert reader.credential(Request(peer, {"x-client": "web", XFCC: OWN})).auth == auth


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [
        ("web", ("web", "Web front end", "mtls", None, None)),
        ("CN=batch,O=Acme", ("batch", None, "mtls", None, None)),
        ("O=Acme", ("O=Acme", None, "mtls", None, None)),
    ],
)
@pytest.mark.parametrize("peer", [STRANGER, None])
def test_a_certificate_that_the_peer_proved_to_own(
    certificate: str, expected: tuple[str | None, ...], peer: str | None
) -> None:
    reader, _ = verifying(None)
    assert reader.credential(Request(peer, {}, certificate))[:5] == expected


KEY, UNKNOWN_KEY = {"x-api-key": "web-key"}, {"x-api-key": "stolen"}
TOKEN = {"authorization": f"Bearer {jwt(azp='app', sub='alice')}"}
CERT, HEADER = {XFCC: OWN}, {"x-client": "tenant"}
OK, BAD = Checked(None), Checked("expired")


@pytest.mark.parametrize(
    ("peer", "answer", "headers", "certificate", "expected"),
    [
        # verified ones, in their order
        (PROXY, OK, KEY | TOKEN | CERT | HEADER, "peer", ("web", "api_key", "alice", None)),
        (PROXY, OK, TOKEN | CERT | HEADER, "peer", ("app", "jwt", "alice", None)),
        (PROXY, OK, CERT | HEADER, "peer", ("spiffe://mesh/jobs", "mtls", None, None)),
        (PROXY, OK, HEADER, "peer", ("tenant", "header", None, None)),
        # the certificate of a proxy names the proxy; with nothing else it is the caller
        (PROXY, OK, {}, "peer", ("peer", "mtls", None, None)),
        # a verified one before one that is not
        (PROXY, OK, UNKNOWN_KEY | TOKEN, None, ("app", "jwt", "alice", None)),
        (PROXY, None, UNKNOWN_KEY | TOKEN | CERT, None, ("spiffe://mesh/jobs", "mtls", "alice", None)),
        (STRANGER, None, TOKEN | CERT | HEADER, "peer", ("peer", "mtls", "alice", None)),
        (STRANGER, BAD, TOKEN | HEADER, "peer", ("peer", "mtls", None, "app")),
        # one that was found wanting before one that was not looked at
        (STRANGER, BAD, TOKEN | HEADER, None, (None, "jwt (expired)", None, "app")),
        # among those, their order
        (STRANGER, None, TOKEN | HEADER, None, ("app", "jwt (unverified)", "alice", None)),
        (STRANGER, None, {"authorization": f"Bearer {jwt(sub='a')}"} | HEADER, None, ("tenant", "header (unverified)", "a", None)),
        (STRANGER, None, {"authorization": "Digest x"} | HEADER, None, ("tenant", "header (unverified)", None, None)),
        (STRANGER, None, {"authorization": "Basic !"} | HEADER, None, ("tenant", "header (unverified)", None, None)),
        (STRANGER, None, {"authorization": "Digest x"}, None, (None, "other (unverified)", None, None)),
    ],
)  # fmt: skip
def test_which_of_several_credentials_names_the_client(
    peer: str,
    answer: Checked | None,
    headers: dict[str, str],
    certificate: str | None,
    expected: tuple[str | None, ...],
) -> None:
    reader, _ = verifying(answer, client_header="x-client", certificate_header=XFCC)
    found = reader.credential(Request(peer, headers, certificate))
    assert (found.client_id, found.auth, found.user_id, found.claimed_id) == expected


def test_no_credential_of_any_kind_is_kept_between_requests() -> None:
    reader, _ = verifying(None, client_header="x-client", certificate_header=XFCC)
    token = jwt(azp="app", note="hunter2-in-a-claim")
    headers = {"authorization": f"Bearer {token}", "x-api-key": "top-secret-key", XFCC: f'{OWN};Cert="top-secret-pem"'}
    reader.credential(Request(PROXY, headers))
    kept = repr(reader._cache)
    assert not any(text in kept for text in (token, "hunter2", "top-secret-key", "top-secret-pem"))


# --- carriers -----------------------------------------------------------------------------------------------------------
def scope(*headers: tuple[bytes, bytes], **extra: Any) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers), "client": ("203.0.113.9", 4711), **extra}


def test_an_asgi_request_is_read() -> None:
    carrier = scope((b"x-api-key", b"web-key"), (b"host", b"x"))
    assert READER.attributes(carrier) == {
        "audit.client.auth": "api_key",
        "audit.client.id": "web",
        "audit.client.name": "Web front end",
        "audit.client.ip": "203.0.113.9",
        "audit.client.ip.source": "peer",
        "audit.peer.ip": "203.0.113.9",
    }


def test_forwarding_headers_are_joined_in_their_order() -> None:
    carrier = scope(
        (b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"198.51.100.1, 10.9.9.9"), client=("10.1.1.1", 0)
    )
    found = READER.attributes(carrier)
    assert found is not None
    assert found["audit.client.ip"] == "198.51.100.1"
    assert found["audit.peer.ip"] == "10.1.1.1"


def test_the_socket_peer_counts_and_not_what_the_server_put_in_its_place() -> None:
    carrier = scope((b"x-forwarded-for", b"6.6.6.6"), client=("6.6.6.6", 0), **{PEER_KEY: ("203.0.113.9", 4711)})
    found = READER.attributes(carrier)
    assert found is not None
    assert (found["audit.client.ip"], found["audit.client.ip.source"]) == ("203.0.113.9", "untrusted")

    environ = {
        "REQUEST_METHOD": "GET",
        "REMOTE_ADDR": "6.6.6.6",
        "HTTP_X_FORWARDED_FOR": "6.6.6.6",
        "werkzeug.proxy_fix.orig": {"REMOTE_ADDR": "203.0.113.9"},
    }
    found = READER.attributes(environ)
    assert found is not None
    assert (found["audit.client.ip"], found["audit.client.ip.source"]) == ("203.0.113.9", "untrusted")


class Headers:
    """As Starlette's: the headers of a scope, without the scope."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self.raw = raw


def test_headers_alone_are_read_and_the_peer_only_of_their_own_request() -> None:
    carrier = scope((b"x-api-key", b"web-key"))
    alone = READER.attributes(Headers(carrier["headers"]))
    token = CURRENT_SCOPE.set(carrier)
    try:
        own = READER.attributes(Headers(carrier["headers"]))
        other = READER.attributes(Headers([*carrier["headers"], (b"x-other", b"request")]))
    finally:
        CURRENT_SCOPE.reset(token)
    assert (
        alone
        == other
        == {
            "audit.client.id": "web",
            "audit.client.name": "Web front end",
            "audit.client.auth": "api_key",
        }
    )
    assert own is not None
    assert own["audit.client.ip"] == "203.0.113.9"


def test_a_wsgi_request_is_read() -> None:
    environ = {
        "REQUEST_METHOD": "GET",
        "REMOTE_ADDR": "10.1.1.1",
        "HTTP_X_API_KEY": "web-key",
        "HTTP_X_FORWARDED_FOR": "2001:db8::7",
    }
    found = READER.attributes(environ)
    assert found is not None
    assert found["audit.client.id"] == "web"
    assert found["audit.client.ip"] == "2001:db8::7"


def test_the_header_of_api_keys_can_be_chosen() -> None:
    reader = IdentityReader(Directory({b"web-key": WEB}), TrustedProxies(), api_key_header="x-my-client")
    asgi = reader.attributes(scope((b"x-my-client", b"web-key")))
    wsgi = reader.attributes({"REQUEST_METHOD": "GET", "HTTP_X_MY_CLIENT": "web-key"})
    assert asgi is not None
    assert wsgi is not None
    assert asgi["audit.client.id"] == wsgi["audit.client.id"] == "web"


@pytest.mark.parametrize("carrier", [None, {}, [], {"traceparent": "x"}, {"type": "lifespan"}, object()])
def test_what_is_no_request_leaves_the_context_as_it_is(carrier: object) -> None:
    context = Context({"k": 1})
    assert IdentityPropagator(READER).extract(carrier, context) == context


@pytest.mark.parametrize(
    "carrier",
    [
        {"type": "http", "headers": None},
        {"type": "http", "headers": [(b"authorization", None)]},
        {"type": "http", "headers": [(b"x",)]},
        {"type": "http", "headers": [], "client": 7},
        {"REQUEST_METHOD": "GET", "REMOTE_ADDR": 7},
        {"REQUEST_METHOD": "GET", "HTTP_AUTHORIZATION": b"bytes"},
    ],
)
def test_a_request_that_makes_no_sense_never_raises(carrier: object) -> None:
    assert isinstance(IdentityPropagator(READER).extract(carrier, None), Context)


@given(st.binary(max_size=60), st.sampled_from([b"", b"Bearer ", b"Basic ", b"ApiKey ", b"Bearer a.b."]), st.binary())
def test_any_header_gets_an_answer(value: bytes, scheme: bytes, forwarded: bytes) -> None:
    carrier = scope((b"authorization", scheme + value), (b"x-api-key", value), (b"x-forwarded-for", forwarded))
    call = call_in(IdentityPropagator(READER).extract(carrier, None))
    assert call is not None
    assert "".join(call.identity.values()).encode()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=3))
def test_any_claims_get_an_answer(value: object) -> None:
    who = READER.credential(request(f"Bearer {jwt(azp=value, sub=value, gty=value)}", None))
    assert who.auth == "jwt (unverified)"
