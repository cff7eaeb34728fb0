"""What identity needs of an incoming request, whatever framework it comes through.

A server instrumentation hands its request to the propagator as it is (the carrier): an ASGI scope, a WSGI environ, a
framework's own request object, a mapping of headers. One function here for each shape; only the headers that somebody
asked for are read.
"""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

__all__ = ["CURRENT_SCOPE", "PEER_KEY", "Request", "RequestReader"]

PEER_KEY: Final = "otel_audit.peer"
"""ASGI scope key under which the socket's peer is kept before a server replaces it by a forwarded address."""

CURRENT_SCOPE: Final[ContextVar[Mapping[str, Any] | None]] = ContextVar("otel_audit_scope", default=None)
"""The ASGI scope of the request that is being served, for instrumentations that hand on its headers alone."""


class Request(NamedTuple):
    """What identity needs of an incoming request.

    Args:
        peer: the socket's peer as the server gives it; None or empty where it hides it, and for a Unix domain socket.
        headers: the wanted headers that are there: name in lower case to value, several of one name joined by commas.
        certificate: subject of the certificate that the peer proved to own (mTLS); None if there was none.
    """

    peer: str | None
    headers: Mapping[str, str]
    certificate: str | None = None


class RequestReader:
    """Reads requests; safe from any thread.

    Args:
        headers: names of the headers that are wanted, lower case.
    """

    def __init__(self, headers: Iterable[str]) -> None:
        wanted = tuple(dict.fromkeys(headers))
        self._asgi = {name.encode("latin-1", "replace"): name for name in wanted}
        self._wsgi = tuple(("HTTP_" + name.upper().replace("-", "_"), name) for name in wanted)

    def read(self, carrier: object) -> Request | None:
        """What identity needs of `carrier`; None when it is no request this reader knows."""
        if not isinstance(carrier, dict):
            headers = getattr(carrier, "raw", None)
            return self._from_headers(headers) if isinstance(headers, list) else None
        if "headers" in carrier and carrier.get("type") in ("http", "websocket"):
            return self._from_asgi(carrier)
        if "REQUEST_METHOD" in carrier:
            return self._from_wsgi(carrier)
        return None

    def _from_asgi(self, scope: Mapping[str, Any]) -> Request:
        wanted = self._asgi
        found: dict[str, str] = {}
        for raw, value in scope["headers"]:
            name = wanted.get(raw)
            if name is not None:
                text = value.decode("latin-1")
                found[name] = f"{found[name]},{text}" if name in found else text
        peer = scope[PEER_KEY] if PEER_KEY in scope else scope.get("client")
        return Request(peer[0] if peer else None, found)

    def _from_headers(self, headers: list[Any]) -> Request:
        """Starlette's `Headers`, which FastAPI's own telemetry hands on; the peer is in the scope they belong to."""
        scope = CURRENT_SCOPE.get()
        if scope is None or scope.get("headers") != headers:
            scope = {"headers": headers}
        return self._from_asgi(scope)

    def _from_wsgi(self, environ: Mapping[str, Any]) -> Request:
        original = environ.get("werkzeug.proxy_fix.orig")  # what ProxyFix replaced
        found = {name: environ[key] for key, name in self._wsgi if key in environ}
        return Request((original or environ).get("REMOTE_ADDR"), found)
