"""Second pass: from plain Python columns to one Arrow batch of audit records, a column at a time."""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from otel_audit import _otlp_rules as rules
from otel_audit import _otlp_schema as wire
from otel_audit import names
from otel_audit._otlp_attributes import ATTRIBUTES_BYTES_MAX, Notes, Slot, cut, fragment, read, text_of
from otel_audit._otlp_rules import Call, Calls, Exclusion
from otel_audit._otlp_spans import Resource, Spans
from otel_audit.record import INT_MAX, span_schema

__all__ = ["Table", "empty"]

_Column = list[Any]
_INT64_MAX: Final = 2**63 - 1
_FEW: Final = 48  # so few rows are quicker one by one than as arrays
_PROBLEMS_BYTES_MAX: Final = 2048  # all there are take less
_SAID: Final = (
    ("method", Slot.METHOD), ("method_old", Slot.METHOD_OLD), ("route", Slot.ROUTE), ("status", Slot.STATUS),
    ("status_old", Slot.STATUS_OLD), ("rpc_system", Slot.RPC_SYSTEM), ("rpc_service", Slot.RPC_SERVICE),
    ("rpc_method", Slot.RPC_METHOD), ("rpc_status", Slot.RPC_STATUS), ("rpc_status_old", Slot.RPC_STATUS_OLD),
    ("action", Slot.ACTION), ("outcome", Slot.OUTCOME), ("span_status", Slot.SPAN_STATUS), ("exception", Slot.EXCEPTION),
)  # fmt: skip
"""The fields of `Said` and the slots they are in."""


def empty() -> pa.RecordBatch:
    """A batch without records."""
    return pa.RecordBatch.from_pylist([], schema=span_schema())


# --- columns --------------------------------------------------------------------------------------------------------------
def _coalesce(*columns: _Column | None) -> _Column | None:
    """Row by row, the first value there is."""
    there = [c for c in columns if c is not None]
    if not there:
        return None
    first, *others = there
    for other in others:
        if None not in first:
            break
        first = [b if a is None else a for a, b in zip(first, other, strict=True)]
    return first


def _strings(column: _Column | None, rows: int) -> pa.Array:
    return pa.nulls(rows, pa.string()) if column is None else pa.array(column, pa.string())


def _distinct(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The distinct ones of small numbers, ascending, and which of these each one is."""
    there = np.zeros(int(numbers.max()) + 1, np.bool_)
    there[numbers] = True
    return np.flatnonzero(there), (np.cumsum(there) - 1)[numbers]


_SEQ_PREFIX_BYTES: Final = len(names.SOURCE_SEQ) + 3
_VARINT_BYTES_MAX: Final = 7  # 49 bits, within 2^53-1


def _varints(raws: _Column) -> npt.NDArray[np.int64] | None:
    """The numbers of raw `audit.source.seq` attributes, if all have the plain form; else None."""
    try:
        data = np.frombuffer(b"".join(raws) + bytes(_VARINT_BYTES_MAX), np.uint8)
    except TypeError:
        return None
    sizes = np.fromiter(map(len, raws), np.int64, len(raws))
    at = np.cumsum(sizes) - sizes + _SEQ_PREFIX_BYTES  # of the value's length
    count = sizes - _SEQ_PREFIX_BYTES - 2  # bytes of the varint
    longest = int(count.max())
    if count.min() < 1 or longest > _VARINT_BYTES_MAX or (data[at] != count + 1).any() or (data[at + 1] != 0x18).any():
        return None
    numbers = np.zeros(len(raws), np.int64)
    for k in range(longest):
        byte = data[at + 2 + k]
        inside = k < count
        if ((byte >= 0x80) != (k < count - 1))[inside].any():
            return None
        numbers |= np.where(inside, (byte & 0x7F).astype(np.int64) << (7 * k), 0)
    return numbers


_INCOMPLETE: Final = fragment(names.INCOMPLETE, value=True)


def _member_order(key: str) -> bytes:
    return key.encode("utf-16-be")


# --- the table ------------------------------------------------------------------------------------------------------------
class Table:
    """The records of one request's spans. Used by one thread, once: `records`.

    Args:
        spans: the first pass, read.
        calls: what is remembered of calls.
        exclusion: the `exclude_routes` setting.
    """

    def __init__(self, spans: Spans, calls: Calls, exclusion: Exclusion) -> None:
        self._spans, self._calls, self._exclusion = spans, calls, exclusion
        self._rows = len(spans.rows)
        self._columns: list[_Column | None] = spans.columns
        self._dropped: dict[int, tuple[str, str]] = {}  # by row: reason and detail
        self._excluded: set[int] = set()  # rows
        self.rows: npt.NDArray[np.int64] = spans.rows
        """The index in the request of the span of each record; known after `records`."""
        self.unrecorded: pa.RecordBatch | None = None
        """Source and number of rows that are no records after all; known after `records`."""

    @property
    def excluded(self) -> int:
        """Number of rows that `exclude_routes` left out; known after `records`."""
        return len(self._excluded)

    def records(self) -> pa.RecordBatch:
        """One batch of `record.span_schema()`; what is refused or kept as well goes to the spans' quarantine."""
        n, columns = self._rows, self._columns
        if not n:
            return empty()
        paths = self._paths()
        action, outcome, status_code, method, route = self._call_columns(paths)
        client_ips, sources = self._client_ips()
        seqs = columns[Slot.SOURCE_SEQ]
        resources = self._spans.runs
        which = self._resource_of_rows()
        arrays = [
            *self._times(),
            _strings(columns[Slot.CLIENT_ID], n),
            _strings(columns[Slot.CLIENT_NAME], n),
            _strings(columns[Slot.CLIENT_AUTH], n),
            _strings(self._first(Slot.USER_ID, Slot.ENDUSER_ID), n),
            self._from_resource([r.service for r, _ in resources], which, columns[Slot.SERVICE]),
            action,
            _strings(_coalesce(columns[Slot.TARGET_ID], paths), n),
            outcome,
            status_code,
            method,
            route,
            _strings(client_ips, n),
            _strings(sources, n),
            _strings(self._first(Slot.AUDIT_PEER_IP, Slot.PEER, Slot.PEER_SOCK, Slot.PEER_NET), n),
            self._ids(self._spans.heads.trace_ids, "trace_id"),
            self._ids(self._spans.heads.span_ids, "span_id"),
            self._from_resource([r.environment for r, _ in resources], which),
            self._from_resource([r.version for r, _ in resources], which),
            self._from_resource([r.instance for r, _ in resources], which),
            self._from_resource([r.source_id for r, _ in resources], which, columns[Slot.SOURCE_ID]),
            pa.nulls(n, pa.int64()) if seqs is None else self._seqs(seqs),
            self._attributes(which),
        ]
        return self._settle(pa.RecordBatch.from_arrays(arrays, schema=span_schema()))

    def _first(self, *slots: int) -> _Column | None:
        return _coalesce(*(self._columns[slot] for slot in slots))

    def _note(self, row: int) -> Notes:
        return self._spans.note_of(int(self._spans.rows[row]))

    # --- resources
    def _resource_of_rows(self) -> npt.NDArray[np.int64] | None:
        """The index of each row's resource; None when there is but one."""
        runs = self._spans.runs
        if len(runs) == 1:
            return None
        return np.repeat(np.arange(len(runs)), [count for _, count in runs])[self._spans.rows]

    def _from_resource(
        self, values: list[str | None], which: npt.NDArray[np.int64] | None, own: _Column | None = None
    ) -> pa.Array:
        """A column of the resources' values, each row's own value going first."""
        if own is not None:
            theirs = repeat(values[0]) if which is None else (values[w] for w in which.tolist())
            return pa.array([a if a is not None else b for a, b in zip(own, theirs, strict=False)], pa.string())
        if which is None:
            return pa.repeat(pa.scalar(values[0], pa.string()), self._rows)
        return pa.array(values, pa.string()).take(pa.array(which))

    # --- what is read late
    def _read_late(self, row: int, raw: bytes, slot: int) -> Any:
        found, value = read(raw)
        if found == Slot.EXTRA:
            self._note(row).take(value.problems, value.lossy)
            found, value = value.slot, value.value
        if found == slot:
            return value
        self._note(row).note("undecodable:attributes", lossy=True)  # or it has two keys, of which the first was seen
        return None

    def _paths(self) -> _Column | None:
        """The path of each call, as the best of what says it."""
        paths = self._first(Slot.URL_PATH, Slot.HTTP_TARGET)
        for slot in (Slot.URL_FULL, Slot.HTTP_URL):
            urls = self._columns[slot]
            if urls is not None and (paths is None or None in paths):
                paths = paths or [None] * self._rows
                for row, raw in enumerate(urls):
                    if raw is not None and paths[row] is None:
                        paths[row] = self._read_late(row, raw, slot)
        return paths

    def _seqs(self, raws: _Column) -> pa.Array:
        """The column source_seq."""
        rows = range(len(raws)) if None not in raws else [row for row, raw in enumerate(raws) if raw is not None]
        numbers = None
        if len(rows) > _FEW:
            numbers = _varints(raws if len(rows) == len(raws) else [raws[row] for row in rows])
        if numbers is None:
            return pa.array(
                [r if r is None else self._read_late(i, r, Slot.SOURCE_SEQ) for i, r in enumerate(raws)], pa.int64()
            )
        if len(rows) == len(raws):
            return pa.array(numbers)
        column = np.zeros(len(raws), np.int64)
        mask = np.ones(len(raws), np.bool_)
        column[rows], mask[rows] = numbers, False
        return pa.array(column, mask=mask)

    # --- the call
    def _call_columns(self, paths: _Column | None) -> tuple[pa.Array, ...]:
        """Columns action, outcome, status code, method and route."""
        said = [(name, c) for name, slot in _SAID if (c := self._columns[slot]) is not None]
        numbers = self._calls.of_shape(tuple(name for name, _ in said))
        keys = zip(*(c for _, c in said), strict=True) if said else repeat((), self._rows)
        found, places = _distinct(np.fromiter(map(numbers.__getitem__, keys), np.int64, self._rows))
        which: npt.NDArray[np.int64] | None = places
        calls = [self._calls[number] for number in found.tolist()]
        if any(c.exclusion for c in calls):
            self._exclude(calls, places.tolist(), paths)
        if self._rows <= _FEW:
            calls = list(map(calls.__getitem__, places.tolist()))
            which = None
        columns = zip(*((c.action, c.outcome, c.status_code, c.method, c.route) for c in calls), strict=True)
        arrays = [pa.array(c, pa.int16() if k == 2 else pa.string()) for k, c in enumerate(columns)]
        if which is not None:
            indices = pa.array(which)
            arrays = [array.take(indices) for array in arrays]
        if arrays[0].null_count:
            arrays[0] = pa.array(self._own_actions(calls, which, paths), pa.string())
        return tuple(arrays)

    def _own_actions(
        self, calls: Sequence[Call], which: npt.NDArray[np.int64] | None, paths: _Column | None
    ) -> list[str]:
        """The action of each row, where some depend on the path or are the span's name."""
        actions = []
        for row, call in enumerate(calls if which is None else map(calls.__getitem__, which.tolist())):
            action = call.action
            if action is None and call.by_path and call.method is not None:
                action = rules.http_action(call.method, paths[row] if paths else None, templated=False)
            actions.append(action or self._span_name(row))
        return actions

    def _exclude(self, calls: Sequence[Call], which: list[int], paths: _Column | None) -> None:
        for row, call in enumerate(map(calls.__getitem__, which)):
            path = paths[row] if paths is not None and call.exclusion == rules.BY_PATH else None
            if call.exclusion == rules.EXCLUDED or (path is not None and self._exclusion.of_path(path, call.route)):
                self._excluded.add(row)

    def _span_name(self, row: int) -> str:
        span = wire.parse_span(self._spans.raws[self._spans.rows[row]])
        notes = Notes()
        name = cut(text_of(span.name, "action", notes), "action", notes)
        if notes.problems:
            self._note(row).take(notes.problems, notes.lossy)
        return name or "unknown"

    def _client_ips(self) -> tuple[_Column | None, _Column | None]:
        """Columns client_ip and client_ip_source.

        `client.address` is what the instrumentation made of headers that any caller can write. Where it is not the socket's
        peer, nobody says whether the peer is a proxy to be believed: the peer is the client then, and what was claimed is kept
        among the attributes.
        """
        said, sources = self._columns[Slot.CLIENT_IP], self._columns[Slot.CLIENT_IP_SOURCE]
        if said is not None and None not in said:
            return said, sources
        claimed = self._first(Slot.CLIENT_ADDRESS, Slot.HTTP_CLIENT_IP)
        peers = self._first(Slot.PEER, Slot.PEER_SOCK, Slot.PEER_NET)
        if peers is None:
            return _coalesce(said, claimed), sources
        learned: list[str | None] = [None] * self._rows
        rows = zip(said or repeat(None), claimed or repeat(None), peers, strict=False)
        for row, (address, claim, peer) in enumerate(rows):
            if address is None and peer is not None:
                learned[row] = "peer" if claim is None or claim == peer else "untrusted"
                if learned[row] == "untrusted":
                    index = int(self._spans.rows[row])
                    members = self._spans.members.setdefault(index, {})
                    members[names.CLIENT_IP_CLAIMED] = fragment(names.CLIENT_IP_CLAIMED, claim)
        return _coalesce(said, peers, claimed), _coalesce(sources, learned)

    # --- identity and time
    def _ids(self, ids: npt.NDArray[np.uint8], column: str) -> pa.Array:
        size = ids.shape[1]
        zero = ~ids.view(np.uint64).any(axis=1)
        if zero.any():
            detail = f"{column} is not {size} bytes of which some are not zero"
            for row in np.flatnonzero(zero).tolist():
                self._dropped.setdefault(row, (f"{column}_invalid", detail))
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(ids), [None, pa.py_buffer(ids)])

    def _times(self) -> tuple[pa.Array, pa.Array]:
        """Columns time and duration_ns."""
        n = self._rows
        starts, ends = self._spans.heads.starts, self._spans.heads.ends
        durations = ends - starts  # wraps where the end is before the start; those are masked
        good = (starts != 0) & (starts <= _INT64_MAX) & (ends >= starts) & (durations <= INT_MAX)
        absent = ~good
        for row in np.flatnonzero(absent).tolist():
            self._judge_times(row, int(starts[row]), int(ends[row]))
        # The end of a call is unknown where only its begin was recorded; the span repeats its start there.
        begun = [row for row in np.flatnonzero(durations == 0).tolist() if self._is_incomplete(row)]
        absent[begun] = True
        mask = absent if absent.any() else None
        times = pa.Array.from_buffers(
            pa.timestamp("us", "UTC"), n, [None, pa.py_buffer((starts // np.uint64(1000)).astype(np.int64))]
        )
        return times, pa.array(durations.astype(np.int64), pa.int64(), mask=mask)

    def _is_incomplete(self, row: int) -> bool:
        members = self._spans.members.get(int(self._spans.rows[row]), {})
        return members.get(names.INCOMPLETE) == _INCOMPLETE

    def _judge_times(self, row: int, start: int, end: int) -> None:
        if start == 0:
            self._dropped.setdefault(row, ("time_missing", "the span has no start time"))
        elif start > _INT64_MAX:
            detail = f"the start time, {start} ns, is past the year 2262"
            self._dropped.setdefault(row, ("time_out_of_range", detail))
        elif end == 0:
            if not self._spans.open_ended:
                self._note(row).note("end_missing", lossy=False)
        elif end < start:
            self._note(row).note("end_before_start", lossy=False)
        else:
            self._note(row).note("out_of_range:duration_ns", lossy=True)

    # --- developer attributes and problems
    def _attributes(self, which: npt.NDArray[np.int64] | None) -> pa.Array:
        """The column attributes; call when all problems are known."""
        spans = self._spans
        shared = [self._object(r, {}, None) if r.members or r.problems else None for r, _ in spans.runs]
        own = spans.members.keys() | spans.notes.keys()
        if not own and not any(shared):
            return pa.nulls(self._rows, pa.string())
        of_rows = [0] * self._rows if which is None else which.tolist()
        column = [shared[w] for w in of_rows]
        for row, index in self._rows_of(own):
            column[row] = self._object(spans.runs[of_rows[row]][0], spans.members.get(index, {}), index)
        return pa.array(column, pa.string())

    def _rows_of(self, indices: Iterable[int]) -> list[tuple[int, int]]:
        """Row and index of those of these spans that have a row."""
        rows = self._spans.rows
        if len(rows) == len(self._spans.raws):
            return [(index, index) for index in indices]
        row_of = {index: row for row, index in enumerate(rows.tolist())}
        return [(row_of[index], index) for index in indices if index in row_of]

    def _object(self, resource: Resource, members: dict[str, str], index: int | None) -> str | None:
        """The JSON object of one span, or of a resource's spans; members that do not fit are left out, which is noted."""
        notes = Notes()
        notes.take(resource.problems, ())
        if index in self._spans.notes:
            notes.take(self._spans.notes[index].problems, ())
        merged = resource.members | members if resource.members else members
        room = ATTRIBUTES_BYTES_MAX - _PROBLEMS_BYTES_MAX
        kept = []
        for key in sorted(merged, key=_member_order):
            size = len(merged[key].encode()) + 1
            if size <= room:
                room -= size
                kept.append(merged[key])
            elif index is not None:
                self._spans.note_of(index).note("oversize:attributes", lossy=True)
                notes.note("oversize:attributes", lossy=True)
        if notes.problems:  # their key sorts behind every `audit.*`
            kept.append(fragment(names.PROBLEMS, sorted(notes.problems)))
        return "{" + ",".join(kept) + "}" if kept else None

    # --- rows that are refused, excluded, or kept in quarantine as well
    def _settle(self, records: pa.RecordBatch) -> pa.RecordBatch:
        spans = self._spans
        lossy = [index for index, notes in spans.notes.items() if notes.lossy]
        if not lossy and not self._dropped and not self._excluded:
            return records
        gone = self._dropped.keys() | self._excluded
        for row, index in self._rows_of(lossy):
            if row not in gone:
                problems = spans.notes[index].lossy
                detail = f"the record of this call does not hold all the span said: {', '.join(problems)}"
                spans.keep(index, problems[0].partition(":")[0], detail, recorded=True)
        for row, (reason, detail) in self._dropped.items():
            if row not in self._excluded:
                spans.keep(int(spans.rows[row]), reason, detail, recorded=False)
        if not gone:
            return records
        keep = np.ones(self._rows, np.bool_)
        keep[list(gone)] = False
        numbers = records.select(["source_id", "source_seq"]).filter(pa.array(~keep))
        if numbers.column(1).null_count < len(gone):
            self.unrecorded = numbers
        self.rows = spans.rows[keep]
        return records.filter(pa.array(keep))
