"""Every cell of the loss matrix, as `docs/loss-matrix.md` states it."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.loss.__main__ import WORKERS
from tests.loss.cell import PIPELINES, Outcome, Pipeline, run_cell
from tests.loss.document import PATH, written
from tests.loss.events import EVENTS
from tests.loss.table import QUICK, TABLE, Row, delivers_itself, patience_s

Case = tuple[Row, Pipeline]
Outcomes = Callable[[Row, Pipeline], Outcome]


def _run(case: Case, folder: Path) -> Outcome:
    row, pipeline = case
    return run_cell(row.server, EVENTS[row.event], pipeline, folder, patience_s=patience_s(row, pipeline))


@pytest.fixture(scope="module")
def outcome_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """Runs the cells that this session is to test, some at a time: they mostly wait."""
    cases: list[Case] = []
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.function is test_a_cell and not item.get_closest_marker("skip"):
            row, pipeline = item.callspec.params["row"], item.callspec.params["pipeline"]
            assert isinstance(row, Row)
            cases.append((row, "plain" if pipeline == "plain" else "ours"))
    pool = ThreadPoolExecutor(WORKERS)
    running: dict[Case, Future[Outcome]] = {
        case: pool.submit(_run, case, tmp_path_factory.mktemp("cell") / "cell") for case in cases
    }
    try:
        yield lambda row, pipeline: running[row, pipeline].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cases() -> Iterator[object]:
    for row in TABLE:
        for pipeline in PIPELINES:
            quick = (row.server, row.event, pipeline) in QUICK
            yield pytest.param(
                row, pipeline, id=f"{row.server}, {row.event}, {pipeline}", marks=() if quick else pytest.mark.long
            )


@pytest.mark.parametrize(("row", "pipeline"), list(_cases()))
def test_a_cell(row: Row, pipeline: Pipeline, outcome_of: Outcomes) -> None:
    outcome = outcome_of(row, pipeline)
    assert outcome.verdict(EVENTS[row.event]) == row.expected(pipeline), outcome
    assert outcome.made > 0
    if pipeline == "ours":
        assert row.ours != "loses"
        if delivers_itself(row):
            assert outcome.by_next == 0, f"left to the next process: {outcome}"


def test_the_document_states_every_cell_as_it_is_tested() -> None:
    assert written(PATH.read_text()) == {(row.server, row.event): (row.plain, row.ours) for row in TABLE}


def test_the_quick_cells_are_cells() -> None:
    assert {(row.server, row.event, pipeline) for row in TABLE for pipeline in PIPELINES} >= QUICK
