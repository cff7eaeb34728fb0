"""Who is calling: from the headers and the connection of a request to the `audit.client.*` attributes of its span.

Every server instrumentation hands the incoming request (the carrier) to the global propagator before it starts the span,
so a propagator sees credentials and addresses without a line in the application. What it finds travels in the context to
the span processor. Nothing here verifies a credential, except that an API key found in the client directory is the
client's: `audit.client.auth` says which kind named the client, followed by ` (unverified)` where that was taken on trust.
The span's status code says what the application itself thought of it. No secret is ever put on a span.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from opentelemetry.context import Context, set_value
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

from otel_audit import names
from otel_audit.capture.address import TrustedProxies
from otel_audit.capture.call import CALL_KEY, Call
from otel_audit.capture.carriers import Request, RequestReader
from otel_audit.capture.clients import ClientDirectory

__all__ = ["IdentityPropagator", "IdentityReader"]

_FORWARDED_FOR: Final = "x-forwarded-for"
_CREDENTIAL_CHARS_MAX: Final = 16_384
_ID_CHARS_MAX: Final = 256
_CACHE_MAX: Final = 2048
_UNVERIFIED: Final = " (unverified)"
_MALFORMED: Final = " (malformed)"
_KEY_SCHEMES: Final = frozenset({"apikey", "api-key", "token", "key"})
_CLIENT_CLAIMS: Final = ("azp", "client_id", "cid", "appid")
"""Claims that name the client: OpenID Connect, RFC 9068, and what two large issuers use instead."""


class Credential(NamedTuple):
    """What a request's credentials say."""

    client_id: str | None = None
    client_name: str | None = None
    auth: str = "none"
    user_id: str | None = None


# --- credentials --------------------------------------------------------------------------------------------------------
def _clean(value: object) -> str | None:
    """An id or name as bounded text that any exporter can encode; None if there is nothing in it."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value)[:_ID_CHARS_MAX].strip()
    return (text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()) or None


def _jwt_claims(token: str) -> dict[str, Any] | None:
    """The claims of a JWT in compact form (RFC 7519), not verified; None if it is not one."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


class IdentityReader:
    """Reads who is calling from requests; safe from any thread, never raises.

    Args:
        clients: the client directory.
        proxies: the trusted proxies.
        api_key_header: header that carries API keys, lower case.
        hash_key: secret of the keyed hash that stands for an unknown key.
    """

    def __init__(
        self,
        clients: ClientDirectory,
        proxies: TrustedProxies,
        *,
        api_key_header: str = "x-api-key",
        hash_key: bytes = b"",
    ) -> None:
        self._clients = clients
        self._proxies = proxies
        self._api_key_header = api_key_header
        self._requests = RequestReader(("authorization", api_key_header, _FORWARDED_FOR))
        self._hash_key = hash_key or b"otel-audit unknown key"
        # Digest of the credentials -> what they say; bounded, and emptied when full or when the directory changes.
        # Any thread may write; two threads that do so at once write the same.
        self._cache: dict[bytes, Credential] = {}
        self._cache_version = clients.version

    def attributes(self, carrier: object) -> dict[str, str] | None:
        """The attributes that name the caller; None when `carrier` is no request this reader knows."""
        request = self._requests.read(carrier)
        if request is None:
            return None
        self._clients.refresh()
        who = self.credential(request)
        address = self._proxies.verdict(request.peer, request.headers.get(_FORWARDED_FOR))
        said = (
            (names.CLIENT_AUTH, who.auth),
            (names.CLIENT_ID, who.client_id),
            (names.CLIENT_NAME, who.client_name),
            (names.USER_ID[0], who.user_id),
            (names.CLIENT_IP, address.client_ip),
            (names.CLIENT_IP_SOURCE, address.source),
            (names.PEER_IP, address.peer_ip),
        )
        return {name: value for name, value in said if value}

    def credential(self, request: Request) -> Credential:
        """What the credentials of `request` say; an API key names the client before any other."""
        key, authorization = request.headers.get(self._api_key_header), request.headers.get("authorization")
        if not key and not authorization:
            return Credential()
        if len(key or "") + len(authorization or "") > _CREDENTIAL_CHARS_MAX:
            return Credential(auth="oversize" + _MALFORMED)
        secret = f"{key or ''}\n{authorization or ''}".encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(secret).digest()
        if self._cache_version != self._clients.version or len(self._cache) >= _CACHE_MAX:
            self._cache_version = self._clients.version
            self._cache = {}
        found = self._cache.get(digest)
        if found is None:
            found = self._cache[digest] = self._read(key, authorization)
        return found

    def _read(self, key: str | None, authorization: str | None) -> Credential:
        named = self._from_authorization(authorization) if authorization else Credential()
        if key:
            by_key = self._from_key(key.strip(), "api_key")
            return by_key._replace(user_id=named.user_id)
        return named

    def _from_authorization(self, header: str) -> Credential:
        scheme, _, value = header.strip().partition(" ")
        scheme, value = scheme.lower(), value.strip()
        if scheme == "bearer" and value:
            return self._from_bearer(value)
        if scheme == "basic":
            return self._from_basic(value)
        if scheme in _KEY_SCHEMES and value:
            return self._from_key(value, "api_key")
        return Credential(auth="other" + (_UNVERIFIED if value else _MALFORMED))

    def _from_key(self, key: str, kind: str) -> Credential:
        """The client whose key this is; else a name made of the key's hash, so that one unknown key can be followed."""
        raw = key.encode("latin-1", "backslashreplace")
        client = self._clients.by_key(raw)
        if client is not None:
            return Credential(_clean(client.id), _clean(client.name), kind)
        mark = hmac.new(self._hash_key, raw, hashlib.sha256).hexdigest()[:16]
        return Credential(f"key:{mark}", None, kind + _UNVERIFIED)

    def _from_basic(self, value: str) -> Credential:
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            return Credential(auth="basic" + _MALFORMED)
        user, separator, _ = raw.partition(b":")
        name = _clean(user.decode("utf-8", "backslashreplace"))
        if not separator or not name:
            return Credential(auth="basic" + _MALFORMED)
        return self._named(name, "basic" + _UNVERIFIED)

    def _from_bearer(self, token: str) -> Credential:
        claims = _jwt_claims(token)
        if claims is None:
            looks_like_jwt = token.startswith("eyJ") and token.count(".") == 2
            return Credential(auth="jwt" + _MALFORMED) if looks_like_jwt else self._from_key(token, "bearer")
        client_id = next((c for c in map(_clean, map(claims.get, _CLIENT_CLAIMS)) if c), None)
        subject = _clean(claims.get("sub"))
        if subject is not None and client_id is not None and self._is_client(subject, client_id, claims):
            subject = None
        if client_id is None:
            return Credential(auth="jwt" + _UNVERIFIED, user_id=subject)
        return self._named(client_id, "jwt" + _UNVERIFIED)._replace(user_id=subject)

    @staticmethod
    def _is_client(subject: str, client_id: str, claims: Mapping[str, Any]) -> bool:
        """Whether the token's subject is the client itself and no person (client credentials grant)."""
        return subject in (client_id, f"{client_id}@clients") or claims.get("gty") == "client-credentials"

    def _named(self, client_id: str, auth: str) -> Credential:
        client = self._clients.by_id(client_id)
        return Credential(client_id, _clean(client.name) if client else None, auth)


class IdentityPropagator(TextMapPropagator):
    """Puts a `Call` with the caller's attributes into the context of an incoming request; writes nothing to outgoing ones.

    Args:
        reader: reads who is calling.
        on_request: called before each request is read; must not raise.
    """

    def __init__(self, reader: IdentityReader, on_request: Callable[[], None] | None = None) -> None:
        self._reader = reader
        self._on_request = on_request

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,  # noqa: ARG002 - the carrier itself says more than a getter shows
    ) -> Context:
        """`context` with the `Call`; unchanged when they cannot be read."""
        context = Context() if context is None else context
        try:
            if self._on_request is not None:
                self._on_request()
            attributes = self._reader.attributes(carrier)
        except Exception:
            # A malformed request must not fail because it is audited; its record then names no client.
            return context
        return context if attributes is None else set_value(CALL_KEY, Call(attributes, carrier), context)

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Nothing: identity is not passed on."""

    @property
    def fields(self) -> set[str]:
        """None: no header is written."""
        return set()
