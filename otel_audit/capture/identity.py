"""Who is calling: from the headers and the connection of a request to the `audit.client.*` attributes of its span.

Every server instrumentation hands the incoming request (the carrier) to the global propagator before it starts the span,
so a propagator sees credentials and addresses without a line in the application. What it finds travels in the context to
the span processor. No secret is ever put on a span, or kept: what was found is remembered under a digest.
"""

import hashlib
import threading
import time
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
from otel_audit.capture._cache import Cache
from otel_audit.capture.address import TrustedProxies
from otel_audit.capture.call import CALL_KEY, Call
from otel_audit.capture.carriers import Request, RequestReader
from otel_audit.capture.clients import ClientDirectory
from otel_audit.capture.credentials import NOBODY, Credential, Credentials, clean
from otel_audit.capture.resolver import Caller, Resolver
from otel_audit.capture.tokens import TokenVerifier

__all__ = ["IdentityPropagator", "IdentityReader"]

_CREDENTIAL_CHARS_MAX: Final = 16_384
_CACHE_MAX: Final = 4096


class _Known(NamedTuple):
    """Credentials that were read, and what is said of them on the span."""

    credential: Credential
    said: Mapping[str, str]


def _known(credential: Credential) -> _Known:
    said = (
        (names.CLIENT_AUTH, credential.auth),
        (names.CLIENT_ID, credential.client_id),
        (names.CLIENT_NAME, credential.client_name),
        (names.USER_ID[0], credential.user_id),
        (names.CLIENT_CLAIMED, credential.claimed_id),
    )
    return _Known(credential, {name: value for name, value in said if value})


_NOBODY: Final = _known(NOBODY)
_OVERSIZE: Final = _known(Credential(auth="oversize (malformed)"))


class IdentityReader:
    """Reads who is calling from requests; safe from any thread.

    Args:
        clients: the client directory.
        proxies: the trusted proxies.
        tokens: verifies JWTs; None: nothing does.
        api_key_header: header that carries API keys, lower case.
        client_header: header that names the client, lower case; None: there is none.
        certificate_header: header in which trusted proxies pass on the client's certificate, lower case; None: nobody
            said so.
        hash_key: secret of the keyed hash that stands for an unknown key.
        load_resolver: gives the user's own resolver, if there is one; called once, when the application is imported.
    """

    def __init__(
        self,
        clients: ClientDirectory,
        proxies: TrustedProxies,
        *,
        tokens: TokenVerifier | None = None,
        api_key_header: str = "x-api-key",
        client_header: str | None = None,
        certificate_header: str | None = None,
        hash_key: bytes = b"",
        load_resolver: Callable[[], Resolver | None] | None = None,
    ) -> None:
        self._clients = clients
        self._proxies = proxies
        self._tokens = TokenVerifier() if tokens is None else tokens
        self._sources = tuple(source for source in (clients, self._tokens) if not source.empty)
        self._credentials = Credentials(
            clients,
            self._tokens,
            api_key_header=api_key_header,
            client_header=client_header,
            certificate_header=certificate_header,
            hash_key=hash_key,
        )
        self._credential_headers = self._credentials.headers
        self._credential_names = frozenset(self._credential_headers)
        self._vouched_names = frozenset(self._credentials.vouched_headers)
        self._requests = RequestReader((*self._credential_headers, *proxies.headers))
        self._load_resolver = load_resolver
        self._resolver: Resolver | None = None
        self._preparing = threading.RLock()  # held by the one thread that prepares
        self._prepared = False
        # Digest of the credentials and of what they are judged by -> what they say.
        self._cache: Cache[bytes, _Known] = Cache(_CACHE_MAX)

    def prepare(self) -> None:
        """Load what is the application's own: the resolver, a callable directory. The application must be imported."""
        with self._preparing:
            if self._prepared:
                return
            try:
                self._clients.prepare()
                self._resolver = self._load_resolver() if self._load_resolver is not None else None
                if self._resolver is not None and self._resolver.headers:
                    wanted = (*self._credential_headers, *self._proxies.headers, *self._resolver.headers)
                    self._requests = RequestReader(wanted)
            finally:
                self._prepared = True

    def after_fork(self) -> None:
        """Forget threads of the parent process, which this process does not have."""
        self._preparing = threading.RLock()
        for source in self._sources:
            source.after_fork()

    def attributes(self, carrier: object) -> dict[str, str] | None:
        """The attributes that name the caller; None when `carrier` is no request this reader knows."""
        if not self._prepared:
            self.prepare()
        request = self._requests.read(carrier)
        if request is None:
            return None
        for source in self._sources:
            source.refresh()
        address = self._proxies.attributes(request.peer, request.headers)
        known = self._read(request)
        said = known.said if self._resolver is None else self._resolved(self._resolver, request, known, address)
        return {**said, **address}

    def credential(self, request: Request) -> Credential:
        """What the credentials of `request` say, without the resolver."""
        return self._read(request).credential

    def _read(self, request: Request) -> _Known:
        headers, certificate = request.headers, request.certificate
        if certificate is None and self._credential_names.isdisjoint(headers):
            return _NOBODY
        trusted = not self._vouched_names.isdisjoint(headers) and self._proxies.trusts_peer(request.peer)
        parts = [headers.get(name, "") for name in self._credential_headers]
        if certificate is not None:
            parts.append(certificate)
        secret = "\n".join(parts)
        if len(secret) > _CREDENTIAL_CHARS_MAX and any(len(part) > _CREDENTIAL_CHARS_MAX for part in parts):
            return self._read_what_fits(request)
        # With the version before anything is read: what an older directory said is never found again.
        context = b"\n%d %d" % (trusted, self._clients.version + self._tokens.version)
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass") + context).digest()
        found = self._cache.get(digest)
        if found is None or (found.credential.until is not None and time.time() >= found.credential.until):
            found = _known(self._credentials.read(headers, certificate, trusted=trusted))
            self._cache.put(digest, found)
        return found

    def _read_what_fits(self, request: Request) -> _Known:
        """What the credentials say that are not too long: nobody hides by sending a long one beside its own."""
        fits = {name: value for name, value in request.headers.items() if len(value) <= _CREDENTIAL_CHARS_MAX}
        certificate = request.certificate
        if certificate is not None and len(certificate) > _CREDENTIAL_CHARS_MAX:
            certificate = None
        known = self._read(Request(request.peer, fits, certificate))
        return _OVERSIZE if known is _NOBODY else known

    def _resolved(
        self, resolver: Resolver, request: Request, known: _Known, address: Mapping[str, str]
    ) -> Mapping[str, str]:
        """What the resolver says, and for the rest what was found."""
        who = known.credential
        caller = Caller(
            headers=request.headers,
            certificate=request.certificate,
            client_ip=address.get(names.CLIENT_IP),
            peer_ip=address.get(names.PEER_IP),
            client_id=who.client_id,
            client_name=who.client_name,
            client_auth=who.auth,
            user_id=who.user_id,
        )
        answer = resolver.resolve(caller)
        return known.said if answer is None else _known(self._merged(who, answer)).said

    def _merged(self, who: Credential, answer: Mapping[str, Any]) -> Credential:
        user_id = clean(answer["user"]) if "user" in answer else who.user_id
        if "id" not in answer:
            name = clean(answer["name"]) if "name" in answer else who.client_name
            return who._replace(client_name=name, auth=clean(answer.get("auth")) or who.auth, user_id=user_id)
        client_id = clean(answer["id"])
        name = clean(answer.get("name"))
        if name is None and client_id is not None:
            known = self._clients.by_id(client_id)
            name = clean(known.name) if known is not None else None
        auth = clean(answer.get("auth")) or "resolver"
        return who._replace(client_id=client_id, client_name=name, auth=auth, user_id=user_id)


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
