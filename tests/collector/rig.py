"""App → Collector → otel-audit out of real processes, each of which can be killed and started again where it was."""

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from otel_audit.reader import LogReader
from tests.collector.shims import Brake, Clock
from tests.collector.support import CONFIGS, Collector, Process, Service, free_port, wait_for
from tests.collector.wire import Wire
from tests.support import check_log
from tests.tools import ROOT

AGENT = CONFIGS / "agent.yaml"
EXPORTER = "otlp_grpc/audit"
SETTLE_S = 240.0


@dataclass
class Setup:
    """How a pipeline is put together.

    Args:
        queue: whether the Collector keeps a queue on disk; without one it answers when otel-audit has answered.
        app_wired, log_wired: whether a `Wire` leads to the Collector, or from it to otel-audit.
        collector_brake, service_brake: whether the disk of the process does as it is told.
        clocks: whether the wall clocks of otel-audit and of senders can be set.
        queue_directory, log_directory: where else than in the folder of the pipeline.
        queue_bytes: what the Collector's queue may hold.
        attempt_s: how long the Collector waits for an answer of otel-audit; what users have is 40.
        service: more of otel-audit's configuration.
    """

    queue: bool = True
    app_wired: bool = False
    log_wired: bool = False
    collector_brake: bool = False
    service_brake: bool = False
    clocks: bool = False
    queue_directory: Path | None = None
    log_directory: Path | None = None
    queue_bytes: int = 256 << 20
    attempt_s: float = 5.0
    service: Mapping[str, Any] = field(default_factory=dict)


class Pipeline:
    """A running pipeline; used from one thread.

    Args:
        folder: an empty folder.
        setup: how it is put together.
    """

    def __init__(self, folder: Path, setup: Setup) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.setup = folder, setup
        self.log_directory = setup.log_directory or folder / "log"
        self.queue_directory = setup.queue_directory or folder / "queue"
        self.kills = 0
        self._stack = ExitStack()
        self._service_port, self._http_port, self._collector_port, self._health_port = (free_port() for _ in range(4))
        self.metrics_port = free_port()
        self._metrics = f"http://127.0.0.1:{self.metrics_port}/metrics"
        self.service: Service | None = None
        self.collector: Collector | None = None
        self.app_wire = self._stack.enter_context(Wire(self._collector_port)) if setup.app_wired else None
        self.log_wire = self._stack.enter_context(Wire(self._service_port)) if setup.log_wired else None
        self.collector_brake = Brake(folder / "collector.brake") if setup.collector_brake else None
        self.service_brake = Brake(folder / "service.brake") if setup.service_brake else None
        self.service_clock = Clock(folder / "service.clock") if setup.clocks else None
        self.sender_clock = Clock(folder / "sender.clock") if setup.clocks else None

    # --- its processes --------------------------------------------------------------------------------------------------
    @property
    def endpoint(self) -> str:
        """`host:port` of OTLP/gRPC for the app."""
        return f"127.0.0.1:{self.app_wire.port if self.app_wire else self._collector_port}"

    def start_service(self) -> Service:
        """Start otel-audit where it was."""
        config = self.folder / "audit.yaml"
        config.write_text(yaml.safe_dump({"log": {"segment_rows": 5000, "segment_age": "2s"}, **self.setup.service}))
        self.service = Service(
            self.log_directory,
            "--config",
            config,
            grpc=f"127.0.0.1:{self._service_port}",
            http=f"127.0.0.1:{self._http_port}",
            log=self.folder / "service.log",
            environment=self.service_clock.environment if self.service_clock else None,
            prefix=self.service_brake.prefix if self.service_brake else (),
        )
        return self.service

    def start_collector(self) -> Collector:
        """Start the Collector where it was, with the queue it left."""
        self.collector = Collector(
            self.collector_configs(),
            self.folder,
            self.collector_environment(),
            f"127.0.0.1:{self._health_port}",
            prefix=self.collector_brake.prefix if self.collector_brake else (),
        )
        return self.collector

    def collector_environment(self) -> dict[str, str]:
        """What the `${env:...}` of its file stand for."""
        return {
            "AUDIT_QUEUE": "true" if self.setup.queue else "false",
            "AUDIT_QUEUE_DIR": str(self.queue_directory),
            "AUDIT_QUEUE_BYTES": str(self.setup.queue_bytes),
            "AUDIT_HEALTH_ENDPOINT": f"127.0.0.1:{self._health_port}",
            "AUDIT_GRPC_ENDPOINT": f"127.0.0.1:{self._collector_port}",
            "AUDIT_HTTP_ENDPOINT": "127.0.0.1:0",
            "AUDIT_ENDPOINT": f"127.0.0.1:{self.log_wire.port if self.log_wire else self._service_port}",
            "AUDIT_METRICS_HOST": "127.0.0.1",
            "AUDIT_METRICS_PORT": str(self.metrics_port),
        }

    def collector_configs(self) -> list[Path]:
        """The file that users run, and one with what a test has otherwise."""
        exporter: dict[str, Any] = {"retry_on_failure": {"initial_interval": "100ms", "max_interval": "1s"}}
        exporter["timeout"] = f"{self.setup.attempt_s:g}s"
        override: dict[str, Any] = {"exporters": {EXPORTER: exporter}}
        path = self.folder / "override.yaml"
        path.write_text(yaml.safe_dump(override))
        return [AGENT, path]

    def service_said(self) -> str:
        """All that otel-audit has logged."""
        return (self.folder / "service.log").read_text(errors="replace")

    def collector_said(self) -> str:
        """All that the Collector has logged."""
        return (self.folder / "collector.log").read_text(errors="replace")

    def kill_service(self) -> None:
        """SIGKILL otel-audit."""
        assert self.service
        self.service.kill()
        self.kills += 1

    def kill_collector(self) -> None:
        """SIGKILL the Collector."""
        assert self.collector
        self.collector.kill()
        self.kills += 1

    # --- its traffic ----------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def sending(self, *options: object, name: str = "sender") -> Iterator["Traffic"]:
        """A process that sends numbered calls until the end of the block, and then waits for what is under way."""
        traffic = Traffic(self, name, [str(o) for o in options])
        try:
            yield traffic
            traffic.finish()
        finally:
            traffic.process.kill()

    def recorded(self) -> int:
        """How many records the log has, as any other process sees it."""
        try:
            return LogReader.open(self.log_directory).snapshot().last_seq
        except FileNotFoundError:  # a segment was sealed meanwhile
            return 0

    def settle(self, total: int, timeout_s: float = SETTLE_S) -> None:
        """Wait until the log has so many records, or the Collector has no more for it; then end the processes in order."""
        wait_for(lambda: self.recorded() >= total or self.queued() == 0, "all is recorded", timeout_s)
        if self.collector and self.collector.exit_code is None:
            self.collector.terminate()
        if self.service and self.service.exit_code is None:
            assert self.service.terminate() == 0, self.service.said()[-3000:]

    def queued(self) -> int | None:
        """Bytes in the Collector's queue, what it is sending included; None if it does not say."""
        with contextlib.suppress(OSError), urllib.request.urlopen(self._metrics, timeout=5) as response:
            found = re.search(r"^otelcol_exporter_queue_size\{.*\} (\S+)$", response.read().decode(), re.MULTILINE)
            return int(float(found[1])) if found else None
        return None

    def records(self) -> list[dict[str, Any]]:
        """All records, after checking that numbers have no gap, identities do not repeat, and times do not go back."""
        records = check_log(self.log_directory)
        times = [r["recorded_at"] for r in records]
        assert times == sorted(times)
        return records

    def gaps(self) -> tuple[int, str]:
        """Exit code and output of `otel-audit gaps`; nothing is late any more."""
        command = [sys.executable, "-m", "otel_audit", "gaps", "--dir", str(self.log_directory), "--late", "0s"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        return done.returncode, done.stdout + done.stderr

    def __enter__(self) -> Self:
        try:
            self.start_service()
            self.start_collector()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.collector, self.service):
            if process:
                process.kill()
        self._stack.close()


class Traffic:
    """A running `tests.collector.sender`."""

    def __init__(self, pipeline: Pipeline, name: str, options: list[str]) -> None:
        self.folder = pipeline.folder / name
        self.folder.mkdir()
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "tests.collector.sender",
            pipeline.endpoint,
            self.folder,
            "--name",
            name,
        ]
        clock = pipeline.sender_clock.environment if pipeline.sender_clock else {}
        self.process = Process([*command, *options], self.folder / "log", clock, ROOT)
        self.lanes: dict[str, int] = {}
        self.answers: dict[str, int] = {}

    @property
    def acknowledged(self) -> int:
        """Calls acknowledged so far."""
        assert self.process.exit_code in {None, 0}, self.process.said()[-3000:]
        return sum(int(path.read_text() or 0) for path in self.folder.glob("lane-*"))

    def more(self, calls: int, timeout_s: float = 60.0) -> None:
        """Wait for so many acknowledgements more."""
        before = self.acknowledged
        wait_for(lambda: self.acknowledged >= before + calls, f"{calls} calls more are acknowledged", timeout_s)

    def run(self, seconds: float) -> None:
        """Let it send for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.exit_code in {None, 0}, self.process.said()[-3000:]
            time.sleep(0.05)

    def finish(self, timeout_s: float = SETTLE_S) -> None:
        """Have it end once what is under way is acknowledged."""
        if self.process.exit_code is None:
            assert self.process.terminate(timeout_s) == 0, self.process.said()[-3000:]
        sent = json.loads((self.folder / "sent.json").read_text())
        self.lanes, self.answers = sent["lanes"], sent["answers"]
