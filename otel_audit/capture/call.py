"""An API call while it is being served: what is known of it beyond its span.

The propagator makes a `Call` for each incoming request and puts it into the OpenTelemetry context, where everything that
happens within the call finds it: the span processor, the spans of database and outgoing calls, and `annotate`. Where an
instrumentation keeps that context from the handler (aiohttp), the span that is current there leads to it. Nothing has to
be kept in a table by trace, so nothing can grow: a `Call` goes with its context and its span.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context, create_key, get_value
from opentelemetry.sdk.trace import ReadableSpan, Span

__all__ = ["CALL_KEY", "SPAN_CALL", "Call", "call_in", "current_call"]

CALL_KEY: Final = create_key("otel-audit-call")
"""Context key of the `Call`."""

SPAN_CALL: Final = "_otel_audit_call"
"""The attribute of a live span object (never of its record) that leads to its `Call`."""


class Call:
    """One incoming request; made by the propagator, finished by the span processor.

    Its fields may be written from any thread that serves the call: each assignment is atomic, and the sums are added to
    under the lock of `ChildSpans`.

    Args:
        identity: the attributes that name the caller.
        carrier: the request as the framework hands it on (ASGI scope, WSGI environ, ...), for what is known only later.
    """

    is_job = False
    """Whether nobody made it over the network; see `annotate.Job`."""

    __slots__ = (
        "annotations",
        "begun",
        "carrier",
        "children",
        "correct",
        "db_calls",
        "db_ns",
        "held",
        "http_calls",
        "http_ns",
        "identity",
        "internal",
        "mode",
        "recorded",
        "request",
        "seq",
        "span",
        "sync_wanted",
        "usual_action",
    )

    def __init__(self, identity: Mapping[str, str], carrier: Any = None) -> None:
        self.identity = identity
        self.carrier = carrier
        self.span: Span | None = None
        """The server span while it goes on."""
        self.begun: Mapping[str, Any] = {}
        """What the span said when it started, for a span that says too much to remember it."""
        self.request: Any = None
        """The framework's own request object, where its instrumentation hands on something less as the carrier."""
        self.children: dict[int, int] = {}
        """Open spans of database and outgoing calls: span id to the thread or task it began in."""
        self.annotations: dict[str, Any] | None = None
        """What the application said with `annotate`: attribute name to value; wins over everything else."""
        self.db_calls = 0
        self.db_ns = 0
        self.http_calls = 0
        self.http_ns = 0
        self.seq: int | None = None
        """The record's number where it was given when the call began (mode fail-closed)."""
        self.mode: str | None = None
        """The mode of this call where it is known; None: not decided yet."""
        self.recorded = False
        """Whether its record has been made: its span's end makes no second one."""
        self.held = False
        """Whether its response waits for its record, so that syncing is left to whoever holds it."""
        self.sync_wanted = False
        """Whether the record is made and is to be synced before the response goes."""
        self.internal = False
        """Whether its span is of kind INTERNAL, because the application has a span of its own around it."""
        self.correct: Callable[[dict[str, Any], ReadableSpan], None] | None = None
        """Puts right what is to be recorded, where the framework knows better than the span; called with the attributes."""
        self.usual_action: str | None = None
        """The action where neither a rule nor the application gives one; None: that of method and route."""


def call_in(context: Context | None) -> Call | None:
    """The call that `context` belongs to; of the current context when it is None."""
    found = get_value(CALL_KEY, context)
    if not isinstance(found, Call):
        found = getattr(trace.get_current_span(context), SPAN_CALL, None)
    return found


def current_call() -> Call | None:
    """The call that is being served here; None outside of any."""
    return call_in(None)
