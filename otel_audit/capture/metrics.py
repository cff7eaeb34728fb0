"""OpenTelemetry metrics on capture itself, on whatever meter provider the application has."""

from collections.abc import Callable, Iterator

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from otel_audit import __version__, names
from otel_audit.capture.recorder import Recorder

__all__ = ["observe"]


def observe(recorder: Recorder) -> None:
    """Have the meter provider, now or later, read the counters of `recorder` whenever it collects.

    Counters are those of this process; a forked one begins at zero.
    """
    meter = metrics.get_meter("otel_audit", __version__)

    def reading(value: Callable[[], int]) -> list[Callable[[CallbackOptions], Iterator[Observation]]]:
        def read(_: CallbackOptions) -> Iterator[Observation]:
            yield Observation(value())

        return [read]

    counters: tuple[tuple[str, Callable[[], int], str], ...] = (
        (names.METRIC_SPOOLED, lambda: recorder.spool.records, "Audit records written to the spool"),
        (names.METRIC_DELIVERED, lambda: recorder.shipper.delivery.delivered, "Records the destination answers for"),
        (names.METRIC_REFUSED, lambda: recorder.shipper.delivery.refused, "Records the destination would not take"),
        (names.METRIC_LOST, lambda: recorder.lost, "Records dropped because there was no room for them"),
    )
    for name, value, description in counters:
        meter.create_observable_counter(name, reading(value), "{record}", description)
    meter.create_observable_gauge(
        names.METRIC_SPOOL_BYTES, reading(lambda: recorder.spool.used), "By", "Size of this process's spool"
    )
