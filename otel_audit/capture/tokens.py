"""Whether a JWT is what it says: verified against the keys in a JWKS file (RFC 7515, 7517, 7519; PyJWT does the work).

PyJWT is imported only when a file of keys is named. Which algorithms a key may be used with is read from the key alone,
never from the token: a token cannot choose `none`, nor have a public key taken for a shared secret.
"""

import base64
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from otel_audit import names
from otel_audit.capture._watch import Watched, read_file
from otel_audit.errors import ConfigError

__all__ = ["Checked", "TokenVerifier", "claims_of"]

_log = logging.getLogger("otel_audit.capture")

_READ: Final = "read keys of JWTs"
_FILE_BYTES_MAX: Final = 1024 * 1024
_TRIES_MAX: Final = 8
_CLOCK_SKEW_S: Final = 30.0
"""How far an issuer's clock may be ahead of ours before its token is not valid yet; an expired one is given nothing."""

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "secp256k1": "ES256K"}
_OPTIONS: Final = dict.fromkeys(("verify_iat", "verify_nbf", "verify_sub", "verify_jti"), False)


class Checked(NamedTuple):
    """What a check found.

    Args:
        refused: why the token is not believed; None: it is verified.
        until: when this will no longer hold, in seconds since 1970; None: as long as the keys stay the same.
    """

    refused: str | None
    until: float | None = None


class _Key(NamedTuple):
    algorithms: tuple[str, ...]
    key: Any  # of the cryptography package


def _part(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def claims_of(token: str) -> dict[str, Any] | None:
    """The claims of a JWT in compact form, not verified; None if it is not one."""
    parts = token.split(".")
    return _part(parts[1]) if len(parts) == 3 else None


def _algorithms(jwk: Mapping[str, Any]) -> tuple[str, ...]:
    """The algorithms that a key may be used with: the one it names if its kind fits that, else those of its kind."""
    kind, curve, named = jwk.get("kty"), jwk.get("crv"), jwk.get("alg")
    fit: tuple[str, ...] = ()
    if kind == "RSA":
        fit = _RSA
    elif kind == "EC":
        fit = (_CURVES.get(str(curve), ""),)
    elif kind == "OKP":
        fit = ("EdDSA",)
    elif kind == "oct":
        fit = ("HS256", "HS384", "HS512")
    return tuple(a for a in fit if a and (named is None or a == named))


def _verifies(jwk: Mapping[str, Any]) -> bool:
    """Whether a key is for signatures, as far as it says (RFC 7517, sections 4.2 and 4.3)."""
    operations = jwk.get("key_ops")
    return jwk.get("use", "sig") == "sig" and (not isinstance(operations, list) or "verify" in operations)


def _keys(body: bytes, path: str) -> dict[str | None, list[_Key]]:
    """The keys of a JWKS by their id; under None all of them. A key that cannot be used is reported and left out."""
    import jwt

    hint = "it is to be a JSON object with a list of keys (JWKS, RFC 7517)"
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise ConfigError(_READ, path, f"not JSON: {e}", hint) from e
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ConfigError(_READ, path, "no list of keys", hint)
    found: dict[str | None, list[_Key]] = {None: []}
    for number, jwk in enumerate(entries, 1):
        if not isinstance(jwk, dict) or not _verifies(jwk):
            continue
        algorithms = _algorithms(jwk)
        try:
            if not algorithms:
                raise ValueError("its kty, crv and alg do not go together")  # noqa: TRY301 - one report for all
            key = _Key(algorithms, jwt.PyJWK.from_dict(jwk, algorithms[0]).key)
        except Exception as e:
            # The exception's own text may quote the key.
            reason = e if type(e) is ValueError else type(e).__name__
            _log.warning("%s %s, key %d: %s; it is left out", _READ, path, number, reason)
            continue
        found[None].append(key)
        if isinstance(jwk.get("kid"), str):
            found.setdefault(jwk["kid"], []).append(key)
    if not found[None]:
        raise ConfigError(_READ, path, "no key that can verify a signature", hint)
    return found


class TokenVerifier(Watched):
    """Verifies JWTs against the keys of a file, which is read again when it changes.

    Args:
        path: the JWKS file; None: nothing can be verified.
        issuer: what `iss` must be; several separated by commas; None: not looked at.
        audience: what `aud` must have; several separated by commas; None: not looked at.

    Never raises. Checks are safe from any thread: `_keys` is replaced as a whole, by the one reader thread.
    """

    def __init__(self, path: str | None = None, *, issuer: str | None = None, audience: str | None = None) -> None:
        hint = f"set {names.ENV_JWKS} to a file this process can read; until then JWTs are not verified"
        super().__init__(path, "keys of JWTs", hint)
        self._issuers = [part.strip() for part in issuer.split(",")] if issuer else None
        self._audiences = [part.strip() for part in audience.split(",")] if audience else None
        self._keys: dict[str | None, list[_Key]] = {}
        if path is not None:
            self._read()

    def __len__(self) -> int:
        return len(self._keys.get(None, ()))

    def _take(self, source: str) -> bool:
        try:
            import cryptography  # noqa: F401 - without it PyJWT knows shared secrets only
            import jwt  # noqa: F401
        except ImportError as e:
            hint = "pip install 'otel-audit[jwt]'; until then JWTs are not verified"
            raise ConfigError("verify JWTs against", source, f"{e.name} is not installed", hint) from e
        self._keys = _keys(read_file(source, _READ, _FILE_BYTES_MAX), source)
        return True

    def check(self, token: str) -> Checked | None:
        """Whether a JWT in compact form is verified, or why not; None when there are no keys to say it."""
        keys = self._keys
        if not keys:
            return None
        header = _part(token.partition(".")[0])
        if header is None:
            return Checked("invalid")
        kid, algorithm = header.get("kid"), header.get("alg")
        if kid is not None and not isinstance(kid, str):
            return Checked("invalid")
        candidates = keys.get(kid) if len(keys) > 1 else keys[None]  # where no key has an id, each may be meant
        if candidates is None:
            return Checked("unknown key")
        fitting = [key for key in candidates if algorithm in key.algorithms][:_TRIES_MAX]
        if not fitting:
            return Checked("wrong algorithm")
        for key in fitting:
            checked = self._check(token, key)
            if checked.refused != "wrong signature":
                return checked
        return Checked("wrong signature")

    def _check(self, token: str, key: _Key) -> Checked:
        import jwt

        options: Any = {**_OPTIONS, "verify_aud": self._audiences is not None, "verify_iss": self._issuers is not None}
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=list(key.algorithms),
                audience=self._audiences,
                issuer=self._issuers,
                options=options,
            )
            return _in_time(claims)
        except jwt.ExpiredSignatureError:
            return Checked("expired")
        except jwt.InvalidSignatureError:
            return Checked("wrong signature")
        except jwt.InvalidAudienceError:
            return Checked("wrong audience")
        except jwt.InvalidIssuerError:
            return Checked("wrong issuer")
        except jwt.InvalidAlgorithmError:
            return Checked("wrong algorithm")
        except jwt.MissingRequiredClaimError as e:
            return Checked("wrong audience" if e.claim == "aud" else "wrong issuer")
        except Exception:  # of PyJWT, or of what it parses; whatever it is, the token is not verified
            return Checked("invalid")


def _in_time(claims: Mapping[str, Any]) -> Checked:
    """Until when a token whose signature is right can be believed; from when, if that is to come."""
    start, end = claims.get("nbf"), claims.get("exp")
    if start is not None and int(start) > time.time() + _CLOCK_SKEW_S:
        return Checked("not yet valid", int(start) - _CLOCK_SKEW_S)
    return Checked(None, None if end is None else int(end))
