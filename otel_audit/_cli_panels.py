"""One record in full, and summaries, for people."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from otel_audit import names, record
from otel_audit._cli_tables import padded, shrunk
from otel_audit._cli_text import count_text, duration_text, json_safe, rate_text, safe, share_text
from otel_audit._cli_time import Zone

if TYPE_CHECKING:
    from rich.console import Console

    from otel_audit.query import Group

__all__ = ["facts", "group_lines", "hidden_heads", "print_groups", "print_record", "print_table", "record_lines"]

_TITLES: Final = {c.name: c.title for c in record.COLUMNS}
_SECTIONS: Final = (
    ("Call", ("time", "duration_ns", "service", "action", "target", "outcome", "status_code", "method", "route")),
    ("Client", ("client_id", "client_name", "client_auth", "user_id", "client_ip", "client_ip_source", "peer_ip")),
    ("Trace", ("trace_id", "span_id", "environment", "service_version", "instance", "source_id", "source_seq")),
    ("Log", ("log", "seq", "recorded_at", "attributes")),
)
_TIMES: Final = ("time", "recorded_at")
_WORK: Final = (
    ("Database", names.DB_CALLS, names.DB_DURATION_NS),
    ("Outgoing", names.HTTP_CALLS, names.HTTP_DURATION_NS),
)


def _value(name: str, value: Any, zone: Zone) -> str:
    if value is None:
        return ""
    if name in _TIMES:
        return f"{_plain(name, value, zone)} ({zone.name})"
    return f"{duration_text(value)} ({value:,} ns)" if name == "duration_ns" else _plain(name, value, zone)


def _work_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """What the call asked of databases and other services, and how long that took; only where it did."""
    try:
        said = json.loads(row["attributes"] or "{}")
    except ValueError:
        return []
    found = []
    for title, calls, duration_ns in _WORK:
        count, ns = said.get(calls), said.get(duration_ns)
        if isinstance(count, int) and isinstance(ns, int):
            found.append((title, f"{count_text(count, 'call')}, {duration_text(ns)} ({ns:,} ns)"))
    return found


def record_lines(row: dict[str, Any], line: bytes, zone: Zone) -> list[str]:
    """All columns of a record as `name<TAB>value`, then its canonical line and leaf hash, for other programs."""
    lines = [f"{name}\t{_plain(name, row[name], zone)}" for name in _TITLES if row[name] is not None]
    return [*lines, f"canonical\t{json_safe(line.decode())}", f"hash\t{record.leaf_hash(line).hex()}"]


def _plain(name: str, value: Any, zone: Zone) -> str:
    if name in _TIMES:
        return zone.text(value if isinstance(value, int) else zone.micros(value))
    return value.hex() if isinstance(value, bytes) else safe(str(value))


def print_record(console: "Console", row: dict[str, Any], line: bytes, zone: Zone) -> None:
    """All columns of a record in sections; below, to be copied, its canonical line and its leaf hash."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for section, columns in _SECTIONS:
        grid.add_row(Text(section, "bold"), "")
        for name in columns:
            text = _value(name, row[name], zone)
            grid.add_row(Text("  " + _TITLES[name], "dim"), Text(text or "-", "" if text else "dim"))
            for what, work in _work_of(row) if name == "duration_ns" else ():
                grid.add_row(Text("  " + what, "dim"), Text(work))
    title = Text(f"Record {row['seq']:,} of {safe(row['log'])}")
    console.print(Panel(grid, title=title, title_align="left", border_style="dim"))
    console.print(Text(f"Canonical line, {record.CANONICAL_FORM}", "bold"))
    console.print(Text(json_safe(line.decode())), soft_wrap=True)
    console.print(Text("Its hash, SHA-256 of a zero byte and the line", "bold"))
    console.print(Text(record.leaf_hash(line).hex()), soft_wrap=True)


# --- summaries ------------------------------------------------------------------------------------------------------------
def facts(console: "Console", pairs: Sequence[tuple[str, str]]) -> None:
    """Names and values, a line each."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(name, "dim"), Text(value))
    console.print(grid)


_TIME_HEADS: Final = ("p50", "p95", "p99", "Max")


def hidden_heads(width: int) -> tuple[str, ...]:
    """The columns of a ranking that a terminal of this width has no room for; the extremes go first."""
    return _TIME_HEADS[4 if width >= 110 else 3 if width >= 100 else 2 :]


def print_groups(console: "Console", title: str, groups: "Sequence[Group]", total: int, seconds: float) -> None:
    """A ranking: calls, share, rate, errors, percentiles of duration; beside a client's id its name."""
    named = any(g.label for g in groups)
    rows = []
    for g in groups:
        name = "(none)" if g.value is None or g.value == "" else safe(str(g.value))
        names = (name, safe(g.label or "-")) if named else (name,)
        shares = (share_text(g.count, total), rate_text(g.count, seconds), share_text(g.errors, g.count))
        rows.append((*names, f"{g.count:,}", *shares, *map(duration_text, _times(g))))
    heads = (title, *(["Name"] if named else []), "Calls", "Share", "Rate", "Errors", *_TIME_HEADS)
    columns = len(heads) - len(hidden_heads(console.width))
    texts = 2 if named else 1
    print_table(
        console, heads[:columns], [r[:columns] for r in rows], right=range(texts, columns), cut=tuple(range(texts))
    )


def group_lines(column: str, groups: "Sequence[Group]", total: int, seconds: float) -> list[str]:
    """A ranking as tab-separated text with a header line, for other programs: plain numbers, nothing left out."""
    named = column == "client_id"
    heads = [_TITLES[column], *([_TITLES["client_name"]] if named else []), "Calls", "Share (%)", "Rate (1/s)"]
    lines = ["\t".join([*heads, "Errors", "Errors (%)", *(f"{h} (ms)" for h in _TIME_HEADS)])]
    for g in groups:
        cells = [safe("" if g.value is None else str(g.value)), *([safe(g.label or "")] if named else [])]
        cells += [str(g.count), f"{100 * g.count / total:.2f}", f"{g.count / max(seconds, 1.0):.6f}"]
        cells += [str(g.errors), f"{100 * g.errors / g.count:.2f}"]
        cells += ["" if ns is None else f"{ns / 1e6:.3f}" for ns in _times(g)]
        lines.append("\t".join(cells))
    return lines


def _times(group: "Group") -> "tuple[int | None, ...]":
    return (group.p50_ns, group.p95_ns, group.p99_ns, group.max_ns)


def print_table(
    console: "Console", heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int], cut: Sequence[int]
) -> None:
    """A table with a line below its titles.

    Args:
        console: where to.
        heads: titles.
        rows: cells, harmless ones.
        right: columns of numbers, flush right.
        cut: columns that may be shortened to fit the terminal; others never, for a cut number is a wrong one.
    """
    from rich.cells import cell_len
    from rich.text import Text

    natural = {
        str(i): max(cell_len(text) for text in (head, *(row[i] for row in rows))) for i, head in enumerate(heads)
    }
    least = {k: min(w, max(8, len(heads[int(k)]))) if int(k) in cut else w for k, w in natural.items()}
    widths = shrunk(natural, least, console.width - 2 * (len(heads) - 1))

    def line(cells: Sequence[str], style: str) -> Text:
        texts = [padded(cell, widths[str(i)], right=i in right) for i, cell in enumerate(cells)]
        return Text("  ".join(texts).rstrip(), style)

    console.print(line(heads, "bold"), soft_wrap=True)
    console.print(Text("─" * (sum(widths.values()) + 2 * (len(heads) - 1)), "dim"), soft_wrap=True)
    for row in rows:
        console.print(line(row, ""), soft_wrap=True)
