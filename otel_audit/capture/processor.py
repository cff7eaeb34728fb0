"""The span processor: names the caller on a span that starts, numbers and hands on a span that ended.

A span is audited when it is a server span or carries `audit.action`; the same rule as in the log's decoder. Its number is
given when it ends, so that numbers have no gaps for calls that never ended, and a gap means a lost record.
"""

import itertools
import logging
import os
import secrets
import socket

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind

from otel_audit.capture.call import call_in
from otel_audit.capture.shipper import Shipper
from otel_audit.capture.wire import EncodedSpan, SpanEncoder, attributes_of
from otel_audit.names import ACTION

__all__ = ["AuditSpanProcessor", "Source", "is_audited"]

_log = logging.getLogger("otel_audit.capture")


def is_audited(span: ReadableSpan) -> bool:
    """Whether `span` is to become an audit record."""
    return span.kind is SpanKind.SERVER or ACTION in attributes_of(span)


class Source:
    """One emitter of records: an id that no other process start shares, and a counter from 1.

    `id` reads host-pid-random; a forked child begins anew with `after_fork`.
    """

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Take a new id and count from 1."""
        host = socket.gethostname().encode("ascii", "replace").decode()[:64] or "host"
        self.id = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self._numbers = itertools.count(1)  # next() is atomic
        self._encoder = SpanEncoder(self.id)
        self.open_calls = 0
        """About how many server spans have not ended; two threads that count at once may miss one."""

    def encode(self, span: ReadableSpan) -> EncodedSpan:
        """`span` as the next record of this source."""
        return self._encoder.encode(span, next(self._numbers))


class AuditSpanProcessor(SpanProcessor):
    """Installed on every tracer provider of the process; all share one source and one shipper.

    It never raises into the application: the SDK does not catch what a processor raises, and the request would fail.

    Args:
        source: numbers and encodes the records.
        shipper: takes them.
        exit_timeout_s: how long `shutdown` may wait for delivery.
    """

    def __init__(self, source: Source, shipper: Shipper, *, exit_timeout_s: float = 5.0) -> None:
        self._source = source
        self._shipper = shipper
        self._exit_timeout_s = exit_timeout_s
        self._faulty = False

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Put the caller's attributes on an audited span."""
        try:
            if is_audited(span):
                if span.kind is SpanKind.SERVER:
                    self._source.open_calls += 1
                call = call_in(parent_context)
                if call is not None:
                    span.set_attributes(call.identity)
        except Exception:
            self._say("name the caller of")

    def on_end(self, span: ReadableSpan) -> None:
        """Hand an audited span to the shipper."""
        try:
            if is_audited(span):
                self._shipper.put(self._source.encode(span))
        except Exception:
            self._say("record")
        if span.kind is SpanKind.SERVER:
            self._source.open_calls -= 1  # only now: whoever waits for it goes on to flush

    def shutdown(self) -> None:
        """Deliver what is waiting; spans that end later are still taken."""
        self.force_flush(int(self._exit_timeout_s * 1000))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether all spans that ended before are delivered or refused, after at most `timeout_millis`."""
        try:
            return self._shipper.flush(timeout_millis / 1000)
        except Exception:
            self._say("flush")
            return False

    def _say(self, what: str) -> None:
        """Log the first fault with its trace; a fault in every call must not flood the log."""
        if not self._faulty:
            self._faulty = True
            _log.exception("%s a call: a fault in otel-audit; the call went on, its record may be lost", what)
