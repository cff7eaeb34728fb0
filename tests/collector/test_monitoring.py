"""Alert rules and dashboard: Prometheus itself reads and tries them, and they ask only for what is measured."""

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from otel_audit._telemetry_instruments import INSTRUMENTS
from tests.collector.pipeline import bodies, send
from tests.collector.support import CONFIGS, Service, free_port
from tests.tools import PROMTOOL
from tests.unit.test_telemetry import AGREED

RULES = CONFIGS / "prometheus" / "rules.yaml"
RULES_TEST = CONFIGS / "prometheus" / "rules_test.yaml"
DASHBOARD = CONFIGS / "grafana" / "otel-audit.json"

OURS = {
    i.prometheus + end
    for i in INSTRUMENTS
    for end in ("", "_bucket", "_count", "_sum")[: 4 if i.kind == "histogram" else 1]
}
LATER = {name for name in OURS if name.startswith("otel_audit_exporter_")}
"""Not there unless records are sent on."""


def test_the_service_has_these_metrics(tmp_path: Path) -> None:
    port, settings = free_port(), tmp_path / "audit.yaml"
    readers = [{"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": port}}}}]
    settings.write_text(yaml.safe_dump({"service": {"telemetry": {"metrics": {"readers": readers}}}}))
    with Service(tmp_path / "log", "--config", settings) as service:
        send(service.grpc, bodies(10, each=10))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
    told = {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}
    assert {name for name in OURS - LATER if name not in told and f"{name}_bucket" not in OURS} == set()


def _promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        [PROMTOOL.get() / "promtool", *arguments], capture_output=True, text=True, check=False, cwd=RULES.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _alerts() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]


def test_prometheus_reads_the_rules() -> None:
    assert "SUCCESS" in _promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in _promtool("test", "rules", RULES_TEST)


def test_every_alert_has_a_test_and_says_what_to_do() -> None:
    tested = RULES_TEST.read_text()
    assert [alert for alert in _alerts() if alert not in tested] == []
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["labels"]["severity"] in ("page", "ticket")
                assert len(rule["annotations"]["description"]) > 20


def test_prometheus_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [t["expr"] for p in panels for t in p.get("targets", [])]
    assert len(queries) > 30
    rules = [
        {"record": f"q:{n}", "expr": re.sub(r"\$__rate_interval|\$[a-z]+", lambda m: _filled(m[0]), query)}
        for n, query in enumerate(queries)
    ]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(queries)} rules found" in _promtool("check", "rules", path)


def _filled(variable: str) -> str:
    return "5m" if variable == "$__rate_interval" else ".*"


@pytest.mark.parametrize("path", [RULES, RULES_TEST, DASHBOARD], ids=lambda p: p.name)
def test_only_metrics_that_there_are_are_asked_for(path: Path) -> None:
    text = re.sub(r"job:otel_audit_\w+:rate5m", "", path.read_text())
    named = set(re.findall(r"(?<![\w-])otel_audit_[a-z_]+", text))
    assert named
    assert named <= OURS


def test_the_dashboard_shows_every_metric() -> None:
    text = DASHBOARD.read_text()
    assert {name for name in set(AGREED) if name not in text} == set()
