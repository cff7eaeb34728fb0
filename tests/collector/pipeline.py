"""Calls through a Collector with one of the files of collector-config/ into a real log, and what must come out."""

import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.collector.support import CONFIGS, Collector, Service, free_port, wait_for
from tests.otlp_support import START_NS, encoded, request, span
from tests.support import calls_of, check_log

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Place:
    """Where a Collector listens, keeps its queue and sends to; as environment variables of its file.

    Args:
        folder: for its queue.
        log: `host:port` of the audit log's OTLP/gRPC.
    """

    def __init__(self, folder: Path, log: str) -> None:
        self.folder = folder
        self.grpc, self.http, self.health = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self.metrics_port = free_port()
        self.environment = {
            "AUDIT_ENDPOINT": log,
            "AUDIT_GRPC_ENDPOINT": self.grpc,
            "AUDIT_HTTP_ENDPOINT": self.http,
            "AUDIT_HEALTH_ENDPOINT": self.health,
            "AUDIT_METRICS_PORT": str(self.metrics_port),
            "AUDIT_QUEUE_DIR": str(folder / "queue"),
        }

    def start(self, *configs: str | Path, **more: str) -> Collector:
        """A Collector with files of collector-config/ (by name) and others (by path)."""
        paths = [CONFIGS / config if isinstance(config, str) else config for config in configs]
        return Collector(paths, self.folder, {**self.environment, **more}, self.health)

    def said(self) -> str:
        """All that its Collectors have printed."""
        return (self.folder / "collector.log").read_text(errors="replace")

    def metrics(self) -> dict[str, float]:
        """What it says about itself: series -> value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {series: float(value) for series, value in pairs}


def call(number: int, **attributes: Any) -> Span:
    """The span of one call of an API, with everything a complete record needs."""
    return span(
        {
            "audit.client.id": f"client-{number % 7}",
            "audit.client.name": f"Client {number % 7}",
            "http.request.method": "GET",
            "http.route": "/contacts/{id}",
            "url.path": f"/contacts/{number}",
            "http.response.status_code": 200,
            "client.address": "203.0.113.7",
            **attributes,
        },
        trace_id=(number + 1).to_bytes(16, "big"),
        span_id=(number + 1).to_bytes(8, "big"),
        start_time_unix_nano=START_NS + number * 1_000_000,
        end_time_unix_nano=START_NS + number * 1_000_000 + 5_000_000,
    )


def bodies(count: int, each: int) -> Iterator[bytes]:
    """Encoded requests of `count` calls, `each` of them together."""
    for start in range(0, count, each):
        yield encoded(request(*(call(n) for n in range(start, min(start + each, count)))))


@contextmanager
def channel(address: str, authority: Path | None = None) -> Iterator[grpc.Channel]:
    """A gRPC channel, with TLS if there is an authority to check the server by."""
    if authority is None:
        opened = grpc.insecure_channel(address)
    else:
        opened = grpc.secure_channel(address, grpc.ssl_channel_credentials(authority.read_bytes()))
    with opened:
        yield opened


def send(
    address: str, requests: Iterator[bytes], *, authority: Path | None = None, token: str = "", timeout_s: float = 60
) -> None:
    """Send requests as an SDK does; raises `grpc.RpcError` at the first that is not taken."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with channel(address, authority) as opened:
        export: Any = opened.unary_unary(EXPORT)
        for body in requests:
            export(body, metadata=metadata, timeout=timeout_s, wait_for_ready=True)


def post(address: str, body: bytes) -> int:
    """Send one request over HTTP; the status."""
    headers = {"Content-Type": "application/x-protobuf"}
    sent = urllib.request.Request(f"http://{address}/v1/traces", body, headers)
    with urllib.request.urlopen(sent, timeout=60) as response:
        return int(response.status)


def arrived(service: Service, count: int, timeout_s: float = 90) -> list[dict[str, Any]]:
    """The records of a log once `count` calls are in it: each exactly once, each complete."""
    wait_for(lambda: len(calls_of(service.directory)) >= count, f"{count} calls are in the log", timeout_s)
    records = check_log(service.directory)
    assert len(records) == count
    return records


def check_complete(records: Sequence[dict[str, Any]], numbers: Sequence[int]) -> None:
    """Every call of `numbers` has its record, and the record says all that `call` did."""
    assert sorted(int.from_bytes(r["trace_id"], "big") - 1 for r in records) == sorted(numbers)
    for record in records:
        number = int.from_bytes(record["trace_id"], "big") - 1
        assert record["client_id"] == f"client-{number % 7}"
        assert record["client_name"] == f"Client {number % 7}"
        assert record["service"] == "crm"
        assert record["target"] == f"/contacts/{number}"
        assert (record["action"], record["outcome"], record["status_code"]) == ("read", "success", 200)
        assert record["duration_ns"] == 5_000_000
        assert record["client_ip"] == "203.0.113.7"
        assert record["time"].timestamp() * 1_000_000 // 1 == (START_NS // 1000) + number * 1000
