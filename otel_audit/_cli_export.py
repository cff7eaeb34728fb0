"""`export`: records to a file or a pipe."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from otel_audit._cli_common import (
    Log,
    dir_option,
    filter_options,
    filters_from,
    say,
    stdout_bytes,
    zone_from,
    zone_options,
)
from otel_audit._cli_text import count_text
from otel_audit.errors import UsageError

if TYPE_CHECKING:
    from otel_audit.export import Exported
    from otel_audit.query import Progress

__all__ = ["export"]


@click.command(short_help="Write records to a file: csv, jsonl or parquet.")
@dir_option
@click.option(
    "--format", "form", type=click.Choice(["csv", "jsonl", "parquet"]), required=True, help="What to write; see docs."
)
@click.option("-o", "--output", default="-", metavar="FILE", help="File to write; default, or -: standard output.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@filter_options
@zone_options
def export(directory: str, form: Any, output: str, force: bool, **said: Any) -> None:
    """Write records to a file, oldest number first: csv, jsonl (canonical lines) or parquet.

    A file appears when it is whole, or not at all. The records are those that were there when the export began.
    """
    filters = filters_from(said, zone_from(said))
    if output == "-" and form == "parquet" and sys.stdout.isatty():
        hint = "name a file with -o, or send it to a program"
        raise UsageError("export", "parquet", "it is not text for a terminal", hint)
    from otel_audit import export as exports

    with Log(directory) as log, _bar(log.directory) as progress:
        snapshot = log.snapshot
        if output == "-":
            with stdout_bytes() as out:
                done = exports.export(snapshot, out, form, filters, progress=progress, refresh=log.reader.snapshot)
        else:
            done = exports.export_file(
                snapshot, output, form, filters, force=force, progress=progress, refresh=log.reader.snapshot
            )
    say(_told(done, output))


def _told(done: "Exported", output: str) -> str:
    place = "" if output == "-" else f" to {output}"
    if not done.records:
        return f"no records match: exported none{place}"
    return f"exported {count_text(done.records, 'record')}, numbers {done.first_seq} to {done.last_seq}{place}"


@contextlib.contextmanager
def _bar(name: str) -> "Iterator[Progress | None]":
    """A progress bar on standard error, where that is a terminal that the export itself does not go to."""
    if not sys.stderr.isatty() or sys.stdout.isatty() is sys.stderr.isatty() is False:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("records"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
