"""What happens within a call: its database calls and its outgoing HTTP and rpc calls, counted and summed.

A library over a library (SQLAlchemy over sqlite3, requests over urllib3) makes two spans of one call to a database; the
outer one alone counts. The outer is not always the inner's parent (SQLAlchemy's is not), so for databases a span that runs
within the time of another library's, in the same thread or task, is the inner one too. Only spans of calls that go on are
remembered, and of those a bounded number, so that spans which never end cannot fill the memory.
"""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan, Span

from otel_audit.capture.call import Call
from otel_audit.capture.wire import attributes_of

__all__ = ["ChildSpans"]

OPEN_MAX: Final = 1024
"""How many open child spans of one call are remembered; beyond, the oldest are forgotten, and not counted."""
ALL_MAX: Final = 100_000
"""How many of all calls together."""
_DB: Final = frozenset({"db.system.name", "db.system"})
_OUTGOING: Final = frozenset({"http.request.method", "http.method", "rpc.system", "rpc.system.name"})


class _Child(NamedTuple):
    call: Call
    span: Span


def _kind(attributes: Mapping[str, Any]) -> str:
    if not _DB.isdisjoint(attributes):
        return "db"
    return "" if _OUTGOING.isdisjoint(attributes) else "http"


def _lane() -> int:
    """What runs one thing after another: the current task, else the current thread."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident() if task is None else id(task)


def _pop_oldest(table: dict[int, int]) -> int:
    oldest = next(iter(table))
    del table[oldest]
    return oldest


class ChildSpans:
    """The open CLIENT spans of all calls that go on; every method may be called from any thread."""

    def __init__(self) -> None:
        # Span id -> child. Both tables, here and in the calls, and the sums of the calls change under the lock only; it is
        # re-entrant, because a signal handler may end a span too.
        self._open: dict[int, _Child] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._open)

    def start(self, span: Span, call: Call) -> None:
        """A CLIENT span starts within `call`."""
        span_id, lane = span.get_span_context().span_id, _lane()
        with self._lock:
            if call.recorded:
                return
            self._open[span_id] = _Child(call, span)
            call.children[span_id] = lane
            if len(call.children) > OPEN_MAX:
                self._open.pop(_pop_oldest(call.children), None)
            if len(self._open) > ALL_MAX:
                oldest = next(iter(self._open))
                self._open.pop(oldest).call.children.pop(oldest, None)

    def end(self, span: ReadableSpan, attributes: Mapping[str, Any]) -> None:
        """A CLIENT span has ended: add it up, unless it is part of another that counts."""
        context = span.get_span_context()
        if context is None or context.span_id not in self._open:
            return
        kind = _kind(attributes)
        duration_ns = max((span.end_time or 0) - (span.start_time or 0), 0)
        with self._lock:
            child = self._open.pop(context.span_id, None)
            if child is None:
                return
            call = child.call
            lane = call.children.pop(context.span_id, 0)
            if not kind or self._is_inner(span, call, kind, lane):
                return
            if kind == "db":
                call.db_calls += 1
                call.db_ns += duration_ns
            else:
                call.http_calls += 1
                call.http_ns += duration_ns

    def _is_inner(self, span: ReadableSpan, call: Call, kind: str, lane: int) -> bool:
        parent = None if span.parent is None else self._open.get(span.parent.span_id)
        if parent is not None and _kind(attributes_of(parent.span)) == kind:
            return True
        # Not so for outgoing calls: a stream may stay open while others are made.
        return (
            kind == "db"
            and bool(call.children)
            and any(
                its_lane == lane and self._is_database_of_another_library(other, span)
                for other, its_lane in call.children.items()
            )
        )

    def _is_database_of_another_library(self, other: int, span: ReadableSpan) -> bool:
        outer = self._open[other].span
        return outer.instrumentation_scope != span.instrumentation_scope and _kind(attributes_of(outer)) == "db"

    def forget(self, call: Call) -> None:
        """`call` is recorded: what of it still goes on counts no more."""
        if call.children:
            with self._lock:
                for span_id in call.children:
                    self._open.pop(span_id, None)
                call.children = {}
