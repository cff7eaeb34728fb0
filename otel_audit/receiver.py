"""OTLP receiver: OTLP/gRPC and OTLP/HTTP in front of a log.

A request is answered with success once all of it is durable, and never before. What is not OTLP goes to quarantine and is
refused for good; what cannot be made durable now is refused for the moment, with the time after which to try again.

`_receiver_intake` decides and counts, `_receiver_grpc` and `_receiver_http` carry.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from otel_audit._receiver_bind import is_loopback, parse_endpoint
from otel_audit._receiver_grpc import GrpcServer, GrpcSettings
from otel_audit._receiver_http import HttpServer, HttpSettings
from otel_audit._receiver_intake import Decodes, Intake, IntakeSettings, ReceiverStats, Sink
from otel_audit.errors import ConfigError

__all__ = [
    "Decodes",
    "GrpcSettings",
    "HttpSettings",
    "IntakeSettings",
    "Receiver",
    "ReceiverSettings",
    "ReceiverStats",
    "Sink",
    "parse_endpoint",
]

_log = logging.getLogger("otel_audit.receiver")


@dataclass(frozen=True, slots=True)
class ReceiverSettings:
    """Which protocols to serve, and within which limits.

    Args:
        intake: limits that hold for both protocols together.
        grpc: OTLP/gRPC; None: not served.
        http: OTLP/HTTP; None: not served.
    """

    intake: IntakeSettings = field(default_factory=IntakeSettings)
    grpc: GrpcSettings | None = field(default_factory=GrpcSettings)
    http: HttpSettings | None = field(default_factory=HttpSettings)


class Receiver:
    """OTLP servers that put what they receive into a log; a context manager that starts and stops them.

    Args:
        sink: the log; it stays open when the receiver stops.
        decoder: turns bodies into records.
        settings: addresses and limits.
        health: why the log is not ready, a sentence each; empty when it is. Must answer at once.

    Raises `ConfigError` if an address cannot be used.
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
        self._intake = Intake(sink, decoder, settings.intake, health=health)
        self._http = HttpServer(self._intake, settings.http) if settings.http else None
        try:
            self._grpc = GrpcServer(self._intake, settings.grpc) if settings.grpc else None
        except BaseException:
            if self._http:
                self._http.finish_stop()
            raise
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
        """Take requests from now on."""
        for address in (self.grpc_address, self.http_address):
            if address and not is_loopback(parse_endpoint(address)[0]):
                _log.warning("%s is open to other machines, without encryption or authentication", address)
        if self._grpc:
            self._grpc.start()
        if self._http:
            self._http.start()

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

    def stats(self) -> ReceiverStats:
        """Counters since start."""
        return self._intake.stats()

    def reasons(self) -> list[str]:
        """Why senders should not come here now, a sentence each; empty if they should."""
        return self._intake.reasons()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
