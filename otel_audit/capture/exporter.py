"""`AuditSpanExporter`: a plain OpenTelemetry `SpanExporter`, for those who wire their SDK by hand.

It loses what a span processor in front of it loses (unsampled spans, a full queue, a failed batch); under
`opentelemetry-instrument` the processor of `autoload` does the work and loses none of these. With
`OTEL_TRACES_EXPORTER=audit` both would be there: then the processor ships, and this exporter only waits for it.
"""

import os
import random
import threading
import time
from collections.abc import Sequence
from typing import Final

from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_audit.capture import autoload, settings, wire
from otel_audit.capture.processor import is_audited
from otel_audit.capture.recorder import Source
from otel_audit.capture.transport import Answer, Fate, connect

__all__ = ["AuditSpanExporter"]

_BACKOFF_S: Final = 0.25


class AuditSpanExporter(SpanExporter):
    """Exports audited spans; answers SUCCESS only when the destination has made them durable.

    Args:
        endpoint: `file:/path` for a local log (needs `otel-audit[server]`), or `http(s)://host:port` for OTLP. By default
            `OTEL_AUDIT_ENDPOINT`; when that is not set either, the local log in `OTEL_AUDIT_DIR`, else `./audit-log`.
        protocol: `grpc` or `http/protobuf`, by default `OTEL_AUDIT_PROTOCOL`.
        timeout_s: how long one `export` may take, with its retries.

    Raises:
        ConfigError: the endpoint or the protocol cannot be understood.
    """

    def __init__(self, endpoint: str | None = None, *, protocol: str | None = None, timeout_s: float = 10.0) -> None:
        self._destination = settings.destination(endpoint=endpoint, protocol=protocol, local=True)
        self._timeout_s = timeout_s
        self._closed = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._source = Source()
        self._transport = connect(self._destination)  # under `_exporting`
        self._exporting = threading.Lock()  # one export at a time
        self._pid = os.getpid()  # last: until then another thread of a forked child begins anew as well

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """SUCCESS when every audited span in `spans` is durable at the destination, else FAILURE."""
        if self._closed.is_set():
            return SpanExportResult.FAILURE
        audited = [span for span in spans if is_audited(span)]
        if not audited:
            return SpanExportResult.SUCCESS
        if autoload.ships_to(self._destination):
            return _result(autoload.flush(self._timeout_s))
        if os.getpid() != self._pid:  # a forked child: another source, and connections of its own
            self._inherited = self._transport  # kept: closing what the parent uses can hang the child
            self._begin()
        with suppress_instrumentation(), self._exporting:
            answer = self._send(wire.request([self._encode(span) for span in audited]))
        return _result(answer.fate is Fate.KEPT and not answer.dropped)

    def _encode(self, span: ReadableSpan) -> wire.EncodedSpan:
        return self._source.encoder.encode(span, wire.attributes_of(span), self._source.next_seq())

    def _send(self, body: bytes) -> Answer:
        """The answer to `body`, after as many attempts as fit in the time."""
        deadline = time.monotonic() + self._timeout_s
        backoff_s = _BACKOFF_S
        while True:
            answer = self._transport.send(body, max(deadline - time.monotonic(), 0.001))
            delay_s = max(answer.delay_s or 0.0, backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            if (
                answer.fate not in (Fate.AGAIN, Fate.ELSEWHERE)
                or time.monotonic() + delay_s >= deadline
                or self._closed.wait(delay_s)
            ):
                return answer
            backoff_s *= 2

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait for an export that is under way; nothing is held back between exports."""
        if not self._exporting.acquire(timeout=timeout_millis / 1000):
            return False
        self._exporting.release()
        return True

    def shutdown(self) -> None:
        """End a retry that is under way, and close the destination; later exports fail."""
        if self._closed.is_set():
            return
        self._closed.set()
        with self._exporting:
            self._transport.close()


def _result(good: bool) -> SpanExportResult:
    return SpanExportResult.SUCCESS if good else SpanExportResult.FAILURE
