"""A real Collector with one of our configurations, in front of a real log."""

import contextlib
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.collector.support import CONFIGS, Collector, Service, free_port, wait_for
from tests.support import calls_of


def send(http: str, request: ExportTraceServiceRequest) -> None:
    """Send one request by OTLP/HTTP to `host:port`; raises unless it was taken."""
    headers = {"Content-Type": "application/x-protobuf"}
    post = urllib.request.Request(f"http://{http}/v1/traces", request.SerializeToString(), headers)
    with urllib.request.urlopen(post, timeout=30) as answer:
        assert answer.status == 200


@dataclass
class Pipeline:
    """What runs.

    Args:
        service: the log.
        collector: the Collector in front of it.
        grpc: where the Collector takes OTLP/gRPC, `host:port`.
        http: and OTLP/HTTP.
    """

    service: Service
    collector: Collector
    grpc: str
    http: str

    def send(self, request: ExportTraceServiceRequest) -> None:
        """Send one request to the Collector; raises unless it took it."""
        send(self.http, request)

    def calls(self, count: int, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """The calls in the log, once there are `count` of them."""
        wait_for(lambda: len(calls_of(self.service.directory)) >= count, f"{count} calls in the log", timeout_s)
        return calls_of(self.service.directory)


def environment(**settings: str) -> tuple[dict[str, str], str, str, str]:
    """Variables for a configuration of `collector-config/`, with free ports; and its gRPC, HTTP and health addresses."""
    grpc, http, health = (f"127.0.0.1:{free_port()}" for _ in range(3))
    variables = {
        "AUDIT_GRPC_ENDPOINT": grpc,
        "AUDIT_HTTP_ENDPOINT": http,
        "AUDIT_HEALTH_ENDPOINT": health,
        "AUDIT_METRICS_PORT": str(free_port()),
        **settings,
    }
    return variables, grpc, http, health


@contextlib.contextmanager
def pipeline(config: str, folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Pipeline]:
    """A Collector with `collector-config/<config>` in front of a log, both new in `folder`.

    Args:
        config: name of the file.
        folder: for the log, the queue and what both print.
        settings: environment variables that the file reads.
    """
    with Service(folder / "audit-log") as service:
        variables, grpc, http, health = environment(AUDIT_ENDPOINT=service.grpc, **(settings or {}))
        with Collector([CONFIGS / config], folder, variables, health) as collector:
            yield Pipeline(service, collector, grpc, http)
