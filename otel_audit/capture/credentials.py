"""What the credentials of a request say: API key, bearer token, Basic, client certificate, a header of the user's choice.

`auth` says which kind named the client. Followed by nothing it was verified: by our own check of a signature or a key, by
the TLS handshake, or by a trusted proxy that the operator declared to have done so. Else ` (unverified)`: taken on trust;
a reason in brackets: checked and found wanting, and then the client it names is only claimed; ` (malformed)`: no sense.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from otel_audit.capture.certificates import XFCC, Certificate, from_header, from_subject
from otel_audit.capture.clients import ClientDirectory
from otel_audit.capture.tokens import TokenVerifier, claims_of

__all__ = ["NOBODY", "Credential", "Credentials", "clean"]

_ID_CHARS_MAX: Final = 256
_UNVERIFIED: Final = " (unverified)"
_MALFORMED: Final = " (malformed)"
_KEY_SCHEMES: Final = frozenset({"apikey", "api-key", "token", "key"})
_CLIENT_CLAIMS: Final = ("azp", "client_id", "cid", "appid")
"""Claims that name the client: OpenID Connect, RFC 9068, and what two large issuers use instead."""
_VERIFY_HEADERS: Final = ("ssl-client-verify", "x-ssl-client-verify")
"""Where nginx, and ingress controllers made of it, say what became of the certificate whose subject they pass on."""

# How much a credential is worth: the first of the best names the client.
_VERIFIED: Final = 0
_REFUSED: Final = 1
_NAMED: Final = 2
_NAMELESS: Final = 3
_ABSENT: Final = 4


class Credential(NamedTuple):
    """What a request's credentials say.

    Args:
        client_id, client_name: the client, as far as it is known.
        auth: which kind of credential named it, and whether that was verified.
        user_id: the person on whose behalf.
        claimed_id: the client that a credential names which was checked and found wanting.
        rank: how much the credential is worth; less is more.
        until: when this will no longer hold, in seconds since 1970; None: it lasts.
    """

    client_id: str | None = None
    client_name: str | None = None
    auth: str = "none"
    user_id: str | None = None
    claimed_id: str | None = None
    rank: int = _ABSENT
    until: float | None = None


NOBODY: Final = Credential()


def clean(value: object) -> str | None:
    """An id or name as bounded text that any exporter can encode; None if there is nothing in it."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)[:_ID_CHARS_MAX].strip()
    return (text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()) or None


class Credentials:
    """Reads credentials; safe from any thread.

    Args:
        clients: the client directory.
        tokens: verifies JWTs, if it has keys.
        api_key_header: header that carries API keys, lower case.
        client_header: header that names the client, lower case; None: there is none.
        certificate_header: header in which trusted proxies pass on the client's certificate, lower case. None: nobody said
            so, and `X-Forwarded-Client-Cert` from a trusted proxy is read but not taken for verified: a proxy that knows
            nothing of the header passes on what the caller wrote.
        hash_key: secret of the keyed hash that stands for an unknown key.
    """

    def __init__(
        self,
        clients: ClientDirectory,
        tokens: TokenVerifier,
        *,
        api_key_header: str,
        client_header: str | None,
        certificate_header: str | None,
        hash_key: bytes,
    ) -> None:
        self._clients = clients
        self._tokens = tokens
        self._api_key_header = api_key_header
        self._client_header = client_header
        self._certificate_header = certificate_header or XFCC
        self._certificates_declared = certificate_header is not None
        self._hash_key = hash_key or b"otel-audit unknown key"
        vouched = [self._certificate_header]
        if self._certificate_header != XFCC:
            vouched += _VERIFY_HEADERS
        if client_header:
            vouched.append(client_header)
        self.vouched_headers = tuple(vouched)
        """Headers that count for what they say only when a trusted proxy sent them."""
        self.headers = tuple(dict.fromkeys((api_key_header, "authorization", *vouched)))
        """All headers that hold credentials."""

    def read(self, headers: Mapping[str, str], certificate: str | None, *, trusted: bool) -> Credential:
        """What the credentials of a request say.

        Args:
            headers: those of `headers` that the request has.
            certificate: subject of the certificate that the peer proved to own.
            trusted: whether the peer is a trusted proxy.
        """
        key, authorization = headers.get(self._api_key_header, "").strip(), headers.get("authorization", "").strip()
        found = [
            self._from_key(key, "api_key") if key else NOBODY,
            self._from_authorization(authorization) if authorization else NOBODY,
            self._from_forwarded_certificate(headers) if trusted else NOBODY,
            self._from_client_header(headers, trusted=trusted),
            self._from_certificate(from_subject(certificate), "mtls", _VERIFIED) if certificate else NOBODY,
        ]
        best = min(found, key=lambda c: c.rank)
        if best.rank == _ABSENT:
            return NOBODY
        return best._replace(
            user_id=best.user_id or found[1].user_id,
            claimed_id=next((c.claimed_id for c in found if c.claimed_id), None),
            until=min((c.until for c in found if c.until is not None), default=None),
        )

    # --- Authorization and API keys ---------------------------------------------------------------------------------------
    def _from_authorization(self, header: str) -> Credential:
        scheme, _, value = header.partition(" ")
        scheme, value = scheme.lower(), value.strip()
        if scheme == "bearer" and value:
            return self._from_bearer(value)
        if scheme == "basic":
            return self._from_basic(value)
        if scheme in _KEY_SCHEMES and value:
            return self._from_key(value, "api_key")
        return Credential(auth="other" + (_UNVERIFIED if value else _MALFORMED), rank=_NAMELESS)

    def _from_key(self, key: str, kind: str) -> Credential:
        """The client whose key this is; else a name made of the key's hash, so that one unknown key can be followed."""
        raw = key.encode("latin-1", "backslashreplace")
        client = self._clients.by_key(raw)
        if client is not None:
            return Credential(clean(client.id), clean(client.name), kind, rank=_VERIFIED)
        mark = hmac.new(self._hash_key, raw, hashlib.sha256).hexdigest()[:16]
        return Credential(f"key:{mark}", None, kind + _UNVERIFIED, rank=_NAMED)

    def _from_basic(self, value: str) -> Credential:
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            return Credential(auth="basic" + _MALFORMED, rank=_NAMELESS)
        user, separator, _ = raw.partition(b":")
        name = clean(user.decode("utf-8", "backslashreplace"))
        if not separator or not name:
            return Credential(auth="basic" + _MALFORMED, rank=_NAMELESS)
        return self._named(name, "basic" + _UNVERIFIED, _NAMED)

    def _from_bearer(self, token: str) -> Credential:
        claims = claims_of(token)
        if claims is None:
            looks_like_jwt = token.startswith("eyJ") and token.count(".") == 2
            if looks_like_jwt:
                return Credential(auth="jwt" + _MALFORMED, rank=_NAMELESS)
            return self._from_key(token, "bearer")
        client_id = next((c for c in map(clean, map(claims.get, _CLIENT_CLAIMS)) if c), None)
        subject = clean(claims.get("sub"))
        if subject is not None and client_id is not None and self._is_client(subject, client_id, claims):
            subject = None
        checked = self._tokens.check(token)
        if checked is not None and checked.refused is not None:
            # Not a word of it is believed: neither the client nor the person it names.
            auth = f"jwt ({checked.refused})"
            return Credential(auth=auth, claimed_id=client_id or subject, rank=_REFUSED, until=checked.until)
        auth, rank = ("jwt" + _UNVERIFIED, _NAMED) if checked is None else ("jwt", _VERIFIED)
        if client_id is None:
            named = Credential(auth=auth, rank=_NAMELESS if checked is None else rank)
        else:
            named = self._named(client_id, auth, rank)
        return named._replace(user_id=subject, until=None if checked is None else checked.until)

    @staticmethod
    def _is_client(subject: str, client_id: str, claims: Mapping[str, Any]) -> bool:
        """Whether the token's subject is the client itself and no person (client credentials grant)."""
        return subject in (client_id, f"{client_id}@clients") or claims.get("gty") == "client-credentials"

    # --- certificates and the client header -------------------------------------------------------------------------------
    def _from_forwarded_certificate(self, headers: Mapping[str, str]) -> Credential:
        value = headers.get(self._certificate_header, "").strip()
        if not value:
            return NOBODY
        found = from_header(self._certificate_header, value)
        if found is None:
            return Credential(auth="mtls" + _MALFORMED, rank=_NAMELESS)
        if not self._certificates_declared:
            return self._from_certificate(found, "mtls" + _UNVERIFIED, _NAMED)
        named = self._from_certificate(found, "mtls", _VERIFIED)
        if self._certificate_header != XFCC:
            verdicts = [headers[name] for name in _VERIFY_HEADERS if name in headers]
            if any(verdict.strip().upper() != "SUCCESS" for verdict in verdicts):
                return Credential(auth="mtls (invalid)", claimed_id=named.client_id, rank=_REFUSED)
        return named

    def _from_certificate(self, certificate: Certificate, auth: str, rank: int) -> Credential:
        """The first of the certificate's names that the directory knows, else the first."""
        known = next((c for c in map(self._clients.by_id, certificate.names) if c is not None), None)
        if known is not None:
            return Credential(clean(known.id), clean(known.name), auth, rank=rank)
        client_id = next((name for name in map(clean, certificate.names) if name), None)
        if client_id is None and certificate.digest:
            client_id = clean(f"cert:{certificate.digest[:16].lower()}")
        if client_id is None:
            return Credential(auth="mtls" + _MALFORMED, rank=_NAMELESS)
        return Credential(client_id, None, auth, rank=rank)

    def _from_client_header(self, headers: Mapping[str, str], *, trusted: bool) -> Credential:
        value = headers.get(self._client_header, "").strip() if self._client_header else ""
        if not value:
            return NOBODY
        client_id = clean(value)
        if client_id is None or "," in value:  # several headers: nobody knows which of them the proxy wrote
            return Credential(auth="header" + _MALFORMED, rank=_NAMELESS)
        return self._named(client_id, *(("header", _VERIFIED) if trusted else ("header" + _UNVERIFIED, _NAMED)))

    def _named(self, client_id: str, auth: str, rank: int) -> Credential:
        client = self._clients.by_id(client_id)
        return Credential(client_id, clean(client.name) if client else None, auth, rank=rank)
