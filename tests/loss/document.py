"""Writes and reads `docs/loss-matrix.md`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from tests.loss.cell import PIPELINES, Event, Outcome, Pipeline, Verdict
from tests.loss.events import EVENTS, GROUPS
from tests.loss.table import TABLE

PATH = Path(__file__).parents[2] / "docs" / "loss-matrix.md"

_HEAD = """\
# What is lost, and what is not

Each line is a test with a real server, real clients and a real collector (`tests/loss`): %(calls)d calls are made, an event
happens, and afterwards the collector is asked which of them it holds. *Plain SDK* is `opentelemetry-instrument` with the
stock batch processor and OTLP exporter; *otel-audit* is the same server with otel-audit in mode `async`. `make test` runs a
few of these cells, `.ci/run` all of them; `python -m tests.loss` runs all and writes this page from what it measured. A test
fails when a cell comes out otherwise than it says here.

| | |
|---|---|
| **keeps** | every call has exactly one record |
| **repeats** | every call has a record, some more than one: the collector took it, and its answer came too late. Both have the same trace and span id, and otel-audit's log keeps one |
| **set aside** | the collector refused the record for good: it is kept in `refused.spool` beside the spool, and a loss record in the log tells which number is missing and why |
| **loses** | calls were made that have no record, and nothing says so |

*n sent again*: also a process that is killed while it delivers leaves what it has sent to be sent again, with the same identity.

*(n by the next process)*: the process that served was gone before it could deliver; the next one that used the same spool
folder did.

Settings of the plain SDK differ from its defaults only where the verdict does not depend on it: the batch processor's timer
is 60 s where a process is killed (with the default of 5 s it loses what came since the last tick, which would be chance)
and 0.1 to 1 s elsewhere; the exporter's deadline is 1 s instead of 10 s where the collector is away or slow, and 60 s where it is blocked.
"""

_NOTES = {
    "The end of a process": """\
SIGTERM goes to the first process, as a supervisor sends it; SIGKILL to all of its processes at once, right after the last
answer. *reload* is SIGHUP for gunicorn, uwsgi and `uvicorn --workers`, a touched file under `uvicorn --reload`,
`hypercorn --reload` and `flask --debug run`; here otel-audit has five calls more, made after it. `aiohttp` and `grpc` have no
reload of their own. *os._exit* is called by a handler. The reload of uwsgi is measured with OTLP/HTTP for the plain SDK: with OTLP/gRPC, the exporter
that the master process made kept it from forking workers again.
""",
    "The collector": """\
What the collector does does not depend on the server: FastAPI under uvicorn, Flask under gunicorn and a gRPC server stand for all.
*Down for the whole run*: nothing listens while the service runs; the collector comes up after it has ended. *Away*: it answers
UNAVAILABLE until the plain exporter has given up, or ours has tried five times. *Slower …*: for the first two attempts of each batch it takes
twice the deadline, and does not take the records. *Blocked*: it does not answer until the burst is over; FastAPI makes three spans a
call, and the SDK's queue holds 2048.
""",
    "What the collector answers": """\
The collector answers the first two attempts of each batch so, and then takes what comes. RetryInfo and `Retry-After` ask for 1 s.
*Partial success* rejects all calls in the request (the runner's own first one too: 21 are named); the specification forbids
sending them again.
""",
    "The call": """\
*1 %% sampling* is `OTEL_TRACES_SAMPLER=traceidratio` with 0.01, *traceparent unsampled* a caller that sends
`traceparent: 00-…-…-00`. *Client gone*: it closes its connection once the handler has started, or after the first part
of the answer.
""",
}
_ROW = re.compile(
    r"\| (?P<event>[^|]+) \| (?P<server>[^|]+) \| \**(?P<plain>[a-z ]+)\**: [^|]+ \| \**(?P<ours>[a-z ]+)\**: [^|]+ \|"
)


def _cell(outcome: Outcome, event: Event) -> str:
    verdict = outcome.verdict(event)
    text = f"{outcome.recorded} of {outcome.made}"
    if outcome.duplicates:
        text += f", {outcome.duplicates} sent again"
    if verdict == "set aside":
        text += f", {outcome.named} named"
    if outcome.by_next:
        text += (
            " (by the next process)" if outcome.by_next == outcome.made else f" ({outcome.by_next} by the next process)"
        )
    return f"**{verdict}**: {text}" if verdict == "loses" else f"{verdict}: {text}"


def render(outcomes: Mapping[tuple[str, str, Pipeline], Outcome], calls: int) -> str:
    """The page, from the outcome of every cell."""
    parts = [_HEAD % {"calls": calls}]
    for group, events in GROUPS.items():
        names = {event.name for event in events}
        parts.append(
            f"\n## {group}\n{_NOTES[group] % {'calls': calls}}\n| event | server | plain SDK | otel-audit |\n|---|---|---|---|\n"
        )
        for row in TABLE:
            if row.event in names:
                plain, ours = (_cell(outcomes[row.server, row.event, p], EVENTS[row.event]) for p in PIPELINES)
                parts.append(f"| {row.event} | {row.server} | {plain} | {ours} |\n")
    return "".join(parts)


def written(text: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Server and event of each line of the page -> the verdicts for the plain SDK and for ours."""
    found = {}
    for match in _ROW.finditer(text):
        assert {match["plain"], match["ours"]} <= set(get_args(Verdict)), match[0]
        found[match["server"], match["event"]] = (match["plain"], match["ours"])
    return found
