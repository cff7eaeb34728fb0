"""Forwarding while both ends are killed: nothing is lost, and another otel-audit has each record exactly once."""

import gzip
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.collector.support import Collector, Service, free_port, wait_for
from tests.forwarder_support import cursor, refused, seqs_of
from tests.integration.test_forwarder import (
    COLLECTOR_CONFIG,
    calls,
    exported,
    exporter_config,
    filled,
    without_assigned,
)
from tests.support import check_log
from tests.tools import ROOT

ROUNDS = 6


def keep_posting(http: str, first: int, count: int, stop: threading.Event) -> None:
    """Post requests until each is acknowledged, as a sender with a queue does."""
    for n in range(count):
        while not stop.is_set():
            try:
                response = httpx.post(
                    f"http://{http}/v1/traces",
                    content=calls(20, first + 20 * n),
                    headers={"content-type": "application/x-protobuf"},
                    timeout=20,
                )
            except httpx.HTTPError:
                stop.wait(0.05)
                continue
            if response.status_code == 200:
                break
            stop.wait(0.05)


@pytest.mark.timeout(600)
def test_both_ends_are_killed_again_and_again(tmp_path: Path) -> None:
    log, other = filled(tmp_path / "log", 6000), tmp_path / "other"
    source, destination = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    config = exporter_config(tmp_path, destination, "grpc", ", timeout: 2s")
    stop = threading.Event()
    poster = threading.Thread(target=keep_posting, args=(source, 100_000, 60, stop))
    poster.start()
    try:
        receiver = Service(other, grpc=destination)
        for turn in range(ROUNDS):
            before = cursor(log)
            service = Service(log, "--config", config, http=source)
            wait_for(lambda before=before: cursor(log) > before, "some progress")  # type: ignore[misc]
            if turn % 2:
                receiver.kill()
                receiver = Service(other, grpc=destination)
            service.kill()
            done = cursor(log) - 1
            assert done <= len(check_log(other)), "the cursor is never ahead of what the destination has"
        with Service(log, "--config", config, http=source) as service:
            poster.join(120)
            assert not poster.is_alive()
            wait_for(lambda: cursor(log) == 6000 + 60 * 20 + 1, "all passed on")
            assert service.terminate() == 0
        assert receiver.terminate() == 0
    finally:
        stop.set()
        poster.join(30)
    assert len(check_log(log)) == 7200
    assert without_assigned(check_log(other)) == without_assigned(check_log(log))


@pytest.mark.timeout(600)
def test_a_collector_that_is_killed_gets_all_that_was_acknowledged_by_none_before(tmp_path: Path) -> None:
    """At least once, and what is there twice has one id."""
    log = filled(tmp_path / "log", 4000)
    ports = {"grpc": free_port(), "http": free_port()}
    collector_config, path = tmp_path / "collector.yaml", tmp_path / "logs.json"
    collector_config.write_text(COLLECTOR_CONFIG.format(path=path, **ports))
    config = exporter_config(tmp_path, f"127.0.0.1:{ports['grpc']}", "grpc", ", timeout: 2s")
    with Collector([collector_config], tmp_path):
        for _ in range(4):
            before = cursor(log)
            service = Service(log, "--config", config)
            wait_for(lambda before=before: cursor(log) > before, "some progress")  # type: ignore[misc]
            service.kill()
        with Service(log, "--config", config) as service:
            wait_for(lambda: cursor(log) == 4001, "all passed on")
            assert service.terminate() == 0
        expected = set(range(1, 4001))
        wait_for(lambda: {int(r["attributes"]["otel_audit.seq"]) for r in exported(path)} == expected, "all are there")
    found = exported(path)
    ids = {(r["attributes"]["log.record.uid"], r["attributes"]["otel_audit.seq"]) for r in found}
    assert len(ids) == 4000
    assert len(found) <= 4000 + 4 * 100, "a kill repeats one batch at most"


@pytest.mark.timeout(300)
def test_a_record_that_the_backend_behind_a_collector_refuses_is_found_and_noted(tmp_path: Path) -> None:
    """As docs/logs.md sets it up: no queue and no retries in the Collector, so that its answer is the backend's."""
    log = filled(tmp_path / "log", 500)
    poison = check_log(log)[250]
    taken: list[bytes] = []

    class Backend(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
            refused_ = poison["trace_id"] in body
            if not refused_:
                taken.append(body)
            self.send_response(400 if refused_ else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class says so
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Backend) as backend:
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        port, config = free_port(), tmp_path / "collector.yaml"
        page = (ROOT / "docs" / "logs.md").read_text()
        (shown,) = re.findall(r"```yaml\n(receivers:.*?)```", page, re.DOTALL)
        shown = shown.replace("https://logs.example.com", f"http://127.0.0.1:{backend.server_port}")
        config.write_text(shown.replace("localhost:14317", f"127.0.0.1:{port}"))
        settings = exporter_config(tmp_path, f"127.0.0.1:{port}", "grpc")
        with Collector([config], tmp_path), Service(log, "--config", settings) as service:
            wait_for(lambda: cursor(log) == 501, "all passed on")
            assert service.terminate() == 0
        backend.shutdown()
    (note,) = refused(log)
    assert (note["first_seq"], note["last_seq"], note["count"]) == (poison["seq"], poison["seq"], 1)
    assert "INVALID_ARGUMENT" in note["reason"]
    found = {seq for body in taken for seq in seqs_of(body)}
    assert found == set(range(1, 501)) - {poison["seq"]}
