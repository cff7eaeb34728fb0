"""From the bytes of a request to its encoded spans, in parts of one resource each.

A sound request takes one parse. One that is broken somewhere below its outermost level is walked level by level, so that
what can be read is, and what cannot goes to quarantine as it came.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from otel_audit import _otlp_schema as wire
from otel_audit._otlp_attributes import Notes
from otel_audit.errors import DecodeError, TooLargeError
from otel_audit.record import Quarantined

__all__ = ["Part", "Request", "check_count", "split"]

SPAN: Final = "otlp.span+protobuf"
REQUEST: Final = "otlp.request+protobuf"
_COUNT_FIRST_BYTES: Final = 8 * 1024 * 1024
"""Size of a request from which its parts are counted before they are parsed: an empty part is 2 bytes, and 20 parsed."""


@dataclass(frozen=True, slots=True)
class Part:
    """One resource and how many spans are its own, at least one.

    Args:
        resource: the encoded resource.
        spans: their number; they follow each other in `Request.spans`.
        payload: the resource as it was received, in a request of its own.
        kind: what `payload` gives.
    """

    resource: bytes
    spans: int
    payload: Callable[[], bytes]
    kind: str = REQUEST

    def quarantined(self, problems: Sequence[str], service: str | None) -> Quarantined:
        """The resource for quarantine, because its spans' records do not hold all it says."""
        detail = f"the records of this resource's spans do not hold all it says: {', '.join(problems)}"
        return Quarantined(problems[0].partition(":")[0], detail, self.payload(), self.kind, service, recorded=True)


@dataclass(slots=True)
class Request:
    """A request, split.

    Args:
        spans: every span, encoded.
        parts: its resources, in the order of `spans`.
        quarantine: what could not be split; each entry counts as one span.
        kind: what `payload` gives: a span as it was received, by its index in `spans`.
        payload: see `kind`.
        notes: what is to be said about spans already, by index.
        open_ended: whether a span may have no end.
    """

    spans: list[bytes] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    quarantine: list[Quarantined] = field(default_factory=list)
    kind: str = SPAN
    payload: Callable[[int], bytes] = bytes
    notes: dict[int, Notes] = field(default_factory=dict)
    open_ended: bool = False

    def add_part(self, resource: bytes, before: int) -> None:
        """Make the spans since there were `before` a part, if there are any."""
        if len(self.spans) > before:
            self.parts.append(Part(resource, len(self.spans) - before, lambda: wire.field(1, wire.field(1, resource))))


def split(body: bytes, spans_max: int, holds: str = "resource_spans") -> Request:
    """The spans of an encoded `ExportTraceServiceRequest`; raises `DecodeError` and `TooLargeError`.

    Args:
        body: the request; one of logs has its log records at the same places.
        spans_max: most that it may hold.
        holds: what it should hold, for the error.
    """
    if len(body) >= _COUNT_FIRST_BYTES:
        check_count(sum(1 for _ in islice(_tags(body), 3 * spans_max + 1)), 3 * spans_max)
    try:
        message = wire.parse_request(body)
    except wire.ProtobufError:
        request = _walk(body)
    else:
        request = Request()
        check_count(len(message.resource_spans), spans_max)
        for resource_spans in message.resource_spans:
            before = len(request.spans)
            for scope_spans in resource_spans.scope_spans:
                request.spans += scope_spans.spans[:]
            request.add_part(b"".join(resource_spans.resource), before)
        if body and not message.resource_spans:
            raise DecodeError("decode", "OTLP request", f"it holds no {holds}")
    check_count(len(request.spans), spans_max)
    request.payload = request.spans.__getitem__
    return request


def check_count(count: int, most: int) -> None:
    """Raise `TooLargeError` when a request holds too many parts."""
    if count > most:
        raise TooLargeError("decode", "OTLP request", f"it holds more than {most} parts", "send smaller batches")


def _nested(data: bytes, start: int, end: int, levels: Sequence[int]) -> Iterator[int]:
    """One number for each field of `data[start:end]` and, for those numbered `levels[0]`, each field inside, and so on."""
    for number, tag_at, inner, after in wire.fields(data[start:end]):
        yield number
        if levels and number == levels[0] and data[start + tag_at] & 7 == 2:
            yield from _nested(data, start + inner, start + after, levels[1:])


def _tags(body: bytes) -> Iterator[int]:
    """One number for each resource_spans, scope_spans, span and other field at those levels, as far as they are sound."""
    try:
        yield from _nested(body, 0, len(body), (1, 2))
    except wire.WireError:
        return


# --- broken requests -------------------------------------------------------------------------------------------------
def _members(data: bytes, number: int) -> Iterator[bytes]:
    """The length-delimited fields of that number; raises `WireError` where `data` breaks."""
    for found, tag_at, start, end in wire.fields(data):
        if found == number and data[tag_at] & 7 == 2:
            yield data[start:end]


def _walk(body: bytes) -> Request:
    """The spans of a request that does not parse as a whole."""
    request = Request()
    try:
        pieces = list(_members(body, 1))
    except wire.WireError as e:
        raise DecodeError("decode", "OTLP request", f"it is not a protobuf message: {e}") from e
    for piece in pieces:
        _walk_resource_spans(piece, request)
    return request


def _walk_resource_spans(piece: bytes, request: Request) -> None:
    """Split one ResourceSpans; where it or a ScopeSpans in it breaks, what follows goes to quarantine."""
    resource = b""
    scopes = []
    rest: list[tuple[bytes, str]] = []  # what could not be read, and why
    try:
        for number, tag_at, start, end in wire.fields(piece):
            if piece[tag_at] & 7 == 2 and number == 1:
                resource += piece[start:end]
            elif piece[tag_at] & 7 == 2 and number == 2:
                scopes.append(piece[start:end])
    except wire.WireError as e:
        rest.append((piece[e.offset :], str(e)))
    before = len(request.spans)
    for scope in scopes:
        try:
            for span in _members(scope, 2):
                request.spans.append(span)
        except wire.WireError as e:
            rest.append((wire.field(2, scope[e.offset :]), str(e)))
    request.add_part(resource, before)
    for data, why in rest:
        payload = wire.field(1, wire.field(1, resource) + data)
        detail = f"from some point on this part of the request is not protobuf: {why}"
        request.quarantine.append(Quarantined("spans_undecodable", detail, payload, REQUEST))
