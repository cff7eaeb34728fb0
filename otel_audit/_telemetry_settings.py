"""What can be set about the service's telemetry."""

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["LogsSettings", "OtlpReader", "PrometheusReader", "Reader", "TelemetrySettings"]


@dataclass(frozen=True, slots=True)
class PrometheusReader:
    """An endpoint that Prometheus scrapes.

    Args:
        host: to listen on; port: 0 is any free one.
    """

    host: str = "localhost"
    port: int = 8888


@dataclass(frozen=True, slots=True)
class OtlpReader:
    """A push of all metrics to an OTLP endpoint, every so often.

    Args:
        endpoint: URL, or `host:port`; OTLP/HTTP adds `/v1/metrics` where there is no path.
        protocol: `grpc` or `http/protobuf`.
        interval_ms: between two pushes.
        export_timeout_ms: for collecting; timeout_ms: for one request, its retries included.
        headers: of each request, by name; their values may be secret.
        compression: of requests.
        insecure: whether an endpoint without a scheme is spoken to without TLS.
        certificate: file of the authorities that the endpoint's certificate may be of; empty: those of the system.
        client_key, client_certificate: files that prove who we are.
    """

    endpoint: str
    protocol: Literal["grpc", "http/protobuf"] = "grpc"
    interval_ms: int = 60_000
    export_timeout_ms: int = 30_000
    timeout_ms: int = 10_000
    headers: tuple[tuple[str, str], ...] = ()
    compression: Literal["none", "gzip"] = "none"
    insecure: bool = False
    certificate: str = ""
    client_key: str = ""
    client_certificate: str = ""

    @property
    def url(self) -> str:
        """The endpoint with its scheme."""
        if "://" in self.endpoint:
            return self.endpoint
        return f"{'http' if self.insecure else 'https'}://{self.endpoint}"


Reader = PrometheusReader | OtlpReader


@dataclass(frozen=True, slots=True)
class LogsSettings:
    """What the service writes to standard error.

    Args:
        level: least level that is written: debug, info, warn, error.
        encoding: `console`, for people, or `json`, an object a line.
    """

    level: Literal["debug", "info", "warn", "error"] = "info"
    encoding: Literal["console", "json"] = "console"


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """What the service says of itself, and to whom.

    Args:
        logs: to standard error.
        readers: of metrics; none: nothing is measured beyond what is counted anyway.
        resource: attributes of the service itself on its metrics; None as a value takes an automatic one away.
    """

    logs: LogsSettings = field(default_factory=LogsSettings)
    readers: tuple[Reader, ...] = ()
    resource: tuple[tuple[str, str | None], ...] = ()
