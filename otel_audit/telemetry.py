"""What the service says of itself: metrics, scraped by Prometheus or pushed over OTLP.

A component says once what it can tell, and is asked whenever someone reads:

    telemetry.watch("otel_audit.disk.free", lambda: disk.free)
    telemetry.watch("otel_audit.exporter.sent_log_records", lambda: [(sent, {"exporter": "otlp_logs"})])

The callback runs on the thread of whoever reads and must answer at once; one that fails is logged and left out. Names, kinds
and units are those of the table in `_telemetry_instruments`; a new metric gets a row there and in docs/telemetry.md.

Source: OpenTelemetry metrics SDK; OpenTelemetry Collector, "Internal telemetry", for names and for the settings.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    MetricReader,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_audit import __version__, names
from otel_audit._durations import BOUNDS_S, Spread
from otel_audit._receiver_bind import is_loopback, parse_endpoint
from otel_audit._telemetry_endpoint import Endpoint
from otel_audit._telemetry_instruments import BY_NAME, INSTRUMENTS, Instrument
from otel_audit._telemetry_push import periodic_reader
from otel_audit._telemetry_settings import LogsSettings, OtlpReader, PrometheusReader, Reader, TelemetrySettings
from otel_audit._telemetry_text import CONTENT_TYPE, prometheus_text

__all__ = [
    "INSTRUMENTS",
    "Instrument",
    "LogsSettings",
    "Observed",
    "OtlpReader",
    "PrometheusReader",
    "Reader",
    "Telemetry",
    "TelemetrySettings",
]

Observed = float | Iterable[tuple[float, Mapping[str, str]]]
"""A value; or values, each with its attributes."""

_log = logging.getLogger("otel_audit.telemetry")
_SCOPE: Final = "otel_audit"


class Telemetry:
    """The metrics of one service; nothing is opened or sent before `start`.

    Args:
        settings: who reads. Without readers `watch` costs nothing and `start` does nothing.
    """

    def __init__(self, settings: TelemetrySettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        # Under `_lock`.
        self._watched: dict[str, Callable[[], Observed]] = {}
        self._spreads: dict[str, Callable[[], Spread]] = {}
        self._failing: set[str] = set()
        self._started_ns = time.time_ns()
        self._resource = _resource(settings.resource)
        self._memory = InMemoryMetricReader()
        self._endpoints: list[Endpoint] = []
        self._provider: MeterProvider | None = None

    # --- what there is to tell --------------------------------------------------------------------------------------------
    def watch(self, name: str, observe: Callable[[], Observed]) -> None:
        """Tell a metric from now on, or tell it otherwise; call it before `start`.

        Args:
            name: of a counter or gauge in the table.
            observe: gives its value, or several with their attributes. A counter's value is the sum since start.

        Raises:
            KeyError: there is no such metric.
        """
        assert BY_NAME[name].kind != "histogram", name
        with self._lock:
            self._watched[name] = observe

    def watch_durations(self, name: str, observe: Callable[[], Spread]) -> None:
        """As `watch`, for a histogram of the table."""
        assert BY_NAME[name].kind == "histogram", name
        with self._lock:
            self._spreads[name] = observe

    # --- who reads --------------------------------------------------------------------------------------------------------
    @property
    def addresses(self) -> tuple[str, ...]:
        """`host:port` of each endpoint that Prometheus can scrape."""
        return tuple(e.address for e in self._endpoints)

    def open(self) -> None:
        """Take the addresses to be scraped at, without answering yet.

        Raises:
            ConfigError: an address cannot be used.
        """
        try:
            for reader in self._settings.readers:
                if isinstance(reader, PrometheusReader):
                    self._endpoints.append(Endpoint(reader.host, reader.port, self.text, CONTENT_TYPE))
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Let metrics be read from now on; after `open`.

        Raises:
            ConfigError: a certificate of an endpoint cannot be read.
        """
        if not self._settings.readers:
            return
        self._provider = MeterProvider(self._readers(), resource=self._resource, shutdown_on_exit=False)
        # `OTEL_SDK_DISABLED` is for programs that are observed; whoever configures readers wants to read. There is no other way.
        self._provider._disabled = False  # noqa: SLF001
        meter = self._provider.get_meter(_SCOPE, __version__)
        for name in self._watched:
            made = meter.create_observable_counter if BY_NAME[name].kind == "counter" else meter.create_observable_gauge
            made(name, [self._asking(name)], BY_NAME[name].unit, BY_NAME[name].description)
        for endpoint in self._endpoints:
            if not is_loopback(parse_endpoint(endpoint.address)[0]):
                _log.warning("metrics at %s are open to other machines, without authentication", endpoint.address)
            endpoint.start()

    def _readers(self) -> list[MetricReader]:
        readers: list[MetricReader] = [self._memory] if self._endpoints else []
        try:
            for reader in self._settings.readers:
                if isinstance(reader, OtlpReader):
                    readers.append(periodic_reader(reader, self._complete))  # noqa: PERF401 - what was made must be known
        except BaseException:
            for made in readers:  # their threads run already
                made.shutdown()
            raise
        return readers

    def stop(self, timeout_s: float = 2.0) -> None:
        """Push the last numbers, if that can be done in time, and let nobody read any more."""
        for endpoint in self._endpoints:
            endpoint.stop()
        self._endpoints.clear()
        provider, self._provider = self._provider, None
        if provider is not None:
            # The SDK's exporters do not keep to their timeout when a connection hangs.
            ending = threading.Thread(target=_shut_down, args=(provider, timeout_s), daemon=True)
            ending.start()
            ending.join(timeout_s)

    def text(self) -> str:
        """All metrics as Prometheus reads them."""
        found = self._memory.get_metrics_data()
        return prometheus_text(self._complete(found or MetricsData(resource_metrics=[])))

    # --- within -----------------------------------------------------------------------------------------------------------
    def _asking(self, name: str) -> Callable[[CallbackOptions], list[Observation]]:
        def ask(_: CallbackOptions) -> list[Observation]:
            try:
                observed = self._watched[name]()
                values = [(observed, {})] if isinstance(observed, int | float) else list(observed)
            except Exception:
                self._failed(name)
                return []
            return [Observation(value, attributes) for value, attributes in values]

        return ask

    def _failed(self, name: str) -> None:
        with self._lock:
            known = name in self._failing
            self._failing.add(name)
        if not known:
            _log.exception("metric %s cannot be read; it is left out", name)

    def _complete(self, data: MetricsData) -> MetricsData:
        """With the histograms, which are counted elsewhere: the SDK has no histogram that is only observed."""
        metrics = []
        for name, observe in self._spreads.items():
            try:
                metrics.append(self._histogram(BY_NAME[name], observe()))
            except Exception:
                self._failed(name)
        if not metrics:
            return data
        if not data.resource_metrics or not data.resource_metrics[0].scope_metrics:
            return MetricsData([ResourceMetrics(self._resource, [_scope(metrics)], "")])
        first, *others = data.resource_metrics
        scope, *more = first.scope_metrics
        scope = replace(scope, metrics=[*scope.metrics, *metrics])
        return MetricsData([replace(first, scope_metrics=[scope, *more]), *others])

    def _histogram(self, instrument: Instrument, spread: Spread) -> Metric:
        point = HistogramDataPoint(
            attributes={},
            start_time_unix_nano=self._started_ns,
            time_unix_nano=time.time_ns(),
            count=spread.count,
            sum=spread.sum_s,
            bucket_counts=spread.counts,
            explicit_bounds=BOUNDS_S,
            min=None,  # type: ignore[arg-type] # not kept; the encoder then leaves it out
            max=None,  # type: ignore[arg-type]
        )
        data = Histogram([point], AggregationTemporality.CUMULATIVE)
        return Metric(instrument.name, instrument.description, instrument.unit, data)


def _scope(metrics: list[Metric]) -> ScopeMetrics:
    return ScopeMetrics(InstrumentationScope(_SCOPE, __version__), metrics, "")


def _resource(given: Iterable[tuple[str, str | None]]) -> Resource:
    """The service's own attributes, what `OTEL_RESOURCE_ATTRIBUTES` adds, and over both what the settings say."""
    own: dict[str, Any] = {
        names.SERVICE_NAME: "otel-audit",
        names.SERVICE_VERSION: __version__,
        names.SERVICE_INSTANCE: str(uuid.uuid4()),
    }
    attributes = {**own, **Resource.create().attributes}
    if attributes[names.SERVICE_NAME].startswith("unknown_service"):
        attributes[names.SERVICE_NAME] = own[names.SERVICE_NAME]
    attributes.update({key: value for key, value in given if value is not None})
    for key, value in given:
        if value is None:
            attributes.pop(key, None)
    return Resource(attributes)


def _shut_down(provider: MeterProvider, timeout_s: float) -> None:
    try:
        provider.shutdown(timeout_s * 1000)
    except Exception as e:
        _log.warning("the last push of metrics: %s", e)
