"""A destination that answers as told, and spools for it."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otel_audit.capture.frames import Frame
from otel_audit.capture.outbox import Outbox
from otel_audit.capture.settings import Destination, Settings
from otel_audit.capture.shipper import Shipper
from otel_audit.capture.spool import Spool
from otel_audit.capture.transport import KEPT, Answer, Fate
from otel_audit.capture.wire import EncodedSpan

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
