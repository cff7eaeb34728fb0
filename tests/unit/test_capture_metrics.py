"""The application's own metrics tell what capture does."""

from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from otel_audit.capture.metrics import observe
from otel_audit.capture.recorder import Recorder
from tests.spool_support import settings


def test_the_counters_are_read_when_metrics_are_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    recorder = Recorder(settings(tmp_path))
    monkeypatch.setattr(recorder.shipper, "notify", lambda: None)
    observe(recorder)

    def read() -> dict[str, Any]:
        data: Any = reader.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics[0].metrics
        return {m.name.removeprefix("otel_audit.capture."): m.data.data_points[0].value for m in found}

    assert read() == {"spooled": 0, "delivered": 0, "refused": 0, "lost": 0, "spool.size": 0}
    recorder.begin(Resource({}))
    recorder.lost = 3
    recorder.shipper.delivery.delivered = 5
    found = read()
    assert found.pop("spool.size") > 100
    assert found == {"spooled": 1, "delivered": 5, "refused": 0, "lost": 3}
