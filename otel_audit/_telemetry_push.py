"""Sends metrics to an OTLP endpoint every so often, with the SDK's own exporters.

Source: OpenTelemetry declarative configuration 0.3, `OtlpMetric` and `PeriodicMetricReader`, as the Collector uses it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)

from otel_audit._telemetry_settings import OtlpReader
from otel_audit.errors import ConfigError

__all__ = ["periodic_reader"]

_PATH: Final = "/v1/metrics"
_OF_THE_SDK: Final = ("content-type", "content-encoding", "user-agent")
Completed = Callable[[MetricsData], MetricsData]


class _Completing(MetricExporter):
    """An exporter that adds what the SDK does not measure itself."""

    def __init__(self, exporter: Any, complete: Completed) -> None:
        super().__init__()
        self._exporter = exporter
        self._complete = complete

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        result: MetricExportResult = self._exporter.export(
            self._complete(metrics_data), timeout_millis=timeout_millis, **kwargs
        )
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return bool(self._exporter.force_flush(timeout_millis))

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._exporter.shutdown(timeout_millis, **kwargs)


def periodic_reader(settings: OtlpReader, complete: Completed) -> MetricReader:
    """A reader that pushes; its thread starts now.

    Args:
        settings: where to, how, how often.
        complete: adds to what was collected.

    Raises:
        ConfigError: a certificate or key cannot be read.
    """
    exporter = _grpc_exporter(settings) if settings.protocol == "grpc" else _http_exporter(settings)
    return PeriodicExportingMetricReader(
        _Completing(exporter, complete),
        export_interval_millis=settings.interval_ms,
        export_timeout_millis=settings.export_timeout_ms,
    )


# The SDK's exporters add what `OTEL_EXPORTER_OTLP_*` say, which are meant for another endpoint: a secret of that one must
# not go to ours, which would also be refused. Here only the settings count.
class _Headers(tuple[tuple[str, str], ...]):
    """Header fields that are not taken for unset where there are none."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


def _session(settings: OtlpReader) -> Any:
    """A session of HTTP that sends the headers and uses the certificates of the settings, whatever it is told."""
    import requests  # the exporter needs it anyway

    given = {name.lower(): value for name, value in settings.headers}
    key = settings.client_key
    certificate = (settings.client_certificate, key) if key else settings.client_certificate or None

    class Session(requests.Session):
        def request(self, method: Any, url: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            kept = {name: value for name, value in (kwargs.get("headers") or {}).items() if name.lower() in _OF_THE_SDK}
            return super().request(method, url, **{**kwargs, "headers": kept | given})

        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            verify = settings.certificate or True
            return {**super().merge_environment_settings(url, proxies, stream, verify, cert), "cert": certificate}

    return Session()


def _grpc_exporter(settings: OtlpReader) -> Any:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    url = urlsplit(settings.url)
    insecure = url.scheme == "http"
    return OTLPMetricExporter(
        endpoint=url.netloc,
        insecure=insecure,
        credentials=None if insecure else _credentials(settings),
        headers=_Headers((name.lower(), value) for name, value in settings.headers),
        timeout=settings.timeout_ms / 1000,
        compression=grpc.Compression.Gzip if settings.compression == "gzip" else grpc.Compression.NoCompression,
    )


def _http_exporter(settings: OtlpReader) -> Any:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    url = urlsplit(settings.url)
    for path in (settings.certificate, settings.client_key, settings.client_certificate):
        if path:
            _read(path)
    return OTLPMetricExporter(
        endpoint=url._replace(path=url.path if url.path.strip("/") else _PATH).geturl(),
        session=_session(settings),
        timeout=settings.timeout_ms / 1000,
        compression=Compression.Gzip if settings.compression == "gzip" else Compression.NoCompression,
    )


def _credentials(settings: OtlpReader) -> grpc.ChannelCredentials:
    paths = (settings.certificate, settings.client_key, settings.client_certificate)
    roots, key, chain = (_read(path) if path else None for path in paths)
    return grpc.ssl_channel_credentials(roots, key, chain)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise ConfigError("push metrics", path, e.strerror or str(e), "check the path and who may read it") from e
