"""A destination that answers as told, spools for it, and what a process without one records."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, set_value
from opentelemetry.sdk.trace import TracerProvider

from otel_audit.capture.call import CALL_KEY, Call
from otel_audit.capture.frames import Frame, frames_in
from otel_audit.capture.outbox import Outbox
from otel_audit.capture.processor import AuditSpanProcessor, Calls
from otel_audit.capture.recorder import Recorder
from otel_audit.capture.settings import Destination, Settings
from otel_audit.capture.shipper import Shipper
from otel_audit.capture.spool import Spool
from otel_audit.capture.transport import KEPT, Answer, Fate
from otel_audit.capture.wire import EncodedSpan, request
from otel_audit.names import ACTION
from otel_audit.otlp import Decoder
from tests.capture_support import Span, spans_of

DESTINATION = Destination("grpc", "audit:1")
MIB = 1024 * 1024


class FakeTransport:
    """Answers as told, and remembers what it was sent."""

    def __init__(self, answer: Callable[[bytes], Answer] = lambda _: KEPT) -> None:
        self.answer = answer
        self.sent: list[bytes] = []
        self.kept: list[bytes] = []
        self.changed = threading.Condition()
        self.closed = 0

    def send(self, body: bytes, timeout_s: float) -> Answer:
        answer = self.answer(body)
        with self.changed:
            self.sent.append(body)
            if answer.fate is Fate.KEPT:
                self.kept.append(body)
            self.changed.notify_all()
        return answer

    def close(self) -> None:
        self.closed += 1

    def wait(self, attempts: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.sent) >= attempts, 20)


def record(text: str, size: int = 0) -> EncodedSpan:
    return EncodedSpan(b"", b"", b"", b"", f"<{text}>".encode() + b"." * size)


def texts(bodies: list[bytes]) -> list[str]:
    """What `record` was given, of everything in these bodies."""
    joined = b"".join(bodies).decode("latin-1")
    return [part.split(">")[0] for part in joined.split("<")[1:]]


def texts_of(frames: list[Frame]) -> list[str]:
    return texts([frame.record.span for frame in frames])


def spool(parent: Path, name: str = "host-1-aa", **more: Any) -> Spool:
    return Spool(parent, name, **{"bytes_max": 64 * MIB, **more})


def fill(into: Spool, *names: object, size: int = 0) -> None:
    for name in names:
        into.append(into.records + 1, record(str(name), size))


def outbox(of: Spool) -> Outbox:
    found = Outbox.take(of.folder)
    assert found is not None
    return found


def shipper(parent: Path, name: str = "host-1-aa", **more: Any) -> Shipper:
    return Shipper(DESTINATION, spool(parent, name, **more))


def put(into: Shipper, *names: object, size: int = 0) -> None:
    for name in names:
        fill(into.spool, name, size=size)
        into.notify()


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(DESTINATION, spool_dir=str(folder), **more)


class Caught(Recorder):
    """A recorder whose records stay in the spool, to be looked at."""

    def __init__(self, folder: Path, **more: Any) -> None:
        super().__init__(settings(folder, **more), durable=True)
        self.shipper.notify = lambda: None  # type: ignore[method-assign]
        self.synced = 0

    def sync(self) -> None:
        self.synced += 1
        super().sync()

    def everything(self) -> list[Span]:
        bodies = [file.read_bytes() for file in sorted(self.spool.folder.glob("*.spool"))]
        return [span for body in bodies for one in frames_in(body) for span in spans_of(request([one.record]))]

    def decoded(self) -> list[dict[str, Any]]:
        """The calls as the log will have them."""
        bodies = [file.read_bytes() for file in sorted(self.spool.folder.glob("*.spool"))]
        found = [Decoder().decode(request([one.record])).records for body in bodies for one in frames_in(body)]
        rows: list[dict[str, Any]] = [row for batch in found for row in batch.to_pylist()]
        return [row for row in rows if not row["action"].startswith("otel_audit.")]

    def calls(self) -> list[Span]:
        return [s for s in self.everything() if not str(s.attributes.get(ACTION)).startswith("otel_audit.")]

    def about(self) -> list[Span]:
        return [s for s in self.everything() if str(s.attributes.get(ACTION)).startswith("otel_audit.")]


def tracer_of(calls: Calls | Caught, **more: Any) -> trace.Tracer:
    provider = TracerProvider(shutdown_on_exit=False, **more)
    provider.add_span_processor(AuditSpanProcessor(Calls(calls) if isinstance(calls, Caught) else calls))
    return provider.get_tracer("test")


def within(call: Call) -> Context:
    return set_value(CALL_KEY, call, Context())
