"""What each cell of the loss matrix is expected to show; `docs/loss-matrix.md` is written from the same table."""

from typing import NamedTuple

from tests.loss.cell import Pipeline, Verdict
from tests.loss.events import ANSWERS, COLLECTOR, CONTENT, EVENTS, PROCESS
from tests.loss.servers import SERVERS

REPRESENTATIVES = ("uvicorn", "gunicorn sync", "grpc")
"""What the collector does, and what is called, does not depend on the server: an ASGI, a WSGI and a gRPC one stand for all."""


class Row(NamedTuple):
    """One event on one server, and what becomes of its calls."""

    server: str
    event: str
    plain: Verdict
    ours: Verdict

    def expected(self, pipeline: Pipeline) -> Verdict:
        return self.plain if pipeline == "plain" else self.ours


# --- the plain SDK: where it keeps calls -----------------------------------------------------------------------------------
_ENDS_THROUGH_EXIT_FUNCTIONS = {
    "gunicorn sync", "gunicorn gthread", "gunicorn --preload", "hypercorn", "uwsgi", "uwsgi --threads 4",
    "uwsgi --lazy-apps", "aiohttp run_app",
}  # fmt: skip
"""Their end runs Python's exit functions, and with them the batch processor's last export."""
_RELOADS_THROUGH_EXIT_FUNCTIONS = _ENDS_THROUGH_EXIT_FUNCTIONS | {"flask run"}
_RETRIED_BY_THE_SDK = {
    "gRPC CANCELLED", "gRPC DEADLINE_EXCEEDED", "gRPC RESOURCE_EXHAUSTED", "gRPC RESOURCE_EXHAUSTED with RetryInfo",
    "gRPC ABORTED", "gRPC OUT_OF_RANGE", "gRPC UNAVAILABLE", "gRPC DATA_LOSS",
    "HTTP 429", "HTTP 429 with Retry-After", "HTTP 502", "HTTP 503", "HTTP 504",
}  # fmt: skip
_HIDDEN_FROM_THE_SDK = {"1 % sampling", "always_off", "traceparent unsampled"}
_KEPT_BY_THE_SDK = {"takes records and answers after the deadline at first"}

# --- ours: where a call has no record of its own, or more than one -----------------------------------------------------------
_REFUSED_FOR_GOOD = {
    "gRPC INVALID_ARGUMENT", "HTTP 400", "HTTP 413", "gRPC partial success", "HTTP partial success",
}  # fmt: skip
_TAKEN_TWICE = {"takes records and answers after the deadline at first"}


def _plain(server: str, event: str) -> Verdict:
    if event == "SIGTERM":
        keeps = server in _ENDS_THROUGH_EXIT_FUNCTIONS
    elif event == "reload":
        keeps = server in _RELOADS_THROUGH_EXIT_FUNCTIONS
    elif EVENTS[event] in PROCESS:
        keeps = False
    elif EVENTS[event] in ANSWERS:
        keeps = event in _RETRIED_BY_THE_SDK
    elif EVENTS[event] in COLLECTOR:
        keeps = event in _KEPT_BY_THE_SDK
    else:
        keeps = event not in _HIDDEN_FROM_THE_SDK and "SIGKILL" not in event
    return "keeps" if keeps else "loses"


def _row(server: str, event: str) -> Row:
    ours: Verdict = "set aside" if event in _REFUSED_FOR_GOOD else "repeats" if event in _TAKEN_TWICE else "keeps"
    return Row(server, event, _plain(server, event), ours)


def _rows() -> list[Row]:
    rows = [
        _row(server.name, event)
        for event in ("SIGTERM", "SIGKILL", "reload")
        for server in SERVERS.values()
        if event != "reload" or server.reload
    ]
    rows += [_row(server, "os._exit") for server in ("uvicorn", "flask run", "grpc")]
    for event in COLLECTOR:
        burst = "burst" in event.name
        rows += [_row(server, event.name) for server in (REPRESENTATIVES[:1] if burst else REPRESENTATIVES)]
    rows += [_row("uvicorn", event.name) for event in ANSWERS]
    rows += [
        _row(server, event)
        for server in REPRESENTATIVES[1:]
        for event in ("gRPC UNAVAILABLE", "gRPC INVALID_ARGUMENT", "HTTP 503")
    ]
    rows += [_row(server, event.name) for event in CONTENT for server in REPRESENTATIVES]
    return rows


TABLE: list[Row] = _rows()

QUICK: set[tuple[str, str, Pipeline]] = {
    ("uvicorn", "SIGTERM", "plain"),
    ("uvicorn", "SIGTERM", "ours"),
    ("gunicorn, uvicorn workers", "SIGTERM", "ours"),
    ("grpc", "SIGTERM", "ours"),
    ("uwsgi", "SIGKILL", "ours"),
    ("uwsgi --threads 4", "SIGKILL", "ours"),
    ("aiohttp run_app", "SIGKILL", "ours"),
    ("grpc.aio", "SIGKILL", "ours"),
    ("hypercorn", "SIGKILL", "ours"),
    ("gunicorn sync", "down for the whole run", "ours"),
    ("uvicorn", "gRPC INVALID_ARGUMENT", "ours"),
    ("uvicorn", "HTTP partial success", "ours"),
    ("gunicorn sync", "always_off", "ours"),
    ("grpc", "client gone in the middle of the answer", "ours"),
}
"""Run by `make test`; all others are long."""


def patience_s(row: Row, pipeline: Pipeline) -> float:
    """How long to wait for records: where none is expected, no longer than an exporter needs for one."""
    return 3.0 if row.expected(pipeline) == "loses" else 30.0


def delivers_itself(row: Row) -> bool:
    """Whether the process that served must itself have delivered every record before it was gone.

    uwsgi skips Python's exit functions in a worker whose last request is not over for it, though the client has its answer:
    there the next process may do it.
    """
    return EVENTS[row.event].peaceful and not row.server.startswith("uwsgi")
