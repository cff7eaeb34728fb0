"""One attempt to hand encoded records to their destination: OTLP/gRPC, OTLP/HTTP, or a local log.

The exporters of the OpenTelemetry SDK give up after seconds, ignore standard retry information and call a redirect a
success; here each attempt ends in an `Answer` that says what became of the records, and who calls decides. Modules that
are slow to import, and connections, are made on the first attempt: in the shipping thread, and after a fork.

Sources: OTLP specification 1.x, "Failures" and "OTLP/HTTP Response"; gRPC status codes.
"""

import http.client
import socket
import ssl
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from otel_audit.capture.settings import Destination
from otel_audit.errors import AuditError, ConfigError, DecodeError, LockedError

__all__ = ["Answer", "Fate", "Transport", "connect", "grpc_delay_s", "http_delay_s", "is_too_large"]

_GRPC_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_GRPC_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.primary_user_agent", "otel-audit"),
)
_HTTP_DATA_FAULTS: Final = frozenset({400, 413, 422})
_HTTP_REQUEST_TIMEOUT: Final = 408
_RETRY_DELAY_S_MAX: Final = 300.0
_WRONG_PLACE: Final = "check OTEL_AUDIT_ENDPOINT, OTEL_AUDIT_PROTOCOL and OTEL_AUDIT_HEADERS"


class Fate(Enum):
    """What became of the records of one attempt."""

    KEPT = "kept"
    """The destination has them and answers for them."""
    AGAIN = "again"
    """It has not; the same request may succeed later."""
    REFUSED = "refused"
    """It never will take this request as it is."""
    ELSEWHERE = "elsewhere"
    """It has not; another process has the local log open, and may ship for this one as well."""


class Answer(NamedTuple):
    """The end of one attempt.

    Args:
        fate: what became of the records.
        reason: why, with the remedy where there is one; empty when kept.
        delay_s: how long the destination asks to wait before the next attempt.
        dropped: records of a kept request that the destination says it dropped (OTLP partial success).
    """

    fate: Fate
    reason: str = ""
    delay_s: float | None = None
    dropped: int = 0


KEPT: Final = Answer(Fate.KEPT)


class Transport(Protocol):
    """A way to a destination; used by one thread at a time."""

    def send(self, body: bytes, timeout_s: float) -> Answer:
        """Hand over an `ExportTraceServiceRequest`; never raises."""

    def close(self) -> None:
        """Give up connections and locks; a later `send` makes them anew."""


def _kept(response: bytes) -> Answer:
    """The answer to a success whose body is an `ExportTraceServiceResponse`."""
    if not response:
        return KEPT
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        partial = ExportTraceServiceResponse.FromString(response).partial_success
    except Exception:
        return KEPT  # a success whatever its body
    return Answer(Fate.KEPT, partial.error_message, None, partial.rejected_spans)


def _read(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


class _Grpc:
    """OTLP over gRPC."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._channel: Any = None
        self._export: Callable[..., Any] | None = None

    def send(self, body: bytes, timeout_s: float) -> Answer:
        import grpc

        try:
            export = self._export or self._connect()
            return _kept(export(body, timeout=timeout_s, metadata=self._destination.headers))
        except grpc.RpcError as e:
            if e.code() is grpc.StatusCode.UNAVAILABLE:
                self.close()  # else the channel's own backoff decides when a connection is tried again, and not ours
            return self._answer(e)
        except Exception as e:
            return Answer(Fate.AGAIN, f"{type(e).__name__}: {e}")

    def _connect(self) -> Callable[..., Any]:
        import grpc

        to = self._destination
        compression = grpc.Compression.Gzip if to.gzip else grpc.Compression.NoCompression
        if to.tls:
            credentials = grpc.ssl_channel_credentials(
                _read(to.certificate), _read(to.client_key), _read(to.client_certificate)
            )
            self._channel = grpc.secure_channel(to.target, credentials, _GRPC_OPTIONS, compression)
        else:
            self._channel = grpc.insecure_channel(to.target, _GRPC_OPTIONS, compression)
        # Bytes in, bytes out: the request is already encoded.
        export: Callable[..., Any] = self._channel.unary_unary(_GRPC_METHOD)
        self._export = export
        return export

    def _answer(self, error: Any) -> Answer:
        import grpc

        code = error.code()
        reason = f"{code.name}: {error.details()}"
        if code is grpc.StatusCode.INVALID_ARGUMENT or is_too_large(code.name, reason):
            return Answer(Fate.REFUSED, reason)
        if code in (
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.NOT_FOUND,
        ):
            return Answer(Fate.AGAIN, f"{reason}; {_WRONG_PLACE}", 10.0)
        return Answer(Fate.AGAIN, reason, grpc_delay_s(error))

    def close(self) -> None:
        channel, self._channel, self._export = self._channel, None, None
        if channel is not None:
            channel.close()


def is_too_large(code: str, reason: str) -> bool:
    """Whether a gRPC server finds the message too large, which it always will; told by its words alone.

    C++ and Python, Go ("received message larger than max"), Java ("gRPC message exceeds maximum size").
    """
    return code == "RESOURCE_EXHAUSTED" and ("larger than max" in reason or "exceeds maximum size" in reason)


def grpc_delay_s(error: Any) -> float | None:
    """The delay of a RetryInfo, from the status details (the specification's place) or a trailer of its own."""
    try:
        trailers = dict(error.trailing_metadata() or ())
        from google.rpc.error_details_pb2 import RetryInfo
        from google.rpc.status_pb2 import Status

        info = RetryInfo()
        if "grpc-status-details-bin" in trailers:
            for detail in Status.FromString(trailers["grpc-status-details-bin"]).details:
                if detail.Unpack(info):
                    break
        elif "google.rpc.retryinfo-bin" in trailers:
            info.ParseFromString(trailers["google.rpc.retryinfo-bin"])
        if not info.HasField("retry_delay"):
            return None
        return min(max(float(info.retry_delay.ToNanoseconds()) / 1e9, 0.0), _RETRY_DELAY_S_MAX)
    except Exception:  # what cannot be read asks for nothing
        return None


class _Http:
    """OTLP over HTTP, binary protobuf, one connection kept open."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._connection: http.client.HTTPConnection | None = None

    def send(self, body: bytes, timeout_s: float) -> Answer:
        headers = {
            "Content-Type": "application/x-protobuf",
            "User-Agent": "otel-audit",
            **dict(self._destination.headers),
        }
        if self._destination.gzip:
            compressor = zlib.compressobj(wbits=31)
            body = compressor.compress(body) + compressor.flush()
            headers["Content-Encoding"] = "gzip"
        reused = self._connection is not None
        try:
            try:
                return self._post(body, headers, timeout_s)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                if not reused:
                    raise
                # The server closed an idle connection: that is no failure of the destination.
                self.close()
                return self._post(body, headers, timeout_s)
        except Exception as e:
            self.close()
            return Answer(Fate.AGAIN, f"{type(e).__name__}: {e}")

    def _post(self, body: bytes, headers: dict[str, str], timeout_s: float) -> Answer:
        parts = urlsplit(self._destination.target)
        if self._connection is None:
            self._connection = self._connect(parts.hostname or "localhost", parts.port)
        self._connection.timeout = timeout_s
        if isinstance(self._connection.sock, socket.socket):
            self._connection.sock.settimeout(timeout_s)
        self._connection.request("POST", parts.path, body, headers)
        response = self._connection.getresponse()
        return self._answer(response.status, response.headers.get("Retry-After"), response.read())

    def _connect(self, host: str, port: int | None) -> http.client.HTTPConnection:
        to = self._destination
        if not to.tls:
            return http.client.HTTPConnection(host, port)
        context = ssl.create_default_context(cafile=to.certificate)
        if to.client_certificate:
            context.load_cert_chain(to.client_certificate, to.client_key)
        return http.client.HTTPSConnection(host, port, context=context)

    @staticmethod
    def _answer(status: int, retry_after: str | None, response: bytes) -> Answer:
        if 200 <= status < 300:
            return _kept(response)
        reason = f"HTTP {status} {http.client.responses.get(status, '')}".strip()
        if status in _HTTP_DATA_FAULTS:
            return Answer(Fate.REFUSED, reason)
        if status in (_HTTP_REQUEST_TIMEOUT, 429) or status >= 500:
            return Answer(Fate.AGAIN, reason, http_delay_s(retry_after))
        return Answer(Fate.AGAIN, f"{reason}; {_WRONG_PLACE}", 10.0)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def http_delay_s(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as a date (RFC 9110, section 10.2.3)."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _RETRY_DELAY_S_MAX)


class _LocalLog:
    """The folder of a local log, opened for writing in this process; the same one way in as over the network."""

    def __init__(self, destination: Destination) -> None:
        self._folder = destination.target
        self._log: Any = None
        self._decoder: Any = None

    def send(self, body: bytes, timeout_s: float) -> Answer:
        try:
            if self._log is None:
                self._open()
            self._log.append(self._decoder.decode(body), timeout_s=timeout_s)
        except ModuleNotFoundError as e:
            hint = "a local log needs: pip install 'otel-audit[server]'"
            return Answer(Fate.AGAIN, f"no module {e.name}; {hint}", 60.0)
        except DecodeError as e:
            return Answer(Fate.REFUSED, str(e))
        except LockedError as e:
            return Answer(Fate.ELSEWHERE, str(e))
        except AuditError as e:
            return Answer(Fate.AGAIN, str(e), None if e.retryable else 1.0)
        except Exception as e:
            return Answer(Fate.AGAIN, f"{type(e).__name__}: {e}")
        return KEPT

    def _open(self) -> None:
        from otel_audit.auditlog import AuditLog  # the one late import: only here does capture need the log itself
        from otel_audit.otlp import Decoder

        self._decoder = Decoder()
        self._log = AuditLog.open(self._folder)

    def close(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            log.close()


def connect(destination: Destination) -> Transport:
    """The transport to `destination`; nothing is opened yet."""
    if destination.kind == "grpc":
        return _Grpc(destination)
    if destination.kind == "http":
        return _Http(destination)
    if destination.kind == "log":
        return _LocalLog(destination)
    raise ConfigError("connect to", destination, "no such kind of destination")
