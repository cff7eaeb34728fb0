"""Services in other languages, with their own OpenTelemetry and nothing of ours: each call ends as one complete record."""

import contextlib
import hashlib
import http.client
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from otel_audit import quarantine
from tests.collector.config_pipeline import Pipeline, pipeline
from tests.collector.support import Process, free_port, wait_for
from tests.support import calls_of
from tests.tools import GO, JAVA, NODE, ROOT

WEB, PARTNER = "k-web-0123456789", "k-partner-9876543210"
JWT = "eyJhbGciOiJub25lIn0.eyJhenAiOiAiYmF0Y2giLCAic3ViIjogImFsaWNlIn0.c2ln"  # {"azp": "batch", "sub": "alice"}
SETTINGS = {
    "AUDIT_CLIENT_KEYS": ";".join(f"{hashlib.sha256(k.encode()).hexdigest()}={i}" for k, i in ((WEB, "web"), (PARTNER, "partner"))),
    "AUDIT_CLIENT_NAMES": "web=Web front end;partner=Partner integration;batch=Nightly batch",
}  # fmt: skip
INTRUDER = "k-intruder"
INTRUDER_ID = "key:" + hashlib.sha256(INTRUDER.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Call:
    """A call to make, and what its record says."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    status: int
    outcome: str
    action: str
    route: str | None
    client: tuple[str | None, str | None, str | None]

    @property
    def expected(self) -> dict[str, Any]:
        client_id, client_name, client_auth = self.client
        return {
            "client_id": client_id,
            "client_name": client_name,
            "client_auth": client_auth,
            "service": "crm",
            "action": self.action,
            "target": self.path.partition("?")[0],
            "outcome": self.outcome,
            "status_code": self.status,
            "method": self.method,
        }


def _key(key: str) -> tuple[tuple[str, str], ...]:
    return (("X-API-Key", key),)


_WEB = ("web", "Web front end", "api_key")
_PARTNER = ("partner", "Partner integration", "api_key")
_BATCH = ("batch", "Nightly batch", "jwt (unverified)")
_BEARER = (("Authorization", f"Bearer {JWT}"),)
ITEM = "/contacts/{id}"
CALLS = (
    Call("GET", "/contacts?api_key=in-the-query", _key(WEB), 200, "success", "list", "/contacts", _WEB),
    Call("GET", "/contacts/17", _key(PARTNER), 200, "success", "read", ITEM, _PARTNER),
    Call("POST", "/contacts", _BEARER, 201, "success", "create", "/contacts", _BATCH),
    Call("DELETE", "/contacts/17", _key(WEB), 500, "error", "delete", ITEM, _WEB),
    Call("GET", "/contacts", (), 401, "denied", "list", None, (None, None, None)),
    Call("GET", "/contacts/19", _key(INTRUDER), 403, "denied", "read", None, (INTRUDER_ID, None, "api_key (unverified)")),
    Call("GET", "/nothing/20", _key(WEB), 404, "failure", "read", None, _WEB),
)  # fmt: skip


def _command(language: str) -> list[str | Path]:
    """What starts a service; skips the test where it is not built."""
    if language == "node":
        folder = NODE.get()
        return ["node", "--require", folder / "audit.js", folder / "service.js"]
    if language == "java":
        folder = JAVA.get()
        classpath = f"{folder / 'classes'}:{folder / 'lib'}/*"
        return [
            "java",
            "-XX:TieredStopAtLevel=1",
            f"-javaagent:{folder / 'agent' / 'opentelemetry-javaagent.jar'}",
            "-cp",
            classpath,
            "Service",
        ]
    return [GO.get() / "service"]


def telemetry(collector_grpc: str) -> dict[str, str]:
    """The variables that docs/languages.md tells users to set, for this Collector."""
    text = (ROOT / "docs" / "languages.md").read_text()
    (block,) = re.findall(r"^```sh$(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    said = dict(line.split("=", 1) for line in block.split())
    (java,) = re.findall(r"^\$ export (OTEL_INSTRUMENTATION_\S+)$", text, re.MULTILINE)
    return {
        **said,
        **dict([java.split("=", 1)]),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector_grpc}",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }


@contextlib.contextmanager
def started(language: str, behind: Pipeline, folder: Path) -> Iterator[tuple[Process, int]]:
    """A service that sends to a pipeline, and the port it listens on."""
    port = free_port()
    variables = {**telemetry(behind.grpc), "PORT": str(port)}
    with Process(_command(language), folder / "service.log", variables, folder) as service:

        def listening() -> bool:
            assert service.exit_code is None, service.said()
            return "listening" in service.said()

        wait_for(listening, f"the {language} service listens")
        yield service, port


@dataclass(frozen=True)
class Running:
    """A service that runs behind a pipeline.

    Args:
        language: what it is written in.
        port: where it listens.
        service: its process.
        pipeline: what its spans go to.
    """

    language: str
    port: int
    service: Process
    pipeline: Pipeline


@pytest.fixture(scope="module", params=["node", "java", "go"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    _command(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    with (
        pipeline("any-language.yaml", folder, SETTINGS) as behind,
        started(request.param, behind, folder) as (service, port),
    ):
        yield Running(request.param, port, service, behind)


def make(port: int, call: Call, trace_id: str, *, sampled: bool = True) -> None:
    """Make a call as part of a trace, and see that the service answers as it should."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {**dict(call.headers), "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-0{int(sampled)}"}
    connection.request(call.method, call.path, headers=headers)
    with connection.getresponse() as response:
        response.read()
        assert response.status == call.status
    connection.close()


def several(*calls: Call) -> list[tuple[Call, str]]:
    """Calls to make, each with a trace of its own."""
    return [(call, secrets.token_hex(16)) for call in calls]


def records_of(running: Running, made: Sequence[tuple[Call, str]]) -> list[dict[str, Any]]:
    """The record of each call that was made, in their order, once all are there; there must be one of each."""
    wanted = {trace_id for _, trace_id in made}

    def found() -> list[dict[str, Any]]:
        return [r for r in calls_of(running.pipeline.service.directory) if r["trace_id"].hex() in wanted]

    wait_for(lambda: len(found()) >= len(made), f"{len(made)} calls in the log")
    assert Counter(r["trace_id"].hex() for r in found()) == Counter(wanted)
    of_trace = {r["trace_id"].hex(): r for r in found()}
    return [of_trace[trace_id] for _, trace_id in made]


def _route(record: dict[str, Any]) -> str | None:
    """A record's route, as Go and Java write it; None for what Jetty says of calls that come to no handler."""
    return None if record["route"] in (None, "/*") else str(record["route"]).replace(":id", "{id}")


def test_each_call_ends_as_one_complete_record(running: Running) -> None:
    made = several(*CALLS * 20)
    began_s = time.time()
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda one: make(running.port, *one), made))
    ended_s = time.time()
    for (call, _), record in zip(made, records_of(running, made), strict=True):
        assert {key: record[key] for key in call.expected} == call.expected
        assert (record["client_ip"], record["client_ip_source"], record["peer_ip"]) == (
            "127.0.0.1",
            "peer",
            "127.0.0.1",
        )
        assert _route(record) == call.route
        assert record["duration_ns"] > 0
        assert began_s - 1 <= record["time"].timestamp() <= ended_s + 1


def test_a_call_that_its_caller_does_not_sample_is_a_record_all_the_same(running: Running) -> None:
    made = several(*CALLS[:3] * 6)
    for i, (call, trace_id) in enumerate(made):
        make(running.port, call, trace_id, sampled=bool(i % 2))
    records_of(running, made)


def test_what_a_caller_writes_is_not_its_address(running: Running) -> None:
    headers = (*_key(WEB), ("X-Forwarded-For", "192.0.2.66"))
    made = several(replace(CALLS[1], headers=headers))
    make(running.port, *made[0])
    (record,) = records_of(running, made)
    assert (record["client_ip"], record["client_ip_source"]) == ("127.0.0.1", "untrusted")
    assert json.loads(record["attributes"])["audit.client.ip.chain"] == "192.0.2.66"


def test_calls_made_just_before_an_orderly_end_are_records(running: Running, tmp_path: Path) -> None:
    made = several(*CALLS[:1] * 50)
    with started(running.language, running.pipeline, tmp_path) as (service, port):
        for call, trace_id in made:
            make(port, call, trace_id)
        service.terminate()
    records_of(running, made)


def test_no_key_is_in_the_log_nor_in_what_the_collector_says(running: Running) -> None:
    made = several(*CALLS)
    for call, trace_id in made:
        make(running.port, call, trace_id)
    kept = repr(records_of(running, made)) + repr(list(quarantine.read(running.pipeline.service.directory)))
    told = running.pipeline.collector.said() + running.service.said()
    found = [key for key in (WEB, PARTNER, INTRUDER, JWT, "in-the-query") if key in kept + told]
    assert found == []
