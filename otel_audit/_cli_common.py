"""What the commands share: options, the log they read, and how they speak to the terminal."""

import sys
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self, TypeVar

import click

from otel_audit import names, record
from otel_audit._cli_text import duration_ns, safe
from otel_audit._cli_time import Zone, now_us, parse_when, zone_named
from otel_audit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from otel_audit.query import Filters, Query
    from otel_audit.reader import Snapshot

__all__ = [
    "FILTER_FLAGS",
    "Log",
    "dir_option",
    "filter_options",
    "filters_from",
    "json_option",
    "print_json_lines",
    "say",
    "stdout_bytes",
    "stdout_console",
    "write_out",
    "zone_from",
    "zone_options",
]

DEFAULT_DIR: Final = "./audit-log"

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

FILTER_FLAGS: Final = {
    "since_us": "--since",
    "until_us": "--until",
    "client": "--client",
    "service": "--service",
    "action": "--action",
    "outcome": "--outcome",
    "ip": "--ip",
    "user": "--user",
    "target": "--target",
    "route": "--route",
    "method": "--method",
    "trace": "--trace",
    "min_duration_ns": "--min-duration",
}
"""Name in `Filters` to the flag that sets it."""

_COMPLETED: Final = {
    "client": "client_id",
    "service": "service",
    "action": "action",
    "ip": "client_ip",
    "user": "user_id",
    "route": "route",
    "method": "method",
}


# --- the log --------------------------------------------------------------------------------------------------------------
class Log:
    """The log of a folder, open for reading, with one engine for all questions of a command.

    Raises:
        NotFoundError: there is no log in the folder.
    """

    def __init__(self, directory: str) -> None:
        from otel_audit.query import Engine
        from otel_audit.reader import LogReader

        self.directory = directory
        self.reader = LogReader.open(directory)
        self._engine = Engine()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    @cached_property
    def snapshot(self) -> "Snapshot":
        """The log as it was when it was first asked for."""
        return self.reader.snapshot()

    def query(self, snapshot: "Snapshot | None" = None) -> "Query":
        """Questions to a snapshot, by default the command's own."""
        from otel_audit.query import Query

        return Query(snapshot or self.snapshot, self._engine)

    def ask(self, question: "Callable[[Query], T]") -> T:
        """The answer to a question; asked again of a new snapshot where a file of the first one vanished."""
        from otel_audit.query import SnapshotExpiredError

        try:
            with self.query() as query:
                return question(query)
        except SnapshotExpiredError:
            self.__dict__.pop("snapshot", None)
            with self.query() as query:
                return question(query)


# --- options --------------------------------------------------------------------------------------------------------------
def dir_option(command: Command) -> Command:
    """`--dir`, the folder of the log."""
    option = click.option(
        "--dir",
        "directory",
        default=DEFAULT_DIR,
        envvar=names.ENV_DIR,
        show_default=True,
        show_envvar=True,
        metavar="D",
        help="Folder of the log.",
    )
    return option(command)


def json_option(text: str) -> Callable[[Command], Command]:
    """`--json`, for scripts."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def zone_options(command: Command) -> Command:
    """`--utc` and `--tz`: in which zone times are shown, and meant where they name no offset."""
    for option in (
        click.option("--tz", "tz", metavar="ZONE", help="Time zone of times shown and given, such as Europe/Berlin."),
        click.option("--utc", is_flag=True, help="The same as --tz UTC. Default: this machine's zone."),
    ):
        command = option(command)
    return command


def zone_from(said: dict[str, Any]) -> Zone:
    """The zone that the options name; takes them out of `said`."""
    tz, utc = said.pop("tz"), said.pop("utc")
    if tz and utc:
        raise UsageError("use time zone", repr(tz), "--utc names another", "give one of --tz and --utc")
    return zone_named("UTC" if utc else tz)


def _complete(name: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Values from the newest records of the log, for the shell; nothing at all when that does not work."""

    def values(context: click.Context, _: click.Parameter, begun: str) -> list[str]:
        try:
            directory = context.params.get("directory") or DEFAULT_DIR
            with Log(directory) as log:
                found = log.ask(lambda query: query.values(_COMPLETED[name], begun))
        except Exception:
            return []
        return [v for v in found if v and v == safe(v)]

    return values


def _several(name: str, metavar: str, text: str) -> Callable[[Command], Command]:
    completion = _complete(name) if name in _COMPLETED else None
    return click.option(f"--{name}", name, multiple=True, metavar=metavar, help=text, shell_complete=completion)


_FILTER_OPTIONS: Final[tuple[Callable[[Any], Any], ...]] = (
    click.option("--since", metavar="TIME", help="From this time on: 15m or 7d ago, today, 2026-11-23T08:00, ..."),
    click.option("--until", metavar="TIME", help="Before this time."),
    _several("client", "ID", "API Client ID; '' finds calls that named no client."),
    _several("service", "S", "Service."),
    _several("action", "A", "Action, such as read or delete."),
    click.option("--outcome", multiple=True, type=click.Choice(record.OUTCOMES), help="How the call ended."),
    _several("ip", "ADDR|CIDR", "Client IP Address, or a network such as 192.0.2.0/24."),
    _several("user", "ID", "The person on whose behalf."),
    _several("target", "T", "The thing acted on."),
    _several("route", "R", "Route, such as /contacts/{id}."),
    _several("method", "M", "HTTP or RPC method."),
    _several("trace", "HEX", "Trace id."),
    click.option("--min-duration", metavar="TIME", help="Calls that took at least this long: 500ms, 2s."),
)


def filter_options(command: Command) -> Command:
    """The filters of `find`; each but the times may be given several times, as alternatives."""
    for option in reversed(_FILTER_OPTIONS):
        command = option(command)
    return command


def filters_from(said: dict[str, Any], zone: Zone) -> "Filters":
    """The filters that the options name; takes them out of `said`."""
    from otel_audit.query import Filters

    now = now_us()
    since, until, shortest = said.pop("since"), said.pop("until"), said.pop("min_duration")
    least_ns = None if shortest is None else duration_ns(shortest.lower())
    if shortest is not None and least_ns is None:
        raise UsageError("read duration", repr(shortest), "not a duration", "write it as 500ms, 2s or 1m30s")
    texts = {name: said.pop(name) for name in FILTER_FLAGS if name in said}
    return Filters(
        since_us=None if since is None else parse_when(since, zone, now),
        until_us=None if until is None else parse_when(until, zone, now),
        min_duration_ns=least_ns,
        **texts,
    )


# --- speaking -------------------------------------------------------------------------------------------------------------
def say(text: str) -> None:
    """A message for people, on standard error; standard output is data."""
    print(safe(text), file=sys.stderr, flush=True)  # noqa: T201 - this is the console


def stdout_console() -> "Console":
    """Standard output for people; markup in values is only text."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def write_out(text: str) -> None:
    """A line of data."""
    sys.stdout.write(text + "\n")


def stdout_bytes() -> BinaryIO:
    """Standard output for bytes; close it to write what is buffered.

    Not `sys.stdout.buffer`: under PYTHONUNBUFFERED that is a raw file, whose `write` may write only a part and say so in
    its result alone.
    """
    sys.stdout.flush()
    return open(sys.stdout.fileno(), "wb", closefd=False)


def print_json_lines(lines: Iterable[bytes]) -> None:
    """Canonical lines byte for byte; on a terminal, what could act on it is shown as a JSON escape instead."""
    if sys.stdout.isatty():
        from otel_audit._cli_text import json_safe

        for line in lines:
            write_out(json_safe(line.decode()))
    else:
        with stdout_bytes() as stdout:
            stdout.writelines(line + b"\n" for line in lines)
