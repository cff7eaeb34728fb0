"""What compose.yaml starts, started here: the example CRM as it is called there, a Collector, and the log with its settings."""

import os
import sys
import urllib.request
from pathlib import Path

import yaml

from tests.collector.pipeline import Place
from tests.collector.support import CONFIGS, Process, Service, free_port, wait_for
from tests.support import calls_of
from tests.tools import ROOT

KEY = "sk-sync-7f3a91"


def _listed(port: int) -> bool:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v2/contacts", headers={"X-API-Key": KEY})
    try:
        with urllib.request.urlopen(asked, timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def test_a_call_of_the_crm_becomes_a_record(tmp_path: Path) -> None:
    text = (CONFIGS / "compose" / "compose.yaml").read_text()
    assert f"X-API-Key: {KEY}" in text  # the call that its head tells people to make
    crm, port = yaml.safe_load(text)["services"]["crm"], free_port()
    here = {"0.0.0.0": "127.0.0.1", "8000": str(port)}
    command = [here.get(word, word) for word in crm["entrypoint"]]
    programs = Path(sys.executable).parent
    with Service(tmp_path / "log", "--config", CONFIGS / "compose" / "audit.yaml") as service:
        place = Place(tmp_path, service.grpc)
        environment = {
            **crm["environment"],
            "OTEL_AUDIT_ENDPOINT": f"http://{place.grpc}",
            "OTEL_AUDIT_SPOOL_DIR": str(tmp_path / "spool"),
            "OTEL_AUDIT_CLIENTS": str(ROOT / "examples" / "crm" / "clients.json"),
            "PATH": f"{programs}:{os.environ['PATH']}",
        }
        with (
            place.start("agent.yaml"),
            Process([programs / command[0], *command[1:]], tmp_path / "crm.log", environment, ROOT / "examples"),
        ):
            wait_for(lambda: _listed(port), "the CRM answers")
            wait_for(lambda: calls_of(service.directory), "the call is in the log")
        record = calls_of(service.directory)[0]
    told = {name: record[name] for name in ("client_id", "client_name", "service", "action", "outcome")}
    assert told == {
        "client_id": "sync-01",
        "client_name": "Nightly sync",
        "service": "crm",
        "action": "list",
        "outcome": "success",
    }
