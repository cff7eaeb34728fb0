"""Records as lines of a table that fits the terminal, and as tab-separated text for other programs."""

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from otel_audit import names, record
from otel_audit._cli_text import duration_text, safe
from otel_audit._cli_time import Zone

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console
    from rich.text import Text

__all__ = [
    "FOOTNOTE",
    "MARKED_COLUMNS",
    "TABLE_COLUMNS",
    "TRUST_FOOTNOTE",
    "RecordTable",
    "is_marked",
    "is_unverified",
    "padded",
    "rows_of",
    "shrunk",
    "tsv_header",
    "tsv_lines",
]

TABLE_COLUMNS: Final = (
    "seq",
    "client_id",
    "client_name",
    "service",
    "action",
    "duration_ns",
    "client_ip",
    "time",
    "outcome",
)
"""What a list shows: the number to ask `show` for, the seven columns of an API audit log, and the outcome."""

MARKED_COLUMNS: Final = (*TABLE_COLUMNS, "client_auth", "attributes")
"""What a list for people reads: also whether the client was verified, and whether the call came with a defect."""

FOOTNOTE: Final = "! see otel-audit show NUMBER: the call came with a defect"
"""What the mark behind an outcome means."""

TRUST_FOOTNOTE: Final = "? behind a client: taken on trust, its credential was not verified"
"""What the mark behind a client's id means."""

_TITLES: Final = {c.name: c.title for c in record.COLUMNS} | {"seq": "Number"}
_WIDTH_MAX: Final = {"client_id": 40, "client_name": 32, "service": 24, "action": 28, "client_ip": 39}
_WIDTH_MIN: Final = {"client_id": 8, "client_name": 8, "service": 7, "action": 5, "client_ip": 12}
_WIDTH_LIVE: Final = {"seq": 6, "client_id": 14, "client_name": 18, "service": 12, "action": 8, "client_ip": 15}
_RIGHT: Final = ("seq", "duration_ns")
_UNVERIFIED: Final = "(unverified)"  # the end of a Credential that was taken on trust
_TRUST_MARK: Final = " ?"
_SHORT_OUTCOME: Final = {"success": "ok", "denied": "deny", "failure": "fail", "error": "err", "unknown": "?"}
_STYLE: Final = {"denied": "yellow", "failure": "magenta", "error": "bold red", "unknown": "dim"}
_TIMES: Final = ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S", "%m-%d %H:%M:%S")
_TIME_OF_DAY: Final = "%H:%M:%S"
_TIME_SHORT: Final = "%m-%d %H:%M"

Row = dict[str, Any]


def rows_of(table: "pa.Table | pa.RecordBatch") -> list[Row]:
    """Rows with `time` as microseconds since 1970 UTC."""
    import pyarrow as pa

    columns = {
        name: (column.cast(pa.int64()) if name == "time" else column).to_pylist()
        for name, column in zip(table.schema.names, table.columns, strict=True)
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def is_marked(row: Row) -> bool:
    """Whether the record says that the call came with a defect; never where its attributes were not asked for."""
    text = row.get("attributes")
    return text is not None and names.PROBLEMS in text and names.PROBLEMS in json.loads(text)


def is_unverified(row: Row) -> bool:
    """Whether the record names a client that nobody verified; never where its credential was not asked for."""
    return bool(row.get("client_id")) and _UNVERIFIED in (row.get("client_auth") or "")


# --- for programs ---------------------------------------------------------------------------------------------------------
def tsv_header() -> str:
    """Titles of the columns, tab-separated."""
    return "\t".join(_TITLES[c] + (" (ms)" if c == "duration_ns" else "") for c in TABLE_COLUMNS)


def tsv_lines(rows: Iterable[Row], zone: Zone) -> Iterator[str]:
    """One line a record: whole values, nothing that breaks a line, times with their offset, empty where absent."""
    for row in rows:
        yield "\t".join(_tsv_cell(column, row[column], zone) for column in TABLE_COLUMNS)


def _tsv_cell(column: str, value: Any, zone: Zone) -> str:
    if value is None:
        return ""
    if column == "time":
        return zone.text(value)
    if column == "duration_ns":
        return f"{value / 1e6:.3f}"
    return safe(str(value))


# --- for people -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Shape:
    """How the columns are written: the form of times, whether outcomes are a few letters, the room between columns."""

    time_form: str
    short_outcome: bool = False
    gap: str = "  "

    def cell(self, column: str, value: Any, zone: Zone) -> str:
        if column == "time":
            text = zone.moment(value).strftime(self.time_form)
            return text[:-3] if self.time_form.endswith("%f") else text
        if value is None or value == "":
            return "-"
        if column == "duration_ns":
            return duration_text(value)
        if column == "outcome" and self.short_outcome:
            return _SHORT_OUTCOME.get(value, "?")
        return safe(str(value))


class RecordTable:
    """A table of records whose columns are chosen once, from some of its rows and the width of the terminal.

    Args:
        width: of the terminal, in cells.
        sample: rows that the widths are made for.
        zone: in which times are shown.
        live: more rows will come that may be wider or of another day.
    """

    def __init__(self, width: int, sample: Sequence[Row], zone: Zone, *, live: bool = False) -> None:
        self._zone = zone
        days = {zone.moment(r["time"]).date() for r in sample}
        one_day = len(days) == 1 and not live
        self.day = min(days).isoformat() if one_day else ""
        self._shape, self._widths = self._fit(width, sample, live=live, one_day=one_day)
        if self._shape.time_form != _TIME_OF_DAY:
            self.day = ""

    def _fit(self, width: int, sample: Sequence[Row], *, live: bool, one_day: bool) -> tuple[_Shape, dict[str, int]]:
        """The fullest shape that fits, with the columns of free text cut as little as can be, the address last."""
        last = _Shape(_TIME_OF_DAY if one_day or live else _TIME_SHORT, short_outcome=True)
        shapes = [*map(_Shape, _TIMES), _Shape(_TIMES[-1], short_outcome=True), last, replace(last, gap=" ")]
        for shape in shapes:
            widths = self._natural(shape, sample, live=live)
            least = {c: min(w, _WIDTH_MIN.get(c, w)) for c, w in widths.items()}
            whole_ip = least | {"client_ip": widths["client_ip"]}  # what is cut of an address says another one
            comfortable = {c: (w + whole_ip[c] + 1) // 2 for c, w in widths.items()}
            room = width - len(shape.gap) * (len(widths) - 1)
            if sum(comfortable.values()) <= room or shape is shapes[-1]:
                return shape, shrunk(shrunk(widths, whole_ip, room), least, room)
        raise AssertionError  # pragma: no cover - the last shape always returns

    def _natural(self, shape: _Shape, sample: Sequence[Row], *, live: bool) -> dict[str, int]:
        from rich.cells import cell_len

        widths = {}
        for column in TABLE_COLUMNS:
            cells = [cell_len(shape.cell(column, row[column], self._zone)) for row in sample]
            if column == "client_id":
                cells = [n + len(_TRUST_MARK) * is_unverified(row) for n, row in zip(cells, sample, strict=True)]
            word = max(map(len, _TITLES[column].split()))
            title = next(w for w in range(word, 99) if len(textwrap.wrap(_TITLES[column], w)) <= 2)
            floor = _WIDTH_LIVE.get(column, 8 if column == "duration_ns" else 0) if live else 0
            if column == "outcome":
                title, floor = (5, 5) if shape.short_outcome else (8, 8)  # with room for a mark
            widths[column] = min(max(*cells, title, floor) if cells else max(title, floor), _WIDTH_MAX.get(column, 99))
        return widths

    def header(self) -> "list[Text]":
        """The titles, over as many lines as the narrowest column needs."""
        from rich.text import Text

        titles = {c: "Out- come" if c == "outcome" and self._shape.short_outcome else _TITLES[c] for c in TABLE_COLUMNS}
        wrapped = {c: textwrap.wrap(titles[c], self._widths[c]) for c in TABLE_COLUMNS}
        height = max(map(len, wrapped.values()))
        lines = []
        for i in range(height):
            cells = []
            for column in TABLE_COLUMNS:
                words = [""] * (height - len(wrapped[column])) + wrapped[column]
                cells.append(padded(words[i], self._widths[column], right=column in _RIGHT))
            lines.append(Text(self._shape.gap.join(cells).rstrip(), style="bold"))
        return lines

    def line(self, row: Row) -> "Text":
        """One record."""
        from rich.cells import cell_len
        from rich.text import Text

        text = Text(no_wrap=True, overflow="crop")
        style = _STYLE.get(row["outcome"], "")
        for i, column in enumerate(TABLE_COLUMNS):
            cell = self._shape.cell(column, row[column], self._zone)
            if column == "outcome" and is_marked(row):
                cell += "!"
            elif column == "client_id" and is_unverified(row):
                cell = (
                    padded(cell, min(cell_len(cell), self._widths[column] - len(_TRUST_MARK)), right=False)
                    + _TRUST_MARK
                )
            elif column == "action" and cell.startswith(names.ACTION_OWN_PREFIX):
                cell = _tail(cell, self._widths[column])
            text.append(self._shape.gap if i else "")
            filled = padded(cell, self._widths[column], right=column in _RIGHT)
            text.append(filled, "dim" if cell == "-" or column == "seq" else style if column == "outcome" else "")
        text.rstrip()
        return text

    def print(self, console: "Console", rows: Iterable[Row]) -> None:
        """The records, a line each."""
        for row in rows:
            console.print(self.line(row), no_wrap=True, overflow="crop")

    def caption(self) -> str:
        """What the times mean."""
        return f"{self.day}, times in {self._zone.name}" if self.day else f"Times in {self._zone.name}"


def _tail(text: str, width: int) -> str:
    """`text`, or its end: what tells the records that sources make about themselves apart is their last word."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def shrunk(widths: dict[str, int], least: dict[str, int], room: int) -> dict[str, int]:
    """`widths` cut to `room` cells, always the column that has most to spare, none below its least."""
    widths = dict(widths)
    while sum(widths.values()) > room:
        column = max(widths, key=lambda c: (widths[c] - least[c], widths[c]))
        if widths[column] <= least[column]:
            break
        widths[column] -= 1
    return widths


def padded(text: str, width: int, *, right: bool) -> str:
    """`text` in exactly `width` cells, with an ellipsis where it was cut."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) > width:
        text = set_cell_size(text, max(width - 1, 0)) + "…"
    fill = " " * (width - cell_len(text))
    return fill + text if right else text + fill
