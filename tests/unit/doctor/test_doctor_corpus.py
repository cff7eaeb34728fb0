"""The bad configurations are realistic: a real Collector accepts them, or refuses them where the file says so."""

from pathlib import Path

import pytest

from otel_audit._doctor_model import KINDS, load_collector, type_of
from tests.collector.support import validate_with_collector

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))
BUILT = {
    "receivers": {"otlp", "kafka"},
    "processors": {"memory_limiter", "batch", "tail_sampling", "transform"},
    "exporters": {"otlp", "otlp_grpc", "otlphttp", "otlp_http", "kafka", "file", "debug"},
    "connectors": set[str](),
    "extensions": {"file_storage", "health_check", "bearertokenauth"},
}
"""What the Collector of the tests is built from."""


def can_be_judged(path: Path) -> bool:
    collector = load_collector([str(path)])
    return all(type_of(name) in BUILT[kind] for kind in KINDS for name in collector.components[kind])


@pytest.mark.parametrize("path", [p for p in BAD if can_be_judged(p)], ids=lambda p: p.stem)
def test_the_collector_agrees_that_it_is_a_configuration(path: Path) -> None:
    said = validate_with_collector([path])
    assert bool(said) == ("\n# The Collector refuses it.\n" in path.read_text()), said
