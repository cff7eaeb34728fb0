"""The end of a real service, within its bound: under load, with senders that stall, with a disk that hangs.

Whatever hangs: every record that was acknowledged is there exactly once, nothing else was acknowledged, and the process ends.
"""

import contextlib
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from otel_audit.reader import LogReader
from otel_audit.receiver import parse_endpoint
from tests.collector.support import Process, Service, wait_for
from tests.otlp_support import encoded, request, span
from tests.receiver_support import body, export_to
from tests.support import check_log

TIMEOUT_S = 3.0
CONSTANT_S = 15.0  # beyond the bound: starting a thread or two takes its time on a busy machine
PROTOBUF = {"content-type": "application/x-protobuf"}
RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,  # where gRPC itself let a call go
}

HANGING = """
import os, sys, time
from otel_audit import __main__, journal
marker, sync = sys.argv.pop(1), os.fdatasync

def fdatasync(fd):
    while os.path.exists(marker):  # as a disk does that does not answer
        time.sleep(0.01)
    sync(fd)

os.fdatasync = fdatasync
sys.exit(__main__.main())
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "audit.yaml"
    scraped = "{metrics: {readers: [{pull: {exporter: {prometheus: {host: 127.0.0.1, port: 0}}}}]}}"
    path.write_text(f"service: {{shutdown_timeout: {TIMEOUT_S:g}s, telemetry: {scraped}}}\n")
    return path


def batch(sender: int, number: int, spans: int = 20) -> bytes:
    trace = sender.to_bytes(8, "big") + (number + 1).to_bytes(8, "big")
    return encoded(request(*(span(trace_id=trace, span_id=(n + 1).to_bytes(8, "big")) for n in range(spans))))


class Sender(threading.Thread):
    """Sends batches until it is refused; knows which were acknowledged."""

    def __init__(self, number: int, address: str) -> None:
        super().__init__()
        self.number = number
        self._address = address
        self.acknowledged: list[int] = []
        self.code: grpc.StatusCode | None = None

    def run(self) -> None:
        number = 0
        with export_to(self._address) as export:
            while True:
                try:
                    export(batch(self.number, number), timeout=60)
                except grpc.RpcError as e:
                    self.code = e.code()
                    return
                self.acknowledged.append(number)
                number += 1


class Post(threading.Thread):
    """One request over HTTP; knows its answer, None if the connection broke."""

    def __init__(self, address: str, content: bytes) -> None:
        super().__init__()
        self._url, self._content = f"http://{address}/v1/traces", content
        self.code: int | None = None

    def run(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            self.code = httpx.post(
                self._url, content=self._content, headers=PROTOBUF, trust_env=False, timeout=60
            ).status_code


def end(service: Process) -> tuple[int, float]:
    """SIGTERM; the exit code, and how long it took."""
    started_s = time.monotonic()
    code = service.terminate(TIMEOUT_S + CONSTANT_S)
    return code, time.monotonic() - started_s


def test_under_load_every_acknowledged_record_is_there_exactly_once(tmp_path: Path, config: Path) -> None:
    with Service(tmp_path / "log", "--config", config) as service:
        senders = [Sender(n, service.grpc) for n in range(4)]
        for sender in senders:
            sender.start()
        wait_for(lambda: all(len(s.acknowledged) >= 5 for s in senders), "data flows")
        code, _ = end(service)
        for sender in senders:
            sender.join(60)
    assert code == 0
    assert {s.code for s in senders} <= RETRYABLE
    stored = {(r["trace_id"], r["span_id"]) for r in check_log(tmp_path / "log")}
    for sender in senders:
        for number in sender.acknowledged:
            trace = sender.number.to_bytes(8, "big") + (number + 1).to_bytes(8, "big")
            assert {(trace, (n + 1).to_bytes(8, "big")) for n in range(20)} <= stored


def test_a_sender_that_stalls_does_not_hold_up_the_end(tmp_path: Path, config: Path) -> None:
    with Service(tmp_path / "log", "--config", config) as service, contextlib.ExitStack() as stack:
        with export_to(service.grpc) as export:
            export(body(5), timeout=30)
        stalled = [stack.enter_context(socket.create_connection(parse_endpoint(service.http))) for _ in range(3)]
        stalled[0].sendall(b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n")
        head = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 1000\r\n\r\n"
        stalled[1].sendall(head + b"x" * 10)
        endless: Any = stack.enter_context(grpc.insecure_channel(service.grpc)).stream_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        )
        begun, hold = threading.Event(), threading.Event()

        def never() -> Iterator[bytes]:
            begun.set()
            hold.wait()
            yield b""

        call = endless.future(never(), timeout=120)
        assert begun.wait(30)
        code, _ = end(service)
        hold.set()
        assert call.code() in RETRYABLE
    assert code == 0
    assert len(check_log(tmp_path / "log")) == 5


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "the-disk-hangs"


def hanging(tmp_path: Path, config: Path, marker: Path, program: str = HANGING) -> Service:
    """The service, with a fault built in: syncs of its journal that do not return while `marker` is there."""
    (tmp_path / "hanging.py").write_text(program)
    service = Service.__new__(Service)
    command: list[str | Path] = [
        sys.executable,
        tmp_path / "hanging.py",
        marker,
        "serve",
        "--dir",
        tmp_path / "log",
        "--config",
        config,
    ]
    Process.__init__(service, [*command, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"], tmp_path / "service.log")
    wait_for(lambda: " dir=" in service.said() or service.exit_code is not None, "the service listens")
    line = next(part for part in service.said().splitlines() if part.startswith("listening"))
    service.grpc, service.http = (part.partition("=")[2] for part in line.split()[1:3])
    return service


def write_hangs(service: Service) -> bool:
    """Whether the service says so."""
    response = httpx.get(f"http://{service.http}/readyz", trust_env=False, timeout=30)
    return response.status_code == 503 and "a write to the disk has been under way for" in response.text


def test_a_disk_that_hangs_does_not_hold_up_the_end_and_nothing_of_it_is_acknowledged(
    tmp_path: Path, config: Path, marker: Path
) -> None:
    with hanging(tmp_path, config, marker) as service:
        with export_to(service.grpc) as export:
            export(batch(0, 0), timeout=30)
        marker.touch()
        sender, post = Sender(1, service.grpc), Post(service.http, batch(2, 0))
        sender.start()
        post.start()
        wait_for(lambda: write_hangs(service), "readiness says that a write hangs")
        url = re.findall(r"metrics are at (\S+)", service.said())[0]
        assert "\notel_audit_healthy 0\n" in httpx.get(url, trust_env=False, timeout=30).text, "metrics do not hang"
        code, took_s = end(service)
        sender.join(60)
        post.join(60)
        said = service.said()
    assert code == 1
    assert took_s >= TIMEOUT_S, "what was under way had its time"
    assert "not stopped within 3 s" in said
    assert sender.acknowledged == []
    assert sender.code in RETRYABLE
    assert post.code == 503, "what is answered with 500 senders drop"
    marker.unlink()
    with Service(tmp_path / "log", "--config", config) as again, export_to(again.grpc) as export:
        for number in (0, 1, 2):  # as senders do that got no answer
            export(batch(number, 0), timeout=30)
        assert again.terminate() == 0
    assert len(check_log(tmp_path / "log")) == 60


def test_a_disk_that_answers_again_in_time_loses_nothing(tmp_path: Path, config: Path, marker: Path) -> None:
    with hanging(tmp_path, config, marker) as service:
        marker.touch()
        post = Post(service.http, batch(1, 0))
        post.start()

        def under_way() -> bool:
            return any((tmp_path / "log" / "journal").glob("*.journal"))

        wait_for(under_way, "the request is being written")
        service.send(signal.SIGTERM)
        wait_for(lambda: "stopping" in service.said(), "the service stops")
        marker.unlink()
        post.join(60)
        wait_for(lambda: service.exit_code is not None, "it ends")
        assert service.exit_code == 0
    assert post.code == 200
    assert len(check_log(tmp_path / "log")) == 20


SEALING = """
import os, sys, threading
from otel_audit import __main__, lake
marker = sys.argv.pop(1)

def seal(*arguments):
    open(marker, "w").close()
    threading.Event().wait()

lake.Lake.seal = seal
sys.exit(__main__.main())
"""


def test_a_seal_that_takes_too_long_is_left_to_the_next_start(tmp_path: Path, config: Path, marker: Path) -> None:
    config.write_text(config.read_text() + "log: {segment_rows: 20}\n")
    with hanging(tmp_path, config, marker, SEALING) as service:
        with export_to(service.grpc) as export:
            export(batch(0, 0), timeout=30)
            wait_for(marker.exists, "a segment is being sealed")
            export(batch(1, 0, spans=5), timeout=30)
        code, _ = end(service)
        assert "the next start seals it again" in service.said()
    assert code == 0
    with Service(tmp_path / "log", "--config", config) as again:
        assert again.terminate() == 0
    assert len(check_log(tmp_path / "log")) == 25
    assert LogReader.open(tmp_path / "log").snapshot().sealed_seq == 20


def test_new_requests_are_refused_retryably_while_the_end_is_near(tmp_path: Path, config: Path, marker: Path) -> None:
    with hanging(tmp_path, config, marker) as service:
        with httpx.Client(base_url=f"http://{service.http}", trust_env=False, timeout=60) as http:
            assert http.post("/v1/traces", content=batch(0, 0), headers=PROTOBUF).status_code == 200
            marker.touch()
            post = Post(service.http, batch(1, 0))
            with export_to(service.grpc) as export:
                export(batch(0, 0), timeout=60)  # nothing new: it needs no sync
                post.start()
                wait_for(lambda: write_hangs(service), "the request is being written")
                service.send(signal.SIGTERM)
                wait_for(lambda: "stopping" in service.said(), "the service stops")
                with pytest.raises(grpc.RpcError) as refused:
                    export(batch(3, 0), timeout=60)
            with contextlib.suppress(httpx.HTTPError):  # the connection may be gone, which is retryable as well
                assert http.post("/v1/traces", content=batch(4, 0), headers=PROTOBUF).status_code == 503
        post.join(60)
        wait_for(lambda: service.exit_code is not None, "it ends")
    assert refused.value.code() in RETRYABLE
    assert post.code == 503
