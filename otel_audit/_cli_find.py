"""`find`, `show`, `tail`: the commands that list records."""

import difflib
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from otel_audit._cli_common import (
    FILTER_FLAGS,
    Log,
    dir_option,
    filter_options,
    filters_from,
    json_option,
    print_json_lines,
    say,
    stdout_console,
    write_out,
    zone_from,
    zone_options,
)
from otel_audit._cli_tables import (
    FOOTNOTE,
    MARKED_COLUMNS,
    TABLE_COLUMNS,
    TRUST_FOOTNOTE,
    RecordTable,
    is_marked,
    is_unverified,
    rows_of,
    tsv_header,
    tsv_lines,
)
from otel_audit._cli_text import count_text
from otel_audit._cli_time import Zone
from otel_audit.errors import NotFoundError

if TYPE_CHECKING:
    import pyarrow as pa

    from otel_audit.query import Cursor, Filters, Page

__all__ = ["find", "show", "tail"]

_PAGE_ROWS: Final = 2_000
_WHOLE_ROWS: Final = 500
_LINES_MAX: Final = 10_000
_POLL_S: Final = 0.25
_FEW: Final = 12
_TRACE_OF_SPAN: Final = re.compile(r"(?:^|-)([0-9a-f]{32})[/:\-.]?[0-9a-f]{16}(?:-|\Z)")
_JSON_HELP: Final = "Print one canonical record a line."


class _Printer:
    """Writes records as the options and the place they go to want it; the widths of a table are those of the first rows."""

    def __init__(self, zone: Zone, *, as_json: bool, live: bool = False) -> None:
        self._zone = zone
        self._as_json = as_json
        self._live = live
        self._console = stdout_console() if sys.stdout.isatty() and not as_json else None
        self._table: RecordTable | None = None
        self._begun = False
        self._marked = self._unverified = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that records must have."""
        from otel_audit import record

        if self._as_json:
            return tuple(c.name for c in record.COLUMNS)
        return MARKED_COLUMNS if self._console else TABLE_COLUMNS

    def write(self, records: "pa.Table | pa.RecordBatch") -> None:
        """Some records; headings come with the first."""
        from otel_audit import record

        if self._as_json:
            print_json_lines(record.canonical_lines(records))
        elif self._console:
            rows = rows_of(records)
            if self._table is None:
                self._table = RecordTable(self._console.width, rows, self._zone, live=self._live)
                self._console.print(self._table.caption(), style="dim")
                for line in self._table.header():
                    self._console.print(line, no_wrap=True, overflow="crop")
            self._table.print(self._console, rows)
            self._marked = self._marked or any(map(is_marked, rows))
            self._unverified = self._unverified or any(map(is_unverified, rows))
        else:
            if not self._begun:
                write_out(tsv_header())
            for text in tsv_lines(rows_of(records), self._zone):
                write_out(text)
        self._begun = True
        sys.stdout.flush()

    def end(self) -> None:
        """What the marks mean, where there were any."""
        for footnote, needed in ((FOOTNOTE, self._marked), (TRUST_FOOTNOTE, self._unverified)):
            if self._console and needed:
                self._console.print(footnote, style="dim")


# --- find -----------------------------------------------------------------------------------------------------------------
@click.command()
@dir_option
@filter_options
@click.option(
    "--limit", type=click.IntRange(0), default=50, show_default="50", metavar="N", help="Records at most; 0 for all."
)
@click.option("--before", metavar="CURSOR", help="Go on behind a page: the cursor that was printed with it.")
@zone_options
@json_option(_JSON_HELP)
def find(directory: str, limit: int, before: str | None, as_json: bool, **said: Any) -> None:
    """List records, newest first.

    On a terminal a table, elsewhere tab-separated text with a header line. A filter given several times means any of its
    values; different filters narrow.
    """
    zone = zone_from(said)
    filters = filters_from(said, zone)
    from otel_audit.query import Cursor

    cursor = Cursor.parse(before) if before else None
    printer = _Printer(zone, as_json=as_json)
    with Log(directory) as log:
        shown, rest = 0, cursor
        for page in _pages(log, filters, limit, cursor, printer.columns):
            if page.records.num_rows:
                printer.write(page.records)
            shown, rest = shown + page.records.num_rows, page.next
        printer.end()
        if not shown and cursor is None:
            say(_why_nothing(log, filters))
        elif not shown:
            say("no more records")
        elif rest is not None:
            say(f"{count_text(shown, 'newest record')} shown, there are more; go on with: --before {rest}")


def _pages(
    log: Log, filters: "Filters", limit: int, cursor: "Cursor | None", columns: tuple[str, ...]
) -> "Iterator[Page]":
    left = limit or sys.maxsize
    while left > 0:
        rows, place = min(left, _PAGE_ROWS if columns == TABLE_COLUMNS else _WHOLE_ROWS), cursor
        page = log.ask(lambda query: query.page(filters, rows, place, columns=columns))  # noqa: B023 - asked at once
        yield page
        left -= page.records.num_rows
        cursor = page.next
        if cursor is None:
            return


def _why_nothing(log: Log, filters: "Filters") -> str:
    """Which filter leaves nothing, and values that are there in place of the one that was asked for."""
    total = log.snapshot.last_seq
    if not total:
        return "no records: the log is empty"
    alone = {name: log.ask(lambda query: query.count(_only(filters, name))) for name in filters.active}  # noqa: B023
    none = [name for name, count in alone.items() if not count]
    whole = f"no records match; the log has {count_text(total, 'record')}"
    if not none:
        return f"{whole}, and each filter alone matches some, but together they match none"
    flags = " nor ".join(FILTER_FLAGS[name] for name in none)
    return "; ".join([f"{whole}, but none matches {flags}", *(_instead(log, filters, name) for name in none)]).rstrip(
        "; "
    )


def _only(filters: "Filters", name: str) -> "Filters":
    from otel_audit.query import Filters

    return Filters(**{name: getattr(filters, name)})


def _instead(log: Log, filters: "Filters", name: str) -> str:
    """A value that looks like the one asked for, or the few there are; empty where neither helps."""
    columns = {"client": "client_id", "user": "user_id", "service": "service", "action": "action", "route": "route"}
    if name not in columns:
        return ""
    known = [str(g.value) for g in log.ask(lambda query: query.top(columns[name], 500)) if g.value]
    close = [m for v in getattr(filters, name) for m in difflib.get_close_matches(v, known, n=1, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(f'{FILTER_FLAGS[name]} {shlex.quote(m)}' for m in close)}?"
    return f"{FILTER_FLAGS[name]} is one of {', '.join(sorted(known))}" if 0 < len(known) <= _FEW else ""


# --- show -----------------------------------------------------------------------------------------------------------------
@click.command(short_help="Show all of one record, and its hash.")
@click.argument("identity", metavar="ID")
@dir_option
@zone_options
@json_option("Print only the canonical record.")
def show(identity: str, directory: str, as_json: bool, **said: Any) -> None:
    """Show all of one record, its canonical line and its hash.

    ID is a record's number, a trace id (32 hex digits; shows every record of the trace), a span id (16), both as
    trace/span, or a W3C traceparent. Where no record of the trace has the span id, as with the traceparent that a client
    sent, all records of the trace are shown. Exit code 5 when there is none.
    """
    from otel_audit import _cli_panels as panels
    from otel_audit import record

    zone = zone_from(said)
    with Log(directory) as log:
        found = _found(log, identity)
    lines = list(record.canonical_lines(found))
    if as_json:
        print_json_lines(lines)
        return
    rows = rows_of(found)
    if sys.stdout.isatty():
        console = stdout_console()
        for row, line in zip(rows, lines, strict=True):
            panels.print_record(console, row, line, zone)
        if len(rows) > 1:
            say(f"{count_text(len(rows), 'record')} of this id")
    else:
        for i, (row, line) in enumerate(zip(rows, lines, strict=True)):
            write_out(("\n" if i else "") + "\n".join(panels.record_lines(row, line, zone)))


def _found(log: Log, identity: str) -> "pa.Table":
    """The records of an id; those of its trace where its span id is another's, such as the caller's own."""
    try:
        return log.ask(lambda query: query.get(identity))
    except NotFoundError:
        trace = _TRACE_OF_SPAN.search(identity.strip().lower())
        if trace is None:
            raise
        try:
            found = log.ask(lambda query: query.get(trace[1]))
        except NotFoundError:
            found = None
        if found is None:
            raise
    count = found.num_rows
    say(
        f"no record has this span id; showing {'the one record' if count == 1 else f'the {count:,} records'} of its trace"
    )
    return found


# --- tail -----------------------------------------------------------------------------------------------------------------
@click.command(short_help="Print the last records, and new ones as they come.")
@dir_option
@filter_options
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, _LINES_MAX),
    default=10,
    show_default="10",
    metavar="N",
    help="Records to begin with.",
)
@click.option("-f/-F", "--follow/--no-follow", default=True, show_default=True, help="Go on as records arrive.")
@zone_options
@json_option(_JSON_HELP)
def tail(directory: str, lines: int, follow: bool, as_json: bool, **said: Any) -> None:
    """Print the last records in the order they arrived, and new ones as they come; Ctrl-C ends it."""
    zone = zone_from(said)
    filters = filters_from(said, zone)
    printer = _Printer(zone, as_json=as_json, live=follow)
    with Log(directory) as log:
        seen = log.snapshot.last_seq
        if lines:
            page = log.ask(lambda query: query.page(filters, lines, order="arrival", columns=printer.columns))
            records = page.records
            if records.num_rows:
                printer.write(records.take(list(range(records.num_rows))[::-1]))
            seen = max(seen, log.snapshot.last_seq)
        if follow:
            _follow(log, filters, seen, printer)
    printer.end()


def _follow(log: Log, filters: "Filters", seen: int, printer: _Printer) -> None:
    """Print what arrives, until the user ends it."""
    from otel_audit.query import SnapshotExpiredError

    tick = threading.Event()
    try:
        while True:
            snapshot = log.reader.snapshot()
            if snapshot.last_seq > seen:
                try:
                    with log.query(snapshot) as query:
                        for batch in query.iter_batches(filters, after_seq=seen, columns=printer.columns):
                            if batch.num_rows:
                                printer.write(batch)
                                seen = batch.column("seq")[-1].as_py()
                    seen = snapshot.last_seq
                except SnapshotExpiredError:
                    continue
            tick.wait(_POLL_S)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            say("")
