"""First pass over a request's spans: from encoded spans to plain columns, one a slot of `Slot`.

This is where the time goes. Spans are taken `_CHUNK` at a time, written one after another with a mark between them, and
parsed as one message: the parser then gives all their attributes as one list. What stands at the head of a span (ids,
kind, times) is read from the bytes, for all spans at once, where it has the form that every exporter writes. Collectors
write every message from its end; of their spans the parser gives the heads as well. All of it checks that it met what it
rests on; a chunk that differs is read span by span instead, with the same result.
"""

import secrets
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, compress
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from otel_audit import _otlp_schema as wire
from otel_audit import names
from otel_audit._otlp_attributes import FIELDS, MARK, Extra, Memo, Notes, Slot, fragment, read
from otel_audit._otlp_request import Request
from otel_audit.record import Quarantined

__all__ = ["Resource", "Spans", "resource_of"]

_ACTION_KEY: Final = names.ACTION.encode()
_EXCEPTION: Final = names.EXCEPTION_EVENT.encode()
_EXCEPTION_NAME: Final = b"\x12\x09" + _EXCEPTION  # an event's name as it is written
_STATUS: Final = {b"": None, b"\x18\x00": None, b"\x18\x01": 1, b"\x18\x02": 2}
_CHUNK: Final = 64
"""Spans parsed together: enough to share the cost of a parse, few enough to stay in the processor's cache."""
_TOGETHER_BYTES_MAX: Final = 64 * 1024
"""Size of a span up to which it is parsed with others: a parsed attribute can take ten times its bytes."""
_SEPARATOR: Final = wire.field(9, MARK) + wire.field(15, MARK)  # an attribute and a status
_KIND_MARK: Final = secrets.randbits(30) | 1 << 30
_TIME_MARK: Final = secrets.randbits(63) | 1 << 63
_HEAD_SEPARATOR: Final = (
    wire.field(1, MARK)
    + wire.field(2, MARK)
    + b"\x30"
    + wire.varint(_KIND_MARK)
    + (b"\x39" + _TIME_MARK.to_bytes(8, "little"))
    + (b"\x41" + _TIME_MARK.to_bytes(8, "little"))
    + _SEPARATOR
)
"""Where the heads are read by the parser: a mark for each of their fields as well, to tell whose a value is."""
HUGE_BYTES: Final = 1024 * 1024
"""Size of a span from which its fields are counted before it is read."""
ATTRIBUTES_MAX: Final = 8192
"""Attributes read of a huge span, and as many `audit.*` ones; if it has more, it goes to quarantine as well."""
_FIELDS_MAX: Final = 200_000
_HEAD_BYTES: Final = 64
_NOT_HERE: Final = "log records go to /v1/logs or LogsService"
"""The messages of both look alike on the wire, but that a log record read as a span has nothing at its head."""
MEMBERS_MAX: Final = 8192
"""Characters of `audit.*` attributes that a resource may add to each record of its spans."""
_AUDIT_START: Final = names.AUDIT_PREFIX.encode()


# --- resource -----------------------------------------------------------------------------------------------------------
class Resource(NamedTuple):
    """What a resource says of all its spans.

    Args:
        service: `audit.service`, else `service.name`.
        name: `service.name`.
        members: its other `audit.*` attributes, name to JSON member.
        problems, lossy: as in `Extra`.
    """

    service: str
    name: str | None
    environment: str | None
    version: str | None
    instance: str | None
    source_id: str | None
    members: dict[str, str]
    problems: tuple[str, ...]
    lossy: tuple[str, ...]

    @property
    def size(self) -> int:
        """Characters that it adds to each record, at most."""
        texts = (self.service, self.environment, self.version, self.instance, self.source_id)
        return sum(len(t) for t in texts if t) + sum(len(m) for m in self.members.values())


_SPANS_OWN: Final = {
    field.slot: key
    for key, field in FIELDS.items()
    if key.startswith(names.AUDIT_PREFIX) and key not in (names.SERVICE, names.SOURCE_ID)
}
"""Slots that a span alone fills; what a resource says there is kept among the other attributes."""


def _resource_attributes(raw: bytes, notes: Notes) -> list[bytes]:
    """The attributes of a resource; of a broken one, those before the break."""
    try:
        whole: list[bytes] = wire.parse_resource(raw).attributes[:]
    except wire.ProtobufError:
        notes.note("undecodable:resource", lossy=True)
    else:
        return whole
    found: list[bytes] = []
    try:
        for number, tag_at, start, end in wire.fields(raw):
            if number == 1 and raw[tag_at] & 7 == 2:
                found.append(raw[start:end])
    except wire.WireError:
        pass
    return found


def _keep_member(members: dict[str, str], key: str, member: str, notes: Notes) -> None:
    if sum(map(len, members.values())) + len(member) > MEMBERS_MAX:
        notes.note("oversize:attributes", lossy=True)
    else:
        members[key] = member


def resource_of(raw: bytes, memo: Memo) -> Resource:
    """The resource in `raw`; never raises."""
    notes = Notes()
    values: dict[int, Any] = {}
    members: dict[str, str] = {}
    for attribute in _resource_attributes(raw, notes):
        slot, value = memo[attribute]
        if slot in Slot.LATE:
            slot, value = read(value)
        if slot == Slot.EXTRA:
            extra: Extra = value
            notes.take(extra.problems, extra.lossy)
            if extra.key is not None and extra.json is not None:
                _keep_member(members, extra.key, extra.json, notes)
            slot, value = extra.slot, extra.value
        if slot in _SPANS_OWN and value is not None:
            _keep_member(members, _SPANS_OWN[slot], fragment(_SPANS_OWN[slot], value), notes)
        values[slot] = value
    get = values.get
    return Resource(
        service=get(Slot.SERVICE) or get(Slot.SERVICE_NAME) or "unknown_service",
        name=get(Slot.SERVICE_NAME),
        environment=get(Slot.ENVIRONMENT) or get(Slot.ENVIRONMENT_OLD),
        version=get(Slot.SERVICE_VERSION),
        instance=get(Slot.INSTANCE) or get(Slot.HOST),
        source_id=get(Slot.SOURCE_ID),
        members=members,
        problems=tuple(notes.problems),
        lossy=tuple(notes.lossy),
    )


# --- heads ----------------------------------------------------------------------------------------------------------------
_IDS: Final = np.dtype([("trace_tag", "<u2"), ("trace_id", "V16"), ("span_tag", "<u2"), ("span_id", "V8")])
_SIZED: Final = np.dtype([("tag", "u1"), ("size", "u1"), ("more", "u1")])
_TIMES: Final = np.dtype(
    [("kind_tag", "u1"), ("kind", "u1"), ("start_tag", "u1"), ("start", "<u8"), ("end_tag", "u1"), ("end", "<u8")]
)


class Heads:
    """Ids, kinds and times of spans, one row each; `sound` tells the rows that had the form every exporter writes.

    That form: trace id, span id, trace state if any, parent if any, name, kind, start, end, in this order. A row that is
    not sound is filled in by `put`.
    """

    def __init__(self, raws: Sequence[bytes], sizes: npt.NDArray[np.int64]) -> None:
        data = b"".join(raws) + bytes(_HEAD_BYTES)  # so that no look goes past the end
        last = len(data) - _HEAD_BYTES
        ends = np.cumsum(sizes)
        ids = _at(data, ends - sizes, _IDS)
        sound = (sizes > _IDS.itemsize) & (ids["trace_tag"] == 0x100A) & (ids["span_tag"] == 0x0812)
        at = np.minimum(ends - sizes + _IDS.itemsize, last)
        for tag in (0x1A, 0x22, 0x2A):  # trace state, parent, name
            field = _at(data, at, _SIZED)
            there = field["tag"] == tag
            size = field["size"].astype(np.int64) + 2
            if (size >= 0x82).any():
                long = size >= 0x82
                size += np.where(long, (field["more"].astype(np.int64) << 7) - 0x80 + 1, 0)
                sound &= ~(there & long & (field["more"] >= 0x80))
            if not there.all():
                size[~there] = 0
            at = np.minimum(at + size, last)
        times = _at(data, at, _TIMES)
        sound &= there & (times["kind_tag"] == 0x30) & (times["start_tag"] == 0x39) & (times["end_tag"] == 0x41)
        self.sound = sound & (times["kind"] < 0x80) & (at + _TIMES.itemsize <= ends)
        self.trace_ids = ids["trace_id"].copy().view(np.uint8).reshape(-1, 16)
        self.span_ids = ids["span_id"].copy().view(np.uint8).reshape(-1, 8)
        self.kinds = times["kind"].astype(np.int64)
        self.starts, self.ends = times["start"].copy(), times["end"].copy()

    def put(self, row: int, span: Any) -> None:
        """Fill a row from a parsed span; an id of the wrong size becomes zeros, which are no id either."""
        for ids, value, size in ((self.trace_ids, span.trace_id, 16), (self.span_ids, span.span_id, 8)):
            ids[row] = np.frombuffer(value if len(value) == size else bytes(size), np.uint8)
        self.kinds[row] = span.kind
        self.starts[row], self.ends[row] = span.start, span.end

    def put_parsed(self, first: int, after: int, spans: Any) -> bool:
        """Fill rows from spans parsed as one with `_HEAD_SEPARATOR`; False, and nothing done, unless each has all of a head.

        A mark after each value says that each span has just one of it, and that it is its own.
        """
        n = after - first
        rows = slice(first, after)
        found: list[npt.NDArray[Any]] = []
        numeric = (
            (spans.kind, _KIND_MARK, np.int64),
            (spans.start, _TIME_MARK, np.uint64),
            (spans.end, _TIME_MARK, np.uint64),
        )
        for values, mark, kind in numeric:
            numbers = np.array(values[:], kind)
            if len(numbers) != 2 * n or (numbers[1::2] != mark).any():
                return False
            found.append(numbers[::2])
        for values, size in ((spans.trace_id, 16), (spans.span_id, 8)):
            ids = values[:]
            own = ids[::2]
            if len(ids) != 2 * n or ids[1::2] != [MARK] * n or set(map(len, own)) != {size}:
                return False
            found.append(np.frombuffer(b"".join(own), np.uint8).reshape(-1, size))
        self.kinds[rows], self.starts[rows], self.ends[rows], self.trace_ids[rows], self.span_ids[rows] = found
        return True

    def keep(self, rows: npt.NDArray[np.int64]) -> None:
        """Leave only these rows."""
        self.trace_ids, self.span_ids = self.trace_ids[rows], self.span_ids[rows]
        self.kinds, self.starts, self.ends = self.kinds[rows], self.starts[rows], self.ends[rows]


def _at(data: bytes, offsets: npt.NDArray[np.int64], what: np.dtype[Any]) -> npt.NDArray[Any]:
    """The structure that lies at each offset."""
    size = what.itemsize
    everywhere = np.ndarray((len(data) - size + 1,), f"V{size}", data, strides=(1,))
    return everywhere[offsets].view(what)  # plain bytes are copied many times faster than a structure


# --- spans ----------------------------------------------------------------------------------------------------------------
class _Absent:
    """A column that no span has filled; the first value makes it a list."""

    __slots__ = ("_columns", "_rows", "_slot")

    def __init__(self, columns: list[Any], slot: int, rows: int) -> None:
        self._columns, self._slot, self._rows = columns, slot, rows

    def __setitem__(self, row: int, value: Any) -> None:
        column = self._columns[self._slot] = [None] * self._rows
        column[row] = value


class Spans:
    """One request's spans as columns. Used by one thread, once.

    Spans go by their index in the request; `rows` are the indices of those that become records, unless the second pass
    finds otherwise, and `heads` and `columns` have one value for each of these.

    Args:
        request: has at least one span.
        runs: its resources in order, each with its number of spans.
        memo: what is remembered of attributes.
    """

    def __init__(self, request: Request, runs: Sequence[tuple[Resource, int]], memo: Memo) -> None:
        raws = request.spans
        self.runs, self._memo, self._kind, self._payload = runs, memo, request.kind, request.payload
        self._run_ends = list(accumulate(count for _, count in runs))
        self.quarantine: list[Quarantined] = []
        self.skipped = 0
        self.notes, self.open_ended = request.notes, request.open_ended
        self.members: dict[int, dict[str, str]] = {}  # by index: developer attributes
        self._refused: set[int] = set()
        self._cut: set[int] = set()
        n = len(raws)
        self.columns: list[Any] = []  # by slot: a list, or None if no span fills it
        self.columns.extend(_Absent(self.columns, slot, n) for slot in range(Slot.COUNT))
        self.raws: Sequence[bytes] = raws
        sizes = np.fromiter(map(len, raws), np.int64, n)
        if sizes.max() >= HUGE_BYTES:
            self.raws = [self._shrink(i, raw) for i, raw in enumerate(raws)]
            sizes = np.fromiter(map(len, self.raws), np.int64, n)
        self.heads = Heads(self.raws, sizes)
        self._read(sizes)
        self.rows = self._choose()

    def note_of(self, index: int) -> Notes:
        """What is to be said about a span."""
        return self.notes.setdefault(index, Notes())

    def keep(self, index: int, reason: str, detail: str, *, recorded: bool) -> None:
        """Put a span into quarantine."""
        service = self.runs[bisect_right(self._run_ends, index)][0].name
        self.quarantine.append(Quarantined(reason, detail, self._payload(index), self._kind, service, recorded))

    # --- reading
    def _read(self, sizes: npt.NDArray[np.int64]) -> None:
        n = len(self.raws)
        small = sizes <= _TOGETHER_BYTES_MAX
        sound, small_all = bool(self.heads.sound.all()), bool(small.all())
        for first in range(0, n, _CHUNK):
            after = min(first + _CHUNK, n)
            heads = sound or bool(self.heads.sound[first:after].all())
            if not (small_all or small[first:after].all()) or not self._read_together(first, after, heads=heads):
                for index in range(first, after):
                    self._read_one(index)

    def _read_together(self, first: int, after: int, *, heads: bool) -> bool:
        """Read the spans of a chunk, and their heads unless those are read; False if they need reading one by one."""
        raws = self.raws[first:after]
        separator = _SEPARATOR if heads else _HEAD_SEPARATOR
        try:
            spans = wire.parse_many_spans(separator.join(raws) + separator)
        except wire.ProtobufError:
            return False
        n = after - first
        if heads:
            # A span that has a field of the head twice or more would make that field's count greater. One that ended amid
            # a field would have swallowed its mark, which `_fill` notices.
            once = (
                n == len(spans.trace_id) == len(spans.span_id) == len(spans.kind) == len(spans.start) == len(spans.end)
            )
        else:
            once = self.heads.put_parsed(first, after, spans)
        if not once or not self._fill(first, after, spans.attributes[:]):
            return False
        self._put_statuses(first, n, spans.status[:])
        if len(spans.events):
            for index, raw in enumerate(raws, first):
                if _EXCEPTION_NAME in raw:
                    self.columns[Slot.EXCEPTION][index] = _has_exception(raw)
        return True

    def _fill(self, first: int, after: int, attributes: list[bytes]) -> bool:
        """Put the values of attributes into their columns; False, and nothing done, unless a mark follows those of each."""
        columns = self.columns
        index = first
        for slot, value in map(self._memo.__getitem__, attributes):
            if slot > 0:
                columns[slot][index] = value
            elif slot < 0:
                index += 1
        if index != after:
            self._clear(first, after)
            return False
        extras = columns[Slot.EXTRA]
        if isinstance(extras, list):
            at = 0
            for index in range(first, after):
                end = attributes.index(MARK, at)
                if extras[index] is not None:
                    self._mend(index, attributes[at:end])
                at = end + 1
        return True

    def _clear(self, first: int, after: int) -> None:
        for column in self.columns:
            if isinstance(column, list):
                column[first:after] = [None] * (after - first)

    def _mend(self, index: int, attributes: Sequence[bytes]) -> None:
        """Fill a row again, in order, with attributes that do more than fill a slot."""
        columns = self.columns
        members: dict[str, str] = {}
        for slot, value in map(self._memo.__getitem__, attributes):
            if slot != Slot.EXTRA:
                columns[slot][index] = value
                continue
            columns[value.slot][index] = value.value
            if value.key is not None and value.json is not None:
                members[value.key] = value.json
            if value.problems:
                self.note_of(index).take(value.problems, value.lossy)
        if members:
            self.members[index] = members

    def _put_statuses(self, first: int, n: int, statuses: list[bytes]) -> None:
        """The statuses of `n` spans, a mark after those of each."""
        if len(statuses) == n + statuses.count(b""):
            return
        index = first
        for status in statuses:
            if status == MARK:
                index += 1
            elif status:
                self._put_status(index, status)

    def _put_status(self, index: int, status: bytes) -> None:
        try:
            code = _STATUS[status] if status in _STATUS else wire.parse_status(status).code
        except wire.ProtobufError:
            self.note_of(index).note("undecodable:outcome", lossy=True)
            code = None
        self.columns[Slot.SPAN_STATUS][index] = code

    def _read_one(self, index: int) -> None:
        """Read a span on its own."""
        raw = self.raws[index]
        try:
            span = wire.parse_span(raw)
        except wire.ProtobufError:
            self._refuse(index, "span_undecodable", "the span is not a protobuf message")
            return
        self.heads.put(index, span)
        self._fill(index, index + 1, [*span.attributes, MARK])
        self._put_status(index, span.status)
        if _EXCEPTION_NAME in raw:
            self.columns[Slot.EXCEPTION][index] = _has_exception(raw)

    def _refuse(self, index: int, reason: str, detail: str) -> None:
        self._refused.add(index)
        self.keep(index, reason, detail, recorded=False)

    def _shrink(self, index: int, raw: bytes) -> bytes:
        """A huge span without the attributes beyond `ATTRIBUTES_MAX` and all that lies past `_FIELDS_MAX` fields."""
        if len(raw) < HUGE_BYTES:
            return raw
        kept: list[bytes] = []
        seen = [0, 0]  # attributes of others, and `audit.*`
        whole = True
        try:
            for count, (number, tag_at, start, end) in enumerate(wire.fields(raw)):
                if count >= _FIELDS_MAX:
                    whole = False
                    break
                if number != 9:
                    kept.append(raw[tag_at:end])
                    continue
                ours = raw.startswith(_AUDIT_START, start + 2) or (
                    raw.startswith(b"\x12", start) and _is_ours(raw[start:end])
                )
                seen[ours] += 1
                if seen[ours] <= ATTRIBUTES_MAX:
                    kept.append(raw[tag_at:end])
        except wire.WireError:
            return raw
        if whole and max(seen) <= ATTRIBUTES_MAX:
            return raw
        self._cut.add(index)
        self.note_of(index).note("oversize:attributes", lossy=True)
        return b"".join(kept)

    # --- choosing
    def _choose(self) -> npt.NDArray[np.int64]:
        """The spans that are calls; columns and heads are cut down to them."""
        rows = np.arange(len(self.raws))
        others = self.heads.kinds != wire.SERVER
        if self._refused:
            others[list(self._refused)] = True
        filled = [c if isinstance(c, list) else None for c in self.columns]
        self.columns.clear()  # the absent ones refer to it
        self.columns = filled
        if not others.any():
            return rows
        actions = self.columns[Slot.ACTION]
        keep = ~others
        nobodys = (
            others & (self.heads.starts == 0) & ~self.heads.trace_ids.any(axis=1) & ~self.heads.span_ids.any(axis=1)
        )
        for index in np.flatnonzero(others).tolist():
            if index in self._refused:
                continue
            if nobodys[index]:
                self._refuse(index, "span_undecodable", f"the span has no ids and no start; {_NOT_HERE}")
                continue
            if actions is not None and actions[index] is not None:
                keep[index] = True
            elif index in self._cut and _ACTION_KEY in self._payload(index):
                self._refuse(index, "oversize", "the span has more attributes than are read, so what it is is unknown")
            else:
                self.skipped += 1
        self.columns = [None if c is None else list(compress(c, keep.tolist())) for c in self.columns]
        kept: npt.NDArray[np.int64] = rows[keep]
        self.heads.keep(kept)
        return kept


def _is_ours(attribute: bytes) -> bool:
    """Whether an attribute that begins with its value, as Collectors write it, is one of `audit.*`."""
    try:
        key: bytes = wire.parse_key_value(attribute).key
    except wire.ProtobufError:
        return False
    return key.startswith(_AUDIT_START)


def _has_exception(raw: bytes) -> bool:
    """Whether a span has an exception event; one that has the look of it and cannot be decoded counts as one."""
    try:
        return any(event.name == _EXCEPTION for event in wire.parse_events(raw).events)
    except wire.ProtobufError:
        return True
