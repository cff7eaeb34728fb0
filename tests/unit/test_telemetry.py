"""Metrics: the table, what is told, and the text that Prometheus reads."""

import math
import re
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.parser import text_string_to_metric_families

from otel_audit._durations import BOUNDS_S, Durations
from otel_audit._server_metrics import REASONS
from otel_audit._telemetry_text import prometheus_text
from otel_audit.telemetry import INSTRUMENTS, PrometheusReader, Telemetry, TelemetrySettings

DOCS = Path(__file__).parents[2] / "docs" / "telemetry.md"
SCRAPED = TelemetrySettings(readers=(PrometheusReader("127.0.0.1", 0),))

AGREED = [
    "otel_audit_receiver_accepted_spans_total",
    "otel_audit_receiver_accepted_log_records_total",
    "otel_audit_receiver_skipped_spans_total",
    "otel_audit_receiver_refused_requests_total",
    "otel_audit_receiver_in_flight_bytes",
    "otel_audit_receiver_in_flight_limit_bytes",
    "otel_audit_log_records_total",
    "otel_audit_log_duplicates_total",
    "otel_audit_log_queue_size",
    "otel_audit_log_queue_capacity",
    "otel_audit_log_refused_total",
    "otel_audit_journal_fsync_duration_seconds",
    "otel_audit_log_commit_duration_seconds",
    "otel_audit_log_last_seq",
    "otel_audit_seal_unsealed_records",
    "otel_audit_seal_lag_seconds",
    "otel_audit_seal_segments_total",
    "otel_audit_seal_failed",
    "otel_audit_quarantine_entries_total",
    "otel_audit_sources",
    "otel_audit_sources_missing_records",
    "otel_audit_disk_free_bytes",
    "otel_audit_disk_reserve_bytes",
    "otel_audit_healthy",
    "otel_audit_exporter_sent_log_records_total",
    "otel_audit_exporter_send_failed_log_records_total",
    "otel_audit_exporter_lag_records",
    "otel_audit_process_uptime_seconds",
    "otel_audit_process_memory_rss_bytes",
    "otel_audit_process_open_fds",
    "otel_audit_process_cpu_seconds_total",
]


def test_names_that_dashboards_and_alerts_use_stay() -> None:
    assert set(AGREED) <= {i.prometheus for i in INSTRUMENTS}


def test_every_metric_is_documented_with_its_type_and_nothing_else_is() -> None:
    rows = re.findall(r"^\| `(otel_audit_[a-z_]+)` \| (\w+) \|", DOCS.read_text(), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert dict(rows) == {i.prometheus: i.kind for i in INSTRUMENTS}


def test_every_reason_of_refusal_is_documented() -> None:
    text = DOCS.read_text().partition("Reasons of refusal.")[2].partition("##")[0]
    assert set(re.findall(r"`([a-z_]+)`", text)) == set(REASONS)


def test_every_reason_in_the_code_is_in_the_list() -> None:
    code = "".join(p.read_text() for p in (Path(__file__).parents[2] / "otel_audit").glob("_receiver_*.py"))
    used = re.findall(r'TurnedAwayError\(\s*"([a-z_]+)"', code) + re.findall(r'self\._stranger\(\s*"([a-z_]+)"', code)
    used += re.findall(r'\brefuse\(\s*"([a-z_]+)"', code) + re.findall(r'_Refused\(\s*\d+, "([a-z_]+)"', code)
    assert set(used) == set(REASONS)


# --- durations ------------------------------------------------------------------------------------------------------------
def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed() -> None:
    durations = Durations()
    for took_ns in (0, 500_000, 500_001, 10_000_000_000, 10_000_000_001, 3_600_000_000_000):
        durations.add(took_ns)
    spread = durations.read()
    assert spread.counts == (2, 1, *[0] * 11, 1, 2)
    assert spread.count == 6
    assert math.isclose(spread.sum_s, 3620.001000002)


# --- watching -------------------------------------------------------------------------------------------------------------
def families(text: str) -> dict[str, list[tuple[str, dict[str, str], float]]]:
    """Every sample by the name of its family, as Prometheus' own parser reads the text."""
    return {
        family.name: [(s.name, dict(s.labels), s.value) for s in family.samples]
        for family in text_string_to_metric_families(text)
    }


def test_what_is_watched_is_told_as_it_is_when_asked() -> None:
    telemetry = Telemetry(SCRAPED)
    now = {"last_seq": 1.0}
    durations = Durations()
    telemetry.watch("otel_audit.log.last_seq", lambda: now["last_seq"])
    telemetry.watch("otel_audit.exporter.sent_log_records", lambda: [(3, {"exporter": "a"}), (4, {"exporter": "b"})])
    telemetry.watch_durations("otel_audit.journal.fsync.duration", durations.read)
    telemetry.open()
    telemetry.start()
    try:
        now["last_seq"] = 7.0
        durations.add(2_000_000)
        durations.add(30_000_000_000)
        found = families(telemetry.text())
    finally:
        telemetry.stop()
    assert found["otel_audit_log_last_seq"] == [("otel_audit_log_last_seq", {}, 7.0)]
    sent = "otel_audit_exporter_sent_log_records"
    assert found[sent] == [(f"{sent}_total", {"exporter": "a"}, 3.0), (f"{sent}_total", {"exporter": "b"}, 4.0)]
    name = "otel_audit_journal_fsync_duration_seconds"
    buckets = {labels["le"]: value for sample, labels, value in found[name] if sample == f"{name}_bucket"}
    assert [float(bound) for bound in buckets] == [*BOUNDS_S, math.inf]
    assert (buckets["0.001"], buckets["0.0025"], buckets["10.0"], buckets["+Inf"]) == (0, 1, 1, 2)
    assert (f"{name}_count", {}, 2.0) in found[name]
    assert (f"{name}_sum", {}, 30.002) in found[name]


def test_metrics_are_told_even_where_the_sdk_is_off_for_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    telemetry = Telemetry(SCRAPED)
    telemetry.watch("otel_audit.disk.free", lambda: 5)
    telemetry.open()
    telemetry.start()
    try:
        assert families(telemetry.text())["otel_audit_disk_free_bytes"] == [("otel_audit_disk_free_bytes", {}, 5)]
    finally:
        telemetry.stop()


def test_a_metric_that_fails_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(SCRAPED)

    def fails() -> float:
        raise OSError("no disk")

    telemetry.watch("otel_audit.disk.free", fails)
    telemetry.watch("otel_audit.healthy", lambda: 1)
    telemetry.open()
    telemetry.start()
    try:
        for _ in range(3):
            assert set(families(telemetry.text())) == {"otel_audit_healthy", "target_info"}
    finally:
        telemetry.stop()
    assert [r.getMessage() for r in caplog.records] == ["metric otel_audit.disk.free cannot be read; it is left out"]


def test_a_metric_that_is_not_in_the_table_cannot_be_watched() -> None:
    with pytest.raises(KeyError):
        Telemetry(SCRAPED).watch("otel_audit.something.else", lambda: 1)


def test_the_service_says_who_it_is_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.instance.id=from-env")
    given = (("service.instance.id", "eu-1"), ("service.version", None), ("1st.key", "a"))
    telemetry = Telemetry(TelemetrySettings(readers=SCRAPED.readers, resource=given))
    telemetry.watch("otel_audit.healthy", lambda: 1)
    telemetry.open()
    telemetry.start()
    try:
        ((_, labels, value),) = families(telemetry.text())["target_info"]
    finally:
        telemetry.stop()
    assert value == 1
    assert (labels["service_name"], labels["service_instance_id"]) == ("otel-audit", "eu-1")
    assert (labels["deployment_environment_name"], labels["_1st_key"]) == ("prod", "a")
    assert "service_version" not in labels


@pytest.mark.parametrize(("host", "said"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_an_endpoint_that_others_reach_is_warned_of(host: str, said: bool, caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(TelemetrySettings(readers=(PrometheusReader(host, 0),)))
    telemetry.open()
    telemetry.start()
    telemetry.stop()
    assert ("open to other machines" in caplog.text) is said


def test_without_readers_nothing_is_opened() -> None:
    telemetry = Telemetry(TelemetrySettings())
    telemetry.open()
    telemetry.start()
    assert telemetry.addresses == ()
    telemetry.stop()


# --- text -----------------------------------------------------------------------------------------------------------------
NASTY = ['say "hi"', "back\\slash", "two\nlines", "", "Zürich 😀", "\\n", 'a="b",c="d"', "} 1"]


def test_text_of_any_kind_in_labels_is_read_back_as_it_was() -> None:
    points = [NumberDataPoint({"reason": text}, 0, 0, float(i)) for i, text in enumerate(NASTY)]
    metric = Metric("otel_audit.healthy", "", "", Gauge(points))
    scope = ScopeMetrics(InstrumentationScope("x"), [metric], "")
    resource = Resource({"a.b": 'x"y\\z\n', "a-b": "second", "deployed": True})
    text = prometheus_text(MetricsData([ResourceMetrics(resource, [scope], "")]))
    found = families(text)
    assert [labels["reason"] for _, labels, _ in found["otel_audit_healthy"]] == NASTY
    assert found["target_info"] == [("target_info", {"a_b": 'second;x"y\\z\n', "deployed": "true"}, 1.0)]


def test_a_lone_surrogate_does_not_break_the_text() -> None:
    points = [NumberDataPoint({"reason": "\ud800"}, 0, 0, math.inf)]
    scope = ScopeMetrics(InstrumentationScope("x"), [Metric("otel_audit.healthy", "", "", Gauge(points))], "")
    text = prometheus_text(MetricsData([ResourceMetrics(Resource({}), [scope], "")]))
    assert text.encode()
    assert families(text)["otel_audit_healthy"] == [("otel_audit_healthy", {"reason": "\\ud800"}, math.inf)]


def test_sums_are_cumulative_from_the_start() -> None:
    telemetry = Telemetry(SCRAPED)
    data = telemetry._complete(MetricsData([]))
    assert data.resource_metrics == []
    telemetry.watch_durations("otel_audit.log.commit.duration", Durations().read)
    (metric,) = telemetry._complete(MetricsData([])).resource_metrics[0].scope_metrics[0].metrics
    assert getattr(metric.data, "aggregation_temporality") is AggregationTemporality.CUMULATIVE  # noqa: B009
