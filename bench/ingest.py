"""Ingest: durable records a second, acknowledgement latency, and two things to compare them with.

Run by itself: `python -m bench.ingest`. The server is a process of its own, and so is the load generator; bodies are encoded
before the clock starts, each with ids of its own.
"""

import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from bench.otlpgen import make_bodies
from otel_audit import config, server
from otel_audit.otlp import Decoder

__all__ = ["latency", "rows", "sqlite_full", "stock_decode", "throughput"]

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
Row = dict[str, Any]


def _row(name: str, value: float, unit: str, note: str = "") -> Row:
    return {"name": name, "value": value, "unit": unit, "note": note}


# --- processes ----------------------------------------------------------------------------------------------------------
@contextmanager
def _process(*args: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "bench.ingest", *args]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _ask(process: "subprocess.Popen[str]", line: str) -> Any:
    """Send one line to a load generator; its answer."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


@contextmanager
def _running_server(directory: str) -> Iterator[tuple[str, psutil.Process]]:
    with _process("serve", directory) as process:
        assert process.stdout
        yield process.stdout.readline().strip(), psutil.Process(process.pid)


def _serve(directory: str) -> int:
    addresses = {"dir": directory, "grpc": "127.0.0.1:0", "http": "127.0.0.1:0"}
    return server.serve(config.load(None, addresses), ready=lambda a: print(a.grpc, flush=True))


# --- the load generator: reads what to do from standard input --------------------------------------------------------------
class _Sender:
    """Sends bodies to a server, a given number at a time, again when told to come again."""

    def __init__(self, address: str, outstanding: int) -> None:
        self._channel = grpc.insecure_channel(address)
        self._export: Any = self._channel.unary_unary(METHOD)
        self._free = threading.Semaphore(outstanding)
        self._outstanding = outstanding
        self.retries = 0

    def send(self, body: bytes, intended_s: float, took_s: list[float]) -> None:
        self._free.acquire()

        def done(call: Any) -> None:
            if call.code() is grpc.StatusCode.OK:
                took_s.append(time.perf_counter() - intended_s)
                self._free.release()
                return
            self.retries += 1
            self._export.future(body).add_done_callback(done)

        self._export.future(body).add_done_callback(done)

    def wait(self) -> None:
        for _ in range(self._outstanding):
            self._free.acquire()
        for _ in range(self._outstanding):
            self._free.release()

    def fast(self, bodies: list[bytes]) -> tuple[float, list[float]]:
        """All bodies as fast as they are acknowledged: seconds, and latencies."""
        took_s: list[float] = []
        started = time.perf_counter()
        for body in bodies:
            self.send(body, time.perf_counter(), took_s)
        self.wait()
        return time.perf_counter() - started, took_s

    def paced(self, bodies: list[bytes], every_s: float) -> tuple[float, list[float]]:
        """One body every so often, whatever happened to those before: latency counts from when it was due."""
        took_s: list[float] = []
        started = time.perf_counter()
        for i, body in enumerate(bodies):
            due = started + i * every_s
            time.sleep(max(0.0, due - time.perf_counter()))
            self.send(body, due, took_s)
        self.wait()
        return time.perf_counter() - started, took_s


def _load(address: str, outstanding: int) -> int:
    sender = _Sender(address, outstanding)
    for line in sys.stdin:
        how, count, spans, every_s, seed = json.loads(line)
        bodies = make_bodies(count, spans, seed)
        seconds, took_s = sender.fast(bodies) if how == "fast" else sender.paced(bodies, every_s)
        took_s.sort()
        answer = {
            "seconds": seconds,
            "p50_ms": 1e3 * took_s[len(took_s) // 2],
            "p99_ms": 1e3 * took_s[len(took_s) * 99 // 100],
            "max_ms": 1e3 * took_s[-1],
            "retries": sender.retries,
            "cpu_s": sum(psutil.Process().cpu_times()[:2]),
        }
        print(json.dumps(answer), flush=True)
    return 0


# --- measurements -------------------------------------------------------------------------------------------------------
def throughput(
    seconds: float = 15.0, spans: int = 1000, outstanding: int = 16, directory: str | None = None
) -> list[Row]:
    """Durable records a second of one server process over OTLP/gRPC, as many as it takes to keep it busy."""
    with (
        tempfile.TemporaryDirectory(dir=directory) as folder,
        _running_server(folder) as (address, process),
        _process("load", address, str(outstanding)) as load,
    ):
        warm = _ask(load, json.dumps(["fast", 200, spans, 0, 1]))
        count = max(200, round(seconds * 200 / warm["seconds"]))
        before = process.cpu_times()
        result = _ask(load, json.dumps(["fast", count, spans, 0, 2]))
        after = process.cpu_times()
        rss = process.memory_info().rss
        cpu = (after.user + after.system - before.user - before.system) / result["seconds"]
        records = count * spans
    note = f"{records} records in {result['seconds']:.1f} s, {spans}-span requests, {outstanding} outstanding"
    return [
        _row("ingest OTLP/gRPC, durable", records / result["seconds"], "records/s", note),
        _row("acknowledgement at full load, p50", result["p50_ms"], "ms", note),
        _row("acknowledgement at full load, p99", result["p99_ms"], "ms", f"{result['retries']} retries"),
        _row("server CPU at full load", cpu, "cores", f"{1e6 * cpu * result['seconds'] / records:.2f} µs CPU/record"),
        _row("server memory after it", rss / 2**20, "MiB", "resident"),
    ]


def latency(
    seconds: float = 15.0, rate: int = 10_000, spans: int = 100, outstanding: int = 64, directory: str | None = None
) -> list[Row]:
    """Acknowledgement latency on an open-loop schedule, from when a request was due."""
    with (
        tempfile.TemporaryDirectory(dir=directory) as folder,
        _running_server(folder) as (address, process),
        _process("load", address, str(outstanding)) as load,
    ):
        _ask(load, json.dumps(["fast", 50, spans, 0, 1]))
        before = process.cpu_times()
        result = _ask(load, json.dumps(["paced", round(seconds * rate / spans), spans, spans / rate, 2]))
        after = process.cpu_times()
        cpu = (after.user + after.system - before.user - before.system) / result["seconds"]
    note = f"{rate} records/s in {spans}-span requests for {result['seconds']:.0f} s"
    return [
        _row("acknowledgement, p50", result["p50_ms"], "ms", note),
        _row(
            "acknowledgement, p99",
            result["p99_ms"],
            "ms",
            f"max {result['max_ms']:.1f} ms, {result['retries']} retries",
        ),
        _row("server CPU at that rate", cpu, "cores", ""),
    ]


def stock_decode(bodies: list[bytes], spans: int = 1000) -> list[Row]:
    """The same bodies through the stock protobuf classes, to the same columns as far as they can be looked up simply."""
    rounds = []
    for _ in range(3):
        started = time.perf_counter()
        for body in bodies:
            _stock(body)
        rounds.append(len(bodies) * spans / (time.perf_counter() - started))
    return [
        _row(
            "decode with the stock protobuf classes",
            statistics.median(rounds),
            "records/s",
            "parse and read, no storage",
        )
    ]


def _stock(body: bytes) -> list[tuple[Any, ...]]:
    """What a plain receiver does: parse, and gather ids, times and attributes of each span."""
    request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
    out = []
    for resource_spans in request.resource_spans:
        resource = {
            a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value")
            for a in resource_spans.resource.attributes
        }
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                attributes = {
                    a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value") for a in span.attributes
                }
                times = span.start_time_unix_nano, span.end_time_unix_nano
                out.append((span.trace_id, span.span_id, *times, span.kind, resource.get("service.name"), attributes))
    return out


def sqlite_full(bodies: list[bytes], directory: str | None = None) -> list[Row]:
    """The same records into SQLite, durable: synchronous=FULL, one transaction a batch; decoding is not counted."""
    decoder = Decoder()
    batches = [decoder.decode(body).records for body in bodies]
    columns = batches[0].schema.names
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        db = sqlite3.connect(Path(folder) / "audit.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"CREATE TABLE audit ({', '.join(columns)}, PRIMARY KEY (trace_id, span_id)) WITHOUT ROWID")
        insert = f"INSERT OR IGNORE INTO audit VALUES ({', '.join('?' * len(columns))})"
        prepared = []
        for batch in batches:
            values = [
                (c.cast("int64") if c.type.__class__.__name__ == "TimestampType" else c).to_pylist()
                for c in batch.columns
            ]
            prepared.append(list(zip(*values, strict=True)))
        started = time.perf_counter()
        for rows_ in prepared:
            db.execute("BEGIN")
            db.executemany(insert, rows_)
            db.execute("COMMIT")
        seconds = time.perf_counter() - started
        db.close()
    records = sum(map(len, prepared))
    note = "WAL, synchronous=FULL, unique ids, one transaction a request; decoding not counted"
    return [_row("the same records into SQLite", records / seconds, "records/s", note)]


def rows(seconds: float = 15.0) -> list[Row]:
    """Everything, in one run."""
    bodies = make_bodies(100, 1000, 3)
    return [*throughput(seconds), *latency(seconds), *stock_decode(bodies[:30]), *sqlite_full(bodies)]


def _main(args: list[str]) -> int:
    if args[:1] == ["serve"]:
        return _serve(args[1])
    if args[:1] == ["load"]:
        return _load(args[1], int(args[2]))
    for row in rows(float(args[0]) if args else 15.0):
        print(f"{row['name']:45} {row['value']:12,.1f} {row['unit']:10} {row['note']}")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
