"""Has every fault happen and writes `docs/collector-faults.md`: `python -m tests.collector [part of a fault's name]`."""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.collector.cell import Outcome, run_fault
from tests.collector.document import PATH, Key, cells, render

WORKERS = 3
"""Cells mostly wait for something: a few at a time keep two cores busy."""


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    faults = {key: fault for key, fault in cells().items() if wanted in fault.name}
    outcomes: dict[Key, Outcome] = {}
    odd = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:

        def run(key: Key) -> Outcome | BaseException:
            fault = faults[key]
            try:
                return run_fault(
                    fault, Path(folder) / str(list(faults).index(key)), fault.long_seconds or fault.seconds
                )
            except (Exception, pytest.skip.Exception) as e:
                return e

        for key, outcome in zip(faults, pool.map(run, faults), strict=True):
            good = isinstance(outcome, Outcome) and faults[key].allows(outcome.verdict)
            odd += not good
            if isinstance(outcome, Outcome):
                outcomes[key] = outcome
            print(f"{'  ' if good else '! '}{' / '.join(key)}: {outcome!r}", flush=True)
    if odd or wanted:
        print(f"{odd} cells came out otherwise than expected; {PATH} is as it was")
        return 1 if odd else 0
    PATH.write_text(render(outcomes, PATH.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
