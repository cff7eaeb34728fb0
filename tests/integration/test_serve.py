"""The service as a process: `otel-audit serve`, and `Server` within one."""

import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import pytest

from otel_audit import quarantine
from otel_audit.config import ServerSettings, load
from otel_audit.errors import ConfigError, LockedError
from otel_audit.reader import LogReader
from otel_audit.server import Server
from tests.receiver_support import NOT_OTLP, body, export_to, failure

PROTOBUF = {"content-type": "application/x-protobuf"}


def settings(folder: Path, **overrides: object) -> ServerSettings:
    return load(None, {"dir": str(folder), "grpc": "127.0.0.1:0", "http": "127.0.0.1:0", **overrides})


@dataclass
class Served:
    process: "subprocess.Popen[str]"
    grpc: str
    http: str
    said: list[str] = field(default_factory=list)

    def end(self) -> int:
        """Wait for the end of the process; its exit code."""
        return self.process.wait(60)


@contextmanager
def served(folder: Path, before: Sequence[str] = ()) -> Iterator[Served]:
    """`otel-audit serve` on free ports, run by the command `before`; what it says on standard error is collected."""
    command = [*before, sys.executable, "-m", "otel_audit", "serve", "--dir", str(folder)]
    command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said: list[str] = []
        try:
            found = None
            while not found:
                line = process.stderr.readline()
                assert line, said
                said.append(line)
                found = re.match(r"listening grpc=(\S+) http=(\S+) dir=(.*)\n", line)
            assert found.group(3) == str(folder.resolve())
            rest = threading.Thread(target=said.extend, args=(process.stderr,))
            rest.start()
            yield Served(process, found.group(1), found.group(2), said)
        finally:
            process.kill()
            process.wait(60)
            rest.join(60)


def records(folder: Path) -> int:
    return LogReader.open(folder).snapshot().last_seq


def test_what_is_sent_over_both_protocols_is_in_the_log(tmp_path: Path) -> None:
    with Server(settings(tmp_path)) as server:
        with export_to(server.addresses.grpc) as export:
            export(body(3), timeout=10)
            assert records(tmp_path) == 3, "an acknowledged record can be read"
            export(body(3), timeout=10)
            with pytest.raises(grpc.RpcError) as refused:
                export(NOT_OTLP, timeout=10)
        url = f"http://{server.addresses.http}/v1/traces"
        assert httpx.post(url, content=body(5), headers=PROTOBUF, trust_env=False).status_code == 200
        stats = server.stats()
    assert failure(refused.value)[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert records(tmp_path) == 5, "a request sent again adds nothing"
    assert (stats.spans, stats.records, stats.duplicates, stats.quarantined) == (11, 5, 6, 1)
    (entry,) = quarantine.read(tmp_path)
    assert (entry.reason, entry.payload) == ("request_undecodable", NOT_OTLP)


def test_the_addresses_read_as_scripts_expect(tmp_path: Path) -> None:
    with Server(settings(tmp_path)) as server:
        text = str(server.addresses)
    assert re.fullmatch(r"listening grpc=127\.0\.0\.1:\d+ http=127\.0\.0\.1:\d+ dir=/.*", text)


def test_a_protocol_can_be_off(tmp_path: Path) -> None:
    file = tmp_path / "audit.yaml"
    file.write_text("receivers: {otlp: {protocols: {grpc: {endpoint: '127.0.0.1:0'}}}}")
    with Server(load(file, {"dir": str(tmp_path / "log")})) as server:
        assert server.addresses.http is None
        assert " http=off " in str(server.addresses)
        with export_to(server.addresses.grpc) as export:
            export(body(), timeout=10)


def test_a_server_that_cannot_listen_lets_the_folder_go(tmp_path: Path) -> None:
    with Server(settings(tmp_path / "one")) as first:
        assert first.addresses.grpc
        with pytest.raises(ConfigError, match="in use"):
            Server(settings(tmp_path / "two", grpc=first.addresses.grpc))
        with pytest.raises(LockedError):
            Server(settings(tmp_path / "one"))
    for folder in ("one", "two"):
        with Server(settings(tmp_path / folder)):
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_after_what_is_under_way(tmp_path: Path, number: signal.Signals) -> None:
    with served(tmp_path) as service, export_to(service.grpc) as export:
        calls = [export.future(body(100), timeout=30) for _ in range(20)]
        export(body(2), timeout=30)
        service.process.send_signal(number)
        codes = {call.code() for call in calls}
        assert service.end() == 0
        assert service.process.stdout
        assert service.process.stdout.read() == "", "standard output is data, and there is none"
    retryable = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}  # the latter where gRPC itself let a call go
    assert codes <= {grpc.StatusCode.OK, *retryable}
    assert records(tmp_path) in ((100,) if grpc.StatusCode.OK in codes else (2, 100)), "what was acknowledged is there"
    assert any("stopped" in line for line in service.said)


def test_the_service_may_open_as_many_files_as_its_hard_limit_allows(tmp_path: Path) -> None:
    with served(tmp_path, ["sh", "-c", 'ulimit -Sn 200; exec "$@"', "sh"]) as service:
        soft, hard = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard > 200


def test_too_few_files_for_the_connections_that_may_come_are_warned_of(tmp_path: Path) -> None:
    with served(tmp_path, ["sh", "-c", 'ulimit -n 2000; exec "$@"', "sh"]) as service:
        service.process.send_signal(signal.SIGTERM)
        assert service.end() == 0
    assert any("at most 2000 files can be open" in line and "max_connections" in line for line in service.said)


def test_a_second_signal_ends_the_service_at_once(tmp_path: Path) -> None:
    with served(tmp_path) as service, export_to(service.grpc) as export:
        export(body(7), timeout=10)
        # A body that never ends keeps the service from ending by itself.
        host, _, port = service.http.rpartition(":")
        with httpx.Client(trust_env=False) as http:
            begun, hold = threading.Event(), threading.Event()

            def endless() -> Iterator[bytes]:
                yield b"x"
                begun.set()
                hold.wait()

            def post() -> None:
                with pytest.raises(httpx.HTTPError):
                    http.post(f"http://{host}:{port}/v1/traces", content=endless(), headers=PROTOBUF, timeout=60)

            sender = threading.Thread(target=post, daemon=True)
            sender.start()
            assert begun.wait(20)
            service.process.send_signal(signal.SIGTERM)
            while not any("stopping" in line for line in service.said):
                assert service.process.poll() is None
            service.process.send_signal(signal.SIGTERM)
            assert service.end() == 128 + signal.SIGTERM
            hold.set()
            sender.join(30)
    assert records(tmp_path) == 7, "what was acknowledged is there all the same"


def test_a_taken_port_is_a_usage_error_that_names_the_address(tmp_path: Path) -> None:
    with Server(settings(tmp_path / "one")) as first:
        assert first.addresses.grpc
        command = [sys.executable, "-m", "otel_audit", "serve", "--dir", str(tmp_path / "two")]
        command += ["--grpc", first.addresses.grpc, "--http", "127.0.0.1:0"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert f"listen on {first.addresses.grpc}: the port is in use by another process" in ended.stderr
    assert "Traceback" not in ended.stderr
