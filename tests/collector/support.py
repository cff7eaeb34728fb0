"""Real processes of an audit pipeline: a Collector, the service, and ports for them. Loopback only."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.tools import COLLECTOR, ROOT

CONFIGS = ROOT / "collector-config"


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Wait until a condition holds; fails with `what` if it never does."""
    due_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > due_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


class Process:
    """A process with its output in a file; killed at the end if it still runs.

    Args:
        command: what to run.
        log: file for its output; appended to.
        environment: beside that of this process.
        cwd: where it runs.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def said(self) -> str:
        """All it has printed."""
        return self.log.read_text(errors="replace")

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL it with all it has started, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(30)

    def terminate(self, timeout_s: float = 30.0) -> int:
        """SIGTERM; gives the exit code."""
        self._process.terminate()
        return self._process.wait(timeout_s)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, as SIGSTOP and SIGCONT."""
        self._process.send_signal(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Collector(Process):
    """A real Collector, running and ready.

    Args:
        configs: its configuration files, merged as it does.
        folder: for its log and its state.
        environment: what `${env:...}` stands for.
        health: `host:port` of its health_check extension, to wait for; empty: wait for what it logs.
        prefix: a command that runs it.
    """

    def __init__(
        self,
        configs: Sequence[Path],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        health: str = "",
        timeout_s: float = 60.0,
        prefix: Sequence[str | Path] = (),
    ) -> None:
        command: list[str | Path] = [*prefix, COLLECTOR.get() / "otelcol"]
        for config in configs:
            command += ["--config", config]
        log = folder / "collector.log"
        seen = len(log.read_text(errors="replace")) if log.exists() else 0
        super().__init__(command, log, environment, folder)

        def ready() -> bool:
            assert self.exit_code is None, f"the Collector ended:\n{self.said()[-3000:]}"
            return answers(f"http://{health}/") if health else "Everything is ready" in self.said()[seen:]

        try:
            wait_for(ready, "the Collector is ready", timeout_s)
        except BaseException:
            self.kill()
            raise


def validate_with_collector(configs: Sequence[Path], environment: Mapping[str, str] | None = None) -> str:
    """What `otelcol validate` says of files; empty if they are good."""
    command = [str(COLLECTOR.get() / "otelcol"), "validate"]
    for config in configs:
        command += ["--config", str(config)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(environment or {})}, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


_LISTENING = re.compile(r"listening grpc=(\S+) http=(\S+) dir=(\S+)")


class Service(Process):
    """A real `otel-audit serve`, running and ready.

    Args:
        directory: folder of the log.
        arguments: more of the command line, as `--config`.
        grpc: address of OTLP/gRPC; `http`: of OTLP/HTTP.
        prefix: a command that runs it.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str | Path,
        grpc: str = "127.0.0.1:0",
        http: str = "127.0.0.1:0",
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        prefix: Sequence[str | Path] = (),
    ) -> None:
        log = log or directory.parent / f"{directory.name}.log"
        seen = len(log.read_text(errors="replace")) if log.exists() else 0
        command = [sys.executable, "-m", "otel_audit", "serve", "--dir", str(directory), "--grpc", grpc, "--http", http]
        super().__init__([*prefix, *command, *arguments], log, environment, directory.parent)

        def listening() -> re.Match[str] | None:
            assert self.exit_code is None, f"the service ended:\n{self.said()[-3000:]}"
            return _LISTENING.search(self.said()[seen:])

        try:
            wait_for(listening, "the service listens")
        except BaseException:
            self.kill()
            raise
        found = listening()
        assert found is not None
        self.grpc, self.http, self.directory = found[1], found[2], Path(found[3])


@contextlib.contextmanager
def stopped(process: Process) -> Iterator[None]:
    """A process that does not run for a while, as one on an overloaded machine."""
    process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send(signal.SIGCONT)
