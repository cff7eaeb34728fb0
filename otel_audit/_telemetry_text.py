"""Metrics as Prometheus reads them.

Source: Prometheus, "Exposition formats", text format 0.0.4; OpenTelemetry specification, "Prometheus and OpenMetrics
Compatibility", for `target_info` and the names of labels.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final

from opentelemetry.sdk.metrics.export import HistogramDataPoint, Metric, MetricsData, NumberDataPoint
from opentelemetry.sdk.resources import Resource

from otel_audit._telemetry_instruments import BY_NAME

__all__ = ["CONTENT_TYPE", "prometheus_text"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NOT_IN_A_LABEL: Final = re.compile(r"[^a-zA-Z0-9_]")


def prometheus_text(data: MetricsData) -> str:
    """Every metric of the table that has a value, and `target_info`, by name; always ends with a line feed.

    Args:
        data: as collected from the SDK.
    """
    metrics = {
        metric.name: metric
        for of_resource in data.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        if metric.name in BY_NAME
    }
    lines = [line for name in sorted(metrics) for line in _metric(metrics[name])]
    if data.resource_metrics:
        lines += _target_info(data.resource_metrics[0].resource)
    return "".join(f"{line}\n" for line in lines)


def _metric(metric: Metric) -> Iterator[str]:
    instrument = BY_NAME[metric.name]
    name = instrument.prometheus
    yield f"# HELP {name} {_help(instrument.description)}"
    yield f"# TYPE {name} {instrument.kind}"
    for point in metric.data.data_points:
        labels = _labels(point.attributes or {})
        if isinstance(point, HistogramDataPoint):
            yield from _histogram(name, labels, point)
        elif isinstance(point, NumberDataPoint):
            yield f"{name}{_braced(labels)} {_number(point.value)}"


def _histogram(name: str, labels: list[str], point: HistogramDataPoint) -> Iterator[str]:
    total = 0
    bounds = [*point.explicit_bounds, math.inf]
    for bound, count in zip(bounds, point.bucket_counts, strict=True):
        total += count
        yield f"{name}_bucket{_braced([*labels, _label('le', _number(bound))])} {total}"
    yield f"{name}_sum{_braced(labels)} {_number(point.sum)}"
    yield f"{name}_count{_braced(labels)} {total}"


def _target_info(resource: Resource) -> Iterator[str]:
    yield "# HELP target_info What the process says of itself."
    yield "# TYPE target_info gauge"
    yield f"target_info{_braced(_labels(resource.attributes))} 1"


def _labels(attributes: Mapping[str, object]) -> list[str]:
    """Labels in order; where two attributes have the same name as labels, their values are joined."""
    found: dict[str, list[str]] = {}
    for key, value in sorted(attributes.items()):
        name = _NOT_IN_A_LABEL.sub("_", key)
        found.setdefault(f"_{name}" if name[:1].isdigit() else name, []).append(_text(value))
    return [_label(name, ";".join(values)) for name, values in sorted(found.items())]


def _label(name: str, value: str) -> str:
    value = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{value}"'


def _braced(labels: list[str]) -> str:
    return f"{{{','.join(labels)}}}" if labels else ""


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _text(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.encode(errors="backslashreplace").decode()


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
