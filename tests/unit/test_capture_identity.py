"""Who is calling, from each kind of credential; secrets never leave, malformed credentials never raise."""

import base64
import json
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
    return tuple(READER.credential(request(authorization, api_key)))  # type: ignore[return-value]


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
    assert len(reader._cache) <= 2048


def test_a_changed_directory_counts_for_credentials_seen_before() -> None:
    directory = Directory({})
    reader = IdentityReader(directory, TrustedProxies())
    by_key = request(None, "web-key")
    assert reader.credential(by_key).auth == "api_key (unverified)"
    directory.keys[b"web-key"] = WEB
    directory.version += 1
    assert reader.credential(by_key).client_id == "web"


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
