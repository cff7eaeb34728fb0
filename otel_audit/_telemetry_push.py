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


def _grpc_exporter(settings: OtlpReader) -> Any:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    url = urlsplit(settings.url)
    insecure = url.scheme == "http"
    return OTLPMetricExporter(
        endpoint=url.netloc,
        insecure=insecure,
        credentials=None if insecure else _credentials(settings),
        headers=tuple((name.lower(), value) for name, value in settings.headers) or None,
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
        certificate_file=settings.certificate or None,
        client_key_file=settings.client_key or None,
        client_certificate_file=settings.client_certificate or None,
        headers=dict(settings.headers) or None,
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
