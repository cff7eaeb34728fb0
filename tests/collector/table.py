"""The lines of `docs/collector-faults.md`."""

from tests.collector.cell import Fault, Scene
from tests.collector.faults import (
    app_cut,
    app_kill_as_it_starts,
    app_kills,
    app_queue_disk_full,
    backlog,
    clock_jump,
    cut,
    damaged_queue,
    failing_disk,
    full_restart,
    hang,
    kill,
    kill_as_it_starts,
    large,
    log_disk_full,
    poison,
    queue_disk_full,
    queue_disk_full_away,
    queue_full,
    slow_disk,
    stop_in_order,
)
from tests.collector.rig import Setup


def _queue_disk(scene: Scene) -> Setup:
    return Setup(queue_directory=scene.disk("queue-disk") / "queue")


def _queue_brake(_: Scene) -> Setup:
    return Setup(collector_brake=True)


def _roomy_queue_disk(scene: Scene) -> Setup:
    return Setup(queue_directory=scene.disk("queue-disk", 64) / "queue", queue_bytes=16 << 20)


GROUPS: dict[str, list[Fault]] = {
    "Processes that are killed": [
        Fault("otel-audit killed again and again", kill("otel-audit"), seconds=5, long_seconds=150),
        Fault("Collector killed again and again", kill("Collector"), long_seconds=45),
        Fault("both killed at random", kill("otel-audit", "Collector", "both"), seconds=5, long_seconds=60),
        Fault("both stopped and started in order", stop_in_order, long_seconds=5),
        Fault("otel-audit hangs", hang("service"), long_seconds=10),
        Fault("Collector hangs", hang("collector"), long_seconds=10),
        Fault("Collector killed, and again while it starts", kill_as_it_starts, _queue_brake, 3, expected="tells"),
        Fault("the same, without its queue", kill_as_it_starts, _queue_brake, 3, queue=False),
        Fault(
            "both killed at random, without its queue",
            kill("otel-audit", "Collector", "both"),
            long_seconds=20,
            queue=False,
        ),
    ],
    "The network": [
        Fault("between Collector and otel-audit", cut("log_wire"), lambda _: Setup(log_wired=True, attempt_s=2), 5, 20),
        Fault("between app and Collector", cut("app_wire"), lambda _: Setup(app_wired=True), long_seconds=20),
        Fault(
            "everywhere, without its queue",
            cut("log_wire"),
            lambda _: Setup(log_wired=True, attempt_s=2),
            long_seconds=10,
            queue=False,
        ),
    ],
    "Disks": [
        Fault(
            "the log's disk full, then room again",
            log_disk_full,
            lambda s: Setup(log_directory=s.disk("disk") / "log"),
            2,
        ),
        Fault("the Collector's queue full", queue_full, _roomy_queue_disk, long_seconds=3),
        Fault(
            "the Collector's disk filled by others",
            queue_disk_full,
            _queue_disk,
            long_seconds=5,
            expected="tells",
            chance=True,
        ),
        Fault(
            "the same while otel-audit is away",
            queue_disk_full_away,
            _queue_disk,
            long_seconds=5,
            expected="tells",
            chance=True,
        ),
        Fault(
            "the Collector killed, and started on a full disk",
            full_restart,
            _queue_disk,
            long_seconds=4,
            expected="tells",
            chance=True,
        ),
        Fault("the same, without its queue", full_restart, _queue_disk, long_seconds=4, queue=False),
        Fault(
            "slow disk under the log", slow_disk("service_brake"), lambda _: Setup(service_brake=True, attempt_s=2), 3
        ),
        Fault("slow disk under the Collector", slow_disk("collector_brake"), _queue_brake, long_seconds=5),
        Fault("the log's disk fails for a while", failing_disk, lambda _: Setup(service_brake=True), long_seconds=5),
        Fault(
            "the Collector's disk fails while it has a backlog",
            backlog,
            _queue_brake,
            long_seconds=3,
            expected="tells",
        ),
        Fault("the file of the Collector's queue damaged", damaged_queue, long_seconds=1, expected="tells"),
    ],
    "Clocks": [
        Fault("an hour forward, back, and an hour back", clock_jump, lambda _: Setup(clocks=True), 2, 20),
    ],
    "What is sent": [
        Fault("batches of 10 MB, and kills", large, seconds=6),
        Fault("calls that cannot be records in the middle of batches", poison, seconds=1),
    ],
    "An audited application": [
        Fault("otel-audit, Collector and both killed in turn", app_kills, seconds=3, long_seconds=30),
        Fault("the network between app and Collector", app_cut, lambda _: Setup(app_wired=True), long_seconds=10),
        Fault(
            "the Collector's disk filled while otel-audit is away",
            app_queue_disk_full,
            _queue_disk,
            long_seconds=5,
            expected="tells",
            chance=True,
        ),
        Fault(
            "Collector killed, and again while it starts",
            app_kill_as_it_starts,
            _queue_brake,
            long_seconds=3,
            expected="tells",
        ),
        Fault("the same, without its queue", app_kill_as_it_starts, _queue_brake, long_seconds=3, queue=False),
    ],
}
