"""The servers of the loss matrix, each with an application that knows nothing of auditing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.capture_support import BIN, free_port, wait_until
from tests.loss.client import Client, GrpcClient, HttpClient

APPS = Path(__file__).parent / "apps"


@dataclass(frozen=True)
class Server:
    """One row of the matrix.

    Args:
        name: as the document writes it.
        app: module in `apps/`.
        command: words after `opentelemetry-instrument`; `{port}`, `{app}` and `{python}` are filled in.
        reload: how it is told to load the application anew: `SIGHUP`, `file` (it watches its files), or `` for never.
        reload_command: the command with which it does, where that is another one.
        grpc: whether it speaks gRPC.
    """

    name: str
    app: str
    command: str
    reload: str = ""
    reload_command: str = ""
    grpc: bool = False


_GUNICORN = "gunicorn {app}:app --bind 127.0.0.1:{port} --workers 2"
# `--binary-path`: pyuwsgi reloads by running its interpreter again, and would forget the virtual environment.
_UWSGI = (
    "uwsgi --http-socket 127.0.0.1:{port} --module {app}:app --master --processes 2 --die-on-term --need-app "
    "--binary-path {python} --worker-reload-mercy 10"
)
_UVICORN = "uvicorn {app}:app --port {port}"
_HYPERCORN = "hypercorn {app}:app --bind 127.0.0.1:{port}"
_FLASK = "flask --app {app} run --port {port}"

SERVERS: dict[str, Server] = {
    server.name: server
    for server in (
        Server("uvicorn", "fastapi_app", _UVICORN, "file", f"{_UVICORN} --reload"),
        # Else its supervisor kills workers that a busy machine keeps from answering for 5 s.
        Server(
            "uvicorn --workers 2", "fastapi_app", f"{_UVICORN} --workers 2 --timeout-worker-healthcheck 60", "SIGHUP"
        ),
        Server("gunicorn sync", "flask_app", _GUNICORN, "SIGHUP"),
        Server("gunicorn gthread", "flask_app", f"{_GUNICORN} --threads 4", "SIGHUP"),
        Server("gunicorn --preload", "flask_app", f"{_GUNICORN} --preload", "SIGHUP"),
        Server(
            "gunicorn, uvicorn workers",
            "fastapi_app",
            f"{_GUNICORN} --worker-class uvicorn_worker.UvicornWorker",
            "SIGHUP",
        ),
        Server("hypercorn", "fastapi_app", _HYPERCORN, "file", f"{_HYPERCORN} --reload"),
        Server("uwsgi", "flask_app", _UWSGI, "SIGHUP"),
        Server("uwsgi --threads 4", "flask_app", f"{_UWSGI} --threads 4", "SIGHUP"),
        Server("uwsgi --lazy-apps", "flask_app", f"{_UWSGI} --lazy-apps", "SIGHUP"),
        Server("flask run", "flask_app", _FLASK, "file", "flask --app {app} --debug run --port {port}"),
        Server("aiohttp run_app", "aiohttp_app", "{python} {app}.py {port}"),
        Server("grpc", "grpc_app", "{python} {app}.py {port}", grpc=True),
        Server("grpc.aio", "grpc_aio_app", "{python} {app}.py {port}", grpc=True),
    )
}


class Running:
    """A server that runs, in a process group of its own."""

    def __init__(self, server: Server, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.server = server
        self.process = process
        self.port = port
        self.folder = folder

    def client(self) -> Client:
        """A client of it."""
        return (GrpcClient if self.server.grpc else HttpClient)(self.port)

    def output(self) -> str:
        """What it has printed."""
        return (self.folder / "output").read_text(errors="replace")

    def terminate(self) -> None:
        """SIGTERM to its first process, as a supervisor sends it, and wait until all of them are gone."""
        self.process.terminate()
        self._gone()

    def kill(self) -> None:
        """SIGKILL to all of its processes at once."""
        _signal_group(self.process.pid, signal.SIGKILL)
        self._gone()

    def reload(self) -> None:
        """Have it load the application anew; returns at once."""
        if self.server.reload == "SIGHUP":
            self.process.send_signal(signal.SIGHUP)
        else:
            os.utime(self.folder / f"{self.server.app}.py")

    def _gone(self) -> None:
        try:
            self.process.wait(timeout=120)
            wait_until(lambda: not _signal_group(self.process.pid, 0))
        except (subprocess.TimeoutExpired, AssertionError) as e:
            raise AssertionError(f"{self.server.name} does not end: {self.output()[-2000:]}") from e


def _signal_group(group: int, signum: int) -> bool:
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def running(server: Server, folder: Path, env: Mapping[str, str], *, reloads: bool = False) -> Iterator[Running]:
    """`server` under `opentelemetry-instrument`, answering; its application is copied to `folder`.

    Args:
        server: what to run.
        folder: an empty folder for it.
        env: its environment.
        reloads: whether it is to watch its files, where that is how it reloads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "started").mkdir()
    shutil.copy(APPS / f"{server.app}.py", folder)
    port = free_port()
    command = server.reload_command if reloads and server.reload_command else server.command
    first, *words = command.format(port=port, app=server.app, python=sys.executable).split()
    path = os.pathsep.join([str(BIN), env.get("PATH", "")])
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / "opentelemetry-instrument"), first if "/" in first else str(BIN / first), *words],
            cwd=folder,
            env={**env, "PATH": path, "STARTED": str(folder / "started")},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    found = Running(server, process, port, folder)
    try:
        _answers(found)
        yield found
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _answers(found: Running) -> None:
    client = found.client()
    deadline = time.monotonic() + 120
    while client.call("call", 0, trace_id="") is None:
        assert found.process.poll() is None, found.output()
        assert time.monotonic() < deadline, found.output()
        time.sleep(0.05)
    client.close()
