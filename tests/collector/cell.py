"""One fault of a pipeline, run for real: what happens, and what became of the calls."""

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tests.capture_support import environment
from tests.collector.rig import Pipeline, Setup, Traffic
from tests.collector.sender import NUMBERED
from tests.collector.support import wait_for
from tests.loss.client import HttpClient
from tests.loss.servers import SERVERS, Running, running

Verdict = Literal["keeps", "tells", "loses"]
"""Each acknowledged call is one record and no number is missing; some are missing, and `otel-audit gaps` names every one; some
are missing, and nothing tells."""

FRESH_DISK_MIB = 24


@dataclass(frozen=True)
class Outcome:
    """What became of the calls of a cell.

    Args:
        acknowledged: calls of which the app was told that they are safe.
        recorded: those that have a record.
        unasked: records that nobody was told are safe; 0, as senders end only when all is acknowledged.
        named: how many numbers `otel-audit gaps` says are missing.
        attempts: what the senders were answered otherwise than with success.
        kills: how often a process was killed.
    """

    acknowledged: int
    recorded: int
    unasked: int
    named: int
    attempts: int
    kills: int

    @property
    def verdict(self) -> Verdict:
        missing = self.acknowledged - self.recorded
        if not missing and not self.named and not self.unasked:
            return "keeps"
        return "tells" if missing == self.named else "loses"


class Scene:
    """A cell that is being run; used by one thread.

    Args:
        folder: an empty folder.
        seconds: how long the fault lasts.
        stack: undone at the end, after the processes.
    """

    def __init__(self, folder: Path, seconds: float, stack: ExitStack) -> None:
        self.folder = folder
        self.seconds = seconds
        self.stack = stack
        self.pipeline: Pipeline
        self.sent: dict[str, int] = {}
        """Source → calls acknowledged, numbered from 1."""
        self.answered: set[str] = set()
        """Paths of the calls that an audited application has answered."""
        self.attempts = 0
        self.check: Callable[[], None] = lambda: None
        """Looked at when all is at rest."""

    def disk(self, name: str, mib: int = FRESH_DISK_MIB) -> Path:
        """A file system of its own; skips where none can be made."""
        return self.stack.enter_context(small_disk(self.folder / name, mib))

    @contextlib.contextmanager
    def sending(self, *options: object, name: str = "sender") -> Iterator[Traffic]:
        """Numbered calls for the length of the block."""
        with self.pipeline.sending(*options, name=name) as traffic:
            yield traffic
        self.sent |= traffic.lanes
        self.attempts += sum(n for answer, n in traffic.answers.items() if answer != "OK")

    @contextlib.contextmanager
    def calling(self) -> Iterator["App"]:
        """Calls of an audited application for the length of the block; then it ends, and has delivered what it could."""
        env = environment(
            OTEL_SERVICE_NAME="shop",
            OTEL_AUDIT_ENDPOINT=f"http://{self.pipeline.endpoint}",
            OTEL_AUDIT_SPOOL_DIR=str(self.folder / "spool"),
            OTEL_AUDIT_TIMEOUT="2",
            OTEL_AUDIT_EXIT_TIMEOUT="90",
            OTEL_TRACES_EXPORTER="none",
            OTEL_METRICS_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
        )
        with running(SERVERS["uvicorn"], self.folder / "app", env) as server:
            app = App(server)
            self.answered.add("/call/0")  # how its start was waited for
            try:
                yield app
            finally:
                app.finish()
            self.answered |= {f"/call/{n}" for n in range(1, app.calls + 1)}
            server.terminate()


class App:
    """A FastAPI application under `opentelemetry-instrument`, and a thread that calls it all the time."""

    def __init__(self, server: Running) -> None:
        self.calls = 0
        """Answered so far; written by the thread."""
        self._server = server
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        client = HttpClient(self._server.port, keep=True)
        try:
            while not self._stop.is_set():
                assert client.call("call", self.calls + 1, trace_id=""), self._server.output()[-3000:]
                self.calls += 1
                self._stop.wait(0.003)
        except BaseException as e:
            self._error = e
        finally:
            client.close()

    def run(self, seconds: float) -> None:
        """Go on for a while."""
        until = time.monotonic() + seconds
        wait_for(lambda: self._error or time.monotonic() > until, "", seconds + 5)
        assert self._error is None

    def finish(self) -> None:
        """No more calls."""
        self._stop.set()
        self._thread.join(60)
        assert self._error is None


@dataclass(frozen=True)
class Fault:
    """What happens to a pipeline.

    Args:
        name: as the document writes it.
        act: has it happen while calls are made.
        setup: of the pipeline.
        seconds: how long in a short run; 0: only in a long one.
        long_seconds: in a long run; 0: as long as in a short one.
        expected: what becomes of the calls.
        queue: whether the Collector has its queue.
        chance: whether nothing may be lost, too.
    """

    name: str
    act: Callable[[Scene], None]
    setup: Callable[[Scene], Setup] = field(default=lambda _: Setup())
    seconds: float = 0.0
    long_seconds: float = 0.0
    expected: Verdict = "keeps"
    queue: bool = True
    chance: bool = False

    def allows(self, verdict: str) -> bool:
        """Whether it may come out so."""
        return verdict == self.expected or (self.chance and verdict == "keeps")


def run_fault(fault: Fault, folder: Path, seconds: float) -> Outcome:
    """Run one cell in an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        scene = Scene(folder, seconds, stack)
        setup = fault.setup(scene)
        setup.queue = fault.queue
        with Pipeline(folder / "pipeline", setup) as pipeline:
            scene.pipeline = pipeline
            fault.act(scene)
            pipeline.settle(sum(scene.sent.values()) + (len(scene.answered) + 2 if scene.answered else 0))
            scene.check()
            return _outcome(scene)


def _outcome(scene: Scene) -> Outcome:
    records = scene.pipeline.records()
    expected: set[object] = {(source, seq) for source, count in scene.sent.items() for seq in range(1, count + 1)}
    expected |= scene.answered
    found: list[object] = [(r["source_id"], r["source_seq"]) for r in records if r["service"] == NUMBERED]
    found += [r["target"] for r in records if r["route"] == "/call/{n}" and r["target"] != "/call/0"]
    assert len(set(found)) == len(found), "a call is there twice"
    found += ["/call/0"] * bool(scene.answered)
    code, said = scene.pipeline.gaps()
    counted = re.search(r"(\d[\d,]*) records? missing", said)
    named = int(counted[1].replace(",", "")) if counted else 0
    assert code == (3 if named else 0), said
    return Outcome(
        acknowledged=len(expected),
        recorded=len(expected & set(found)),
        unasked=len(set(found) - expected),
        named=named,
        attempts=scene.attempts,
        kills=scene.pipeline.kills,
    )


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A file system of so many MiB; skips the test where none can be mounted."""
    if shutil.which("mount") is None:
        pytest.skip("needs mount to make a small file system")
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    mounted = subprocess.run(words, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
