"""Calls that did not happen, numbered, to be sent through a pipeline and recognised at its other end.

Together they are one source as capture would make it: number 1 is its start, the last its stop, so that `otel-audit gaps` takes
it for one that ended in good order.
"""

import hashlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_audit import names
from otel_audit.otlp import Decoder

__all__ = ["SERVICE", "Batch", "Call", "make_batches"]

SERVICE: Final = "otel-audit-canary"
_BATCH_SPANS: Final = 25
_PADDING_BYTES: Final = 16 * 1024
_LARGE_EVERY: Final = 10
_UNSAMPLED_EVERY: Final = 3
_SAMPLED_FLAG: Final = 1
_SERVER_KIND: Final = 2
_ERROR_STATUS: Final = 2
_METHODS: Final = ("GET", "POST", "DELETE", "PATCH")
_STATUSES: Final = (200, 201, 403, 404, 500)


@dataclass(frozen=True, slots=True)
class Call:
    """One call that is sent.

    Args:
        seq: its number.
        row: the record it must become: columns as the log has them, but for those the log gives itself.
        sampled: whether its trace flags say so.
        large: whether it carries padding.
    """

    seq: int
    row: dict[str, Any]
    sampled: bool
    large: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """One request: its bytes, and the calls in it."""

    body: bytes
    calls: tuple[Call, ...]


def source_name() -> str:
    """A source id of its own for each run."""
    return f"canary-{os.urandom(6).hex()}"


def make_batches(source: str, count: int) -> list[Batch]:
    """Requests with the start of a source, `count` calls and its end.

    Args:
        source: its id.
        count: calls between start and end.
    """
    total, started_ns = count + 2, time.time_ns()
    numbers = range(1, total + 1)
    decoder = Decoder()
    chunks = [numbers[i : i + _BATCH_SPANS] for i in range(0, total, _BATCH_SPANS)]
    return [_batch(source, chunk, total, started_ns, decoder) for chunk in chunks]


def _batch(source: str, numbers: Sequence[int], total: int, started_ns: int, decoder: Decoder) -> Batch:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    for key, value in (
        (names.SERVICE_NAME, SERVICE),
        (names.SERVICE_INSTANCE, source),
        (names.HOST_NAME, socket.gethostname()),
    ):
        _put(resource_spans.resource.attributes, key, value)
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "otel_audit.canary"
    shapes = []
    for seq in numbers:
        own = seq in (1, total)
        sampled, large = own or seq % _UNSAMPLED_EVERY != 0, not own and seq % _LARGE_EVERY == 0
        shapes.append((seq, sampled, large))
        span = scope_spans.spans.add()
        _identify(span, source, seq, started_ns, sampled=sampled)
        if own:
            _put(span.attributes, names.ACTION, names.ACTION_START if seq == 1 else names.ACTION_STOP)
        else:
            _describe(span, seq, large=large)
        _put(span.attributes, "audit.canary.checksum", _checksum(source, seq))
    body: bytes = request.SerializeToString()
    rows = {row["source_seq"]: row for row in decoder.decode(body).records.to_pylist()}
    return Batch(body, tuple(Call(seq, rows[seq], sampled, large) for seq, sampled, large in shapes))


def _identify(span: Any, source: str, seq: int, started_ns: int, *, sampled: bool) -> None:
    span.trace_id, span.span_id = os.urandom(16), os.urandom(8)
    span.name, span.kind = "otel_audit.canary", _SERVER_KIND
    span.flags = _SAMPLED_FLAG if sampled else 0
    span.start_time_unix_nano = started_ns + seq * 1_000_000
    span.end_time_unix_nano = span.start_time_unix_nano + seq * 1_000
    _put(span.attributes, names.SOURCE_ID, source)
    _put(span.attributes, names.SOURCE_SEQ, seq)


def _describe(span: Any, seq: int, *, large: bool) -> None:
    """What a call says, in every way a record is made from: `audit.*` and semantic conventions."""
    status = _STATUSES[seq % len(_STATUSES)]
    address = f"192.0.2.{seq % 250 + 1}" if seq % 2 else f"2001:db8::{seq:x}"
    attributes = {
        names.ACTION: names.ACTION_CANARY,
        names.CLIENT_ID: f"canary-client-{seq}",
        names.CLIENT_NAME: f"Canary {seq} of otel-audit doctor",
        names.USER_ID[0]: f"canary-user-{seq}",
        names.CLIENT_IP: address,
        names.PEER_ADDRESS[0]: f"198.51.100.{seq % 250 + 1}",
        names.HTTP_METHOD[0]: _METHODS[seq % len(_METHODS)],
        names.HTTP_ROUTE[0]: "/canary/{number}",
        names.URL_PATH[0]: f"/canary/{seq}",
        names.HTTP_STATUS[0]: status,
    }
    for key, value in attributes.items():
        _put(span.attributes, key, value)
    if large:
        _put(
            span.attributes,
            "audit.canary.padding",
            hashlib.sha256(str(seq).encode()).hexdigest() * (_PADDING_BYTES // 64),
        )
    if status >= 500:
        span.status.code = _ERROR_STATUS


def _put(attributes: Any, key: str, value: str | int) -> None:
    made = attributes.add(key=key)
    if isinstance(value, int):
        made.value.int_value = value
    else:
        made.value.string_value = value


def _checksum(source: str, seq: int) -> str:
    return hashlib.sha256(f"{source}/{seq}".encode()).hexdigest()
