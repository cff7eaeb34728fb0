"""Writes and reads `docs/collector-faults.md`."""

import re
from collections.abc import Mapping
from typing import get_args

from tests.collector.cell import Fault, Outcome, Verdict
from tests.collector.table import GROUPS
from tests.tools import ROOT

PATH = ROOT / "docs" / "collector-faults.md"
Key = tuple[str, str]
"""Group and name of a fault."""

_ROW = re.compile(r"^\| (?P<name>[^|]+) \| \**(?P<verdict>[a-z]+)\**: [^|]+ \|$", re.MULTILINE)


def cells() -> dict[Key, Fault]:
    """Every fault, in the order of the page."""
    return {(group, fault.name): fault for group, faults in GROUPS.items() for fault in faults}


def _cell(outcome: Outcome) -> str:
    text = f"{outcome.recorded:,} of {outcome.acknowledged:,}"
    if outcome.named:
        text += f", {outcome.named:,} named by `otel-audit gaps`"
    happened = [f"{outcome.kills} kill{'s' * (outcome.kills > 1)}"] * bool(outcome.kills)
    happened += [f"{outcome.attempts:,} attempts failed"] * bool(outcome.attempts)
    text += f" ({', '.join(happened)})" if happened else ""
    return f"{outcome.verdict}: {text}" if outcome.verdict == "keeps" else f"**{outcome.verdict}**: {text}"


def render(outcomes: Mapping[Key, Outcome], page: str) -> str:
    """The page with its tables made anew; what stands between them is as it was."""
    for group, faults in GROUPS.items():
        rows = "".join(f"| {fault.name} | {_cell(outcomes[group, fault.name])} |\n" for fault in faults)
        table = f"| what happens | app → Collector → otel-audit |\n|---|---|\n{rows}"
        head = re.search(rf"## {group}\n(?:[^|#\n][^\n]*\n|\n)*", page)
        assert head, f"{PATH.name} has no section {group!r}"
        rest = re.sub(r"^(?:\|[^\n]*\n)*\n*", "", page[head.end() :])
        page = f"{page[: head.end()].rstrip()}\n\n{table}\n{rest}"
    return page


def written(page: str) -> dict[Key, str]:
    """Group and name of each line of the page -> its verdict."""
    found: dict[Key, str] = {}
    for section in page.split("\n## ")[1:]:
        group = section.split("\n", 1)[0]
        if group in GROUPS:
            for match in _ROW.finditer(section):
                assert match["verdict"] in get_args(Verdict), match[0]
                found[group, match["name"]] = match["verdict"]
    return found
