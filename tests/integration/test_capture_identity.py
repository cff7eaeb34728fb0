"""Real servers name their callers: verified tokens, certificates and headers from proxies, a resolver, a directory."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.capture_support import Service, Sink, basic, environment, grpc_sink, service, wait_until

HTTP_SERVERS = ["uvicorn", "flask"]
LOOPBACK = "127.0.0.1"

RSA, OTHER_RSA = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ISSUER, AUDIENCE = "https://issuer.example", "crm"

Said = tuple[str | None, ...]


@contextmanager
def served(kind: str, folder: Path, **settings: str) -> Iterator[tuple[Service, Sink]]:
    with grpc_sink() as sink, service(kind, folder, environment(OTEL_AUDIT_ENDPOINT=sink.address, **settings)) as s:
        yield s, sink


def attributes_of(sink: Sink, number: int) -> dict[str, Any]:
    """The attributes of the call to `/things/{number}`, once it has arrived."""

    def found() -> list[dict[str, Any]]:
        with sink.changed:
            return [x.attributes for x in sink.spans if x.attributes["http.target"] == f"/things/{number}"]

    wait_until(lambda: bool(found()))
    return found()[0]


def named(attributes: Mapping[str, Any]) -> Said:
    said = ("audit.client.id", "audit.client.name", "audit.client.auth", "user.id", "audit.client.claimed_id")
    return tuple(map(attributes.get, said))


def answers(s: Service, sink: Sink, requests: Mapping[str, Mapping[str, str]]) -> dict[str, Said]:
    """Who made each of these requests, given by their headers, according to the records."""
    for number, headers in enumerate(requests.values()):
        s.get(f"/things/{number}", headers)
    return {name: named(attributes_of(sink, number)) for number, name in enumerate(requests)}


def assert_never_sent(sink: Sink, *secrets: str) -> None:
    assert sink.bodies
    for secret in secrets:
        assert not any(secret.encode() in body for body in sink.bodies), secret


def public(key: Any, kid: str) -> dict[str, Any]:
    of: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**json.loads(of.to_jwk(key.public_key())), "kid": kid, "use": "sig"}


def sign(key: Any, kid: str, algorithm: str = "RS256", **claims: object) -> str:
    said = {"iss": ISSUER, "aud": AUDIENCE, "azp": "ops", "sub": "alice", "exp": int(time.time()) + 3600, **claims}
    return jwt.encode(said, key, algorithm, headers={"kid": kid})


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def tampered(token: str) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{sign(OTHER_RSA, 'rsa', azp='admin').split('.')[1]}.{signature}"


@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_only_a_verified_token_names_the_client(kind: str, tmp_path: Path) -> None:
    jwks, clients = tmp_path / "jwks.json", tmp_path / "clients.yaml"
    jwks.write_text(json.dumps({"keys": [public(RSA, "rsa"), public(EC, "ec")]}))
    clients.write_text("- id: ops\n  name: Operations\n")
    good = sign(RSA, "rsa")
    unsigned = jwt.encode({"azp": "admin"}, "", "none", headers={"kid": "rsa"})
    tokens = {
        "RSA": good,
        "EC": sign(EC, "ec", "ES256", sub="ops"),
        "expired": sign(RSA, "rsa", exp=int(time.time()) - 5),
        "tampered": tampered(good),
        "of another": sign(OTHER_RSA, "rsa"),
        "unknown key": sign(OTHER_RSA, "other"),
        "other audience": sign(RSA, "rsa", aud="billing"),
        "other issuer": sign(RSA, "rsa", iss="https://evil.example"),
        "unsigned": unsigned,
    }
    settings = {
        "OTEL_AUDIT_JWKS": str(jwks),
        "OTEL_AUDIT_JWT_ISSUER": ISSUER,
        "OTEL_AUDIT_JWT_AUDIENCE": AUDIENCE,
        "OTEL_AUDIT_CLIENTS": str(clients),
    }
    with served(kind, tmp_path, **settings) as (s, sink):
        assert answers(s, sink, {name: bearer(token) for name, token in tokens.items()}) == {
            "RSA": ("ops", "Operations", "jwt", "alice", None),
            "EC": ("ops", "Operations", "jwt", None, None),
            "expired": (None, None, "jwt (expired)", None, "ops"),
            "tampered": (None, None, "jwt (wrong signature)", None, "admin"),
            "of another": (None, None, "jwt (wrong signature)", None, "ops"),
            "unknown key": (None, None, "jwt (unknown key)", None, "ops"),
            "other audience": (None, None, "jwt (wrong audience)", None, "ops"),
            "other issuer": (None, None, "jwt (wrong issuer)", None, "ops"),
            "unsigned": (None, None, "jwt (wrong algorithm)", None, "admin"),
        }
        parts = {part for token in tokens.values() for part in token.split(".") if part}
        assert_never_sent(sink, *parts)


def test_a_token_that_expires_between_two_calls_is_verified_for_the_first_only(tmp_path: Path) -> None:
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [public(RSA, "rsa")]}))
    with served("flask", tmp_path, OTEL_AUDIT_JWKS=str(jwks)) as (s, sink):
        for number in range(1, 20):
            end = int(time.time()) + 3
            token = sign(RSA, "rsa", exp=end)
            s.get(f"/things/{number}", bearer(token))
            if time.time() < end:  # else the machine was too busy, and the token had expired before
                break
        wait_until(lambda: time.time() > end)
        s.get("/things/99", bearer(token))
        assert named(attributes_of(sink, number))[:3] == ("ops", None, "jwt")
        assert named(attributes_of(sink, 99)) == (None, None, "jwt (expired)", None, "ops")


def test_new_keys_and_new_clients_count_without_a_restart(tmp_path: Path) -> None:
    jwks, clients = tmp_path / "jwks.json", tmp_path / "clients.yaml"
    jwks.write_text(json.dumps({"keys": [public(RSA, "rsa")]}))
    clients.write_text("- id: old\n  key: the-secret-key\n")
    settings = {"OTEL_AUDIT_JWKS": str(jwks), "OTEL_AUDIT_CLIENTS": str(clients)}
    with served("uvicorn", tmp_path, **settings) as (s, sink):
        token, key = bearer(sign(EC, "ec", "ES256")), {"X-API-Key": "the-secret-key"}
        s.get("/things/1", token)
        s.get("/things/2", key)
        assert named(attributes_of(sink, 1))[2] == "jwt (unknown key)"
        assert named(attributes_of(sink, 2))[:3] == ("old", None, "api_key")

        for path, text in (
            (jwks, json.dumps({"keys": [public(EC, "ec")]})),
            (clients, "clients:\n  - {id: new, name: The new one, keys: [the-secret-key]}\n"),
        ):
            fresh = path.with_name("fresh")
            fresh.write_text(text)
            fresh.replace(path)
        numbers = iter(range(100, 10_000))

        def answered(headers: Mapping[str, str]) -> Said:
            number = next(numbers)
            s.get(f"/things/{number}", headers)
            return named(attributes_of(sink, number))

        wait_until(lambda: answered(token)[:3] == ("ops", None, "jwt"))
        wait_until(lambda: answered(key)[:3] == ("new", "The new one", "api_key"))

        clients.write_text("clients: [the-secret-key")
        wait_until(lambda: answered(key)[0] == "new" and "not YAML" in s.output())
        assert_never_sent(sink, "the-secret-key", token["Authorization"])
        assert "the-secret-key" not in s.output()


XFCC = 'By=spiffe://mesh/things;Hash=468ed33be74eee65;Subject="CN=batch,O=Acme";URI=spiffe://mesh/batch'
VOUCHED: dict[str, Mapping[str, str]] = {
    "certificate": {"X-Forwarded-Client-Cert": f'Subject="CN=admin",{XFCC};Cert="-----BEGIN%20SECRET"'},
    "header": {"X-Client": "tenant"},
    "both, and Basic": {"X-Forwarded-Client-Cert": XFCC, "X-Client": "tenant", "Authorization": basic("partner", "hunter2")},
}  # fmt: skip
NOBODY = (None, None, "none", None, None)


@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_certificate_and_client_header_count_from_a_trusted_proxy(kind: str, tmp_path: Path) -> None:
    batch = ("spiffe://mesh/batch", None, "mtls", None, None)
    settings = {
        "OTEL_AUDIT_CLIENT_HEADER": "X-Client",
        "OTEL_AUDIT_CLIENT_CERT_HEADER": "X-Forwarded-Client-Cert",
        "OTEL_AUDIT_TRUSTED_PROXIES": LOOPBACK,
    }
    with served(kind, tmp_path, **settings) as (s, sink):
        assert answers(s, sink, VOUCHED) == {
            "certificate": batch,
            "header": ("tenant", None, "header", None, None),
            "both, and Basic": batch,
        }
        assert_never_sent(sink, "BEGIN%20SECRET", "hunter2", basic("partner", "hunter2"))


@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_certificate_and_client_header_of_a_stranger_prove_nothing(kind: str, tmp_path: Path) -> None:
    settings = {
        "OTEL_AUDIT_CLIENT_HEADER": "X-Client",
        "OTEL_AUDIT_CLIENT_CERT_HEADER": "X-Forwarded-Client-Cert",
        "OTEL_AUDIT_TRUSTED_PROXIES": "10.0.0.0/8",
    }
    with served(kind, tmp_path, **settings) as (s, sink):
        assert answers(s, sink, VOUCHED) == {
            "certificate": NOBODY,
            "header": ("tenant", None, "header (unverified)", None, None),
            "both, and Basic": ("partner", None, "basic (unverified)", None, None),
        }


def addresses(attributes: Mapping[str, Any]) -> Said:
    said = ("audit.client.ip", "audit.client.ip.source", "audit.peer.ip", "audit.client.ip.chain")
    return tuple(map(attributes.get, said))


@pytest.mark.parametrize("kind", HTTP_SERVERS)
@pytest.mark.parametrize(
    ("settings", "headers", "expected"),
    [
        (
            {"OTEL_AUDIT_TRUSTED_PROXIES": "127.0.0.0/8"},
            {"Forwarded": 'for="6.6.6.6, for="[2001:db8::5]:4711";proto=https'},
            ("2001:db8::5", "forwarded", LOOPBACK, 'forwarded: for="6.6.6.6, for="[2001:db8::5]:4711";proto=https'),
        ),
        (
            {"OTEL_AUDIT_TRUSTED_PROXIES": "127.0.0.0/8"},
            {"X-Forwarded-For": "198.51.100.1", "Forwarded": "for=6.6.6.6"},
            (LOOPBACK, "untrusted", LOOPBACK, "198.51.100.1 | forwarded: for=6.6.6.6"),
        ),
        (
            {"OTEL_AUDIT_TRUSTED_PROXIES": "127.0.0.0/8", "OTEL_AUDIT_FORWARDING_HEADER": "X-Forwarded-For"},
            {"X-Forwarded-For": "198.51.100.1", "Forwarded": "for=6.6.6.6"},
            ("198.51.100.1", "forwarded", LOOPBACK, "198.51.100.1"),
        ),
        (
            {"OTEL_AUDIT_TRUSTED_HOPS": "2"},
            {"X-Forwarded-For": "6.6.6.6, 198.51.100.1, 203.0.113.7"},
            ("198.51.100.1", "forwarded", LOOPBACK, "6.6.6.6, 198.51.100.1, 203.0.113.7"),
        ),
        ({}, {"X-Real-IP": "6.6.6.6"}, (LOOPBACK, "untrusted", LOOPBACK, "x-real-ip: 6.6.6.6")),
        ({}, {}, (LOOPBACK, "peer", LOOPBACK, None)),
    ],
)
def test_the_address_comes_with_its_verdict_and_chain(
    kind: str, settings: dict[str, str], headers: Mapping[str, str], expected: Said, tmp_path: Path
) -> None:
    with served(kind, tmp_path, **settings) as (s, sink):
        s.get("/things/1", headers)
        assert addresses(attributes_of(sink, 1)) == expected


def entry_point(folder: Path, value: str) -> str:
    """A PYTHONPATH with an installed distribution that has this resolver."""
    made = folder / "own_identity-1.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: own-identity\nVersion: 1\n")
    (made / "entry_points.txt").write_text(f"[otel_audit_resolver]\nown = {value}\n")
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.mark.parametrize("kind", HTTP_SERVERS)
@pytest.mark.parametrize("how", ["setting", "entry point"])
def test_the_services_own_resolver_names_the_client(kind: str, how: str, tmp_path: Path) -> None:
    own = "own_identity:resolve"
    settings = {"OTEL_AUDIT_RESOLVER": own}
    if how == "entry point":
        settings = {"PYTHONPATH": entry_point(tmp_path / "installed", own)}
    partner = ("partner", None, "basic (unverified)", None, None)
    with served(kind, tmp_path, **settings) as (s, sink):
        sent = {"Authorization": basic("partner", "hunter2")}
        assert answers(
            s,
            sink,
            {
                "tenant": {**sent, "X-Tenant": "acme"},
                "none": sent,
                "broken": {**sent, "X-Tenant": "broken"},
                "broken again": {**sent, "X-Tenant": "broken"},
            },
        ) == {
            "tenant": ("acme", None, "tenant", f"partner@{LOOPBACK}", None),
            "none": partner,
            "broken": partner,
            "broken again": partner,
        }
        assert s.output().count("it raised RuntimeError") == 1
        assert_never_sent(sink, "hunter2", sent["Authorization"])


@pytest.mark.parametrize("kind", HTTP_SERVERS)
def test_the_services_own_directory_names_the_first_caller_too(kind: str, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("the-secret-key")
    with served(kind, tmp_path, OTEL_AUDIT_CLIENTS="own_identity:clients", KEY_FILE=str(key_file)) as (s, sink):
        s.get("/things/1", {"X-API-Key": "the-secret-key"})
        assert named(attributes_of(sink, 1)) == ("web", "Web front end", "api_key", None, None)
        assert_never_sent(sink, "the-secret-key")
