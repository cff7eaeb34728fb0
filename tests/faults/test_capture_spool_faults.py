"""The spool when its disk, its folder or its neighbours misbehave."""

import errno
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from otel_audit import names
from otel_audit.capture import delivery as delivery_module
from otel_audit.capture.frames import RECORD, frame
from otel_audit.capture.outbox import orphans
from otel_audit.capture.processor import AuditSpanProcessor, Calls
from otel_audit.capture.recorder import Recorder
from otel_audit.capture.settings import destination
from otel_audit.capture.spool import Spool, folder_of
from tests.capture_support import BIN, environment, grpc_sink, service, spans_of
from tests.loss.servers import APPS
from tests.spool_support import MIB, FakeTransport, fill, record, settings, spool, texts_of


def _left_by_the_dead(parent: Path, data: bytes) -> list[str]:
    """What the next process reads of a dead source whose only file is `data`."""
    dead = spool(parent, "dead-1-aa")
    fill(dead, "first")
    next(dead.folder.glob("*.spool")).write_bytes(data)
    dead.let_go()
    (adopted,) = orphans(parent, parent / "own")
    found = []
    while batch := adopted.read(99, MIB):
        found += texts_of(batch)
    adopted.answered()
    adopted.clear_away()
    assert list(parent.iterdir()) == []
    return found


def test_a_last_record_torn_at_any_length_costs_itself_alone(tmp_path: Path) -> None:
    whole, last = frame(RECORD, 1, record("first")), frame(RECORD, 2, record("last"))
    for length in range(len(last)):
        assert _left_by_the_dead(tmp_path, whole + last[:length]) == ["first"], length
    assert _left_by_the_dead(tmp_path, whole + last) == ["first", "last"]


def test_a_flipped_byte_anywhere_costs_one_record_and_never_makes_a_wrong_one(tmp_path: Path) -> None:
    parts = [frame(RECORD, n, record(name)) for n, name in enumerate(("first", "middle", "last"), 1)]
    for at in range(len(parts[1])):
        damaged = bytearray(parts[1])
        damaged[at] ^= 0x20
        assert _left_by_the_dead(tmp_path, parts[0] + bytes(damaged) + parts[2]) == ["first", "last"], at


def test_two_processes_that_adopt_at_once_ship_each_record_once(tmp_path: Path) -> None:
    sources, each = 30, 20
    with grpc_sink() as sink:
        env = environment(OTEL_AUDIT_ENDPOINT=sink.address, OTEL_AUDIT_SPOOL_DIR=str(tmp_path))
        parent = folder_of(tmp_path, destination({}, endpoint=sink.address))
        recorder = Recorder(settings(tmp_path / "other"))
        for n in range(sources):
            dead = Spool(parent, f"dead-{n}-aa", bytes_max=MIB)
            for i in range(each):
                dead.append(i, recorder.source.encoder.event(f"{n}/{i}", {}, i, TracerProvider().resource))
            dead.let_go()
        words = [sys.executable, str(APPS / "next_process.py"), "dead-"]
        adopters = [subprocess.Popen(words, env=env) for _ in range(3)]
        assert [process.wait(60) for process in adopters] == [0, 0, 0]
        arrived = Counter(str(span.attributes["audit.action"]) for span in sink.spans)
    assert arrived == {f"{n}/{i}": 1 for n in range(sources) for i in range(each)}


def test_a_disk_that_fails_costs_the_records_of_that_time_and_the_log_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = FakeTransport()
    monkeypatch.setattr(delivery_module, "connect", lambda _: transport)
    recorder = Recorder(settings(tmp_path, block_timeout_s=0.0))
    provider = TracerProvider()
    provider.add_span_processor(AuditSpanProcessor(Calls(recorder)))
    tracer = provider.get_tracer("test")

    def call(n: int) -> None:
        tracer.start_span(f"GET /{n}", kind=SpanKind.SERVER).end()

    call(1)
    write = os.write

    def broken(fd: int, data: bytes) -> int:
        write(fd, data[:10])
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", broken)
        for n in range(2, 6):
            call(n)
    call(6)
    assert recorder.shipper.flush(20)
    spans = [span for body in transport.kept for span in spans_of(body)]
    assert [span.name for span in spans if span.kind == 2] == ["GET /1", "GET /6"]
    (loss,) = (span for span in spans if span.attributes.get("audit.action") == names.ACTION_LOSS)
    assert loss.attributes[names.LOSS_COUNT] == 4
    assert (loss.attributes[names.LOSS_FIRST_SEQ], loss.attributes[names.LOSS_LAST_SEQ]) == (3, 6)
    assert "Input/output error" in loss.attributes[names.LOSS_REASON]
    assert recorder.lost == 4


def test_a_folder_on_a_read_only_disk_is_said_and_another_taken(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with grpc_sink() as sink:
        env = environment(
            OTEL_AUDIT_ENDPOINT=sink.address,
            OTEL_AUDIT_SPOOL_DIR=str(small_disk),
            XDG_STATE_HOME=str(tmp_path / "state"),
        )
        with service("flask", tmp_path, env) as s:
            assert s.get("/things/1") == 200
            sink.wait(1)
            assert f"spool folder {small_disk} cannot be used: Read-only file system" in s.output()
            s.stop()
    assert (tmp_path / "state" / "otel-audit" / "spool").is_dir()


FORKED_UNTOLD = """
import ctypes, os
from opentelemetry import trace

libc = ctypes.PyDLL(None)
tracer = trace.get_tracer("a")
children = []
for _ in range(2):
    child = libc.fork()  # as uwsgi forks: Python's own hooks do not run
    if child == 0:
        tracer.start_span("child", kind=trace.SpanKind.SERVER).end()
        trace.get_tracer_provider().force_flush()
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
tracer.start_span("parent", kind=trace.SpanKind.SERVER).end()
"""


def test_processes_that_python_did_not_fork_are_sources_of_their_own(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FORKED_UNTOLD)
    with grpc_sink() as sink:
        env = environment(OTEL_AUDIT_ENDPOINT=sink.address, OTEL_AUDIT_SPOOL_DIR=str(tmp_path / "spool"))
        words = [str(BIN / "opentelemetry-instrument"), sys.executable, str(script)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert sorted(span.name for span in sink.spans) == ["child", "child", "parent"], done.stderr
        assert len({span.attributes["audit.source.id"] for span in sink.spans}) == 3
