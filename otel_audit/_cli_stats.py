"""`stats` and `quarantine`: the commands that say how the log is."""

import hashlib
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from otel_audit._cli_common import (
    Log,
    dir_option,
    filter_options,
    filters_from,
    json_option,
    say,
    stdout_bytes,
    stdout_console,
    write_out,
    zone_from,
    zone_options,
)
from otel_audit._cli_gaps import sources_of
from otel_audit._cli_text import bytes_text, count_text, rate_text, safe
from otel_audit._cli_time import Zone
from otel_audit.errors import NotFoundError, UsageError
from otel_audit.names import ACTION_OWN_PREFIX

if TYPE_CHECKING:
    from otel_audit.quarantine import QuarantineEntry
    from otel_audit.query import Group, Overview
    from otel_audit.sources import Source

__all__ = ["quarantine", "stats"]

_RANKED: Final = {"client_id": "API Client", "service": "Service", "action": "Action", "outcome": "Outcome"}
_PREVIEW_BYTES: Final = 512
_HEADS: Final = ("Number", "Received", "Reason", "Service", "Record", "Bytes", "Detail")


# --- stats ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Stats:
    """What `stats` shows: the whole log, and counts of the calls that match."""

    directory: str
    seen: "Overview"
    entries: int
    sources: "list[Source]"
    count: int
    rankings: "dict[str, list[Group]]"


@click.command(short_help="Show the size of the log, and who calls what how often.")
@dir_option
@filter_options
@click.option(
    "--top",
    "limit",
    type=click.IntRange(1, 1000),
    default=10,
    show_default="10",
    metavar="N",
    help="Rows of a ranking.",
)
@zone_options
@json_option("Print one JSON object.")
def stats(directory: str, limit: int, as_json: bool, **said: Any) -> None:
    """Show how large the log is, and who calls what how often.

    Filters apply to the rankings; what sources record about themselves is no call. Percentiles are within 0.6 %.
    """
    zone = zone_from(said)
    filters = filters_from(said, zone)
    if not any(action.startswith(ACTION_OWN_PREFIX) for action in filters.action):
        filters = replace(filters, calls=True)
    with Log(directory) as log:
        found = _Stats(
            directory=directory,
            seen=log.ask(lambda query: query.overview()),
            entries=sum(1 for _ in _entries(directory)),
            sources=sources_of(log),
            count=log.ask(lambda query: query.count(filters)),
            rankings={
                column: log.ask(lambda query: query.top(column, limit, filters))  # noqa: B023 - asked at once
                for column in _RANKED
            },
        )
    if as_json:
        write_out(json.dumps(_stats_json(found), ensure_ascii=True))
    else:
        _print_stats(found, zone, filtered=bool(filters.active))


def _print_stats(found: _Stats, zone: Zone, *, filtered: bool) -> None:
    from otel_audit import _cli_panels as panels

    outcomes, count = found.rankings["outcome"], found.count
    seconds = (max(g.last_us for g in outcomes) - min(g.first_us for g in outcomes)) / 1e6 if outcomes else 0.0
    if not sys.stdout.isatty():
        _write_pairs(_summary(found, zone))
        for column in _RANKED:
            write_out("\n" + "\n".join(panels.group_lines(column, found.rankings[column], count, seconds)))
        return
    console = stdout_console()
    panels.facts(console, _facts(found, zone))
    console.print()
    if not count:
        console.print("No calls match." if filtered else "No calls yet.")
        return
    what = f"{count_text(count, 'call')}{' that match' if filtered else ''}, {rate_text(count, seconds)} on average"
    console.print(f"{what}; Errors are denied, failed and erroneous calls", style="dim")
    hidden = panels.hidden_heads(console.width)
    if hidden:
        what = (
            "are hidden at this width; --json has them" if len(hidden) > 1 else "is hidden at this width; --json has it"
        )
        console.print(f"{' and '.join(hidden)} {what}", style="dim")
    for column, title in _RANKED.items():
        console.print()
        panels.print_groups(console, title, found.rankings[column], count, seconds)


def _summary(found: _Stats, zone: Zone) -> dict[str, Any]:
    seen = found.seen
    times = {
        name: None if us is None else zone.text(us)
        for name, us in (("time_min", seen.time_min_us), ("time_max", seen.time_max_us))
    }
    return {k: v for k, v in (_stats_json(found) | times).items() if k != "top"}


def _write_pairs(pairs: dict[str, Any]) -> None:
    """Names and values for other programs: a line each, tab-separated, empty where absent."""
    for name, value in pairs.items():
        write_out(f"{name}\t{'' if value is None else safe(str(value))}")


def _facts(found: _Stats, zone: Zone) -> list[tuple[str, str]]:
    seen, entries = found.seen, found.entries
    each = f", {seen.bytes_per_record:.1f} bytes a record" if seen.bytes_per_record is not None else ""
    waiting = "all sealed" if not seen.unsealed else f"{seen.unsealed:,} not yet sealed"
    times = "-"
    if seen.time_min_us is not None and seen.time_max_us is not None:
        times = f"{zone.text(seen.time_min_us)} to {zone.text(seen.time_max_us)} ({zone.name})"
    return [
        ("Log", f"{safe(seen.log)} in {safe(str(Path(found.directory).absolute()))}"),
        ("Records", f"{seen.records:,}, numbered up to {seen.last_seq:,}; {waiting}"),
        ("Sealed", f"{count_text(seen.segments, 'segment')}, {bytes_text(seen.bytes)}{each}"),
        ("Times", times),
        ("Quarantine", count_text(entries, "entry") if entries == 1 else f"{entries:,} entries"),
        ("Sources", _sources_text(found.sources)),
    ]


def _sources_text(sources: "Sequence[Source]") -> str:
    if not sources:
        return "none numbers its records"
    missing = sum(s.missing_count for s in sources)
    each = f"{count_text(missing, 'record')} missing, see otel-audit gaps" if missing else "no record missing"
    running = sum(s.state == "running" for s in sources)
    return f"{len(sources):,}, {running:,} running; {each}"


def _stats_json(found: _Stats) -> dict[str, Any]:
    from otel_audit.record import format_time

    seen = found.seen

    def time(us: int | None) -> str | None:
        return None if us is None else format_time(us)

    def group(g: "Group") -> dict[str, Any]:
        return {
            "value": g.value,
            "label": g.label,
            "count": g.count,
            "errors": g.errors,
            "outcomes": g.outcomes,
            "first": time(g.first_us),
            "last": time(g.last_us),
            "p50_ns": g.p50_ns,
            "p95_ns": g.p95_ns,
            "p99_ns": g.p99_ns,
            "max_ns": g.max_ns,
        }

    return {
        "log": seen.log,
        "directory": str(Path(found.directory).absolute()),
        "records": seen.records,
        "sealed": seen.sealed,
        "unsealed": seen.unsealed,
        "last_seq": seen.last_seq,
        "segments": seen.segments,
        "bytes": seen.bytes,
        "bytes_per_record": None if seen.bytes_per_record is None else round(seen.bytes_per_record, 2),
        "time_min": time(seen.time_min_us),
        "time_max": time(seen.time_max_us),
        "quarantine": found.entries,
        "sources": len(found.sources),
        "missing": sum(s.missing_count for s in found.sources),
        "matching": found.count,
        "top": {column: [group(g) for g in groups] for column, groups in found.rankings.items()},
    }


# --- quarantine -----------------------------------------------------------------------------------------------------------
@click.command(short_help="List what could not become a record, with the reason.")
@dir_option
@click.option(
    "--limit", type=click.IntRange(0), default=50, show_default="50", metavar="N", help="Newest at most; 0: all."
)
@click.option(
    "--show", "shown", type=click.IntRange(1), metavar="N", help="Show one entry, with the start of its payload."
)
@click.option("--raw", type=click.IntRange(1), metavar="N", help="Write the payload of one entry as it was received.")
@zone_options
@json_option("Print one JSON object an entry, without payloads.")
def quarantine(directory: str, limit: int, shown: int | None, raw: int | None, as_json: bool, **said: Any) -> None:
    """List what could not become a record, or not wholly, with the reason; nothing received is ever dropped."""
    zone = zone_from(said)
    if shown is not None and raw is not None:
        raise UsageError(
            "read quarantine", f"--show {shown} --raw {raw}", "they exclude each other", "give one of them"
        )
    if raw is not None:
        _write_raw(_entry(directory, raw))
    elif shown is not None:
        _show_entry(_entry(directory, shown), zone, as_json=as_json)
    else:
        entries = list(deque(_entries(directory), maxlen=limit or None))[::-1]
        _list_entries(entries, zone, as_json=as_json)


def _entries(directory: str) -> "Iterator[QuarantineEntry]":
    from otel_audit.quarantine import read
    from otel_audit.reader import log_name

    log_name(directory)
    return read(directory)


def _entry(directory: str, number: int) -> "QuarantineEntry":
    last = 0
    for entry in _entries(directory):
        if entry.number == number:
            return entry
        last = entry.number
    hint = f"entries are numbered 1 to {last}" if last else "it is empty"
    raise NotFoundError("show quarantine entry", number, "there is none of this number", hint)


def _write_raw(entry: "QuarantineEntry") -> None:
    if sys.stdout.isatty():
        hint = f"send it to a file or program: otel-audit quarantine --raw {entry.number} > payload"
        raise UsageError("write payload", entry.number, "raw bytes could upset the terminal", hint)
    with stdout_bytes() as stdout:
        stdout.write(entry.payload)


def _about(entry: "QuarantineEntry") -> dict[str, Any]:
    from otel_audit.record import format_time

    return {
        "number": entry.number,
        "received": format_time(entry.received_us),
        "reason": entry.reason,
        "detail": entry.detail,
        "kind": entry.kind,
        "service": entry.service,
        "recorded": entry.recorded,
        "bytes": len(entry.payload),
        "sha256": hashlib.sha256(entry.payload).hexdigest(),
    }


def _list_entries(entries: "Sequence[QuarantineEntry]", zone: Zone, *, as_json: bool) -> None:
    if as_json:
        for entry in entries:
            write_out(json.dumps(_about(entry), ensure_ascii=True))
        return
    if not entries:
        say("the quarantine is empty: everything received became a record")
        return
    if not sys.stdout.isatty():
        write_out("\t".join(_HEADS))
        for e in entries:
            fields = (str(e.number), zone.text(e.received_us), e.reason, e.service or "", *_flags(e), e.detail)
            write_out("\t".join(safe(f) for f in fields))
        return
    _print_entries(entries, zone)


def _flags(entry: "QuarantineEntry") -> tuple[str, str]:
    return "yes" if entry.recorded else "no", str(len(entry.payload))


def _print_entries(entries: "Sequence[QuarantineEntry]", zone: Zone) -> None:
    from otel_audit import _cli_panels as panels

    console = stdout_console()
    console.print(f"Times in {zone.name}; Record says whether the call is in the log all the same", style="dim")
    rows = [
        (
            f"{e.number:,}",
            zone.moment(e.received_us).strftime("%Y-%m-%d %H:%M:%S"),
            safe(e.reason),
            safe(e.service or "-"),
            *_flags(e),
            safe(e.detail),
        )
        for e in entries
    ]
    panels.print_table(console, _HEADS, rows, right=(0, 5), cut=(2, 3, 6))


def _show_entry(entry: "QuarantineEntry", zone: Zone, *, as_json: bool) -> None:
    about = _about(entry)
    if as_json:
        write_out(json.dumps(about, ensure_ascii=True))
        return
    if sys.stdout.isatty():
        _print_entry(entry, about, zone)
    else:
        about |= {"received": zone.text(entry.received_us), "recorded": _flags(entry)[0]}
        _write_pairs({**about, "payload": entry.payload[:_PREVIEW_BYTES].hex()})
    if len(entry.payload) > _PREVIEW_BYTES:
        say(f"first {_PREVIEW_BYTES} of {count_text(len(entry.payload), 'byte')}; all of them: --raw {entry.number}")


def _print_entry(entry: "QuarantineEntry", about: dict[str, Any], zone: Zone) -> None:
    from otel_audit import _cli_panels as panels

    about["received"] = f"{zone.text(entry.received_us)} ({zone.name})"
    about["recorded"] = "yes, with what could be read" if entry.recorded else "no"
    console = stdout_console()
    panels.facts(console, [(k.capitalize(), safe("-" if v is None else str(v))) for k, v in about.items()])
    console.print()
    for line in _hexdump(entry.payload[:_PREVIEW_BYTES]):
        console.print(line, soft_wrap=True)


def _hexdump(data: bytes) -> list[str]:
    lines = []
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in part)
        lines.append(f"{at:08x}  {part[:8].hex(' '):<23}  {part[8:].hex(' '):<23}  {text}")
    return lines
