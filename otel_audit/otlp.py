"""OTLP bytes to audit records: the one place where a span becomes a record.

A span becomes a record when its kind is SERVER or it carries `audit.action`. Every span of a request ends in exactly one
of three ways, and the counts always add up: a record; skipped, because it is no audit record; or quarantined, because it
cannot be one. A record that does not hold all its span said names what is missing in `otel_audit.problems`, and the span
is kept in quarantine as well (`recorded=True`).

Columns come from semantic conventions old and new and from `audit.*` attributes; a key that occurs twice counts as it
occurs last, and an empty text as none. An rpc call has its whole name (`pkg.Service/Method`) as `method`, the short one
as `action`, no `route`, and a `target` only where `audit.target.id` or a path says one. `audit.*` attributes of a resource
hold for each of its spans that does not say otherwise, and go to `attributes`, but for `audit.service` and
`audit.source.id`. The way of a request through the private modules: `_otlp_json` (OTLP/JSON to protobuf bytes, so that there
is one definition) → `_otlp_request` (request to encoded spans) → for logs `_otlp_logs` (log records to spans, likewise) →
`_otlp_spans` (spans to Python columns, with `_otlp_attributes`) → `_otlp_columns` (to Arrow, with `_otlp_rules`).
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from otel_audit import _otlp_json, _otlp_logs, _otlp_request
from otel_audit._otlp_attributes import Memo
from otel_audit._otlp_columns import Table, empty
from otel_audit._otlp_request import Request
from otel_audit._otlp_rules import Calls, Exclusion
from otel_audit._otlp_spans import Resource, Spans, resource_of
from otel_audit.errors import TooLargeError
from otel_audit.record import Quarantined

__all__ = ["DecodeSettings", "Decoded", "Decoder"]


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How requests are decoded.

    Args:
        exclude_routes: routes, paths or rpc methods (`pkg.Service/Method`) whose calls are no audit records, exactly or
            as globs (`/healthz`, `/internal/*`). A span that carries `audit.action` is never excluded.
        spans_max: most spans that one request may hold.
        expanded_bytes_max: most bytes that what resources say may take once it is repeated in every record of a request.
    """

    exclude_routes: tuple[str, ...] = ()
    spans_max: int = 500_000
    expanded_bytes_max: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Decoded:
    """One request, decoded; `spans == records.num_rows + skipped + entries of quarantine not recorded`.

    Args:
        records: a batch of `record.span_schema()`; may have no rows.
        quarantine: what could not be a record, or not wholly.
        spans: spans in the request; a part of it whose spans cannot be counted is one.
        skipped: spans that are no audit records: not SERVER and without `audit.action`, or excluded.
        unrecorded: source and number (columns `source_id`, `source_seq`) of numbered spans that did not become records;
            None where there are none.
        raw: what kind the span is that a row of `records` came from, and its bytes as received; None: not known.
    """

    records: pa.RecordBatch
    quarantine: tuple[Quarantined, ...]
    spans: int
    skipped: int
    unrecorded: pa.RecordBatch | None = None
    raw: Callable[[int], tuple[str, bytes]] | None = field(default=None, compare=False, repr=False)


_RESOURCES_MAX = 1024
_RESOURCE_BYTES_MAX = 4096


class Decoder:
    """Turns OTLP requests, of traces or of logs, into audit records; any number of threads may use one.

    It remembers attributes, resources and calls it has seen, within bounds of some tens of megabytes.
    """

    def __init__(self, settings: DecodeSettings = DecodeSettings()) -> None:
        self._settings = settings
        self._exclusion = Exclusion(settings.exclude_routes)
        # Any thread reads these without the lock and uses what it read to the end of its request; they are replaced
        # when full, under the lock.
        self._lock = threading.Lock()
        self._memo = Memo()
        self._calls = Calls(self._exclusion)
        self._resources: dict[bytes, Resource] = {}

    def decode(self, body: bytes) -> Decoded:
        """The records of an `ExportTraceServiceRequest` (or `TracesData`, which is the same on the wire).

        Raises:
            DecodeError: the bytes are no such message. What is wrong further in goes to quarantine.
            TooLargeError: more than `spans_max` spans, or resources that would take more than `expanded_bytes_max`.
        """
        return self._decode(_otlp_request.split(body, self._settings.spans_max))

    def decode_json(self, body: bytes) -> Decoded:
        """The records of an OTLP/JSON request; raises as `decode` does."""
        return self._decode(_otlp_json.split(body, self._settings.spans_max))

    def decode_logs(self, body: bytes) -> Decoded:
        """The records of an `ExportLogsServiceRequest`; log records are counted as `spans`. Raises as `decode` does."""
        return self._decode(_otlp_logs.split(body, self._settings.spans_max))

    def decode_logs_json(self, body: bytes) -> Decoded:
        """The records of an OTLP/JSON logs request; raises as `decode` does."""
        return self._decode(_otlp_logs.split_json(body, self._settings.spans_max))

    def _decode(self, request: Request) -> Decoded:
        memo, calls = self._memories()
        runs = [(self._resource(part.resource, memo), part.spans) for part in request.parts]
        expanded = sum(resource.size * count for resource, count in runs)
        if expanded > self._settings.expanded_bytes_max:
            raise TooLargeError("decode", "OTLP request", f"its resources take {expanded} bytes in its records")
        if not request.spans:
            return Decoded(empty(), tuple(request.quarantine), len(request.quarantine), 0)
        spans = Spans(request, runs, memo)
        table = Table(spans, calls, self._exclusion)
        records = table.records()
        rows = table.rows
        resources = [
            part.quarantined(resource.lossy, resource.name)
            for part, (resource, _) in zip(request.parts, runs, strict=True)
            if resource.lossy
        ]
        return Decoded(
            records=records,
            quarantine=(*request.quarantine, *resources, *spans.quarantine),
            spans=len(request.spans) + len(request.quarantine),
            skipped=spans.skipped + table.excluded,
            unrecorded=table.unrecorded,
            raw=lambda row: (request.kind, request.payload(int(rows[row]))),
        )

    def _memories(self) -> tuple[Memo, Calls]:
        """What is remembered, with room for more."""
        if self._memo.full or self._calls.full or len(self._resources) >= _RESOURCES_MAX:
            with self._lock:
                if self._memo.full:
                    self._memo = self._memo.next()
                if self._calls.full:
                    self._calls = Calls(self._exclusion)
                if len(self._resources) >= _RESOURCES_MAX:
                    self._resources = {}
        return self._memo, self._calls

    def _resource(self, raw: bytes, memo: Memo) -> Resource:
        resources = self._resources
        resource = resources.get(raw)
        if resource is None:
            resource = resource_of(raw, memo)
            if len(raw) <= _RESOURCE_BYTES_MAX and len(resources) < _RESOURCES_MAX:
                resources[raw] = resource
        return resource
