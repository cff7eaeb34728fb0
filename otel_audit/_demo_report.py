"""What the demo shows: progress while the calls are made, then the log, who uses the API how, and what to try next."""

import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from otel_audit._cli_common import say, stdout_console
from otel_audit._cli_tables import TABLE_COLUMNS, RecordTable, rows_of, tsv_header, tsv_lines
from otel_audit._cli_text import count_text, duration_text, safe, share_text
from otel_audit._cli_time import zone_named
from otel_audit.names import ACTION_OWN_PREFIX
from otel_audit.query import Query
from otel_audit.reader import LogReader
from otel_audit.record import OUTCOMES, outcome_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Progress", "print_report"]

_ROWS: Final = 20
_POLL_S: Final = 0.05
_STYLES: Final = {"success": "green", "denied": "yellow", "failure": "magenta", "error": "bold red", "unknown": "dim"}


class _Watched(Protocol):
    def check(self) -> None: ...


# --- while it runs ------------------------------------------------------------------------------------------------------
class Progress:
    """Calls so far, by outcome: a line that is drawn anew on a terminal, a few plain lines elsewhere.

    Args:
        seconds: how long the traffic lasts.
    """

    def __init__(self, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._console = Console(stderr=True, highlight=False)
        self._outcomes: Counter[str] = Counter()
        self._started_s = time.monotonic()
        self._bars: Bars | None = None
        if self._console.is_terminal:
            self._bars = Bars(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[said]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._task = self._bars.add_task("calling", total=seconds, said="")
        else:
            say(f"making calls for {seconds:g} s ...")

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, _: type[BaseException] | None, e: BaseException | None, __: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()
        if e is None:
            say(f"{count_text(self._outcomes.total(), 'call')} made: {self._words()}")

    def _words(self) -> str:
        return ", ".join(f"{self._outcomes[o]:,} {o}" for o in OUTCOMES if self._outcomes[o])

    def call(self, call: Any) -> None:
        """Count a call of the traffic."""
        if call.status is None:
            return
        outcome = outcome_of(
            status_code=call.status, rpc=False, span_error=call.status >= 500, span_ok=False, exception=False
        )
        self._outcomes[outcome] += 1
        if self._bars:
            counts = " ".join(f"[{_STYLES[o]}]{self._outcomes[o]} {o}[/]" for o in OUTCOMES if self._outcomes[o])
            elapsed_s = time.monotonic() - self._started_s
            self._bars.update(self._task, completed=elapsed_s, said=f"{self._outcomes.total()} calls: {counts}")

    def wait(self, recorded: Callable[[], int], made: int, processes: Sequence[_Watched], timeout_s: float) -> bool:
        """Whether as many records as calls were made have arrived in time; raises when a process has ended."""
        deadline = time.monotonic() + timeout_s
        while (arrived := recorded()) < made:
            for process in processes:
                process.check()
            if time.monotonic() > deadline:
                return False
            if self._bars:
                self._bars.update(
                    self._task,
                    description="arriving",
                    total=made,
                    completed=arrived,
                    said=f"{arrived} of {made} recorded",
                )
            time.sleep(_POLL_S)
        return True


# --- afterwards ---------------------------------------------------------------------------------------------------------
@dataclass
class _Usage:
    """The calls of one client."""

    client_id: str
    name: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    addresses: set[str] = field(default_factory=set)
    durations_ns: list[int] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return self.outcomes.total()

    @property
    def p95_ns(self) -> int | None:
        """Nearest rank."""
        found = sorted(self.durations_ns)
        return found[ceil(len(found) * 0.95) - 1] if found else None

    @property
    def misbehaves(self) -> bool:
        """A third of its calls or more were denied: it asks for what it must not have, or for too much."""
        return self.calls >= 10 and self.outcomes["denied"] * 3 >= self.calls


def _usage(rows: Sequence[dict[str, Any]]) -> list[_Usage]:
    """Usage by client, most calls first; keys that nobody knows are one client, for they are guesses."""
    clients: dict[str, _Usage] = {}
    for row in rows:
        client_id = row["client_id"] or ""
        client_id = "unknown keys" if client_id.startswith("key:") else client_id or "no credential"
        usage = clients.setdefault(client_id, _Usage(client_id))
        usage.name = row["client_name"] or usage.name
        usage.outcomes[row["outcome"]] += 1
        usage.statuses[row["status_code"] or 0] += 1
        usage.addresses.add(row["client_ip"] or "-")
        if row["duration_ns"] is not None:
            usage.durations_ns.append(row["duration_ns"])
    return sorted(clients.values(), key=lambda u: -u.calls)


def print_report(folder: Path, after_seq: int, made: int) -> None:
    """The newest records, the usage of this run, and commands to try, on standard output.

    Args:
        folder: of the log.
        after_seq: this run's records have greater numbers.
        made: calls that this run made.
    """
    columns = ("seq", "action", "client_id", "client_name", "client_ip", "outcome", "status_code", "duration_ns")
    with Query(LogReader.open(folder).snapshot()) as query:
        newest = _calls(rows_of(query.page(limit=_ROWS + 5, columns=TABLE_COLUMNS).records))[:_ROWS]
        batches = list(query.iter_batches(after_seq=after_seq, columns=columns))
    rows = _calls([row for batch in batches for row in batch.to_pylist()])
    usage = _usage(rows)
    console = stdout_console()
    _print_records(console, newest)
    _print_usage(console, usage, made, len(rows))
    _print_next(console, folder, usage, newest)
    sys.stdout.flush()


def _calls(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls among `rows`, without what capture records about itself."""
    return [row for row in rows if not row["action"].startswith(ACTION_OWN_PREFIX)]


def _print_records(console: "Console", newest: list[dict[str, Any]]) -> None:
    zone = zone_named(None)
    if not console.is_terminal:
        print(tsv_header())  # noqa: T201 - this is the console
        for text in tsv_lines(newest, zone):
            print(text)  # noqa: T201
        return
    table = RecordTable(console.width, newest, zone)
    console.print()
    console.print(f"The audit log: the newest {count_text(len(newest), 'record')}", style="bold cyan")
    console.print(table.caption(), style="dim")
    for line in table.header():
        console.print(line, soft_wrap=True)
    table.print(console, newest)


def _print_usage(console: "Console", usage: Sequence[_Usage], made: int, recorded: int) -> None:
    console.print()
    console.print("Who used the API, and how", style="bold cyan")
    console.print(_usage_table(usage, console.width if console.is_terminal else 160))
    console.print()
    for u in usage:
        if u.misbehaves:
            console.print(_accusation(u, recorded), style="yellow")
    same = "each exactly once" if made == recorded else "THESE SHOULD BE EQUAL"
    console.print(
        f"{made:,} calls made, {recorded:,} recorded: {same}", style="green" if made == recorded else "bold red"
    )


def _usage_table(usage: Sequence[_Usage], width: int) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows: list[list[str]] = [
        [
            safe(u.client_id),
            safe(u.name or "-"),
            f"{u.calls:,}",
            *(f"{u.outcomes[o]:,}" if u.outcomes[o] else "-" for o in ("denied", "failure", "error")),
            duration_text(u.p95_ns),
            f"{len(u.addresses):,}",
        ]
        for u in usage
    ]
    heads = ["API Client ID", "API Client Name", "Calls", "Denied", "Failed", "Errors", "p95", "Addresses"]
    if width < 90:
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
    for i, head in enumerate(heads):
        widest = max(len(row[i]) for row in (*rows, heads))
        # A number is never cut to fit: a cut number is a wrong one.
        table.add_column(head, justify="right" if i > 1 else "left", no_wrap=True, min_width=widest if i > 1 else None)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _accusation(u: _Usage, total: int) -> str:
    denied = {401: "unknown credential", 403: "not allowed", 429: "too many calls"}
    why = ", ".join(f"{u.statuses[s]:,} {text} ({s})" for s, text in denied.items() if u.statuses[s])
    who = f"{u.client_id} ({u.name})" if u.name else u.client_id
    return (
        f"Misbehaving: {safe(who)}: {share_text(u.calls, total)} of all calls, from "
        f"{len(u.addresses):,} address{'' if len(u.addresses) == 1 else 'es'}; denied: {why}"
    )


def _command() -> str:
    """What to type for otel-audit here: its name where the shell finds it, else the way to the one that runs."""
    if shutil.which("otel-audit"):
        return "otel-audit"
    path = Path(sys.executable).with_name("otel-audit")
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _print_next(console: "Console", folder: Path, usage: Sequence[_Usage], newest: Sequence[dict[str, Any]]) -> None:
    name, where = _command(), f"--dir {shlex.quote(str(folder))}"
    bad = next((u.client_id for u in usage if u.misbehaves and u.name), None) or "plugin-03"
    number = next((r["seq"] for r in newest if r["outcome"] != "success"), newest[0]["seq"] if newest else 1)
    commands = (
        (
            f"{name} find {where} --client {shlex.quote(bad)} --outcome denied",
            "what the misbehaving client was refused",
        ),
        (f"{name} find {where} --min-duration 500ms", "slow calls"),
        (f"{name} show {where} {number}", "everything about one call"),
        (f"{name} stats {where}", "who calls what, how often, how fast"),
        (f"{name} tail {where}", "calls as they come; run the demo beside it"),
        (f"{name} export {where} --format csv -o calls.csv", "hand it on"),
    )
    console.print()
    console.print("Try next", style="bold cyan")
    widest = max(len(command) for command, _ in commands)
    for command, what in commands:
        if widest + 4 + 40 <= console.width:
            console.print(f"  {command:<{widest}}  [dim]# {what}[/]", markup=True, soft_wrap=True)
        else:
            console.print(f"  # {what}", style="dim", soft_wrap=True)
            console.print(f"  {command}", soft_wrap=True)
