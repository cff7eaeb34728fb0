"""What becomes of calls that a real Collector carries to a real otel-audit while things break: `docs/collector-faults.md`."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.collector.__main__ import WORKERS
from tests.collector.cell import Outcome, run_fault
from tests.collector.document import PATH, Key, cells, render, written
from tests.tools import COLLECTOR

CELLS = cells()
Case = tuple[Key, float]
Outcomes = Callable[[Key, float], Outcome]


def _run(case: Case, folder: Path) -> Outcome:
    key, seconds = case
    return run_fault(CELLS[key], folder, seconds)


@pytest.fixture(scope="module")
def outcome_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """Has the faults happen that this session is to test, some at a time: they mostly wait."""
    COLLECTOR.get()
    cases: list[Case] = []
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.function is test_a_fault and not item.get_closest_marker("skip"):
            params = item.callspec.params
            cases.append(((str(params["group"]), str(params["name"])), float(str(params["seconds"]))))
    pool = ThreadPoolExecutor(WORKERS)
    running: dict[Case, Future[Outcome]] = {
        case: pool.submit(_run, case, tmp_path_factory.mktemp("fault") / "cell") for case in cases
    }
    try:
        yield lambda key, seconds: running[key, seconds].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cases() -> Iterator[object]:
    for (group, name), fault in CELLS.items():
        if fault.seconds:
            yield pytest.param(group, name, fault.seconds, id=f"{group}, {name}")
        if fault.long_seconds:
            yield pytest.param(group, name, fault.long_seconds, id=f"{group}, {name}, long", marks=pytest.mark.long)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("group", "name", "seconds"), list(_cases()))
def test_a_fault(group: str, name: str, seconds: float, outcome_of: Outcomes) -> None:
    outcome = outcome_of((group, name), seconds)
    assert outcome.acknowledged > 100, outcome
    assert CELLS[group, name].allows(outcome.verdict), outcome


def test_the_document_states_every_fault_as_it_is_tested() -> None:
    verdicts = written(PATH.read_text())
    assert verdicts.keys() == CELLS.keys()
    assert [key for key, verdict in verdicts.items() if not CELLS[key].allows(verdict)] == []


def test_tables_are_made_anew_and_what_stands_between_them_stays() -> None:
    outcomes = {key: Outcome(10, 10, 0, 0, 0, 0) for key in CELLS}
    once = render(outcomes, PATH.read_text())
    assert written(once) == dict.fromkeys(CELLS, "keeps")
    assert render(outcomes, once) == once
    kept = [line for line in PATH.read_text().splitlines() if not line.startswith("|")]
    assert [line for line in once.splitlines() if not line.startswith("|")] == kept
