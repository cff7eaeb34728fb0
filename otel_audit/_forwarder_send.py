"""One attempt to hand log records to their destination, over OTLP/gRPC or OTLP/HTTP, and what became of them.

Sources: OTLP specification 1.10, "Failures", "Partial Success", "OTLP/HTTP Response"; gRPC status codes.
"""

import contextlib
import http
import http.client
import socket
import ssl
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from otel_audit import __version__
from otel_audit.capture.transport import grpc_delay_s, http_delay_s, is_too_large
from otel_audit.errors import ConfigError

__all__ = ["Answer", "Fate", "OtlpLogsSettings", "Transport", "connect"]

_PATH: Final = "/v1/logs"
_METHOD: Final = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
_OPERATION: Final = "forward log records"
_AGENT: Final = f"otel-audit/{__version__}"
_GRPC_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.primary_user_agent", _AGENT),
)
_REASON_CHARS: Final = 500
_RESPONSE_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class OtlpLogsSettings:
    """Where audit records are passed on to, as OTLP log records.

    Args:
        endpoint: `http://host:port` or, encrypted, `https://host:port`; for HTTP with a path, `/v1/logs` is put behind it.
        protocol: `grpc` or `http/protobuf`.
        headers: sent with each request; they may hold a secret.
        timeout_s: how long one attempt may take.
        compression: `gzip` or `none`.
        ca_file: trusted CA certificates, PEM; None: the system's.
        cert_file, key_file: the client's certificate and private key for mTLS, PEM.
        insecure_skip_verify: take any certificate of the server; HTTP only.
        batch_records: records of one request, at most; one of more than 2 MiB is split.
        start: where to begin when the log was never passed on: `beginning`, or `now`.
    """

    endpoint: str = ""
    protocol: str = "grpc"
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 10.0
    compression: str = "gzip"
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    insecure_skip_verify: bool = False
    batch_records: int = 1000
    start: str = "beginning"

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.endpoint.startswith("https://")

    def check(self) -> None:
        """Raise `ConfigError` unless the settings go together and their files can be read."""
        try:
            parts = urlsplit(self.endpoint)
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:
            good = False
        if not good:
            hint = "set exporters.otlp_logs.endpoint to http://host:port, or https://host:port for TLS"
            reason = "not the address of an OTLP endpoint" if self.endpoint else "it needs an endpoint"
            raise ConfigError(_OPERATION, repr(self.endpoint.rpartition("@")[2]), reason, hint)
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigError(_OPERATION, self.endpoint, "cert_file and key_file go together", "set both or none")
        if self.insecure_skip_verify and self.protocol == "grpc":
            hint = "name the server's certificate as ca_file, or use protocol http/protobuf"
            raise ConfigError(_OPERATION, self.endpoint, "insecure_skip_verify is not possible with grpc", hint)
        if not self.tls and (self.ca_file or self.cert_file or self.insecure_skip_verify):
            raise ConfigError(_OPERATION, self.endpoint, "tls settings, but no TLS", "write the endpoint as https://…")
        for path in filter(None, (self.ca_file, self.cert_file, self.key_file)):
            try:
                Path(path).read_bytes()
            except OSError as e:
                raise ConfigError(_OPERATION, path, e.strerror or str(e), "name a file this user can read") from e


class Fate(Enum):
    """What became of the records of one attempt."""

    SENT = "sent"
    """The destination has them, but for those it says it rejected."""
    AGAIN = "again"
    """It has not; the same request may succeed later."""
    REFUSED = "refused"
    """It never will take this request as it is."""
    TOO_LARGE = "too_large"
    """It may take them in smaller requests."""
    MISCONFIGURED = "misconfigured"
    """Someone must change something, here or there; then the same request may succeed."""


class Answer(NamedTuple):
    """The end of one attempt.

    Args:
        fate: what became of the records.
        reason: why, with the remedy where there is one; what the destination said besides, when sent.
        delay_s: how long the destination asks to wait before the next attempt.
        rejected: records of a sent request that it rejected for good (OTLP partial success).
        certain: for TOO_LARGE: whether the size is known to be the reason.
    """

    fate: Fate
    reason: str = ""
    delay_s: float | None = None
    rejected: int = 0
    certain: bool = True


class Transport(Protocol):
    """A way to a destination; used by one thread at a time."""

    def send(self, body: bytes) -> Answer:
        """Hand over an `ExportLogsServiceRequest`; never raises."""

    def abort(self) -> None:
        """End the attempt under way, from any thread."""

    def close(self) -> None:
        """Give up the connection; a later `send` makes it anew."""


def _sent(response: bytes) -> Answer:
    try:
        partial = ExportLogsServiceResponse.FromString(response).partial_success
    except Exception:
        return Answer(Fate.SENT)  # a success whatever its body
    return Answer(Fate.SENT, partial.error_message[:_REASON_CHARS], None, max(partial.rejected_log_records, 0))


def _read(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


class _Grpc:
    """OTLP over gRPC."""

    def __init__(self, settings: OtlpLogsSettings) -> None:
        self._settings = settings
        self._channel: grpc.Channel | None = None
        self._export: Callable[..., Any] | None = None
        self._headers = tuple((name.lower(), value) for name, value in settings.headers)

    def send(self, body: bytes) -> Answer:
        try:
            export = self._export or self._connect()
            return _sent(export(body, timeout=self._settings.timeout_s, metadata=self._headers))
        except grpc.RpcError as e:
            answer = self._answer(e)
            if answer.fate is Fate.AGAIN:
                self.close()  # else the channel's own backoff decides when a connection is tried again, and not ours
            return answer
        except Exception as e:
            self.close()
            return Answer(Fate.AGAIN, f"{type(e).__name__}: {e}")

    def _connect(self) -> Callable[..., Any]:
        to = self._settings
        parts = urlsplit(to.endpoint)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        target = f"{host}:{parts.port or (443 if to.tls else 4317)}"
        compression = grpc.Compression.Gzip if to.compression == "gzip" else grpc.Compression.NoCompression
        if to.tls:
            credentials = grpc.ssl_channel_credentials(_read(to.ca_file), _read(to.key_file), _read(to.cert_file))
            self._channel = grpc.secure_channel(target, credentials, _GRPC_OPTIONS, compression)
        else:
            self._channel = grpc.insecure_channel(target, _GRPC_OPTIONS, compression)
        # Bytes in, bytes out: the request is already encoded.
        self._export = self._channel.unary_unary(_METHOD)
        return self._export

    def _answer(self, error: Any) -> Answer:
        code = error.code()
        reason = f"{code.name}: {error.details()}"[:_REASON_CHARS]
        delay_s = grpc_delay_s(error)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return Answer(Fate.REFUSED, reason)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and delay_s is None:
            return Answer(Fate.TOO_LARGE, reason, certain=is_too_large(code.name, reason))
        if code in (
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.NOT_FOUND,
        ):
            return Answer(Fate.MISCONFIGURED, reason, delay_s)
        return Answer(Fate.AGAIN, reason, delay_s)

    def abort(self) -> None:
        channel = self._channel
        if channel is not None:
            channel.close()

    def close(self) -> None:
        channel, self._channel, self._export = self._channel, None, None
        if channel is not None:
            channel.close()


class _Http:
    """OTLP over HTTP, binary protobuf, one connection kept open."""

    def __init__(self, settings: OtlpLogsSettings) -> None:
        self._settings = settings
        parts = urlsplit(settings.endpoint)
        self._host, self._port = parts.hostname or "localhost", parts.port
        path = parts.path.rstrip("/")
        self._path = path if path.endswith(_PATH) else path + _PATH
        self._connection: http.client.HTTPConnection | None = None
        self._headers = {
            "Content-Type": "application/x-protobuf",
            "User-Agent": _AGENT,
            **({"Content-Encoding": "gzip"} if settings.compression == "gzip" else {}),
            **dict(settings.headers),
        }

    def send(self, body: bytes) -> Answer:
        if self._settings.compression == "gzip":
            compressor = zlib.compressobj(wbits=31)
            body = compressor.compress(body) + compressor.flush()
        reused = self._connection is not None
        # The timeout of a socket is for each piece: a server that sends a byte now and then would hold us for ever.
        end = threading.Timer(self._settings.timeout_s, self.abort)
        end.daemon = True
        end.start()
        try:
            try:
                return self._post(body)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                if not reused:
                    raise
                # The server closed an idle connection: that is no failure of the destination.
                self.close()
                return self._post(body)
        except Exception as e:
            self.close()
            return Answer(Fate.AGAIN, f"{type(e).__name__}: {e}"[:_REASON_CHARS])
        finally:
            end.cancel()

    def _post(self, body: bytes) -> Answer:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.timeout = self._settings.timeout_s
        if isinstance(self._connection.sock, socket.socket):
            self._connection.sock.settimeout(self._settings.timeout_s)
        self._connection.request("POST", self._path, body, self._headers)
        response = self._connection.getresponse()
        content = response.read(_RESPONSE_BYTES_MAX)
        if len(content) < _RESPONSE_BYTES_MAX and response.length:  # it may have held a partial success
            raise http.client.IncompleteRead(content, response.length)
        if not response.isclosed():
            self.close()  # the rest of an answer that long is not waited for
        if 200 <= response.status < 300 and response.headers.get_content_type() == "text/html":
            return Answer(
                Fate.MISCONFIGURED, f"HTTP {response.status} with a page of HTML: no OTLP endpoint answers so"
            )
        return self._answer(response.status, response.headers.get("Retry-After"), content)

    def _connect(self) -> http.client.HTTPConnection:
        to = self._settings
        if not to.tls:
            return http.client.HTTPConnection(self._host, self._port)
        context = ssl.create_default_context(cafile=to.ca_file)
        if to.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if to.cert_file:
            context.load_cert_chain(to.cert_file, to.key_file)
        return http.client.HTTPSConnection(self._host, self._port, context=context)

    @staticmethod
    def _answer(status: int, retry_after: str | None, content: bytes) -> Answer:
        if 200 <= status < 300:
            return _sent(content)
        said = content[:_REASON_CHARS].decode("ascii", "replace").replace("\ufffd", "?")
        said = "".join(c if c.isprintable() else " " for c in said).strip()
        reason = " ".join(filter(None, ("HTTP", str(status), http.client.responses.get(status, ""), said)))
        delay_s = http_delay_s(retry_after)
        if status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return Answer(Fate.TOO_LARGE, reason)
        if status in (http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.UNPROCESSABLE_ENTITY):
            return Answer(Fate.REFUSED, reason)
        if status in (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS) or (
            status >= 500 and status != http.HTTPStatus.NOT_IMPLEMENTED
        ):
            return Answer(Fate.AGAIN, reason, delay_s)
        return Answer(Fate.MISCONFIGURED, reason, delay_s)

    def abort(self) -> None:
        connection = self._connection  # the thread that sends sets it to None at any moment
        sock = connection.sock if connection is not None else None
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def connect(settings: OtlpLogsSettings) -> Transport:
    """The transport to a destination; nothing is opened yet."""
    return _Grpc(settings) if settings.protocol == "grpc" else _Http(settings)
