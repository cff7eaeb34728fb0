"""What auditing costs the service: FastAPI and Flask without OpenTelemetry, with plain instrumentation, with ours.

Each service is a process of its own under plain `opentelemetry-instrument`, called without a socket so that only the
application, its instrumentation and what they add are measured; its spans go to a receiver in another process. All kinds
take turns, in many short rounds, and each figure is the median over rounds of a difference within a round.

Run by itself: `python -m bench.overhead`.
"""

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc

__all__ = ["run"]

Row = dict[str, Any]

METHOD_SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
HEADERS: Final = {
    "host": "127.0.0.1:8000",
    "user-agent": "bench/1",
    "accept": "*/*",
    "x-api-key": "bench-key",
}
CLIENTS: Final = [{"id": "bench", "name": "The benchmark", "key": "bench-key"}]
KINDS: Final = {
    "none": "no OpenTelemetry",
    "bare": "plain instrumentation, no exporter",
    "plain": "plain instrumentation, batch exporter",
    "audit": "audited, mode async",
    "durable": "audited, mode durable",
    "both": "audited, mode async, beside the batch exporter",
}
BESIDE: Final = {"audit": "bare", "durable": "bare", "both": "plain"}
"""What a kind adds is counted over another."""


# --- the service ----------------------------------------------------------------------------------------------------------
def _fastapi() -> Callable[[int], None]:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/customers/{customer_id}")
    async def read_customer(customer_id: int) -> dict[str, int]:
        return {"id": customer_id}

    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    shared = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200

    async def call(count: int) -> None:
        for n in range(count):
            path = f"/customers/{n}"
            scope = {**shared, "path": path, "raw_path": path.encode(), "state": {}}
            await app(scope, receive, send)

    loop = asyncio.new_event_loop()
    return lambda count: loop.run_until_complete(call(count))


def _flask() -> Callable[[int], None]:
    import io

    from flask import Flask

    app = Flask(__name__)

    @app.get("/customers/<int:customer_id>")
    def read_customer(customer_id: int) -> dict[str, int]:
        return {"id": customer_id}

    shared = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "50000",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **{"HTTP_" + name.upper().replace("-", "_"): value for name, value in HEADERS.items()},
    }

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        assert status.startswith("200"), (status, headers, exc_info)
        return bytes

    def call(count: int) -> None:
        for n in range(count):
            body = app({**shared, "PATH_INFO": f"/customers/{n}", "wsgi.input": io.BytesIO()}, start_response)
            b"".join(body)
            getattr(body, "close", lambda: None)()

    return call


def _serve(framework: str) -> None:
    """Answer each number on standard input with what that many calls took."""
    call = {"fastapi": _fastapi, "flask": _flask}[framework]()
    call(300)  # everything is imported, connected and cached
    print(json.dumps({"rss_bytes": _rss_bytes()}), flush=True)
    for line in sys.stdin:
        count = int(line)
        wall, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
        call(count)
        found = {
            "wall_us": (time.perf_counter() - wall) / count * 1e6,
            "cpu_us": (time.process_time() - cpu) / count * 1e6,
            "thread_us": (time.thread_time() - own) / count * 1e6,
            "rss_bytes": _rss_bytes(),
        }
        print(json.dumps(found), flush=True)


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


# --- the receiver -----------------------------------------------------------------------------------------------------------
def _receive() -> None:
    """Take everything, in a process of its own, until standard input ends."""
    handlers: Any = {"Export": grpc.unary_unary_rpc_method_handler(lambda _body, _context: b"")}
    server = grpc.server(ThreadPoolExecutor(2), options=(("grpc.max_receive_message_length", -1),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHOD_SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None).wait()


@contextmanager
def _process(*words: str, env: Mapping[str, str] | None = None) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(60)


def _environment(kind: str, endpoint: str, folder: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    exporter = "otlp" if kind in ("plain", "both") else "none"
    return env | {
        "OTEL_SERVICE_NAME": "bench",
        "OTEL_TRACES_EXPORTER": exporter,
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_AUDIT_ENDPOINT": endpoint,
        "OTEL_AUDIT_SPOOL_DIR": f"{folder}/spool",
        "OTEL_AUDIT_CLIENTS": f"{folder}/clients.json",
        "OTEL_AUDIT_MODE": "durable" if kind == "durable" else "async",
    }


def _command(framework: str, kind: str) -> list[str]:
    child = [sys.executable, "-m", "bench.overhead", "serve", framework]
    if kind == "none":
        return child
    if kind in ("bare", "plain"):
        return [sys.executable, "-m", "bench.overhead", "plain", framework]
    return [str(Path(sys.executable).parent / "opentelemetry-instrument"), *child]


def _plain(framework: str) -> None:
    """`opentelemetry-instrument` as it is without otel-audit in the environment."""
    import opentelemetry.instrumentation.auto_instrumentation._load as module

    load: Any = module
    original = load.entry_points

    def without_ours(**wanted: Any) -> Any:
        return [found for found in original(**wanted) if not found.value.startswith("otel_audit.")]

    load.entry_points = without_ours
    from opentelemetry.instrumentation.auto_instrumentation import initialize

    initialize()
    assert "otel_audit.capture.autoload" not in sys.modules
    _serve(framework)


# --- measuring --------------------------------------------------------------------------------------------------------------
def _ask(process: "subprocess.Popen[str]", count: int) -> dict[str, float]:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    answer: dict[str, float] = json.loads(process.stdout.readline())
    return answer


def _measure(framework: str, rounds: int, count: int) -> dict[str, list[dict[str, float]]]:
    with tempfile.TemporaryDirectory(prefix="otel-audit-bench-") as folder, ExitStack() as stack:
        Path(folder, "clients.json").write_text(json.dumps(CLIENTS), encoding="utf-8")
        receiver = stack.enter_context(_process(sys.executable, "-m", "bench.overhead", "receive"))
        assert receiver.stdout
        endpoint = f"http://127.0.0.1:{receiver.stdout.readline().strip()}"
        running = {}
        for kind in KINDS:
            env = _environment(kind, endpoint, folder)
            running[kind] = stack.enter_context(_process(*_command(framework, kind), env=env))
        for process in running.values():
            assert process.stdout
            json.loads(process.stdout.readline())
        found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind, process in running.items():
                found[kind].append(_ask(process, count))
        return found


def _rows_of(framework: str, found: Mapping[str, list[dict[str, float]]]) -> Iterator[Row]:
    for kind, rounds in found.items():
        wall = statistics.median(r["wall_us"] for r in rounds)
        note = f"{statistics.median(r['cpu_us'] for r in rounds):.0f} µs of CPU in all threads"
        yield {"name": f"{framework}: {KINDS[kind]}", "value": wall, "unit": "µs/request", "note": note}
    for kind, other in BESIDE.items():
        pairs = list(zip(found[kind], found[other], strict=True))
        more = {name: statistics.median(r[name] - o[name] for r, o in pairs) for name in ("wall_us", "cpu_us")}
        yield {
            "name": f"{framework}: {KINDS[kind]}, over {KINDS[other]}",
            "value": more["wall_us"],
            "unit": "µs/request",
            "note": f"{more['cpu_us']:+.0f} µs of CPU in all threads"
            + ("" if kind == "durable" else "; aim: at most 60"),
        }
    grown = found["both"][-1]["rss_bytes"] - found["plain"][-1]["rss_bytes"]
    yield {
        "name": f"{framework}: memory over {KINDS['plain']}",
        "value": grown / 2**20,
        "unit": "MiB",
        "note": "resident, after all rounds; aim: under 20",
    }


_IMPORT: Final = """
import time, sys
import opentelemetry.instrumentation.auto_instrumentation._load, opentelemetry.sdk.trace, wrapt
import opentelemetry.sdk.resources, opentelemetry.instrumentation.utils
before = time.perf_counter()
import otel_audit.capture.autoload
print(time.perf_counter() - before)
"""


def _imports(runs: int) -> Row:
    """What capture adds to the imports that instrumentation makes anyway."""
    took = []
    for _ in range(runs):
        out = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True).stdout
        took.append(float(out) * 1e3)
    note = f"beyond what instrumentation imports; best {min(took):.0f}; aim: under 150"
    return {"name": "import capture", "value": statistics.median(took), "unit": "ms", "note": note}


def run(rounds: int = 40, count: int = 500) -> list[Row]:
    """Medians over `rounds` of `count` calls each."""
    rows = [_imports(3 if rounds < 10 else 11)]
    for framework in ("fastapi", "flask"):
        rows += _rows_of(framework, _measure(framework, rounds, count))
    return rows


def main() -> None:
    """Be one of the processes, or print the rows."""
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    if what == "serve":
        _serve(sys.argv[2])
    elif what == "plain":
        _plain(sys.argv[2])
    elif what == "receive":
        _receive()
    else:
        for row in run():
            print(f"{row['name']:60} {row['value']:8.1f} {row['unit']:12} {row['note']}")


if __name__ == "__main__":
    main()
