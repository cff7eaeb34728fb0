"""fan-out.yaml: whatever the tracing branch does with the spans, the audit branch has them all."""

import json
from pathlib import Path

import pytest

from tests.collector.pipeline import Place, arrived, bodies, check_complete, send
from tests.collector.support import Service, free_port, wait_for

DROP_ALL = """
processors:
  tail_sampling:
    decision_wait: 1s
    policies:
      - {name: none of them, type: probabilistic, probabilistic: {sampling_percentage: 0}}
  batch: {timeout: 100ms}
"""
KEEP_ALL = """
processors:
  tail_sampling:
    decision_wait: 1s
    policies:
      - {name: all of them, type: always_sample}
  batch: {timeout: 100ms}
exporters:
  file: {path: PATH}
service:
  pipelines:
    traces: {exporters: [file]}
"""
REFUSED = """
exporters:
  otlp_grpc/traces: {sending_queue: {enabled: false}, retry_on_failure: {enabled: false}, timeout: 1s}
service:
  pipelines:
    traces: {processors: [memory_limiter]}
"""


def _overlay(folder: Path, text: str) -> Path:
    path = folder / "overlay.yaml"
    path.write_text(text.replace("PATH", str(folder / "traces.json")))
    return path


def _sampled(place: Place) -> dict[str, float]:
    metrics = place.metrics()
    return {
        s: v for s, v in metrics.items() if s.startswith("otelcol_processor_tail_sampling_global_count_traces_sampled")
    }


def test_a_sampler_that_drops_everything_takes_nothing_from_the_log(tmp_path: Path) -> None:
    with Service(tmp_path / "log") as service:
        place = Place(tmp_path, service.grpc)
        with place.start("fan-out.yaml", _overlay(tmp_path, DROP_ALL)):
            send(place.grpc, bodies(200, each=20))
            check_complete(arrived(service, 200), range(200))
            wait_for(lambda: sum(_sampled(place).values()) == 200, "the sampler has decided on all traces")
            assert not any(value for series, value in _sampled(place).items() if 'sampled="true"' in series)
            assert 'exporter="otlp_grpc/traces"' not in str([s for s in place.metrics() if "sent_spans" in s])


def test_the_tracing_branch_goes_on_as_before(tmp_path: Path) -> None:
    traces = tmp_path / "traces.json"

    def kept() -> int:
        lines = traces.read_text().splitlines() if traces.exists() else []
        return sum(
            len(scope["spans"])
            for line in lines
            for r in json.loads(line)["resourceSpans"]
            for scope in r["scopeSpans"]
        )

    with Service(tmp_path / "log") as service:
        place = Place(tmp_path, service.grpc)
        with place.start("fan-out.yaml", _overlay(tmp_path, KEEP_ALL)):
            send(place.grpc, bodies(100, each=10))
            check_complete(arrived(service, 100), range(100))
            wait_for(lambda: kept() == 100, "the tracing branch has exported the same spans")


def test_a_tracing_branch_that_refuses_makes_senders_repeat_and_the_log_keeps_one(tmp_path: Path) -> None:
    """The receiver answers with the error of either branch; what the other one took is sent again, and recognised."""
    with Service(tmp_path / "log") as service:
        place = Place(tmp_path, service.grpc)
        with place.start("fan-out.yaml", _overlay(tmp_path, REFUSED), TRACES_ENDPOINT=f"127.0.0.1:{free_port()}"):
            for _ in range(3):  # a sender that keeps coming
                with pytest.raises(Exception, match="UNAVAILABLE"):
                    send(place.grpc, bodies(10, each=10), timeout_s=20)
            arrived(service, 10)
            wait_for(lambda: _sent(place) == 30, "all three times were sent on")
            check_complete(arrived(service, 10), range(10))


def _sent(place: Place) -> float:
    return sum(v for s, v in place.metrics().items() if s.startswith("otelcol_exporter_sent_spans") and "audit" in s)
