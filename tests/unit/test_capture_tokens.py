"""Only a token whose signature, time, issuer and audience are right is verified; no token chooses how it is checked."""

import base64
import hashlib
import hmac
import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from otel_audit.capture.tokens import Checked, TokenVerifier

RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
SECRET = "a shared secret that is long enough for SHA-256"
ISSUER, AUDIENCE = "https://issuer.example", "crm"
VERIFIED = Checked(None)


def public(key: Any, **extra: object) -> dict[str, Any]:
    algorithm: Any = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    of = next((a for kind, a in algorithm.items() if isinstance(key, kind)), OKPAlgorithm)
    return {**json.loads(of.to_jwk(key.public_key())), **extra}


def jwks(*keys: Mapping[str, Any]) -> str:
    return json.dumps({"keys": list(keys)})


KEYS = jwks(
    public(RSA, kid="rsa", use="sig", alg="RS256"),
    public(EC, kid="ec", key_ops=["verify"]),
    public(ED, kid="ed"),
    public(OTHER_RSA, kid="encrypts", use="enc"),
    public(OTHER_RSA, kid="wraps", key_ops=["wrapKey"]),
    {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="), "kid": "shared"},
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    path.write_text(KEYS)
    return str(path)


def sign(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "rsa", **claims: Any) -> str:
    said = {"azp": "web", "sub": "alice", "exp": int(time.time()) + 3600, **claims}
    kept = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(kept, key, algorithm, headers={"kid": kid} if kid else None)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def refused(checked: Checked | None) -> str | None:
    assert checked is not None
    return checked.refused


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA, "RS256", "rsa"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed"), (SECRET, "HS256", "shared"), (EC, "ES256", None)],
)
def test_a_token_signed_with_a_key_of_the_file_is_verified_until_it_expires(
    keys: str, key: Any, algorithm: str, kid: str | None
) -> None:
    until = int(time.time()) + 60
    assert TokenVerifier(keys).check(sign(key, algorithm, kid, exp=until)) == Checked(None, until)
    assert TokenVerifier(keys).check(sign(key, algorithm, kid, exp=None)) == VERIFIED


def flipped(token: str, which: int) -> str:
    parts = token.split(".")
    middle = len(parts[which]) // 2
    parts[which] = parts[which][:middle] + ("A" if parts[which][middle] != "A" else "B") + parts[which][middle + 1 :]
    return ".".join(parts)


def with_claims(token: str, **claims: object) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{part(claims)}.{signature}"


def test_a_tampered_token_is_refused(keys: str) -> None:
    verifier = TokenVerifier(keys)
    good = sign()
    assert refused(verifier.check(good)) is None
    assert refused(verifier.check(flipped(good, 2))) == "wrong signature"
    assert refused(verifier.check(with_claims(good, azp="admin"))) == "wrong signature"
    assert refused(verifier.check(sign(OTHER_RSA))) == "wrong signature"
    assert refused(verifier.check(good.rpartition(".")[0] + ".")) == "wrong signature"


@pytest.mark.parametrize("kid", ["rsa", None])
@pytest.mark.parametrize("alg", ["none", "None", "", None, 7, "HS256", "RS512", "ES256", "XX99"])
def test_a_token_does_not_choose_its_algorithm(keys: str, alg: object, kid: str | None) -> None:
    signature = sign().rpartition(".")[2]
    for end in (signature, ""):
        header = {"alg": alg, "typ": "JWT"} | ({"kid": kid} if kid else {})
        token = f"{part(header)}.{part({'azp': 'admin'})}.{end}"
        assert refused(TokenVerifier(keys).check(token)) in ("wrong algorithm", "wrong signature")


@pytest.mark.parametrize("kid", ["rsa", None])
def test_a_public_key_is_no_shared_secret(keys: str, kid: str | None) -> None:
    """Algorithm confusion: HMAC with the public key, in each form an attacker has it."""
    public_key = RSA.public_key()
    for secret in (
        public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(public(RSA)).encode(),
    ):
        head = f"{part({'alg': 'HS256'} | ({'kid': kid} if kid else {}))}.{part({'azp': 'admin'})}"
        mark = base64.urlsafe_b64encode(hmac.new(secret, head.encode(), hashlib.sha256).digest()).decode().rstrip("=")
        assert refused(TokenVerifier(keys).check(f"{head}.{mark}")) in ("wrong algorithm", "wrong signature")


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (sign(exp=int(time.time()) - 1), "expired"),
        (sign(exp=int(time.time())), "expired"),
        (sign(nbf=int(time.time()) + 3600), "not yet valid"),
        (sign(kid="gone"), "unknown key"),
        (sign(OTHER_RSA, kid="encrypts"), "unknown key"),
        (sign(OTHER_RSA, kid="wraps"), "unknown key"),
        (sign(exp="tomorrow"), "invalid"),
        (sign(exp=float("inf")), "invalid"),
        (sign(nbf="tomorrow"), "invalid"),
        ("a.b.c", "invalid"),
        (f"{part([1])}.{part({})}.x", "invalid"),
        (f"{part({'alg': 'RS256', 'kid': ['rsa']})}.{part({})}.x", "invalid"),
        (f"{part({'alg': 'RS256', 'kid': 'rsa', 'crit': ['b64'], 'b64': False})}.{part({})}.x", "invalid"),
    ],
)
def test_each_refusal_has_its_reason(keys: str, token: str, reason: str) -> None:
    assert refused(TokenVerifier(keys).check(token)) == reason


def test_an_issuers_clock_may_be_a_little_ahead(keys: str) -> None:
    ahead = int(time.time()) + 10
    assert refused(TokenVerifier(keys).check(sign(iat=ahead, nbf=ahead))) is None


def test_a_token_that_is_not_yet_valid_is_looked_at_again_when_it_is(keys: str) -> None:
    start = int(time.time()) + 3600
    checked = TokenVerifier(keys).check(sign(nbf=start, exp=start + 60))
    assert checked == Checked("not yet valid", start - 30)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": ISSUER, "aud": AUDIENCE}, None),
        ({"iss": ISSUER, "aud": ["other", AUDIENCE]}, None),
        ({"iss": "https://second.example", "aud": AUDIENCE}, None),
        ({"iss": ISSUER, "aud": "other"}, "wrong audience"),
        ({"iss": ISSUER, "aud": None}, "wrong audience"),
        ({"iss": ISSUER, "aud": {"crm": 1}}, "wrong audience"),
        ({"iss": "https://other.example", "aud": AUDIENCE}, "wrong issuer"),
        ({"iss": None, "aud": AUDIENCE}, "wrong issuer"),
    ],
)
def test_issuer_and_audience_must_be_as_set(keys: str, claims: dict[str, Any], reason: str | None) -> None:
    verifier = TokenVerifier(keys, issuer=f"{ISSUER}, https://second.example", audience=AUDIENCE)
    assert refused(verifier.check(sign(**claims))) == reason
    assert refused(TokenVerifier(keys).check(sign(**claims))) is None


def test_where_no_key_has_an_id_each_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(jwks(public(OTHER_RSA), public(RSA)))
    assert refused(TokenVerifier(str(path)).check(sign(kid="any"))) is None
    assert refused(TokenVerifier(str(path)).check(sign(kid=None))) is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "not JSON"),
        ("[]", "no list of keys"),
        ('{"keys": {}}', "no list of keys"),
        ('{"keys": []}', "no key that can verify"),
        (jwks(public(RSA, use="enc")), "no key that can verify"),
        (jwks({"kty": "RSA", "n": "!", "e": "AQAB"}), "key 1: "),
        (jwks(public(RSA, alg="HS256")), "key 1: its kty, crv and alg do not go together"),
        (jwks({"kty": "oct", "k": "c2VjcmV0", "alg": "RS256"}), "key 1: its kty, crv and alg do not go together"),
        (jwks({"kty": "EC", "crv": "P-999"}), "key 1: its kty, crv and alg do not go together"),
    ],
)
def test_a_bad_file_is_reported_and_nothing_is_verified(
    tmp_path: Path, body: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(body)
    assert TokenVerifier(str(path)).check(sign()) is None
    assert says in caplog.text
    assert str(path) in caplog.text
    assert "c2VjcmV0" not in caplog.text, "no key is logged"


def test_a_missing_file_is_reported_with_its_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert TokenVerifier(str(tmp_path / "none.json")).check(sign()) is None
    assert "OTEL_AUDIT_JWKS" in caplog.text


@pytest.mark.parametrize("missing", ["jwt", "cryptography"])
def test_without_pyjwt_the_remedy_is_logged(
    keys: str, missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert TokenVerifier(keys).check("a.b.c") is None
    assert "pip install 'otel-audit[jwt]'" in caplog.text


def look_until(verifier: TokenVerifier, token: str, reason: str | None) -> None:
    deadline = time.monotonic() + 30
    while refused(verifier.check(token)) != reason:
        assert time.monotonic() < deadline
        verifier._look_after_s = 0
        verifier.refresh()
        threading.Event().wait(0.005)


def test_changed_keys_count_and_a_broken_file_keeps_the_old_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / "jwks.json"
    path.write_text(jwks(public(RSA, kid="rsa")))
    verifier = TokenVerifier(str(path))
    new = sign(EC, "ES256", "ec")
    assert refused(verifier.check(new)) == "unknown key"
    fresh = tmp_path / "fresh.json"
    fresh.write_text(jwks(public(EC, kid="ec")))
    fresh.replace(path)
    look_until(verifier, new, None)
    assert verifier.version == 2
    assert refused(verifier.check(sign())) == "unknown key"
    path.write_text("broken")
    deadline = time.monotonic() + 30
    while "not JSON" not in caplog.text:
        assert time.monotonic() < deadline
        verifier._look_after_s = 0
        verifier.refresh()
        threading.Event().wait(0.005)
    assert refused(verifier.check(new)) is None
