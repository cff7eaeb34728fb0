"""A destination that answers as it is told, and what must hold of a forwarder whatever it answers."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit import names
from otel_audit._forwarder_send import Answer, Fate
from otel_audit.auditlog import AuditLog
from otel_audit.forwarder import Forwarder, OtlpLogsSettings

SENT = Answer(Fate.SENT)
SETTINGS = OtlpLogsSettings(endpoint="http://127.0.0.1:1", batch_records=10)
Decide = Callable[[Sequence[int]], Answer]


def seqs_of(body: bytes) -> list[int]:
    """The numbers of a request's records, in order."""
    message = ExportLogsServiceRequest.FromString(body)
    return [
        next(a.value.int_value for a in record.attributes if a.key == names.LOG_SEQ)
        for resource in message.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


class Destination:
    """A `Transport` to a destination in this process.

    Args:
        decide: the answer to a request of these numbers.
    """

    def __init__(self, decide: Decide = lambda _: SENT) -> None:
        self.decide = decide
        self.requests: list[tuple[list[int], Answer]] = []
        self.asked = threading.Semaphore(0)

    def send(self, body: bytes) -> Answer:
        seqs = seqs_of(body)
        answer = self.decide(seqs)
        self.requests.append((seqs, answer))
        self.asked.release()
        return answer

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass

    @property
    def taken(self) -> list[int]:
        """Numbers of the records that were acknowledged, in the order of arrival."""
        return [seq for seqs, answer in self.requests if answer.fate is Fate.SENT for seq in seqs]

    def times(self, fate: Fate) -> int:
        """How often it gave such an answer."""
        return sum(answer.fate is fate for _, answer in self.requests)

    def wait_for_requests(self, count: int) -> None:
        """Wait for so many more requests."""
        for _ in range(count):
            assert self.asked.acquire(timeout=30)


def cursor(directory: Path) -> int:
    """The number that is next, as it is on disk; 0 when there is none."""
    path = directory / "forward" / "otlp_logs.json"
    return int(json.loads(path.read_bytes())["next_seq"]) if path.exists() else 0


def refused(directory: Path) -> list[dict[str, Any]]:
    """What was noted as refused, without the time."""
    path = directory / "forward" / "otlp_logs.refused.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "at"} for line in lines]


def forwarder(log: AuditLog, to: Destination, settings: OtlpLogsSettings = SETTINGS) -> Forwarder:
    """A forwarder that is not started."""
    return Forwarder(log, settings, to)
