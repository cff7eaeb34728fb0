"""What identity needs of an incoming request, whatever framework it comes through.

A server instrumentation hands its request to the propagator as it is (the carrier): an ASGI scope, a WSGI environ, a
framework's own request object, a mapping of headers. One function here for each shape; only the headers that somebody
asked for are read.

| framework | carrier |
|---|---|
| FastAPI, Starlette, Django under ASGI | ASGI scope |
| Flask, Django under WSGI, Falcon, Pyramid | WSGI environ (Django: `META`, which begins with it) |
| FastAPI's own tracing | Starlette `Headers`; `CURRENT_SCOPE` has the rest |
| aiohttp | `aiohttp.web.Request` |
| Tornado | `HTTPHeaders`; `CURRENT_HANDLER` has the rest |
| gRPC | `RpcCarrier`, ours |
"""

import socket
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

__all__ = [
    "CURRENT_HANDLER",
    "CURRENT_SCOPE",
    "PEER_KEY",
    "Request",
    "RequestReader",
    "RpcCarrier",
    "certificate_subject",
]

PEER_KEY: Final = "otel_audit.peer"
"""ASGI scope key under which the socket's peer is kept before a server replaces it by a forwarded address."""

CURRENT_SCOPE: Final[ContextVar[Mapping[str, Any] | None]] = ContextVar("otel_audit_scope", default=None)
"""The ASGI scope of the request that is being served, for instrumentations that hand on its headers alone."""

CURRENT_HANDLER: Final[ContextVar[Any]] = ContextVar("otel_audit_handler", default=None)
"""The Tornado handler whose request is being traced: the instrumentation hands on its headers alone."""

_INET: Final = (socket.AF_INET, socket.AF_INET6)
_ALTERNATIVE_NAMES: Final = ("URI", "DNS", "email", "IP Address")


class RpcCarrier:
    """A gRPC call, sync or aio.

    Args:
        context: the `grpc.ServicerContext`.
        method: `/package.Service/Method`.
    """

    __slots__ = ("context", "method")

    def __init__(self, context: Any, method: str | None = None) -> None:
        self.context = context
        self.method = method


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
        wanted = self._wanted = tuple(dict.fromkeys(headers))
        self._asgi = {name.encode("latin-1", "replace"): name for name in wanted}
        self._wsgi = tuple(("HTTP_" + name.upper().replace("-", "_"), name) for name in wanted)

    def read(self, carrier: object) -> Request | None:
        """What identity needs of `carrier`; None when it is no request this reader knows."""
        if isinstance(carrier, dict):
            if "headers" in carrier and carrier.get("type") in ("http", "websocket"):
                return self._from_asgi(carrier)
            return self._from_wsgi(carrier) if "REQUEST_METHOD" in carrier else None
        if isinstance(carrier, RpcCarrier):
            return self._from_rpc(carrier.context)
        raw = getattr(carrier, "raw", None)
        if isinstance(raw, list):
            return self._from_headers(raw)
        if hasattr(carrier, "transport") and hasattr(carrier, "match_info"):
            return self._from_aiohttp(carrier)
        handler = CURRENT_HANDLER.get()
        if handler is not None and handler.request.headers is carrier:
            return self._from_tornado(handler.request)
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

    def _from_aiohttp(self, request: Any) -> Request:
        headers = request.headers
        found = {name: ",".join(headers.getall(name)) for name in self._wanted if name in headers}
        transport = request.transport
        if transport is None:  # the client has gone; `remote` is its word or a middleware's
            return Request(None, found)
        return Request(
            _host_of(transport.get_extra_info("peername")),
            found,
            certificate_subject(transport.get_extra_info("peercert")),
        )

    def _from_tornado(self, request: Any) -> Request:
        """A `tornado.httputil.HTTPServerRequest`; its `remote_ip` is a header's word under `xheaders`."""
        headers = request.headers
        found = {name: ",".join(headers.get_list(name)) for name in self._wanted if name in headers}
        context = getattr(request.connection, "context", None)
        if context is None:
            return Request(request.remote_ip, found)
        peer = _host_of(context.address) if context.address_family in _INET else None
        certificate = None
        if context.protocol == "https" or getattr(context, "_orig_protocol", None) == "https":
            certificate = certificate_subject(_tornado_certificate(request))
        return Request(peer, found, certificate)

    def _from_rpc(self, context: Any) -> Request:
        found: dict[str, str] = {}
        wanted = self._wanted
        for name, value in context.invocation_metadata() or ():
            if name in wanted:
                text = value if isinstance(value, str) else bytes(value).decode("latin-1")
                found[name] = f"{found[name]},{text}" if name in found else text
        return Request(_rpc_peer(context.peer()), found, _rpc_certificate(context.auth_context()))


def _host_of(address: object) -> str | None:
    """The host of a socket address; None for a Unix domain socket's."""
    return str(address[0]) if isinstance(address, tuple | list) and address else None


def _tornado_certificate(request: Any) -> Any:
    try:
        return request.get_ssl_certificate()
    except Exception:  # the connection has gone, or is none of TLS's
        return None


def _rpc_peer(peer: str) -> str | None:
    """The peer's address from gRPC's `ipv4:10.0.0.1:5701`, `ipv6:%5B::1%5D:5701` or `unix:/run/crm.sock`.

    Source: gRPC naming (doc/naming.md); an address list is separated by commas, the first is the nearest.
    """
    scheme, _, rest = peer.partition(",")[0].partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return None
    host = unquote(rest).rpartition(":")[0]
    return host.removeprefix("[").removesuffix("]") or None


def _rpc_certificate(auth_context: Mapping[str, Any]) -> str | None:
    """The subject of the client's verified certificate: its common name, else its first alternative name."""
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        for value in auth_context.get(key) or ():
            text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
            if text:
                return text
    return None


def certificate_subject(certificate: Any) -> str | None:
    """Who a verified certificate was issued to: its common name, else its first alternative name.

    Args:
        certificate: what `ssl.SSLSocket.getpeercert` gives; empty for a certificate that nobody verified.
    """
    if not isinstance(certificate, dict):
        return None
    for part in certificate.get("subject", ()):
        for name, value in part:
            if name == "commonName" and value:
                return str(value)
    alternatives = certificate.get("subjectAltName", ())
    for kind in _ALTERNATIVE_NAMES:
        for name, value in alternatives:
            if name == kind and value:
                return str(value)
    return None
