"""A record that was lost on the way is named: real services, the real log, and between them a proxy that misbehaves."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest

from tests.capture_support import METHOD, Service, environment, free_port, service, spans_of, wait_until
from tests.support import calls_of

Treatment = Literal["pass", "drop", "hold", "double"]


# --- the log --------------------------------------------------------------------------------------------------------------
@dataclass
class Log:
    """`otel-audit serve` as a process."""

    process: "subprocess.Popen[str]"
    address: str
    said: list[str] = field(default_factory=list)

    def says(self, text: str) -> bool:
        return any(text in line for line in self.said)

    def stop(self) -> str:
        """End it; its last line."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0
        wait_until(lambda: self.says("stopped: "))
        return self.said[-1]


@contextmanager
def audit_log(folder: Path, late: str = "5m", exclude: str = "[]") -> Iterator[Log]:
    config = folder.with_suffix(".yaml")
    config.write_text(f"log: {{late_after: {late}}}\nexclude_routes: {exclude}\n")
    command = [sys.executable, "-m", "otel_audit", "serve", "--config", str(config), "--dir", str(folder)]
    command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said: list[str] = []
        reader = threading.Thread(target=said.extend, args=(process.stderr,))
        reader.start()
        log = Log(process, "", said)
        try:
            wait_until(lambda: log.says("listening ") or process.poll() is not None)
            found = re.search(r"grpc=(\S+)", next(line for line in said if line.startswith("listening ")))
            assert found
            log.address = found[1]
            yield log
        finally:
            process.kill()
            process.wait(30)
            reader.join(30)


# --- the proxy ------------------------------------------------------------------------------------------------------------
@dataclass
class Proxy:
    """Between a service and the log; acknowledges what it drops and what it holds."""

    address: str = ""
    treatment: Treatment = "pass"
    dropped: list[int] = field(default_factory=list)
    """Numbers of what was dropped or held."""
    held: list[bytes] = field(default_factory=list)
    send: Callable[[bytes], Any] = bytes

    def take(self, body: bytes) -> None:
        treatment = self.treatment
        if treatment in ("pass", "double"):
            for _ in range(1 + (treatment == "double")):
                self.send(body)
            return
        self.held.append(body)
        self.dropped += [s.attributes["audit.source.seq"] for s in spans_of(body)]

    def release(self) -> None:
        """Send on what was held."""
        self.treatment = "pass"
        while self.held:
            self.send(self.held.pop())


@contextmanager
def proxy(to: str, port: int = 0) -> Iterator[Proxy]:
    made = Proxy()

    def export(body: bytes, context: Any) -> bytes:
        try:
            made.take(body)
        except grpc.RpcError as e:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(e))
        return b""

    handler: Any = grpc.unary_unary_rpc_method_handler(export)
    server = grpc.server(ThreadPoolExecutor(2))
    service_name, name = METHOD[1:].split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, {name: handler}),))
    made.address = f"http://127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    with grpc.insecure_channel(to) as channel:
        call: Any = channel.unary_unary(METHOD)
        made.send = lambda body: call(body, timeout=20)
        server.start()
        try:
            yield made
        finally:
            server.stop(5).wait()


# --- what `gaps` says -------------------------------------------------------------------------------------------------------
@dataclass
class Told:
    code: int
    sources: list[dict[str, Any]]
    message: str

    @property
    def missing(self) -> dict[str, list[int]]:
        """Numbers by verdict."""
        found: dict[str, list[int]] = {}
        for gap in (g for s in self.sources for g in s["gaps"]):
            found.setdefault(gap["verdict"], []).extend(range(gap["first"], gap["last"] + 1))
        return found


def gaps(folder: Path, *arguments: str) -> Told:
    command = [sys.executable, "-m", "otel_audit", "gaps", "--json", "--dir", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 3), done.stderr
    return Told(done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr)


def get(running: Service, numbers: range) -> None:
    for n in numbers:
        assert running.get(f"/things/{n}") == 200


def stored(folder: Path, count: int) -> None:
    wait_until(lambda: len(calls_of(folder)) >= count)


# --- promises ---------------------------------------------------------------------------------------------------------------
def test_a_batch_dropped_on_purpose_is_named_with_its_numbers_from_whom_and_since_when(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with audit_log(folder, late="1s") as log, proxy(log.address) as between:
        env = environment(OTEL_AUDIT_ENDPOINT=between.address, OTEL_RESOURCE_ATTRIBUTES="service.instance.id=blue-1")
        with service("uvicorn", tmp_path, env) as s:
            get(s, range(5))
            stored(folder, 5)
            between.treatment = "drop"
            get(s, range(5, 9))
            wait_until(lambda: len(between.dropped) == 4)
            between.treatment = "pass"
            get(s, range(9, 12))
            stored(folder, 8)
            s.stop()
        found = gaps(folder, "--late", "0s")
        assert found.code == 3
        assert sorted(between.dropped) == [7, 8, 9, 10]
        assert found.missing == {"lost": [7, 8, 9, 10]}
        (source,) = found.sources
        calls = {c["target"]: c for c in calls_of(folder)}
        assert (source["service"], source["instance"], source["state"]) == ("things", "blue-1", "clean")
        assert source["source"] == calls["/things/0"]["source_id"]
        (gap,) = source["gaps"]
        shown = [calls[t]["time"].strftime("%Y-%m-%dT%H:%M:%S.%fZ") for t in ("/things/4", "/things/9")]
        assert [gap["before"], gap["after"]] == shown, "since when: the calls before and after"
        wait_until(lambda: log.says(f"source {source['source']} of things misses 4 records, numbers 7-10: "))
        assert " sources=1 running=0 missing=4 reported=4" in log.stop()
    assert sum("misses" in line for line in log.said) == 1, "told once"
    for sealed in (False, True):
        with audit_log(folder, late="1s") as log:
            wait_until(lambda: log.says("4 records of 1 sources are missing in the log"))
            log.stop()
        assert not any("source " in line for line in log.said), "what is in the log, here unsealed or not, is no news"
        assert sum("missing in" in line for line in log.said) == 1
        if not sealed:
            command = [sys.executable, "-m", "otel_audit", "seal", "--dir", str(folder)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_what_may_still_be_on_its_way_is_late_and_gone_when_it_has_come(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with audit_log(folder) as log, proxy(log.address) as between:
        with service("uvicorn", tmp_path, environment(OTEL_AUDIT_ENDPOINT=between.address)) as s:
            get(s, range(2))
            stored(folder, 2)
            between.treatment = "hold"
            get(s, range(2, 4))
            wait_until(lambda: len(between.dropped) == 2)
            between.treatment = "pass"
            get(s, range(4, 6))
            stored(folder, 4)
            found = gaps(folder)
            assert (found.code, found.missing) == (0, {"late": [4, 5]})
            assert found.sources[0]["state"] == "running"
            found = gaps(folder, "--late", "0s")
            assert (found.code, found.missing) == (3, {"lost": [4, 5]})
            between.release()
            stored(folder, 6)
            found = gaps(folder, "--late", "0s")
            assert (found.code, found.sources) == (0, [])
            s.stop()
        assert " missing=0 reported=0" in log.stop()
    assert not any("misses" in line for line in log.said)


def test_batches_that_come_twice_are_no_gap(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with audit_log(folder) as log, proxy(log.address) as between:
        between.treatment = "double"
        with service("uvicorn", tmp_path, environment(OTEL_AUDIT_ENDPOINT=between.address)) as s:
            get(s, range(5))
            stored(folder, 5)
            s.stop()
        assert re.search(r" duplicates=7 ", log.stop()), "five calls, start and stop"
    found = gaps(folder, "--late", "0s", "--all")
    assert (found.code, found.missing, found.sources[0]["copies"]) == (0, {}, 0)
    assert not (folder / "numbers").exists(), "a retry needs no note"


def test_a_killed_source_has_no_end_and_its_successor_a_clean_one(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with audit_log(folder) as log:
        env = environment(OTEL_AUDIT_ENDPOINT=f"http://{log.address}")
        with service("uvicorn", tmp_path, env) as s:
            get(s, range(3))
            stored(folder, 3)
            s.kill_all()
        found = gaps(folder, "--all")
        assert [x["state"] for x in found.sources] == ["running"], "that it is dead cannot be known yet"
        with service("uvicorn", tmp_path, env) as s:
            get(s, range(3, 5))
            stored(folder, 5)
            s.stop()
        wait_until(lambda: log.says("ended in good order"))
        assert sum(" of things began" in line for line in log.said) == 2
        assert not any("before it" in line for line in log.said)
        found = gaps(folder, "--all", "--late", "0s")
        assert (found.code, found.missing) == (0, {})
        assert [(x["state"], x["records"]) for x in found.sources] == [("no end", 4), ("clean", 4)]
        assert "ended" in found.sources[1]
        assert gaps(folder, "--late", "0s").sources == []
        assert "1 without an end" in gaps(folder, "--late", "0s").message


def test_what_a_full_spool_dropped_is_named_with_the_reason(tmp_path: Path) -> None:
    folder, port = tmp_path / "log", free_port()
    env = environment(
        OTEL_AUDIT_ENDPOINT=f"http://127.0.0.1:{port}",
        OTEL_AUDIT_SPOOL_BYTES=str(1 << 20),
        OTEL_AUDIT_BLOCK_TIMEOUT="0",
    )
    with service("uvicorn", tmp_path, env) as s:
        calls = 0
        while "lost so far" not in s.output():
            assert s.get(f"/things/1?{'x' * 20_000}") == 200
            calls += 1
        with audit_log(folder) as log, proxy(log.address, port):
            stored(folder, 1)
            wait_until(lambda: s.get("/things/2") == 200 and any(c["target"] == "/things/2" for c in calls_of(folder)))
            s.stop()
            found = gaps(folder, "--late", "0s")
    there = {c["source_seq"] for c in calls_of(folder)}
    assert found.code == 3
    assert found.missing == {"dropped": sorted(set(range(2, calls + 2)) - there)}
    assert "has reached its size" in found.sources[0]["gaps"][0]["reason"]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_call_that_the_users_own_exporter_brought_first_is_not_missing(tmp_path: Path, restarted: bool) -> None:
    folder = tmp_path / "log"
    with audit_log(folder) as log, proxy(log.address) as between:
        between.treatment = "hold"  # so that theirs are first
        env = environment(
            OTEL_AUDIT_ENDPOINT=between.address,
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{log.address}",
            OTEL_BSP_SCHEDULE_DELAY="50",
        )
        with service("uvicorn", tmp_path, env) as s:
            get(s, range(4))
            stored(folder, 4)
            wait_until(lambda: len(between.dropped) >= 5)
            between.release()
            get(s, range(4, 6))
            s.stop()
        calls = calls_of(folder)
        assert sorted(c["target"] for c in calls) == [f"/things/{n}" for n in range(6)], "no call is there twice"
        assert sum(c["source_seq"] is None for c in calls) >= 4
        if restarted:
            log.stop()
        found = gaps(folder, "--late", "0s", "--all")
    assert (found.code, found.missing) == (0, {})
    assert found.sources[0]["copies"] == sum(c["source_seq"] is None for c in calls)
    assert "came first through another exporter" in found.message


def test_calls_of_excluded_routes_are_not_missing(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with audit_log(folder, exclude="[/done]") as log:
        env = environment(OTEL_AUDIT_ENDPOINT=f"http://{log.address}", STARTED=str(tmp_path / "started"))
        with service("uvicorn", tmp_path, env) as s:
            get(s, range(2))
            assert s.get("/done") == 200
            get(s, range(2, 4))
            stored(folder, 4)
            s.stop()
        log.stop()
    found = gaps(folder, "--late", "0s", "--all")
    assert (found.code, found.missing) == (0, {})
    assert (found.sources[0]["records"], found.sources[0]["unrecorded"]) == (6, 1)
