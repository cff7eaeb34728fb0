"""Decoding OTLP, ours beside the same fields taken out through the stock protobuf classes, in one run and one thread."""

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.otlpgen import make_bodies
from otel_audit.otlp import Decoder

SPANS_PER_BODY: Final = 1000
_TURN: Final = 10  # requests that one of them decodes before the next has its turn

# Column to the attributes that may fill it, the better one first: what `otlp` takes, without its rules.
_COLUMNS: Final = {
    "client_id": ("audit.client.id",),
    "client_name": ("audit.client.name",),
    "client_auth": ("audit.client.auth",),
    "target": ("url.path", "http.target"),
    "status_code": ("http.response.status_code", "http.status_code"),
    "method": ("http.request.method", "http.method"),
    "route": ("http.route",),
    "client_ip": ("client.address", "net.peer.ip"),
    "source_seq": ("audit.source.seq",),
}


def _stock(body: bytes) -> pa.RecordBatch:
    """The plain columns of a request, through the generated classes, the obvious way."""
    columns: dict[str, list[Any]] = {
        name: [] for name in (*_COLUMNS, "time", "duration_ns", "service", "trace", "span")
    }
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                if span.kind != 2:
                    continue
                found = {a.key: getattr(a.value, a.value.WhichOneof("value") or "") for a in span.attributes}
                for name, keys in _COLUMNS.items():
                    columns[name].append(next((found[k] for k in keys if k in found), None))
                columns["time"].append(span.start_time_unix_nano // 1000)
                columns["duration_ns"].append(span.end_time_unix_nano - span.start_time_unix_nano)
                columns["service"].append(resource.get("service.name"))
                columns["trace"].append(span.trace_id)
                columns["span"].append(span.span_id)
    return pa.RecordBatch.from_pydict(columns)


def _microseconds_a_span(work: Callable[[bytes], object], body: bytes) -> float:
    before = time.thread_time()  # neither of them waits for anything, so this is what they cost on a busy machine too
    work(body)
    return (time.thread_time() - before) / SPANS_PER_BODY * 1e6


def run(spans: int = 200_000) -> list[dict[str, Any]]:
    """Microseconds a span of ours and of the stock classes, taking turns on the same requests."""
    bodies = make_bodies(max(spans // SPANS_PER_BODY, 3), SPANS_PER_BODY, seed=2)
    decoder = Decoder()
    for body in make_bodies(30, SPANS_PER_BODY, seed=1):  # as a server is: it has seen these clients and routes before
        decoder.decode(body)
    works: dict[str, Callable[[bytes], object]] = {
        "otlp.Decoder": decoder.decode,
        "stock classes": _stock,
        "stock classes, parse alone": ExportTraceServiceRequest.FromString,
    }
    took: dict[str, list[float]] = {name: [] for name in works}
    for first in range(0, len(bodies), _TURN):
        for name, work in works.items():
            took[name] += [_microseconds_a_span(work, body) for body in bodies[first : first + _TURN]]
    ours = statistics.median(took["otlp.Decoder"])
    rows = []
    for name, values in took.items():
        values.sort()
        middle = statistics.median(values)
        rows.append(
            {
                "name": f"decode to Arrow, {name}" if name != "stock classes, parse alone" else name,
                "value": middle,
                "unit": "µs/span",
                "note": f"best {values[0]:.2f}, p90 {values[len(values) * 9 // 10]:.2f}; {middle / ours:.1f} x ours; "
                f"{len(bodies)} requests of {SPANS_PER_BODY} spans, 14 attributes each; CPU time",
            }
        )
    return rows
