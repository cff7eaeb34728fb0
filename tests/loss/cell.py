"""One cell of the loss matrix: a server, an event and a pipeline, run for real."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from otel_audit.capture.frames import RECORD, frames_in
from tests.capture_support import Span, environment, free_port, wait_until
from tests.loss.client import Client
from tests.loss.collector import TAKEN, Collector, Reply, grpc_collector, http_collector
from tests.loss.servers import APPS, SERVERS, Running, running

Pipeline = Literal["plain", "ours"]
PIPELINES: tuple[Pipeline, ...] = ("plain", "ours")

Verdict = Literal["keeps", "repeats", "set aside", "loses"]
"""Every call has one record; every call has one, some have more, with one identity; calls have none, but their records
are in `refused.spool` and a loss record tells of them; calls have none, and nothing tells."""

CALLS = 20


@dataclass(frozen=True)
class Event:
    """What happens to a server, its clients or the collector.

    Args:
        name: as the document writes it.
        act: makes the calls and has it happen.
        behave: what the collector does; None: takes everything.
        env: for both pipelines.
        plain: for the plain pipeline.
        ours: for ours.
        protocol: of the pipeline.
        up: whether the collector is there from the beginning.
        peaceful: whether the process that served the calls is given the time to deliver their records itself.
        reloads: whether the server is started so that it can reload.
    """

    name: str
    act: "Callable[[Scene], None]"
    behave: "Callable[[Scene, list[Span]], Reply] | None" = None
    env: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)
    ours: dict[str, str] = field(default_factory=dict)
    protocol: Literal["grpc", "http/protobuf"] = "grpc"
    up: bool = True
    peaceful: bool = True
    reloads: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of the calls of one cell.

    Args:
        made: calls that reached the application.
        answered: calls whose whole answer reached the client.
        recorded: calls of which the collector holds at least one record.
        duplicates: records beyond the first of a call.
        by_next: calls of which only the next process delivered a record.
        aside: calls whose records are kept aside, in `refused.spool`.
        named: how many records the source's loss records say are missing.
    """

    made: int
    answered: int
    recorded: int
    duplicates: int = 0
    by_next: int = 0
    aside: int = 0
    named: int = 0

    def verdict(self, event: Event) -> "Verdict":
        """The outcome of `event` in a word.

        A process that is killed while it delivers leaves what it sent to be sent again: that is no news, and such records
        have one identity.
        """
        missing = self.made - self.recorded
        if missing:
            return "set aside" if self.aside >= missing and self.named >= missing else "loses"
        return "repeats" if self.duplicates and event.peaceful else "keeps"


class Scene:
    """A cell that is being run; used by one thread, but for what the collector asks of it."""

    def __init__(self, server: str, event: Event, pipeline: Pipeline, folder: Path, patience_s: float) -> None:
        self.event = event
        self.pipeline = pipeline
        self.folder = folder
        self.patience_s = patience_s
        self.name = f"{server}/{event.name}/{pipeline}"
        self.made: dict[str, None] = {}
        """Trace ids of the calls that count, in order."""
        self.answered: set[str] = set()
        self.collector = Collector(self._behave)
        self.protocol = event.protocol
        if pipeline == "plain" and server.startswith("uwsgi") and event.reloads:
            # With OTLP/gRPC, the exporter that the master made keeps it from ever forking workers again.
            self.protocol = "http/protobuf"
        self.running: Running
        self.client: Client

    def _behave(self, _: Collector, spans: list[Span]) -> Reply:
        return TAKEN if self.event.behave is None else self.event.behave(self, spans)

    # --- calls ---------------------------------------------------------------------------------------------------------------
    def trace_id(self, n: object) -> str:
        """The trace of call `n`: the same in each run, so that a sampler decides the same."""
        return hashlib.sha256(f"{self.name}/{n}".encode()).hexdigest()[:32]

    def call(self, what: str = "call", count: int = CALLS, *, sampled: bool = True) -> list[str]:
        """Make `count` calls, one after the other; their answers."""
        answers = []
        for _ in range(count):
            n = len(self.made) + 1
            trace_id = self.trace_id(n)
            answer = self.client.call(what, n, trace_id=trace_id, sampled=sampled)
            assert answer is not None, f"{self.name}: call {n} was not answered: {self.running.output()[-3000:]}"
            self.made[trace_id] = None
            self.answered.add(trace_id)
            answers.append(answer)
        return answers

    def leave(self, what: str, *, parts: int, count: int = 5) -> None:
        """Make `count` calls whose client goes away once the handler has started, and after `parts` of the answer."""
        for _ in range(count):
            n = len(self.made) + 1
            mark = self.running.folder / "started" / str(n)
            started = lambda mark=mark: wait_until(mark.exists)  # noqa: E731
            self.client.leave(what, n, trace_id=self.trace_id(n), started=started, parts=parts)
            self.made[self.trace_id(n)] = None

    def at_rest(self) -> Running:
        """The server, when its last call is over for it too: uwsgi skips Python's exit functions in a busy worker."""
        if self.running.server.name.startswith("uwsgi"):
            wait_until(lambda: f"/{len(self.made)} => generated" in self.running.output())
        return self.running

    # --- what the collector has ----------------------------------------------------------------------------------------------
    def mine(self, spans: list[Span]) -> bool:
        """Whether one of these records is of a call that counts (a client may still wait for its answer)."""
        mine = {self.trace_id(n) for n in range(1, len(self.made) + 2)}
        return any(span.trace_id in mine for span in spans)

    def all_recorded(self) -> bool:
        return self.recorded() == len(self.made)

    def recorded(self) -> int:
        return sum(trace_id in self.collector.recorded for trace_id in self.made)

    def settle(self) -> None:
        """Wait until each call is recorded, or for as long as that may take."""
        self.collector.wait(self.all_recorded, self.patience_s)

    def settle_in_order(self) -> None:
        """Wait until the fate of each call is known: both pipelines deliver in order, and a later call has arrived."""
        for n in range(60):
            if self.all_recorded():
                return
            fence = self.trace_id(f"fence {n}")
            self.client.call("call", 0, trace_id=fence)
            if self.collector.wait(lambda fence=fence: fence in self.collector.recorded, 2.0):  # type: ignore[misc]
                return
        raise AssertionError(f"{self.name}: no call arrives: {self.running.output()[-3000:]}")

    # --- settings ------------------------------------------------------------------------------------------------------------
    def env(self, port: int) -> dict[str, str]:
        scheme = f"http://127.0.0.1:{port}"
        event = self.event
        if self.pipeline == "ours":
            return environment(
                **{
                    "OTEL_AUDIT_ENDPOINT": scheme,
                    "OTEL_AUDIT_PROTOCOL": self.protocol,
                    "OTEL_AUDIT_SPOOL_DIR": str(self.folder / "spool"),
                    "OTEL_AUDIT_EXIT_TIMEOUT": "90",
                    **event.env,
                    **event.ours,
                }
            )
        return environment(
            **{
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_EXPORTER_OTLP_ENDPOINT": scheme,
                "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
                "OTEL_AUDIT_ENDPOINT": "ftp://nobody",  # otel-audit is in the environment: so it does not take part
                **event.env,
                **event.plain,
            }
        )


def run_cell(server: str, event: Event, pipeline: Pipeline, folder: Path, *, patience_s: float) -> Outcome:
    """Run one cell.

    Args:
        server: a row of `SERVERS`.
        event: what happens.
        pipeline: who is to record it.
        folder: an empty folder.
        patience_s: how long records may take to arrive while the server runs.
    """
    scene = Scene(server, event, pipeline, folder, patience_s)
    port = free_port()
    listening = grpc_collector if scene.protocol == "grpc" else http_collector
    with ExitStack() as stack:

        def listen() -> AbstractContextManager[Collector]:
            return listening(scene.collector, port)

        if event.up:
            stack.enter_context(listen())
        env = scene.env(port)
        with running(SERVERS[server], folder / "service", env, reloads=event.reloads) as found:
            scene.running, scene.client = found, found.client()
            event.act(scene)
            scene.client.close()
        if not event.up:
            stack.enter_context(listen())
        itself = scene.recorded()
        if pipeline == "ours":
            _ship_what_is_left(scene, env)
        return _outcome(scene, itself)


def _ship_what_is_left(scene: Scene, env: dict[str, str]) -> None:
    if not any((scene.folder / "spool").rglob("owner")):
        return
    words = [sys.executable, str(APPS / "next_process.py")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{scene.name}: {done.stderr}"


def _outcome(scene: Scene, itself: int) -> Outcome:
    recorded = scene.recorded()
    aside: set[str] = set()
    for path in (scene.folder / "spool").rglob("refused.spool"):
        for one in frames_in(path.read_bytes()):
            assert one.kind == RECORD
            aside |= {trace_id for trace_id in scene.made if bytes.fromhex(trace_id) in one.record.span}
    return Outcome(
        made=len(scene.made),
        answered=len(scene.answered),
        recorded=recorded,
        duplicates=sum(scene.collector.recorded[trace_id] for trace_id in scene.made) - recorded,
        by_next=recorded - itself,
        aside=len(aside),
        named=sum(int(span.attributes.get("audit.loss.count", 0)) for span in scene.collector.about),
    )
