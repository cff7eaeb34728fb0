"""SIGKILL of a real server at random moments under load, against senders that retry.

Each round starts the server, waits until data flows, and kills it some random while later. Afterwards every acknowledged
record is there exactly once, numbers are contiguous, and queries say what was sent.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from otel_audit.query import Filters, Query
from otel_audit.reader import LogReader
from tests.support import check_log

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
# What a killed server looks like to a sender.
RETRYABLE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
)
SPANS = 40
SENDERS = 4
SERVE = """
import sys
from otel_audit import config, server
settings = config.load(sys.argv[1])
sys.exit(server.serve(settings, ready=lambda addresses: print(addresses.grpc, flush=True)))
"""
CONFIG = """
receivers: {{otlp: {{protocols: {{grpc: {{endpoint: "127.0.0.1:0"}}}}}}}}
log: {{directory: {folder}, segment_rows: 1500, segment_age: 1s}}
"""


def request(sender: int, number: int) -> bytes:
    """One batch of calls; the client id says who sent it, the path which batch it was."""
    message = trace_service_pb2.ExportTraceServiceRequest()
    resource_spans = message.resource_spans.add()
    name = resource_spans.resource.attributes.add(key="service.name")
    name.value.string_value = "crm"
    spans = resource_spans.scope_spans.add().spans
    rng = random.Random(f"{sender}/{number}")
    for i in range(SPANS):
        start = 1_790_000_000_000_000_000 + (number * SPANS + i) * 1_000_000
        span = spans.add(
            trace_id=rng.randbytes(16),
            span_id=rng.randbytes(8),
            kind=trace_pb2.Span.SPAN_KIND_SERVER,
            start_time_unix_nano=start,
            end_time_unix_nano=start + 1_000_000,
        )
        attributes = {
            "http.request.method": "GET",
            "url.path": f"/contacts/{number}/{i}",
            "audit.client.id": f"sender-{sender}",
        }
        for key, value in attributes.items():
            span.attributes.add(key=key).value.string_value = value
        span.attributes.add(key="http.response.status_code").value.int_value = 200
    return message.SerializeToString()


class Sender:
    """Sends batch after batch to whichever server is up, each until it is acknowledged."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.address = ""
        self.acknowledged = 0
        self.retries = 0
        self.stop = threading.Event()
        self.abandon = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=f"sender-{number}")

    def _run(self) -> None:
        try:
            while not self.stop.is_set():
                self._send(request(self.number, self.acknowledged))
                self.acknowledged += 1
        except BaseException as e:
            self.error = e

    def _send(self, body: bytes) -> None:
        """Until it is acknowledged, also after a stop was asked for: what was sent must not be left open."""
        deadline = time.monotonic() + 120
        while True:
            address = self.address
            with grpc.insecure_channel(address) as channel:
                export: Any = channel.unary_unary(EXPORT)
                while address == self.address:
                    try:
                        export(body, timeout=10)
                    except grpc.RpcError as e:
                        if e.code() not in RETRYABLE or self.abandon or time.monotonic() > deadline:
                            raise
                        self.retries += 1
                        self.stop.wait(0.02)
                    else:
                        return


class Server:
    """A server process, started and killed by its pid."""

    def __init__(self, config: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, self.process.stderr.read() if self.process.stderr else ""

    def end(self, number: int) -> int:
        os.kill(self.process.pid, number)
        self.process.communicate(timeout=60)
        return self.process.returncode


def wait_for(senders: list[Sender], total: int) -> None:
    """Wait until the senders' acknowledgements reach a total."""
    for _ in range(12_000):
        for sender in senders:
            if sender.error:
                raise sender.error
        if sum(s.acknowledged for s in senders) >= total:
            return
        time.sleep(0.01)
    raise AssertionError("nothing was acknowledged for two minutes")


def run(folder: Path, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(folder=folder / "log"))
    senders = [Sender(i) for i in range(SENDERS)]
    server = Server(config)
    for sender in senders:
        sender.address = server.address
        sender.thread.start()
    try:
        for round_number in range(rounds):
            wait_for(senders, sum(s.acknowledged for s in senders) + rng.randrange(1, 60))
            time.sleep(rng.random() * 0.3)  # the random moment
            least = Counter({f"sender-{s.number}": s.acknowledged * SPANS for s in senders})
            server.end(signal.SIGKILL)
            check(folder / "log", least, senders, f"seed {seed}, round {round_number}")
            server = Server(config)
            for sender in senders:
                sender.address = server.address
        wait_for(senders, sum(s.acknowledged for s in senders) + 20)
    except BaseException:
        for sender in senders:
            sender.abandon = True
        raise
    finally:
        for sender in senders:
            sender.stop.set()
        for sender in senders:
            sender.thread.join(150)
        if server.process.poll() is None:
            server.end(signal.SIGTERM)
    assert [s.error for s in senders] == [None] * SENDERS
    assert server.process.returncode == 0
    sent = Counter({f"sender-{s.number}": s.acknowledged * SPANS for s in senders})
    check(folder / "log", sent, senders, f"seed {seed}, at the end")
    assert sum(s.retries for s in senders) > 0
    records = check_log(folder / "log")
    assert Counter(r["client_id"] for r in records) == sent
    assert {r["target"] for r in records if r["client_id"] == "sender-0"} == {
        f"/contacts/{number}/{i}" for number in range(senders[0].acknowledged) for i in range(SPANS)
    }


def check(folder: Path, least: Counter[str], senders: list[Sender], where: str) -> None:
    """Every acknowledged record once, at most one batch a sender beyond that, and queries that say the same."""
    records = check_log(folder)
    found = Counter(r["client_id"] for r in records)
    snapshot = LogReader.open(folder).snapshot()
    with Query(snapshot) as query:
        assert query.count() == len(records), where
        for client, count in least.items():
            assert found[client] >= count, where
            assert query.count(Filters(client=(client,))) == found[client], where
        page = query.page(Filters(), 50)
        newest = sorted(records, key=lambda r: (r["time"], r["seq"]), reverse=True)[:50]
        assert page.records.column("seq").to_pylist() == [r["seq"] for r in newest], where
        buckets = query.histogram(width_us=60_000_000)
        assert sum(b.count for b in buckets) == len(records), where
    assert sum(found.values()) <= sum((s.acknowledged + 1) * SPANS for s in senders), where


def test_kills_under_load_lose_and_double_nothing(tmp_path: Path) -> None:
    run(tmp_path, rounds=3, seed=random.randrange(10**6))


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_fifty_kills_under_load_lose_and_double_nothing(tmp_path: Path) -> None:
    run(tmp_path, rounds=55, seed=random.randrange(10**6))
