"""A log that does as it is told, and a receiver in front of it."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from otel_audit.auditlog import Receipt
from otel_audit.otlp import Decoded, Decoder
from otel_audit.receiver import (
    Decodes,
    GrpcSettings,
    HttpSettings,
    IntakeSettings,
    Receiver,
    ReceiverSettings,
    Sink,
)

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LIMIT = 1 << 20  # of a body, in these tests


class FakeLog:
    """A `Sink` that remembers what it was given.

    Args:
        held: futures stay open until `release`.
        error: what `submit` raises, or, with `late`, what the futures end with.
        copies: it has all of that already.
    """

    def __init__(
        self, *, held: bool = False, error: BaseException | None = None, late: bool = False, copies: bool = False
    ) -> None:
        self.held = held
        self.copies = copies
        self.error = error
        self.late = late
        self.taken: list[Decoded] = []
        self._open: list[tuple[Future[Receipt], Decoded]] = []
        self.arrived = threading.Semaphore(0)

    def submit(self, decoded: Decoded, /) -> "Future[Receipt]":
        if self.error is not None and not self.late:
            self.arrived.release()
            raise self.error
        future: Future[Receipt] = Future()
        self.taken.append(decoded)
        self._open.append((future, decoded))
        if not self.held:
            self.release()
        self.arrived.release()
        return future

    def release(self) -> None:
        """Make durable, or fail, what is held."""
        while self._open:
            future, decoded = self._open.pop()
            if self.error is not None:
                future.set_exception(self.error)
            else:
                rows, entries = decoded.records.num_rows, len(decoded.quarantine)
                new = (0, rows, 0) if self.copies else (rows, 0, entries)
                future.set_result(Receipt("audit", None, None, *new))


def settings(
    intake: IntakeSettings | None = None, grpc_: GrpcSettings | None = None, http: HttpSettings | None = None
) -> ReceiverSettings:
    """Settings with small limits, on any free ports."""
    return ReceiverSettings(
        intake=intake or IntakeSettings(),
        grpc=replace(grpc_ or GrpcSettings(max_body_bytes=LIMIT), endpoint="127.0.0.1:0"),
        http=replace(http or HttpSettings(max_body_bytes=LIMIT), endpoint="127.0.0.1:0"),
    )


@contextmanager
def receiver(log: Sink, given: ReceiverSettings | None = None, decoder: Decodes | None = None) -> Iterator[Receiver]:
    """A started receiver."""
    with Receiver(log, decoder or Decoder(), given or settings()) as started:
        yield started


@contextmanager
def export_to(address: str | None) -> Iterator[Any]:
    """The Export method of a gRPC server, on bytes."""
    assert address
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel.unary_unary(EXPORT)


def failure(error: BaseException) -> tuple[grpc.StatusCode, str, dict[str, bytes]]:
    """Code, details and trailers of a call that failed."""
    call: Any = error
    trailers = {k: v if isinstance(v, bytes) else v.encode() for k, v in call.trailing_metadata() or ()}
    return call.code(), call.details(), trailers


def body(spans: int = 3) -> bytes:
    """An encoded request of SERVER spans."""
    request = trace_service_pb2.ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for i in range(spans):
        scope.spans.add(
            trace_id=i.to_bytes(8, "big") + b"\1" * 8,
            span_id=b"\2" * 8,
            name="GET /contacts",
            kind=2,
            start_time_unix_nano=1_795_420_800_000_000_000,
            end_time_unix_nano=1_795_420_800_001_000_000,
        )
    encoded: bytes = request.SerializeToString()
    return encoded


NOT_OTLP = b"\x0a\xff\xff\xff\xff\x0f not a message"
