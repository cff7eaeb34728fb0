"""Load through a Collector: generator → Collector → otel-audit, each a process of its own, and where the time goes.

`python -m bench pipeline` looks for the highest rate that is held, holds it for `--seconds` (300), and looks for that of the same Collector
without its queue, and writing to its own file exporter. The Collector runs `collector-config/agent.yaml`: its queue is on disk and synced.

A rate is held when requests leave as they are due, 99 of 100 are acknowledged within a second, and what is in the Collector's queue
at the end is gone two seconds later.
"""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import grpc
import psutil
import yaml

from bench.otlpgen import iter_bodies
from otel_audit.reader import LogReader
from tests.collector.support import CONFIGS, Collector, Service, free_port, wait_for
from tests.tools import COLLECTOR

__all__ = ["Held", "Line", "Watch", "rows"]

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SPANS = 1000
"""Calls in a request."""
OUTSTANDING = 64
LEAST = 500.0
"""Records a second below which nothing is looked for."""
BEHIND_S = 0.5
ACK_MS = 1000.0
DRAIN_S = 2.0
Row = dict[str, Any]
Mode = Literal["queue", "direct", "file"]
"""The Collector as `agent.yaml` has it; without its queue, so that it answers when otel-audit does; with its file exporter."""


# --- the generator: reads what to do from standard input --------------------------------------------------------------------
class _Generator:
    """Sends requests on an open-loop schedule, again when told to come again; callbacks run in threads of gRPC."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_send_message_length", -1)]
        self._export: Any = grpc.insecure_channel(address, options=options).unary_unary(METHOD)
        self._free = threading.Semaphore(OUTSTANDING)
        self._took_s: list[float] = []
        self.retries = 0

    def _send(self, body: bytes, due_s: float) -> None:
        self._free.acquire()

        def done(call: Any) -> None:
            if call.code() is grpc.StatusCode.OK:
                self._took_s.append(time.perf_counter() - due_s)
                self._free.release()
                return
            self.retries += 1
            time.sleep(0.05)
            self._export.future(body).add_done_callback(done)

        self._export.future(body).add_done_callback(done)

    def run(self, rate: float, seconds: float, seed: int) -> dict[str, Any]:
        """`rate` calls a second for `seconds`, or until it is hopelessly behind; what came of it once all is acknowledged."""
        every_s, behind_s, sent = SPANS / rate, 0.0, 0
        self._took_s, self.retries = [], 0
        cpu_s = sum(psutil.Process().cpu_times()[:2])
        started = time.perf_counter()
        for body in iter_bodies(round(seconds / every_s), SPANS, seed):
            due_s = started + sent * every_s
            time.sleep(max(0.0, due_s - time.perf_counter()))
            self._send(body, due_s)
            behind_s = time.perf_counter() - due_s
            sent += 1
            if behind_s > 10 * BEHIND_S:
                break
        took_sending_s = time.perf_counter() - started
        for _ in range(OUTSTANDING):
            self._free.acquire()
        for _ in range(OUTSTANDING):
            self._free.release()
        took = sorted(self._took_s)
        return {
            "calls": sent * SPANS,
            "rate": sent * SPANS / max(took_sending_s, sent * every_s),
            "behind_s": behind_s,
            "p50_ms": 1e3 * took[len(took) // 2],
            "p99_ms": 1e3 * took[len(took) * 99 // 100],
            "retries": self.retries,
            "cpu_s": sum(psutil.Process().cpu_times()[:2]) - cpu_s,
        }


def _generate(address: str) -> int:
    generator = _Generator(address)
    for line in sys.stdin:
        print(json.dumps(generator.run(*json.loads(line))), flush=True)
    return 0


# --- what it goes through ---------------------------------------------------------------------------------------------------
@dataclass
class Sample:
    """The processes and their disks at one moment."""

    seconds: float
    collector_mib: float
    service_mib: float
    collector_fds: int
    service_fds: int
    queue_mib: float
    queue_disk_mib: float
    log_disk_mib: float


class Line:
    """A running generator → Collector → otel-audit, or → the Collector's own file.

    Args:
        folder: for all they write.
        mode: what the Collector does; with `file`, no otel-audit runs.
    """

    def __init__(self, folder: Path, mode: Mode = "queue") -> None:
        self.folder = folder
        self.mode = mode
        self.sent = 0
        """Calls acknowledged to the generator so far."""
        self._seed = 0
        self._stack = ExitStack()
        self._metrics = f"127.0.0.1:{free_port()}"
        self._address = f"127.0.0.1:{free_port()}"
        self.service: Service | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        endpoint = "127.0.0.1:1"
        if self.mode != "file":
            self.service = self._stack.enter_context(Service(self.folder / "log", log=self.folder / "service.log"))
            endpoint = self.service.grpc
        host, port = self._metrics.split(":")
        health = f"127.0.0.1:{free_port()}"
        environment = {
            "AUDIT_QUEUE_DIR": str(self.folder / "queue"),
            "AUDIT_HEALTH_ENDPOINT": health,
            "AUDIT_GRPC_ENDPOINT": self._address,
            "AUDIT_HTTP_ENDPOINT": "127.0.0.1:0",
            "AUDIT_ENDPOINT": endpoint,
            "AUDIT_METRICS_HOST": host,
            "AUDIT_METRICS_PORT": port,
            "GOMAXPROCS": str(psutil.cpu_count()),
        }
        configs = [CONFIGS / "agent.yaml", self._override()]
        self.collector = self._stack.enter_context(Collector(configs, self.folder, environment, health))
        command = [sys.executable, "-m", "bench.pipeline", self._address]
        self._generator = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stack.callback(self._generator.wait, 30)
        self._stack.callback(self._generator.terminate)

    def _override(self) -> Path:
        """What the mode has otherwise."""
        exporters: dict[str, Any] = {}
        pipelines: dict[str, Any] = {}
        if self.mode == "direct":
            exporters = {"otlp_grpc/audit": {"sending_queue": {"enabled": False}}}
        if self.mode == "file":
            exporters = {"file": {"path": str(self.folder / "traces.json")}}
            pipelines = {"traces/audit": {"exporters": ["file"]}}
        path = self.folder / "override.yaml"
        path.write_text(yaml.safe_dump({"exporters": exporters, "service": {"pipelines": pipelines}}))
        return path

    # --- what is asked of it --------------------------------------------------------------------------------------------
    def ask(self, rate: float, seconds: float) -> dict[str, Any]:
        """Have the generator send; what it says, and how long what was left in the queue took."""
        assert self._generator.stdin
        assert self._generator.stdout
        self._seed += 1
        self._generator.stdin.write(json.dumps([rate, seconds, self._seed]) + "\n")
        self._generator.stdin.flush()
        answer: dict[str, Any] = json.loads(self._generator.stdout.readline())
        self.sent += answer["calls"]
        answer["queue_mib"], started = self.queue_bytes() / 2**20, time.perf_counter()
        wait_for(lambda: self.queue_bytes() == 0, "the queue is empty", 600)
        answer["drain_s"] = time.perf_counter() - started
        prompt = answer["behind_s"] < BEHIND_S and answer["p99_ms"] < ACK_MS
        answer["held"] = prompt and answer["drain_s"] < DRAIN_S
        return answer

    def queue_bytes(self) -> int:
        """What the Collector has still to send."""
        if self.mode != "queue":
            return 0
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=30) as response:
            found = re.search(r"^otelcol_exporter_queue_size\{.*\} (\S+)$", response.read().decode(), re.MULTILINE)
        assert found, "the Collector does not tell the size of its queue"
        return int(float(found[1]))

    def recorded(self) -> int:
        """Calls in the log."""
        return LogReader.open(self.folder / "log").snapshot().last_seq

    def cpu_s(self) -> dict[str, float]:
        """CPU time of Collector and otel-audit."""
        pids = {"Collector": self.collector.pid, **({"otel-audit": self.service.pid} if self.service else {})}
        return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in pids.items()}

    def sample(self, seconds: float) -> Sample:
        """How large everything is now."""
        assert self.service
        collector, service = psutil.Process(self.collector.pid), psutil.Process(self.service.pid)
        return Sample(
            seconds=round(seconds, 1),
            collector_mib=collector.memory_info().rss / 2**20,
            service_mib=service.memory_info().rss / 2**20,
            collector_fds=collector.num_fds(),
            service_fds=service.num_fds(),
            queue_mib=self.queue_bytes() / 2**20,
            queue_disk_mib=_disk_mib(self.folder / "queue"),
            log_disk_mib=_disk_mib(self.folder / "log"),
        )


def _disk_mib(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:  # sealed, or merged, meanwhile
            continue
    return total / 2**20


class Watch:
    """Samples of a line every so often, by a thread, for the length of the block."""

    def __init__(self, line: Line, every_s: float) -> None:
        self._line, self._every_s = line, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._started = time.perf_counter()
        self.samples: list[Sample] = []
        """Written by the thread; read it after the block."""

    def _take(self) -> None:
        self.samples.append(self._line.sample(time.perf_counter() - self._started))

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._take()

    def __enter__(self) -> Self:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._take()


# --- measurements -------------------------------------------------------------------------------------------------------------
@dataclass
class Held:
    """A rate that was held."""

    answer: dict[str, Any]
    cpu_s: dict[str, float]
    samples: list[Sample]


def search(line: Line, start: float, seconds: float) -> float:
    """The highest rate that is held for `seconds`, to a fifteenth or so."""
    line.ask(start / 2, seconds / 2)
    good, bad, rate = 0.0, 0.0, start
    while not bad or bad / max(good, LEAST) > 1.07:
        held = line.ask(rate, seconds)["held"]
        good, bad = (rate, bad) if held else (good, rate)
        rate = (good + bad) / 2 if bad else rate * 1.5
    return max(good, LEAST)


def hold(line: Line, rate: float, seconds: float) -> Held:
    """Hold a rate, or the next that is a tenth lower if need be, and so on; the answer of the last says whether it was held."""
    for _ in range(5):
        before = line.cpu_s()
        with Watch(line, max(seconds / 60, 0.5)) as watch:
            answer = line.ask(rate, seconds)
        after = line.cpu_s()
        cpu_s = {"generator": answer["cpu_s"], **{name: after[name] - before[name] for name in after}}
        held = Held(answer, cpu_s, watch.samples)
        if answer["held"]:
            break
        rate *= 0.9
    return held


@contextmanager
def running(mode: Mode = "queue", *, directory: str | None = None) -> Iterator[Line]:
    """A line in a temporary folder; builds the Collector if need be."""
    COLLECTOR.make()
    with tempfile.TemporaryDirectory(dir=directory) as folder, Line(Path(folder), mode) as line:
        yield line


def row(name: str, value: float, unit: str, note: str = "", **more: Any) -> Row:
    """A line of the table; `more` is for readers of the JSON."""
    return {"name": name, "value": value, "unit": unit, "note": note, **more}


def counts(line: Line) -> Row:
    """Whether as many calls came out as went in."""
    recorded = line.recorded()
    verdict = "count in = count out" if recorded == line.sent else f"**NOT the {line.sent:,} that were acknowledged**"
    return row("calls in the log", recorded, "records", verdict, acknowledged=line.sent)


def memory(name: str, values: list[float]) -> Row:
    """Memory of a process while a rate was held: first and last fifth, and the most."""
    fifth = max(len(values) // 5, 1)
    early, late = max(values[fifth : 2 * fifth] or values), max(values[-fifth:])
    note = f"resident, most in the last fifth; in the second fifth {early:.0f}, ever {max(values):.0f}"
    return row(f"memory of {name}", late, "MiB", note)


def _load(held: Held, searched: float) -> list[Row]:
    answer, samples = held.answer, held.samples
    calls = answer["calls"]
    note = f"{calls / answer['rate']:.0f} s, {SPANS}-span requests; the short search found {searched:,.0f}"
    note += "" if answer["held"] else "; **NOT held**"
    made = [
        row("held: → Collector → otel-audit", answer["rate"], "records/s", note, samples=[asdict(s) for s in samples]),
        row("acknowledged by the Collector, p50", answer["p50_ms"], "ms", "from when a request was due"),
        row("acknowledged by the Collector, p99", answer["p99_ms"], "ms", f"{answer['retries']} retries"),
        row("in the queue at the end", answer["queue_mib"], "MiB", f"empty after {answer['drain_s']:.2f} s"),
    ]
    made += [
        row(f"CPU of {name}", 1e6 * cpu_s / calls, "µs/record", f"{cpu_s * answer['rate'] / calls:.2f} cores")
        for name, cpu_s in held.cpu_s.items()
    ]
    made.append(memory("Collector", [s.collector_mib for s in samples]))
    made.append(memory("otel-audit", [s.service_mib for s in samples]))
    return made


def rows(seconds: float = 300.0, step_s: float = 10.0, directory: str | None = None) -> list[Row]:
    """Everything, in one run.

    Args:
        seconds: how long the rate found is held.
        step_s: how long each rate is tried while looking.
        directory: where the temporary folders are made.
    """
    with running(directory=directory) as line:
        searched = search(line, 10_000, step_s)
        held = hold(line, searched, seconds)
        made = [*_load(held, searched), counts(line)]
    direct, _ = _searched("direct", step_s, directory)
    to_file, cpu_us = _searched("file", step_s, directory)
    return [
        *made,
        row("the same without the Collector's queue", direct, "records/s", "the short search"),
        row(
            "→ Collector → its file exporter",
            to_file,
            "records/s",
            "the short search; JSON, no queue, nothing is synced",
        ),
        row("CPU of Collector with its file exporter", cpu_us, "µs/record"),
        row(
            "otel-audit beside the file exporter", searched / to_file, "x", "of the rates that the short searches found"
        ),
        row("without its queue, beside the file exporter", direct / to_file, "x", "likewise"),
    ]


def _searched(mode: Mode, step_s: float, directory: str | None) -> tuple[float, float]:
    """The highest rate in a mode, and the Collector's CPU time in µs a record meanwhile."""
    with running(mode, directory=directory) as line:
        before = line.cpu_s()["Collector"]
        rate = search(line, 10_000, step_s)
        return rate, 1e6 * (line.cpu_s()["Collector"] - before) / line.sent


if __name__ == "__main__":
    sys.exit(_generate(sys.argv[1]))
