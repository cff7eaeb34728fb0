"""The span processor: names the caller on a span that starts, sums what happens within a call, records what ended.

A span is audited when it is a server span or carries `audit.action`; the same rule as in the log's decoder. Its number is
given when it ends, so that numbers have no gaps for calls that never ended, and a gap means a lost record; only in mode
fail-closed it is given when the call starts, because a record of that must be durable first.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind

from otel_audit import names
from otel_audit.capture.call import SPAN_CALL, Call, call_in, current_call
from otel_audit.capture.children import ChildSpans
from otel_audit.capture.corrections import correct_http
from otel_audit.capture.recorder import Recorder
from otel_audit.capture.redact import Redactor
from otel_audit.capture.rules import Rules
from otel_audit.capture.settings import Mode
from otel_audit.capture.wire import add_texts, attributes_of, has_attribute
from otel_audit.errors import CaptureError

__all__ = ["AuditSpanProcessor", "Calls", "is_audited"]

_log = logging.getLogger("otel_audit.capture")

_OPEN_MAX: Final = 100_000
_WITHIN: Final = Call({})
_WITHIN.recorded = True
"""Stands for the call of a server span within another one for the same request: it has a record already."""


def is_audited(span: ReadableSpan) -> bool:
    """Whether `span` is to become an audit record."""
    return span.kind is SpanKind.SERVER or has_attribute(span, names.ACTION)


class Calls:
    """What is done with calls, the same for every tracer provider of the process.

    Args:
        recorder: takes the records.
        mode: what is promised of a call unless a rule says otherwise.
        rules: names and modes by route.
        redactor: changes attributes before they are recorded.
        operation_of: gives the name of the operation from a call's request and the span's attributes; must not raise.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        mode: Mode = "async",
        rules: Rules | None = None,
        redactor: Redactor | None = None,
        operation_of: Callable[[object, Mapping[str, Any]], str | None] | None = None,
    ) -> None:
        self.recorder = recorder
        self._mode: Mode = mode
        self._rules = rules
        self._modes = rules if rules is not None and rules.has_modes else None
        self._redactor = redactor
        self._operation_of = operation_of
        self._faulty = False
        self.after_fork()

    def after_fork(self) -> None:
        """Forget the parent's calls."""
        # Span id -> call, from a span's start to its end. A dictionary's own operations are atomic; bounded, so that spans
        # which never end cannot fill the memory: the oldest are forgotten, and are still recorded when they end.
        self._open: dict[int, Call] = {}
        self.children = ChildSpans()
        self._syncer: ThreadPoolExecutor | None = None

    @property
    def open_calls(self) -> int:
        """How many calls have not ended."""
        return len(self._open)

    def say(self, what: str) -> None:
        """Log the first fault with its trace; a fault in every call must not flood the log."""
        if not self._faulty:
            self._faulty = True
            _log.exception("%s a call: a fault in otel-audit; the call went on, its record may lack something", what)

    # --- start ---------------------------------------------------------------------------------------------------------------
    def start(self, span: Span, context: Context | None) -> None:
        """A span starts: name the caller on it; in mode fail-closed, refuse it unless that is durable."""
        call = call_in(context)
        if span.kind is SpanKind.SERVER:
            self._start_server(span, call)
        elif call is not None:
            self._start_within(span, call)

    def _start_server(self, span: Span, call: Call | None) -> None:
        if call is None:
            call = Call({})
        elif _is_within(call):
            _remember(self._open, _id_of(span), _WITHIN)
            return
        elif call.span is not None or call.recorded:  # another call within this one, in the same process
            call = Call(call.identity, call.carrier)
        self._start_call(span, call)

    def _start_within(self, span: Span, call: Call) -> None:
        """A span that is no server span, but may be a call's all the same."""
        kind = span.kind
        begins = call.span is None and not call.recorded
        if kind is SpanKind.CLIENT:
            if call.span is not None:
                self.children.start(span, call)
        elif kind is SpanKind.INTERNAL and call.internal and begins:
            self._start_call(span, call)
        elif has_attribute(span, names.ACTION):
            if call.is_job and begins:
                self._start_call(span, call)
            else:
                span.set_attributes(call.identity)
        # What runs within this span finds the call also where the context was not handed on.
        if not call.recorded:
            setattr(span, SPAN_CALL, call)

    def _start_call(self, span: Span, call: Call) -> None:
        self.recorder.look_for_fork()
        call.span = span
        call.begun = attributes_of(span)
        if call.identity:
            add_texts(span, self._redacted(call.identity))
        setattr(span, SPAN_CALL, call)
        _remember(self._open, _id_of(span), call)
        mode: Mode | None = self._mode if self._modes is None else self._modes.mode_at_start(call.begun)
        if mode is None and self._mode == "fail-closed":
            mode = self._mode
        if mode == "fail-closed":
            call.mode = mode
            try:
                shown = self._redacted({**call.begun, **call.identity})
                call.seq = self.recorder.begin_call(self._redacted_span(span), shown)
            except Exception as e:
                self._open.pop(_id_of(span), None)
                self._finish(call)  # as refused, by the loss record
                if isinstance(e, CaptureError):
                    raise
                raise CaptureError(
                    "audit call", span.name, f"{type(e).__name__}: {e}", "the mode is fail-closed"
                ) from e

    # --- end -----------------------------------------------------------------------------------------------------------------
    def end(self, span: ReadableSpan) -> None:
        """A span has ended: record it when it is audited, add it up when it belongs to a call."""
        kind = span.kind
        context = span.get_span_context()
        span_id = 0 if context is None else context.span_id
        call = None if kind is SpanKind.CLIENT else self._open.get(span_id)
        if kind is SpanKind.SERVER or call is not None:
            call = call or Call({})
            try:
                if not call.recorded:
                    self.record(span, call)
            finally:
                self._open.pop(span_id, None)  # only now: whoever waits for it goes on to flush
            return
        if kind is SpanKind.CLIENT:
            self.children.end(span, attributes_of(span))
        if has_attribute(span, names.ACTION):
            shown = self._redacted(attributes_of(span))
            self.recorder.record(self._redacted_span(span), shown, sync=self._mode != "async")

    def answered(self, call: Call) -> None:
        """The answer of a call is about to go although its span goes on: record it now, as of this moment. Never raises.

        What happens in the call afterwards is not on its record.
        """
        try:
            if call.span is not None and not call.recorded:
                self.record(call.span, call, end_ns=time.time_ns())
        except Exception as e:
            self.say("record")
            self.recorder.fault(e)

    def record(self, span: ReadableSpan, call: Call, *, end_ns: int = 0) -> None:
        """Record a call, and sync it where its mode wants that and nobody else will.

        Args:
            span: its span.
            call: the call.
            end_ns: when it ended, Unix time, where its span has not.
        """
        try:
            said = self._said(span, call)
        except Exception:  # better what the span says than nothing
            self.say("put together all that is known of")
            said = {**call.begun, **call.identity, **attributes_of(span), **(call.annotations or {})}
        mode = call.mode
        if mode is None:
            mode = self._mode
            if self._modes is not None:
                mode = self._modes.mode_at_end(said, said.get(names.OPERATION)) or mode
        durable = mode != "async"
        self._finish(call)
        self.recorder.record(
            self._redacted_span(span),
            self._redacted(said),
            served=not call.is_job,
            end_ns=end_ns,
            seq=call.seq,
            sync=durable and not call.held,
        )
        call.sync_wanted = durable and call.held

    def _finish(self, call: Call) -> None:
        """Nothing more is added to `call`; it and its span let go of each other."""
        call.recorded = True
        span, call.span = call.span, None
        if span is not None:
            vars(span).pop(SPAN_CALL, None)
        self.children.forget(call)
        call.carrier = call.request = None
        call.begun = {}

    def hold(self, span: Span) -> Call | None:
        """The call of a server span whose response is held until its record is made and synced."""
        call = self.of(span)
        if call is not None:
            call.held = True
        return call

    def of(self, span: Span) -> Call | None:
        """The call whose server span `span` is; None when it is not the span of an open call."""
        call = self._open.get(_id_of(span))
        return None if call is _WITHIN else call

    async def sync_held(self, call: Call | None) -> None:
        """Sync the record of a held call where its mode wants that, off the event loop."""
        if call is None or not call.sync_wanted:
            return
        call.sync_wanted = False
        try:
            # A thread of our own: the loop's others may be busy with the application, for any time.
            if self._syncer is None:
                self._syncer = ThreadPoolExecutor(1, "otel-audit-sync")
            synced = asyncio.get_running_loop().run_in_executor(self._syncer, self.recorder.sync)
        except RuntimeError:  # the interpreter ends, or gives no thread
            self.recorder.sync()
        else:
            await synced

    def _said(self, span: ReadableSpan, call: Call) -> dict[str, Any]:
        """The attributes of a call's record: the span's, and what is known beside it."""
        said = _unlimited(span, call)
        if self._redactor is not None:  # on the span the caller is redacted already: once is enough
            shown = self._redacted(call.identity)
            said.update((k, v) for k, v in call.identity.items() if said.get(k) == shown.get(k))
        self._add_known(said, span, call)
        if self._rules is not None and not self._rules.empty:
            for name, value in self._rules.names_for(said, said.get(names.OPERATION)).items():
                said.setdefault(name, value)
        if call.usual_action is not None:
            said.setdefault(names.ACTION, call.usual_action)
        return said

    def _add_known(self, said: dict[str, Any], span: ReadableSpan, call: Call) -> None:
        """Add what is known of a call beside its span."""
        if call.correct is not None:
            call.correct(said, span)
        correct_http(said, call, span)
        if self._operation_of is not None:
            operation = self._operation_of(call.carrier if call.request is None else call.request, said)
            if operation is not None:
                said.setdefault(names.OPERATION, operation)
        if call.annotations:
            said.update(call.annotations)
        if call.db_calls:
            said[names.DB_CALLS], said[names.DB_DURATION_NS] = call.db_calls, call.db_ns
        if call.http_calls:
            said[names.HTTP_CALLS], said[names.HTTP_DURATION_NS] = call.http_calls, call.http_ns

    def _redacted(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        return attributes if self._redactor is None else self._redactor.apply(attributes)

    def _redacted_span(self, span: ReadableSpan) -> ReadableSpan:
        return span if self._redactor is None else self._redactor.span(span)


def _is_within(call: Call) -> bool:
    """Whether the same request is being traced once more, as for an application within an application."""
    if not get_current():  # nothing is being traced around it, as nearly always
        return False
    around = current_call()
    return (
        around is not None
        and around is not call
        and around.carrier is call.carrier is not None
        and around.span is not None
        and not around.recorded
    )


def _id_of(span: Span) -> int:
    return span.get_span_context().span_id


def _remember(calls: dict[int, Call], span_id: int, call: Call) -> None:
    calls[span_id] = call
    if len(calls) > _OPEN_MAX:
        try:
            del calls[next(iter(calls))]
        except (KeyError, StopIteration, RuntimeError):  # another thread was at it
            return


def _unlimited(span: ReadableSpan, call: Call) -> dict[str, Any]:
    """The span's attributes; what the SDK's limits took of the request and the caller's name is there again."""
    said = dict(attributes_of(span))
    if span.dropped_attributes:  # the SDK keeps 128, and drops the oldest
        said = {**call.begun, **call.identity, **said}
    cut_at = _length_limit(call.span)
    if cut_at is not None:
        said.update({k: v for k, v in call.identity.items() if len(v) > cut_at and said.get(k) == v[:cut_at]})
    return said


def _length_limit(span: Span | None) -> int | None:
    """The SDK's limit on the length of attribute values; None if there is none."""
    return getattr(getattr(span, "_limits", None), "max_span_attribute_length", None)


class AuditSpanProcessor(SpanProcessor):
    """Installed on every tracer provider of the process; all share one `Calls`.

    It never raises into the application, but for a call that mode fail-closed refuses: the SDK does not catch what a
    processor raises, and the request fails.

    Args:
        calls: what is done with calls.
        exit_timeout_s: how long `shutdown` may wait for delivery.
    """

    def __init__(self, calls: Calls, *, exit_timeout_s: float = 5.0) -> None:
        self._calls = calls
        self._exit_timeout_s = exit_timeout_s

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Put the caller's attributes on an audited span; raises `CaptureError` when the call must not happen."""
        try:
            self._calls.start(span, parent_context)
        except CaptureError:
            raise
        except Exception:
            self._calls.say("name the caller of")

    def on_end(self, span: ReadableSpan) -> None:
        """Record an audited span."""
        try:
            self._calls.end(span)
        except Exception as e:
            self._calls.say("record")
            self._calls.recorder.fault(e)

    def shutdown(self) -> None:
        """Deliver what is waiting; spans that end later are still taken."""
        self.force_flush(int(self._exit_timeout_s * 1000))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether all spans that ended before are delivered or refused, after at most `timeout_millis`."""
        try:
            return self._calls.recorder.shipper.flush(timeout_millis / 1000)
        except Exception:
            self._calls.say("flush")
            return False
