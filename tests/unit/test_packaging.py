"""What the base install promises: three OpenTelemetry packages, and nothing else of our choosing."""

import re
import tomllib
from pathlib import Path
from typing import Any

from tests.compat.environments import OLDEST

ROOT = Path(__file__).parents[2]


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_the_base_install_depends_on_three_packages() -> None:
    named = {re.split(r"[<>=!~\[; ]", line)[0] for line in project()["dependencies"]}
    assert named == {"opentelemetry-sdk", "opentelemetry-instrumentation", "opentelemetry-exporter-otlp"}


def test_no_dependency_of_the_base_has_extras_or_markers() -> None:
    for line in project()["dependencies"]:
        assert "[" not in line
        assert ";" not in line


def test_the_oldest_versions_that_are_declared_are_those_that_are_tested() -> None:
    floors = {}
    for line in project()["dependencies"]:
        name, _, versions = line.partition(">=")
        floors[name] = versions.partition(",")[0]
    assert floors == {
        "opentelemetry-sdk": OLDEST["sdk"].removesuffix(".0"),
        "opentelemetry-exporter-otlp": OLDEST["sdk"].removesuffix(".0"),
        "opentelemetry-instrumentation": OLDEST["instrumentation"],
    }
