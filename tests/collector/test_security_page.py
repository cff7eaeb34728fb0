"""The examples of docs/security.md are what they say they are."""

import re
from pathlib import Path

import yaml

from otel_audit import config
from otel_audit._senders_file import load_senders
from tests.certificates import Authority
from tests.collector.support import validate_with_collector
from tests.tools import ROOT

BLOCKS = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_service_are_good(tmp_path: Path) -> None:
    whole, senders, _ = BLOCKS
    (tmp_path / "audit.yaml").write_text(whole)
    (tmp_path / "senders.yaml").write_text(senders)
    assert config.problems(tmp_path / "audit.yaml") == []
    assert [sender.name for sender in load_senders(tmp_path / "senders.yaml")] == ["gateway", "crm"]


def test_the_example_of_a_collector_is_good(tmp_path: Path) -> None:
    ca = Authority(tmp_path, "ours")
    own = ca.issue("gateway")
    (tmp_path / "token").write_text("a-token")
    text = BLOCKS[2]
    for there, here in (
        ("/run/secrets/otel-audit-token", tmp_path / "token"),
        ("/etc/otelcol/audit-ca.crt", ca.file),
        ("/etc/otelcol/tls.crt", own.certificate),
        ("/etc/otelcol/tls.key", own.key),
        ("/var/lib/otelcol", tmp_path),
    ):
        assert there in text
        text = text.replace(there, str(here))
    example = yaml.safe_load(text)
    example["receivers"] = {"otlp": {"protocols": {"grpc": {"endpoint": "127.0.0.1:0"}}}}
    example["service"]["pipelines"] = {"traces": {"receivers": ["otlp"], "exporters": list(example["exporters"])}}
    (tmp_path / "collector.yaml").write_text(yaml.safe_dump(example))
    assert validate_with_collector([tmp_path / "collector.yaml"]) == ""
