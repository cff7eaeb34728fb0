"""OTLP receiver: OTLP/gRPC and OTLP/HTTP in front of a log.

A request is answered with success once all of it is durable, and never before. What is not OTLP goes to quarantine and is
refused for good; what cannot be made durable now is refused for the moment, with the time after which to try again.

`_receiver_intake` decides and counts, `_receiver_grpc` and `_receiver_http` carry.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Self

from otel_audit._receiver_bind import is_exposed, is_loopback, parse_endpoint
from otel_audit._receiver_gate import AccessSettings, Gate, never_known
from otel_audit._receiver_grpc import GrpcServer, GrpcSettings
from otel_audit._receiver_http import HttpServer, HttpSettings
from otel_audit._receiver_intake import Decodes, Intake, IntakeSettings, ReceiverStats, Sink
from otel_audit._receiver_reload import Reloader
from otel_audit._receiver_tls import TlsSettings
from otel_audit.errors import ConfigError

__all__ = [
    "AccessSettings",
    "Decodes",
    "GrpcSettings",
    "HttpSettings",
    "IntakeSettings",
    "Receiver",
    "ReceiverSettings",
    "ReceiverStats",
    "Sink",
    "TlsSettings",
    "never_known",
    "parse_endpoint",
    "unfit",
]

_log = logging.getLogger("otel_audit.receiver")
_RELOAD_S: Final = 1.0  # how long a stop waits for files that are being read: a disk may not answer
_OTLP: Final = "receivers.otlp"
_Protocol = Literal["grpc", "http"]
_PROTOCOLS: Final[tuple[_Protocol, ...]] = ("grpc", "http")


@dataclass(frozen=True, slots=True)
class ReceiverSettings:
    """Which protocols to serve, and within which limits.

    Args:
        intake: limits that hold for both protocols together.
        access: who may send.
        grpc: OTLP/gRPC; None: not served.
        http: OTLP/HTTP; None: not served.
    """

    intake: IntakeSettings = field(default_factory=IntakeSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    grpc: GrpcSettings | None = field(default_factory=GrpcSettings)
    http: HttpSettings | None = field(default_factory=HttpSettings)

    @property
    def certificates(self) -> bool:
        """Whether any protocol asks for client certificates."""
        return any(p and p.tls and p.tls.mutual for p in (self.grpc, self.http))


class Receiver:
    """OTLP servers that put what they receive into a log; a context manager that starts and stops them.

    Args:
        sink: the log; it stays open when the receiver stops.
        decoder: turns bodies into records.
        settings: addresses and limits.
        health: why the log is not ready, a sentence each; empty when it is. Must answer at once.

    Raises `ConfigError` if an address, a certificate or the list of senders cannot be used, or if other machines could
    send unseen or unknown.
    """

    def __init__(
        self,
        sink: Sink,
        decoder: Decodes,
        settings: ReceiverSettings = ReceiverSettings(),
        health: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        if settings.grpc is None and settings.http is None:
            raise ConfigError("start receiver", "otlp", "no protocol is switched on", "switch on grpc or http")
        for error in unfit(settings):
            raise error
        gate = Gate(settings.access, certificates=settings.certificates)
        self._http: HttpServer | None = None
        self._intake = Intake(sink, decoder, settings.intake, health=lambda: [*self._faults(), *health()])
        # Judged once more on the addresses that are bound: when `unfit` looked, a name may not have been known.
        exposures = {name: _exposure(name, settings) for name in _PROTOCOLS}
        refused = exposures if not settings.access.allow_insecure else dict.fromkeys(_PROTOCOLS)
        self._http = HttpServer(self._intake, gate, settings.http, refused["http"]) if settings.http else None
        try:
            self._grpc = GrpcServer(self._intake, gate, settings.grpc, refused["grpc"]) if settings.grpc else None
        except BaseException:
            if self._http:
                self._http.finish_stop()
            raise
        servers = [server.certificates for server in (self._grpc, self._http) if server is not None]
        self._reloader = Reloader([watched for watched in (gate.watched, *servers) if watched is not None])
        self._insecure = [e.subject for e in exposures.values() if e and not is_loopback(parse_endpoint(e.subject)[0])]
        self._stopped = False

    @property
    def grpc_address(self) -> str | None:
        """`host:port` of OTLP/gRPC, with the port that was taken; None if not served."""
        return self._grpc.address if self._grpc else None

    @property
    def http_address(self) -> str | None:
        """`host:port` of OTLP/HTTP, with the port that was taken; None if not served."""
        return self._http.address if self._http else None

    def start(self) -> None:
        """Take requests from now on; raises `StorageError`, and stops, if it cannot."""
        for where in self._insecure:
            _log.warning("%s is open to other machines, without encryption or without knowing who sends", where)
        self._reloader.start()
        try:
            if self._http:
                self._http.start()
            if self._grpc:
                self._grpc.start()
        except BaseException:
            self.stop()
            raise

    def stop(self, grace_s: float = 10.0) -> None:
        """Refuse new requests, wait up to `grace_s` for those under way, and end."""
        if self._stopped:
            return
        self._stopped = True
        self._intake.drain()
        if self._http:
            self._http.begin_stop(grace_s)
        ended = self._grpc.begin_stop(grace_s) if self._grpc else None
        if self._grpc and ended:
            ended.wait(grace_s + 5)
            self._grpc.finish_stop()
        if self._http:
            self._http.finish_stop()
        self._reloader.stop(_RELOAD_S)

    def stats(self) -> ReceiverStats:
        """Counters since start."""
        files = self._reloader.stats()
        return replace(
            self._intake.stats(), reloads=files.reloads, reload_failures=files.failures, stale_files=files.stale
        )

    def reasons(self) -> list[str]:
        """Why senders should not come here now, a sentence each; empty if they should."""
        return self._intake.reasons()

    def _faults(self) -> list[str]:
        return self._http.faults() if self._http else []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


# --- what must not be started -----------------------------------------------------------------------------------------
def unfit(settings: ReceiverSettings) -> Iterator[ConfigError]:
    """What of the settings does not go together; no file is read for it."""
    access = settings.access
    if access.senders is not None and access.senders_file is not None:
        hint = "give one of them"
        yield ConfigError("read senders", f"{_OTLP}.senders", "there is senders_file as well", hint)
    unknown = None if settings.certificates else never_known(access.senders or ())
    if unknown is not None:
        yield unknown
    for name, protocol in (("grpc", settings.grpc), ("http", settings.http)):
        tls = protocol.tls if protocol else None
        key = f"{_OTLP}.protocols.{name}.tls"
        if tls is not None and not (tls.cert_file and tls.key_file):
            yield ConfigError("use TLS", key, "it needs cert_file and key_file", "give both, or leave tls out")
    if settings.grpc and settings.grpc.tls and settings.grpc.tls.min_version != "1.2":
        key = f"{_OTLP}.protocols.grpc.tls.min_version"
        reason = "gRPC for Python speaks TLS 1.2 and 1.3, and cannot be told otherwise"
        yield ConfigError("use TLS", key, reason, "leave it at 1.2, or serve http alone")
    if not access.allow_insecure:
        exposures = (_exposure(name, settings) for name in _PROTOCOLS)
        yield from (error for error in exposures if error is not None and is_exposed(error.subject))


def _exposure(name: _Protocol, settings: ReceiverSettings) -> ConfigError | None:
    """Why other machines should not reach this protocol, about its endpoint; None: they may, or it is not served."""
    protocol = settings.grpc if name == "grpc" else settings.http
    if protocol is None:
        return None
    tls, key = protocol.tls, f"{_OTLP}.protocols.{name}"
    otherwise = f"or listen on localhost; {_OTLP}.allow_insecure: true listens all the same"
    if tls is None:
        reason = "other machines would reach it without encryption"
        hint = f"set {key}.tls.cert_file and key_file, {otherwise}"
        return ConfigError("listen on", protocol.endpoint, reason, hint)
    if tls.client_ca_file is None and not settings.access.known:
        reason = "any machine could write into the log"
        hint = f"set {_OTLP}.senders or senders_file, or {key}.tls.client_ca_file, {otherwise}"
        return ConfigError("listen on", protocol.endpoint, reason, hint)
    return None
