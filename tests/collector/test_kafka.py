"""`kafka.yaml` with a real broker: what a Collector took comes to the log exactly once, whatever of the chain is killed."""

import contextlib
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.collector.config_pipeline import environment, send
from tests.collector.kafka_broker import Broker
from tests.collector.support import CONFIGS, Collector, Service, free_port, wait_for
from tests.otlp_support import request, span
from tests.support import calls_of, check_log

CONFIG = CONFIGS / "kafka.yaml"
SPANS = 25
"""In one request."""


class Chain:
    """Collector, broker and log, and what was sent.

    Args:
        folder: for all their data.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = Broker(folder / "kafka")
        self.broker.create_topic()
        self.log_address = f"127.0.0.1:{free_port()}"
        self.directory = folder / "audit-log"
        self.service: Service | None = None
        self.collectors: list[Collector] = []
        self.http = ""
        self._lock = threading.Lock()
        self.sent: list[bytes] = []  # span ids of requests that the Collector took; under the lock

    def start_log(self) -> Service:
        self.service = Service(self.directory, grpc=self.log_address)
        return self.service

    def start_collector(self, *pipelines: str, **settings: str) -> Collector:
        """A Collector with these of the pipelines; with all if none is named."""
        config = CONFIG
        if pipelines:
            content = yaml.safe_load(CONFIG.read_text())
            kept = {name: content["service"]["pipelines"][name] for name in pipelines}
            content["service"]["pipelines"] = kept
            config = self.folder / f"{'-'.join(pipelines).replace('/', '-')}.yaml"
            config.write_text(yaml.safe_dump(content))
        brokers = f"{self.broker.address},{self.broker.address}"
        chosen = {"AUDIT_ENDPOINT": self.log_address, "AUDIT_KAFKA_BROKERS": brokers, **settings}
        variables, _, self.http, health = environment(**chosen)
        collector = Collector([config], self.folder, variables, health)
        self.collectors.append(collector)
        return collector

    def send(self, count: int, spans: int = SPANS, bytes_each: int = 0) -> None:
        """Send requests, some at a time; returns once the Collector has taken all."""
        with ThreadPoolExecutor(4) as senders:
            list(senders.map(lambda _: self._send_one(spans, bytes_each), range(count)))

    def _send_one(self, spans: int, bytes_each: int) -> None:
        ids = [secrets.token_bytes(8) for _ in range(spans)]
        attributes: dict[str, Any] = {"http.request.method": "GET", "http.route": "/contacts"}
        if bytes_each:
            attributes["noise"] = secrets.token_hex(bytes_each // 2)
        message: ExportTraceServiceRequest = request(
            *(span(attributes, trace_id=secrets.token_bytes(16), span_id=ident) for ident in ids)
        )
        send(self.http, message)
        with self._lock:
            self.sent += ids

    def all_there(self) -> bool:
        return len(calls_of(self.directory)) >= len(self.sent)

    def check(self) -> None:
        """Everything that was sent is in the log, once."""
        wait_for(self.all_there, f"{len(self.sent)} calls in the log")
        check_log(self.directory)
        assert Counter(call["span_id"] for call in calls_of(self.directory)) == Counter(self.sent)

    def close(self) -> None:
        for process in (*self.collectors, self.broker.process, *([self.service] if self.service else [])):
            process.kill()


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    made = Chain(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_calls_go_through_it_exactly_once(chain: Chain) -> None:
    chain.start_log()
    chain.start_collector()
    chain.send(40)
    chain.check()
    wait_for(lambda: chain.broker.committed() == 40, "all offsets are committed")


def test_nothing_is_lost_while_the_log_is_away(chain: Chain) -> None:
    service = chain.start_log()
    chain.start_collector()
    chain.send(10)
    chain.check()
    wait_for(lambda: chain.broker.committed() == 10, "all offsets are committed")
    service.kill()
    chain.send(20)
    assert chain.broker.committed() == 10
    chain.start_log()
    chain.check()


@pytest.mark.long
def test_nothing_is_lost_when_the_broker_is_killed(chain: Chain) -> None:
    chain.start_log()
    chain.start_collector()
    chain.send(10)
    chain.broker.process.kill()
    chain.send(20)
    chain.broker.restart()
    chain.send(10)
    chain.check()


def test_nothing_is_lost_when_the_broker_and_the_collector_are_killed(chain: Chain) -> None:
    chain.start_log()
    first = chain.start_collector()
    chain.broker.process.kill()
    chain.send(20)
    first.kill()
    chain.broker.restart()
    chain.start_collector()
    chain.check()


@pytest.mark.long
def test_nothing_is_lost_when_the_collector_is_killed_between_kafka_and_the_log(chain: Chain) -> None:
    """What was fetched and not acknowledged is fetched again: there is no queue in memory on that way."""
    first = chain.start_collector()
    chain.send(20)
    wait_for(lambda: _produced(chain) == 20, "all is in Kafka")
    first.kill()
    chain.start_log()
    chain.start_collector()
    chain.check()


def _produced(chain: Chain) -> int:
    """Messages in the topic."""
    offsets = chain.broker.tool(
        "org.apache.kafka.tools.GetOffsetShell", "--bootstrap-server", chain.broker.address, "--topic", "otel-audit"
    )
    return sum(int(line.rpartition(":")[2]) for line in offsets.splitlines() if line.startswith("otel-audit:"))


def test_its_halves_run_in_two_collectors_and_what_was_there_before_comes_too(chain: Chain) -> None:
    first = chain.start_collector("traces/to-kafka")
    chain.send(20)
    wait_for(lambda: _produced(chain) == 20, "all is in Kafka")
    first.terminate()
    chain.start_log()
    chain.start_collector("traces/to-log")
    chain.check()


def test_the_largest_request_that_is_taken_goes_through(chain: Chain) -> None:
    chain.start_log()
    chain.start_collector()
    chain.send(2, spans=150, bytes_each=100_000)
    chain.check()


@contextlib.contextmanager
def refusing(address: str) -> Iterator[threading.Event]:
    """A log that refuses everything for good, as for a wrong token; the event says that it has."""
    refused = threading.Event()

    def refuse(_: bytes, context: grpc.ServicerContext) -> bytes:
        refused.set()
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token")
        raise AssertionError

    server = grpc.server(futures.ThreadPoolExecutor(4))
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    handlers: dict[str, Any] = {"Export": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(address)
    server.start()
    try:
        yield refused
    finally:
        server.stop(0).wait()


def test_what_the_log_refuses_for_good_stays_in_kafka(chain: Chain) -> None:
    with refusing(chain.log_address) as refused:
        first = chain.start_collector()
        chain.send(20)
        assert refused.wait(60)
        wait_for(lambda: "pausing partition due to permanent" in first.said(), "the Collector stops there")
        wait_for(lambda: _produced(chain) == 20, "all is in Kafka")
        first.terminate()
    chain.start_log()
    chain.start_collector()
    chain.check()
