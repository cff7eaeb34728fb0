"""Sending OTLP requests to an endpoint, over gRPC or HTTP, again and again until they are taken."""

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError as ProtobufError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otel_audit.errors import ConfigError, UnavailableError, UsageError

__all__ = ["Sender", "Target", "send"]

_OPERATION: Final = "send canary to"
_GRPC_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_HTTP_PATH: Final = "/v1/traces"
_RETRIED_HTTP: Final = (429, 502, 503, 504)
_REQUEST_S: Final = 30.0
_PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send.

    Args:
        endpoint: `http(s)://host:port`, or `host:port`, which is without TLS.
        protocol: `grpc` or `http`; empty: HTTP for port 4318 and for an endpoint with a path, else gRPC.
        headers: of every request.
        ca: file of the certificates to trust; empty: the system's.
    """

    endpoint: str
    protocol: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    ca: str = ""

    @property
    def url(self) -> str:
        """With its scheme; raises `UsageError` where it is no endpoint."""
        url = self.endpoint if "://" in self.endpoint else f"http://{self.endpoint}"
        hint = "write it as http://host:4317, https://host:4317 or host:4317"
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port
        except ValueError:
            good = False
        if not good:
            raise UsageError(_OPERATION, self.endpoint, "not an endpoint", hint)
        return url

    @property
    def over_http(self) -> bool:
        """Whether OTLP/HTTP is spoken."""
        parts = urlsplit(self.url)
        return self.protocol == "http" or (not self.protocol and (parts.port == 4318 or parts.path not in ("", "/")))

    def trusted(self) -> bytes | None:
        """The certificates of `ca`; raises `ConfigError` where they cannot be read."""
        try:
            return Path(self.ca).read_bytes() if self.ca else None
        except OSError as e:
            raise ConfigError("read certificates", self.ca, e.strerror or str(e)) from e


class Refused(Exception):  # noqa: N818 - it is an answer
    """The endpoint did not take a request; `again` tells whether it may take it later."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Sender(Protocol):
    """Sends one request, or raises `Refused`."""

    def send(self, body: bytes) -> None:
        """Send the bytes of an `ExportTraceServiceRequest`."""

    def close(self) -> None:
        """End the connection."""


def open_sender(target: Target) -> Sender:
    """The sender for a target."""
    return _Http(target) if target.over_http else _Grpc(target)


def send(sender: Sender, target: Target, body: bytes, due_s: float) -> None:
    """Send a request, again where it may be taken later.

    Args:
        sender: to `target`.
        target: for messages.
        body: the request.
        due_s: monotonic time at which to give up.

    Raises:
        UnavailableError: it was not taken in time, or refused for good.
    """
    while True:
        try:
            sender.send(body)
        except Refused as e:
            if not e.again:
                hint = "a sender would drop this batch; look at limits and authentication of the receiver"
                raise UnavailableError(_OPERATION, target.endpoint, f"refused for good: {e}", hint) from e
            if time.monotonic() > due_s:
                raise UnavailableError(
                    _OPERATION, target.endpoint, f"not taken in time: {e}", _hint(str(e), target)
                ) from e
            time.sleep(_PAUSE_S)
        else:
            return


def _check_answer(data: bytes) -> None:
    try:
        answer = ExportTraceServiceResponse.FromString(data)
    except ProtobufError as e:
        raise Refused(f"the answer is not OTLP: {data[:60]!r}", again=False) from e
    rejected = answer.partial_success.rejected_spans
    if rejected:
        raise Refused(f"{rejected} spans rejected: {answer.partial_success.error_message}", again=False)


def _hint(said: str, target: Target) -> str:
    """What to look at, going by what a library said of the last attempt."""
    lowered = said.lower()
    if "certificate_verify_failed" in lowered or "certificate verify failed" in lowered:
        return "its certificate is not trusted: name the authority with --ca"
    if "token" in lowered or "unauthenticated" in lowered or "authorization" in lowered:
        return "it does not know the sender: --header authorization='Bearer ...'"
    other = "grpc" if target.over_http else "http"
    return f"is it running, and does it speak {'HTTP' if target.over_http else 'gRPC'} there? --protocol {other} is the other way"


class _Grpc:
    def __init__(self, target: Target) -> None:
        import grpc

        parts = urlsplit(target.url)
        host = (
            f"{parts.hostname}:{parts.port}" if ":" not in str(parts.hostname) else f"[{parts.hostname}]:{parts.port}"
        )
        if parts.scheme == "https":
            self._channel = grpc.secure_channel(host, grpc.ssl_channel_credentials(target.trusted()))
        else:
            self._channel = grpc.insecure_channel(host)
        self._call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(_GRPC_METHOD)
        self._metadata = tuple((name.lower(), value) for name, value in target.headers.items())

    def send(self, body: bytes) -> None:
        import grpc

        again = {
            grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
            grpc.StatusCode.ABORTED, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS,
        }  # fmt: skip
        try:
            answer = self._call(body, timeout=_REQUEST_S, metadata=self._metadata)
        except grpc.RpcError as e:
            code, details = e.code(), e.details()
            raise Refused(f"{code.name}: {details}", again=code in again) from e
        _check_answer(answer)

    def close(self) -> None:
        self._channel.close()


class _Http:
    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        path = parts.path if parts.path not in ("", "/") else _HTTP_PATH
        self._url = f"{parts.scheme}://{parts.netloc}{path}"
        self._headers = {"content-type": "application/x-protobuf", **target.headers}
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if parts.scheme == "https":
            trusted = target.trusted()
            context = ssl.create_default_context(cadata=trusted.decode("ascii", "replace") if trusted else None)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def send(self, body: bytes) -> None:
        request = urllib.request.Request(self._url, data=body, headers=self._headers, method="POST")  # noqa: S310 - http(s)
        try:
            with self._opener.open(request, timeout=_REQUEST_S) as response:
                data = response.read()
        except urllib.error.HTTPError as e:
            with e:
                raise Refused(f"HTTP {e.code} {e.reason}", again=e.code in _RETRIED_HTTP) from e
        except (OSError, urllib.error.URLError) as e:
            raise Refused(str(e), again=True) from e
        except http.client.HTTPException as e:
            raise Refused(f"the answer is not HTTP: {e!r}", again=False) from e
        _check_answer(data)

    def close(self) -> None:
        self._opener.close()
