"""`gaps`: which numbered records are missing, from whom, since when, and why."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from otel_audit._cli_common import (
    Log,
    dir_option,
    json_option,
    print_json_lines,
    say,
    stdout_console,
    write_out,
    zone_from,
    zone_options,
)
from otel_audit._cli_text import count_text, duration_ns, safe
from otel_audit._cli_time import Zone, now_us, parse_when
from otel_audit.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from otel_audit.sources import Gap, Source, Verdict

__all__ = ["gaps", "sources_of"]

_MISSING: Final = 3
"""Exit code when records are missing that will not come."""
_VERDICTS: Final[tuple["Verdict", ...]] = ("lost", "dropped", "late")
_HEADS: Final = ("Service", "Instance", "Source", "Missing", "Numbers", "Verdict", "Since", "Until")
_SOURCE_HEADS: Final = ("Service", "Instance", "Source", "State", "Began", "Last seen", "Records", "Missing")
_RANGES_SHOWN: Final = 4
_WIDE: Final = 110
"""Cells from which on there is room for every column."""


@click.command(short_help="List records that are missing: from whom, since when, and why.")
@dir_option
@click.option("--since", metavar="TIME", help="Only gaps that end after this time: 15m or 7d ago, today, ...")
@click.option("--source", "ids", multiple=True, metavar="ID", help="Only this source.")
@click.option(
    "--all", "everything", is_flag=True, help="List every source: how it began and ended, and what is missing."
)
@click.option(
    "--late",
    default="5m",
    show_default=True,
    metavar="TIME",
    help="How long a record may still be on its way, or a source be silent.",
)
@zone_options
@json_option("Print one JSON object a source.")
def gaps(
    directory: str, *, since: str | None, ids: Sequence[str], everything: bool, late: str, as_json: bool, **said: Any
) -> int:
    """List records that are missing: from whom, since when, and why.

    Services that capture audits number their records. Exit code 3 when numbers are missing that are lost or were
    dropped, 0 when none is; those that may still come do not count.
    """
    zone = zone_from(said)
    since_us = None if since is None else parse_when(since, zone, now_us())
    with Log(directory) as log:
        found = sources_of(log, ids=ids, late_s=_seconds(late))
    for name in ids:
        if all(s.id != name for s in found):
            raise NotFoundError("show source", name, "the log has no record of it", "otel-audit gaps --all lists them")
    if since_us is not None:
        found = [_since(s, since_us) for s in found if s.arrived_us >= since_us]
    shown = [s for s in found if s.missing or everything]
    if as_json:
        print_json_lines(_json_line(s) for s in shown)
    elif sys.stdout.isatty():
        _print(shown, zone, everything=everything)
    else:
        _write(shown, zone, everything=everything)
    _conclude(found, everything=everything)
    return _MISSING if any(s.missing.get("lost") or s.missing.get("dropped") for s in found) else 0


def sources_of(log: Log, *, ids: Sequence[str] = (), late_s: float = 300.0) -> "list[Source]":
    """The sources of a log; those of these ids where some are named."""
    from otel_audit.numbers import read_notes
    from otel_audit.sources import survey

    return log.ask(lambda query: survey(query, read_notes(log.directory), ids=ids or None, late_s=late_s))


def _seconds(text: str) -> float:
    ns = duration_ns(text.lower())
    if ns is None:
        raise UsageError("read duration", repr(text), "not a duration", "write it as 30s, 5m or 1h")
    return ns / 1e9


def _since(source: "Source", since_us: int) -> "Source":
    """The source with those gaps alone that end after a time."""
    kept = tuple(g for g in source.gaps if (g.after_us or g.before_us or source.last_us) >= since_us)
    if len(kept) == len(source.gaps):
        return source
    missing = {v: n for v in _VERDICTS if (n := sum(g.missing for g in kept if g.verdict == v))}
    return replace(source, gaps=kept, missing=missing)


# --- words ----------------------------------------------------------------------------------------------------------------
def _numbers(found: "Sequence[Gap]", shown: int | None = None) -> str:
    """`5-9, 12`."""
    texts = [str(g.first) if g.first == g.last else f"{g.first}-{g.last}" for g in found[:shown]]
    more = len(found) - len(texts)
    return ", ".join(texts) + (f", {more:,} more" if more else "")


def _by_verdict(source: "Source") -> "list[tuple[Verdict, int, list[Gap]]]":
    return [
        (v, source.missing[v], [g for g in source.gaps if g.verdict == v]) for v in _VERDICTS if v in source.missing
    ]


def _ends(found: "Sequence[Gap]") -> tuple[int | None, int | None]:
    """Times of the record before the first gap and of that after the last."""
    return (found[0].before_us, found[-1].after_us) if found else (None, None)


def _conclude(found: "Sequence[Source]", *, everything: bool) -> None:
    """The whole of it in a sentence or two, on standard error."""
    if not found:
        say("no source in the log numbers its records; see docs/gaps.md")
        return
    counts = {v: sum(s.missing.get(v, 0) for s in found) for v in _VERDICTS}
    whose = count_text(len(found), "source")
    if not any(counts.values()):
        text = f"no record is missing of {whose}"
    else:
        parts = ", ".join(f"{n:,} {v}" for v, n in counts.items() if n)
        text = f"{count_text(sum(counts.values()), 'record')} missing ({parts}) of {whose}"
    open_ended = sum(s.state == "no end" for s in found)
    if open_ended and not everything:
        text += f"; {open_ended:,} without an end, see --all"
    copies = sum(s.copies for s in found)
    if copies:
        text += f"; {copies:,} came first through another exporter, without their numbers, and are there"
    say(text)


# --- for programs -----------------------------------------------------------------------------------------------------------
def _write(found: "Sequence[Source]", zone: Zone, *, everything: bool) -> None:
    if everything:
        _write_rows(_SOURCE_HEADS, (_source_cells(s, zone.text) for s in found))
        write_out("")
    rows = []
    for source in found:
        for verdict, count, some in _by_verdict(source):
            since_us, until_us = _ends(some)
            reasons = "; ".join(dict.fromkeys(g.reason for g in some if g.reason))
            cells = (source.service, source.instance or "", source.id, str(count), _numbers(some), verdict)
            rows.append((*cells, *("" if us is None else zone.text(us) for us in (since_us, until_us)), reasons))
    _write_rows((*_HEADS, "Reason"), rows)


def _write_rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    for row in (heads, *rows):
        write_out("\t".join(map(safe, row)))


def _source_cells(source: "Source", time: Any, none: str = "") -> tuple[str, ...]:
    began = none if source.began_us is None else time(source.began_us)
    return (
        source.service,
        source.instance or none,
        source.id,
        source.state,
        began,
        time(source.last_us),
        str(source.records),
        str(source.missing_count),
    )


def _json_line(source: "Source") -> bytes:
    """Canonical JSON: keys in order, what is absent left out."""
    from otel_audit.record import canonical_attributes, format_time

    times = {
        "began": source.began_us,
        "first": source.first_us,
        "last": source.last_us,
        "arrived": source.arrived_us,
        "ended": source.ended_us,
    }
    said: dict[str, Any] = {
        "source": source.id,
        "host": source.host,
        "service": source.service,
        "instance": source.instance,
        "state": source.state,
        "records": source.records,
        "last_seq": source.last_seq,
        "copies": source.copies,
        "unrecorded": source.unrecorded,
        "missing": dict(source.missing),
        "gaps": [_gap_json(g) for g in source.gaps],
        **{k: None if us is None else format_time(us) for k, us in times.items()},
    }
    return canonical_attributes({k: v for k, v in said.items() if v is not None}).encode()


def _gap_json(gap: "Gap") -> dict[str, Any]:
    from otel_audit.record import format_time

    said: dict[str, Any] = {"first": gap.first, "last": gap.last, "missing": gap.missing, "verdict": gap.verdict}
    if gap.reason:
        said["reason"] = gap.reason
    for name, us in (("before", gap.before_us), ("after", gap.after_us)):
        if us is not None:
            said[name] = format_time(us)
    return said


# --- for people -------------------------------------------------------------------------------------------------------------
def _print(found: "Sequence[Source]", zone: Zone, *, everything: bool) -> None:
    from otel_audit import _cli_panels as panels

    if not found:
        return
    console = stdout_console()
    console.print(f"Times in {zone.name}", style="dim")
    wide = console.width >= _WIDE
    if everything:
        rows = [tuple(map(safe, _source_cells(s, lambda us: _time(us, zone, wide=wide), "-"))) for s in found]
        heads, rows = _without_empty(_SOURCE_HEADS, rows)
        if not wide:
            began = heads.index("Began")
            heads, rows = _without(began, heads, rows)
        right = [i for i, h in enumerate(heads) if h in ("Records", "Missing")]
        panels.print_table(console, heads, rows, right=right, cut=[i for i, h in enumerate(heads) if h == "Service"])
    if any(s.missing for s in found):
        if everything:
            console.print()
        _print_gaps(console, found, zone)


def _print_gaps(console: "Console", found: "Sequence[Source]", zone: Zone) -> None:
    from otel_audit import _cli_panels as panels

    rows: list[tuple[str, ...]] = []
    remarks: dict[str, None] = {}
    for source in found:
        for verdict, count, some in _by_verdict(source):
            times = [_time(us, zone, wide=console.width >= _WIDE) for us in _ends(some)]
            cells = (
                source.service,
                source.instance or "-",
                source.id,
                f"{count:,}",
                _numbers(some, _RANGES_SHOWN),
                verdict,
            )
            rows.append(tuple(map(safe, (*cells, *times))))
            remarks |= {f"{source.id}: {g.reason}": None for g in some if g.reason}
    heads, rows = _without_empty(_HEADS, rows)
    if console.width < _WIDE:
        heads, rows = heads[:-1], [r[:-1] for r in rows]
    cut = [i for i, h in enumerate(heads) if h in ("Service", "Instance", "Numbers")]
    panels.print_table(console, heads, rows, right=[heads.index("Missing")], cut=cut)
    for remark in remarks:
        console.print(safe(remark), style="dim", soft_wrap=True)


def _time(us: int | None, zone: Zone, *, wide: bool) -> str:
    return "-" if us is None else zone.moment(us).strftime("%Y-%m-%d %H:%M:%S" if wide else "%m-%d %H:%M:%S")


def _without_empty(
    heads: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Without the column of instances where none is said."""
    if any(row[1] != "-" for row in rows):
        return heads, list(rows)
    return _without(1, heads, rows)


def _without(
    column: int, heads: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    return (*heads[:column], *heads[column + 1 :]), [(*row[:column], *row[column + 1 :]) for row in rows]
