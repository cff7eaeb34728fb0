"""Runs every cell of the loss matrix and writes `docs/loss-matrix.md`: `python -m tests.loss [part of an event or server]`."""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.loss.cell import CALLS, PIPELINES, Outcome, Pipeline, run_cell
from tests.loss.document import PATH, render
from tests.loss.events import EVENTS
from tests.loss.table import TABLE, Row, patience_s

WORKERS = 6
"""Cells mostly wait for something: a few at a time keep two cores busy."""


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    outcomes: dict[tuple[str, str, Pipeline], Outcome] = {}
    odd = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        cells = [(row, p) for row in TABLE for p in PIPELINES if wanted in f"{row.server} {row.event} {p}"]

        def run(cell: tuple[Row, Pipeline]) -> Outcome | Exception:
            row, pipeline = cell
            place = Path(folder) / str(cells.index(cell))
            try:
                return run_cell(row.server, EVENTS[row.event], pipeline, place, patience_s=patience_s(row, pipeline))
            except Exception as e:
                return e

        for (row, pipeline), outcome in zip(cells, pool.map(run, cells), strict=True):
            if isinstance(outcome, Outcome):
                outcomes[row.server, row.event, pipeline] = outcome
                verdict: str = outcome.verdict(EVENTS[row.event])
            else:
                verdict = "failed"
            good = verdict == row.expected(pipeline)
            odd += not good
            print(f"{'  ' if good else '! '}{row.server} / {row.event} / {pipeline}: {verdict}: {outcome}", flush=True)
    if odd or wanted:
        print(f"{odd} cells came out otherwise than expected; {PATH} is as it was")
        return 1 if odd else 0
    PATH.write_text(render(outcomes, CALLS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
