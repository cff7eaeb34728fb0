"""What happens to a pipeline in the lines of `docs/collector-faults.md`."""

import contextlib
import errno
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_audit.quarantine import read as quarantined
from tests.collector.cell import Scene
from tests.collector.rig import Pipeline
from tests.collector.sender import EXPORT, NUMBERED
from tests.collector.support import Process, stopped, wait_for
from tests.collector.wire import Wire
from tests.otlp_support import encoded, request, span

_Act = Callable[[Scene], None]
FORGOTTEN = "Failed retrieving item"
"""What the Collector says when a batch that it had under way is no longer in its file."""
CONNECT_S = 150.0
"""The Collector's gRPC waits up to two minutes before it tries again to connect to what was away for long."""
SOME = 200
"""Calls that are enough to see that data flows."""


def fill(folder: Path, leave_bytes: int = 0) -> Path:
    """Fill a disk but for so many bytes."""
    path = folder / "filler"
    with path.open("ab") as f, contextlib.suppress(OSError):
        disk = os.statvfs(folder)
        f.write(bytes(max(disk.f_bavail * disk.f_frsize - leave_bytes, 0)))
        f.flush()
    return path


# --- processes that are killed --------------------------------------------------------------------------------------------
def kill(*which: str) -> _Act:
    """Kill one of these again and again, at random moments while calls arrive in the log, and start it again."""

    def act(scene: Scene) -> None:
        rng = random.Random()
        pipeline = scene.pipeline
        with scene.sending() as traffic:
            until = time.monotonic() + scene.seconds
            while time.monotonic() < until:
                traffic.run(rng.random())
                before = pipeline.recorded()
                _kill_and_start(pipeline, rng.choice(which), away_s=rng.random() * 0.5)
                wait_for(lambda before=before: pipeline.recorded() > before, "calls arrive again", CONNECT_S)  # type: ignore[misc]
            traffic.more(SOME)

    return act


def _kill_and_start(pipeline: Pipeline, which: str, away_s: float) -> None:
    if which in {"otel-audit", "both"}:
        pipeline.kill_service()
    if which in {"Collector", "both"}:
        pipeline.kill_collector()
    time.sleep(away_s)  # what is under way meanwhile is chance, and meant to be
    if which in {"Collector", "both"}:
        pipeline.start_collector()
    if which in {"otel-audit", "both"}:
        pipeline.start_service()


def stop_in_order(scene: Scene) -> None:
    """Both are ended by SIGTERM and started again, as in an upgrade."""
    pipeline = scene.pipeline
    with scene.sending() as traffic:
        until = time.monotonic() + scene.seconds
        while time.monotonic() < until:
            assert pipeline.collector
            assert pipeline.service
            traffic.more(SOME)
            assert pipeline.collector.terminate() == 0
            pipeline.start_collector()
            traffic.more(SOME)
            assert pipeline.service.terminate() == 0
            pipeline.start_service()
        traffic.more(SOME)


def hang(which: str) -> _Act:
    """Stop it without a word for longer than others wait for its answer, and let it go on."""

    def act(scene: Scene) -> None:
        process: Process | None = getattr(scene.pipeline, which)
        assert process
        with scene.sending("--timeout", 2) as traffic:
            until = time.monotonic() + scene.seconds
            while time.monotonic() < until:
                traffic.more(SOME)
                with stopped(process):
                    traffic.run(3)
            traffic.more(SOME)

    return act


def kill_as_it_starts(scene: Scene) -> None:
    """The Collector is killed while it takes over what it had under way when it was killed before."""
    pipeline = scene.pipeline
    with scene.sending("--spans", 5, "--lanes", 12) as traffic:
        traffic.more(SOME)
        pipeline.kill_service()
        if pipeline.setup.queue:
            traffic.more(SOME)  # they wait in the queue, ten batches of them under way
        pipeline.kill_collector()
        _start_and_kill(scene)
        pipeline.start_service()
        traffic.more(SOME)


def _start_and_kill(scene: Scene) -> None:
    """Start the Collector, killed at one sync later each time, until it has lost something; then start it for good."""
    pipeline = scene.pipeline
    brake = pipeline.collector_brake
    assert brake
    for sync in range(1, 40):
        brake.kill_at(sync)
        with contextlib.suppress(AssertionError):  # it does not become ready
            pipeline.start_collector()
            pipeline.kill_collector()
        if FORGOTTEN in pipeline.collector_said() or not pipeline.setup.queue:
            break
    brake.release()
    pipeline.start_collector()
    assert (FORGOTTEN in pipeline.collector_said()) == pipeline.setup.queue


# --- the network ----------------------------------------------------------------------------------------------------------
def cut(where: str) -> _Act:
    """Everything that a network does, in turn."""

    def act(scene: Scene) -> None:
        wire = getattr(scene.pipeline, where)
        assert isinstance(wire, Wire)
        rng = random.Random()
        with scene.sending("--timeout", 2) as traffic:
            until = time.monotonic() + scene.seconds
            while time.monotonic() < until:
                for trouble in (_reset, _truncate, _stall, _refuse, _delay):
                    traffic.run(rng.random() * 0.3)
                    trouble(wire, traffic.run)
            traffic.more(SOME)
        assert wire.cuts > 5

    return act


def _reset(wire: Wire, run: Callable[[float], None]) -> None:
    for _ in range(5):
        run(0.1)
        wire.cut()


def _truncate(wire: Wire, run: Callable[[float], None]) -> None:
    for size in (1500, 4000, 9000):  # in the first request, and in some later one
        wire.truncate_after = size
        wire.cut()
        run(0.4)
    wire.truncate_after = None
    wire.cut()


def _stall(wire: Wire, run: Callable[[float], None]) -> None:
    wire.tell("stall")
    run(3)  # longer than a sender of this test waits
    wire.tell("pass")


def _refuse(wire: Wire, run: Callable[[float], None]) -> None:
    wire.tell("refuse")
    run(0.7)
    wire.tell("pass")


def _delay(wire: Wire, run: Callable[[float], None]) -> None:
    wire.delay_s = 0.2
    run(1)
    wire.delay_s = 0.0


# --- disks ------------------------------------------------------------------------------------------------------------------
def log_disk_full(scene: Scene) -> None:
    """The log's disk fills, senders go on, and there is room again."""
    pipeline = scene.pipeline
    with scene.sending() as traffic:
        traffic.more(SOME)
        filler = fill(pipeline.log_directory.parent)
        wait_for(
            lambda: "No space left" in pipeline.service_said() or "disk" in pipeline.collector_said(), "it is full"
        )
        traffic.run(scene.seconds)
        filler.unlink()
        traffic.more(SOME)


def queue_disk_full(scene: Scene) -> None:
    """Something else fills the disk that the Collector's queue is on; otel-audit is there all the time."""
    pipeline = scene.pipeline
    with scene.sending("--timeout", 2) as traffic:
        traffic.more(SOME)
        filler = fill(pipeline.queue_directory.parent)
        traffic.run(scene.seconds)
        filler.unlink()
        traffic.more(SOME)


def queue_disk_full_away(scene: Scene) -> None:
    """The same, while otel-audit is away and the queue has grown to the end of the disk."""
    pipeline = scene.pipeline
    with scene.sending("--timeout", 2, "--padding", 2000) as traffic:
        traffic.more(SOME)
        pipeline.kill_service()
        traffic.run(scene.seconds / 2)
        filler = fill(pipeline.queue_directory.parent)
        traffic.run(scene.seconds / 2)
        pipeline.start_service()
        traffic.run(1)
        filler.unlink()
        traffic.more(SOME)


def queue_full(scene: Scene) -> None:
    """otel-audit is away until the queue has reached its size."""
    pipeline = scene.pipeline
    with scene.sending("--timeout", 2, "--padding", 5000, "--spans", 50, "--every", 0) as traffic:
        traffic.more(SOME)
        pipeline.kill_service()
        _until_nothing_is_acknowledged(lambda: traffic.acknowledged)
        traffic.run(scene.seconds)
        pipeline.start_service()
        traffic.more(SOME)
    assert scene.attempts > 0


def _until_nothing_is_acknowledged(acknowledged: Callable[[], int]) -> None:
    seen, since = acknowledged(), time.monotonic()

    def quiet() -> bool:
        nonlocal seen, since
        if acknowledged() != seen:
            seen, since = acknowledged(), time.monotonic()
        return time.monotonic() - since > 2.5

    wait_for(quiet, "the queue is full", 120)


SYNC_MS = 700


def slow_disk(which: str) -> _Act:
    def act(scene: Scene) -> None:
        brake = getattr(scene.pipeline, which)
        with scene.sending("--timeout", 2) as traffic:
            traffic.more(SOME)
            brake.delay(SYNC_MS)
            traffic.run(scene.seconds)
            brake.release()
            traffic.more(SOME)

    return act


def failing_disk(scene: Scene) -> None:
    """Syncs of otel-audit fail; it is not started again."""
    brake = scene.pipeline.service_brake
    assert brake
    with scene.sending("--timeout", 2) as traffic:
        traffic.more(SOME)
        brake.fail(errno.EIO)
        traffic.run(scene.seconds)
        brake.release()
        traffic.more(SOME)


def full_restart(scene: Scene) -> None:
    """The Collector is killed with a backlog, and starts on a disk that is full."""
    pipeline = scene.pipeline
    with scene.sending("--timeout", 2, "--padding", 2000) as traffic:
        traffic.more(SOME)
        pipeline.kill_service()
        traffic.run(scene.seconds / 2)
        pipeline.kill_collector()
        filler = fill(pipeline.queue_directory.parent)
        with contextlib.suppress(AssertionError):  # whether it becomes ready there is not what this is about
            pipeline.start_collector()
        pipeline.start_service()
        traffic.run(scene.seconds / 2)
        filler.unlink()
        if pipeline.collector is None or pipeline.collector.exit_code is not None:
            pipeline.start_collector()
        traffic.more(SOME)


def backlog(scene: Scene) -> None:
    """The disk fails for a while, as a remote one does, when the Collector has a backlog to send."""
    pipeline = scene.pipeline
    brake = pipeline.collector_brake
    assert brake
    with scene.sending("--timeout", 2) as traffic:
        traffic.more(SOME)
        pipeline.kill_service()
        traffic.more(4 * SOME)
        brake.fail(errno.EIO)
        pipeline.start_service()
        traffic.run(scene.seconds)
        brake.release()
        traffic.more(SOME)


def damaged_queue(scene: Scene) -> None:
    """The queue's file is damaged while the Collector is down: it is moved away, as an operator would."""
    pipeline = scene.pipeline
    with scene.sending() as traffic:
        traffic.more(SOME)
        pipeline.kill_service()
        traffic.more(SOME)
        pipeline.kill_collector()
        (file,) = pipeline.queue_directory.glob("exporter_*")
        with file.open("r+b") as f:
            f.write(os.urandom(16384))
        with pytest.raises(AssertionError):  # it does not go on with such a file
            pipeline.start_collector()
        shutil.move(file, scene.folder)
        pipeline.start_collector()
        pipeline.start_service()
        traffic.more(SOME)


# --- clocks -----------------------------------------------------------------------------------------------------------------
def clock_jump(scene: Scene) -> None:
    """Everyone's clock goes an hour forward, an hour back, and to where it was; otel-audit is killed at each."""
    pipeline = scene.pipeline
    clocks = [pipeline.service_clock, pipeline.sender_clock]
    with scene.sending() as traffic:
        for offset_s in (3600, 0, -3600, 0):
            for clock in clocks:
                assert clock
                clock.set(offset_s)
            traffic.run(scene.seconds / 8)
            _kill_and_start(pipeline, "otel-audit", 0)
            traffic.more(SOME)


# --- what is sent -----------------------------------------------------------------------------------------------------------
def large(scene: Scene) -> None:
    """Batches of 10 MB, while otel-audit and the Collector are killed."""
    pipeline = scene.pipeline
    with scene.sending(
        "--spans", 50, "--padding", 200_000, "--timeout", 20, "--most", 50 * int(scene.seconds)
    ) as traffic:
        traffic.more(100)
        _kill_and_start(pipeline, "otel-audit", 1)
        _kill_and_start(pipeline, "Collector", 0)
        wait_for(lambda: traffic.process.exit_code is not None, "all batches are acknowledged", 120)


def poison(scene: Scene) -> None:
    """Among forty good calls of each batch, five that cannot be records, and a whole batch of them at the end."""
    pipeline = scene.pipeline
    good, bad = 0, 0

    def poisons() -> list[Span]:
        return [span({"audit.client.id": f"poisoner-{bad + n}"}, **poison) for n, poison in enumerate(POISONS)]

    with grpc.insecure_channel(pipeline.endpoint) as channel:
        export: Any = channel.unary_unary(EXPORT)
        for _ in range(5):
            spans = [_numbered(good + n) for n in range(1, 41)]
            good += 40
            for n, poison in enumerate(poisons()):
                spans.insert(5 + 7 * n, poison)
            bad += len(POISONS)
            export(encoded(request(*spans, resource=SOURCE)), timeout=10)
        export(encoded(request(*poisons(), resource=SOURCE)), timeout=10)
        bad += len(POISONS)
        with pytest.raises(
            grpc.RpcError, match="invalid TraceID length"
        ):  # the Collector's own no, to all of the batch
            export(encoded(request(span(), span(trace_id=b"12345"), resource=SOURCE)), timeout=10)
    scene.sent["poisoned"] = good
    wait_for(lambda: len(list(quarantined(pipeline.log_directory))) == bad, "all that is no record is in quarantine")
    wait_for(lambda: pipeline.queued() in {0, None}, "the Collector sends nothing again")

    def check() -> None:
        assert len(list(quarantined(pipeline.log_directory))) == bad  # once, not once for each attempt
        assert "Will retry" not in pipeline.collector_said()

    scene.check = check


SOURCE = {"service.name": NUMBERED, "audit.source.id": "poisoned"}
POISONS: tuple[dict[str, Any], ...] = (
    {"trace_id": b""},
    {"span_id": b""},
    {"trace_id": bytes(16)},
    {"start_time_unix_nano": 0},
    {"start_time_unix_nano": 2**63 + 1},
)


def _numbered(seq: int) -> Span:
    return span({"audit.source.seq": seq}, trace_id=seq.to_bytes(16, "big"), span_id=seq.to_bytes(8, "big"))


# --- an audited application ---------------------------------------------------------------------------------------------------
def app_kills(scene: Scene) -> None:
    rng = random.Random()
    with scene.calling() as app:
        until = time.monotonic() + scene.seconds
        while time.monotonic() < until:
            for which in ("otel-audit", "Collector", "both"):
                app.run(rng.random())
                _kill_and_start(scene.pipeline, which, 0.3)
        app.run(1)


def app_kill_as_it_starts(scene: Scene) -> None:
    pipeline = scene.pipeline
    with scene.calling() as app:
        app.run(1)
        pipeline.kill_service()
        app.run(3)
        pipeline.kill_collector()
        _start_and_kill(scene)
        pipeline.start_service()
        app.run(3)


def app_cut(scene: Scene) -> None:
    wire = scene.pipeline.app_wire
    assert wire
    with scene.calling() as app:
        until = time.monotonic() + scene.seconds
        while time.monotonic() < until:
            for trouble in (_reset, _truncate, _stall, _refuse, _delay):
                trouble(wire, app.run)
        app.run(1)


def app_queue_disk_full(scene: Scene) -> None:
    pipeline = scene.pipeline
    with scene.calling() as app:
        app.run(0.5)
        pipeline.kill_service()
        app.run(1)
        filler = fill(pipeline.queue_directory.parent)
        app.run(scene.seconds)
        filler.unlink()
        pipeline.start_service()
        app.run(1)
