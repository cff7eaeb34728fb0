"""A sampler that never hides a call from the audit: what the user's sampler drops is recorded, but stays unsampled.

A span with decision RECORD_ONLY reaches span processors, among them ours; the SDK's batch and simple processors pass only
sampled spans on, so the user's exporters and bills see the spans they saw before. It also closes a way around the
audit: the default sampler obeys a caller who sends `traceparent: 00-...-...-00`.
"""

from typing import Any

from opentelemetry.context import Context, get_value
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import Attributes

from otel_audit.capture.call import CALL_KEY, call_in
from otel_audit.names import ACTION

__all__ = ["AuditSampler"]


class AuditSampler(Sampler):
    """`inner`, except that no server span, and no span that starts with an `audit.action`, is dropped.

    Args:
        inner: the sampler that decides what is sampled; its description stays visible.
        child_spans: whether spans of database and outgoing calls within an audited call are recorded too, so that their
            durations can be summed.
    """

    def __init__(self, inner: Sampler, *, child_spans: bool = False) -> None:
        self.inner = inner
        self._child_spans = child_spans

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        *args: Any,
        **kwargs: Any,
    ) -> SamplingResult:
        """The inner sampler's result, with DROP turned into RECORD_ONLY for calls that are to be audited."""
        result = self.inner.should_sample(parent_context, trace_id, name, kind, attributes, *args, **kwargs)
        if result.decision is Decision.DROP and (
            kind is SpanKind.SERVER
            or (kind is SpanKind.INTERNAL and _starts_call(parent_context))
            or (attributes and ACTION in attributes)
            or (self._child_spans and self._belongs_to_a_call(kind, parent_context))
        ):
            # The inner result's attributes are empty on DROP; the span needs those it was started with.
            return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)
        return result

    @staticmethod
    def _belongs_to_a_call(kind: SpanKind | None, context: Context | None) -> bool:
        """Whether a span is to be summed, or leads to the call where the context does not (a dropped span would not)."""
        call = call_in(context)
        if call is None or call.recorded:
            return False
        return kind is SpanKind.CLIENT or get_value(CALL_KEY, context) is None

    def get_description(self) -> str:
        """`AuditSampler` and what it wraps."""
        return f"AuditSampler{{{self.inner.get_description()}}}"


def _starts_call(context: Context | None) -> bool:
    """Whether the span that starts is that of a call, within a span of the application's."""
    call = call_in(context)
    return call is not None and call.internal and call.span is None and not call.recorded
