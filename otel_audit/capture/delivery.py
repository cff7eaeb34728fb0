"""Delivering a batch: again and again until the destination answers for every record in it."""

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from otel_audit.capture import wire
from otel_audit.capture.frames import RECORD, Frame, frame
from otel_audit.capture.settings import Destination
from otel_audit.capture.transport import Answer, Fate, connect

__all__ = ["Delivery", "OnRefused"]

_log = logging.getLogger("otel_audit.capture")

_BACKOFF_S_FIRST: Final = 0.25
_BACKOFF_S_MAX: Final = 15.0
_SAY_AGAIN_S: Final = 60.0
_REFUSED_BYTES_MAX: Final = 16 * 1024 * 1024

OnRefused = Callable[[Sequence[Frame], int, str], None]
"""Told of frames, how many of them the destination will never take, and why. It does not always say which."""


class Delivery:
    """The way to one destination; used by the shipping thread alone, its counters read by others.

    Args:
        destination: where records go.
        wait: waits for some seconds, or less when somebody wants it to hurry; told whether the destination asked for them.
        on_refused: told of records that the destination will never take.
        refused_path: file that keeps such records, as frames; None: they are only told of.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        wait: Callable[[float, bool], None],
        on_refused: OnRefused,
        refused_path: Path | None = None,
    ) -> None:
        self.destination = destination
        self.transport = connect(destination)
        self._wait = wait
        self._on_refused = on_refused
        self.refused_path = refused_path
        self.delivered = 0
        """Records that the destination answers for."""
        self.refused = 0
        """Records that it would not take."""
        self.outage = ""
        """Why nothing could be delivered lately; empty when it could."""
        self._outage_said_s = 0.0
        self._refusal_said_s = 0.0

    def deliver(self, batch: Sequence[Frame]) -> bool:
        """Return when all of `batch` is kept or refused: True; False when another process has the local log open."""
        body = wire.request([one.record for one in batch])
        for backoff_s in _backoff():
            answer = self.transport.send(body, self.destination.timeout_s)
            if answer.fate is Fate.ELSEWHERE:
                return False
            if answer.fate is Fate.AGAIN:
                self._say_outage(answer.reason)
                asked = answer.delay_s is not None
                self._wait(backoff_s if answer.delay_s is None else _asked(answer.delay_s, backoff_s), asked)
                continue
            if answer.fate is Fate.KEPT:
                self._count_kept(batch, answer)
            elif len(batch) > 1:  # something in it is refused: find out what, and deliver the rest
                middle = len(batch) // 2
                return self.deliver(batch[:middle]) and self.deliver(batch[middle:])
            else:
                self._refuse(batch, 1, answer.reason)
            return True
        raise AssertionError("unreachable: attempts do not end")

    def _count_kept(self, batch: Sequence[Frame], answer: Answer) -> None:
        dropped = min(answer.dropped, len(batch))
        self.delivered += len(batch) - dropped
        if dropped:  # it does not say which
            self._refuse(batch, dropped, f"partial success: {answer.reason}")
        if self.outage:
            _log.warning("ship audit records to %s: delivering again", self.destination)
            self.outage = ""

    def _refuse(self, batch: Sequence[Frame], count: int, reason: str) -> None:
        self.refused += count
        kept = self._keep(batch)
        if not self._refusal_said_s or time.monotonic() - self._refusal_said_s >= _SAY_AGAIN_S:
            self._refusal_said_s = time.monotonic()
            where = f"; kept in {self.refused_path}" if kept else ""
            _log.error("ship audit records to %s: %d refused: %s%s", self.destination, self.refused, reason, where)
        self._on_refused(batch, count, reason)

    def _keep(self, batch: Sequence[Frame]) -> bool:
        if self.refused_path is None:
            return False
        try:
            with self.refused_path.open("ab") as file:
                if file.tell() > _REFUSED_BYTES_MAX:
                    return False
                file.write(b"".join(frame(RECORD, one.seq, one.record) for one in batch))
        except OSError:
            return False
        return True

    def _say_outage(self, reason: str) -> None:
        if not self.outage or time.monotonic() - self._outage_said_s >= _SAY_AGAIN_S:
            self._outage_said_s = time.monotonic()
            _log.warning(
                "ship audit records to %s: %s (they wait in the spool, and are tried again until they are delivered)",
                self.destination,
                reason,
            )
        self.outage = reason


def _asked(delay_s: float, backoff_s: float) -> float:
    """A little more than the destination asks for, so that all whom it asks do not come back at once."""
    return max(delay_s, backoff_s / 4) * random.uniform(1.0, 1.1)  # noqa: S311 - no secret


def _backoff() -> Iterator[float]:
    """Delays between attempts, for ever: exponential, with jitter so that many senders do not come back at once."""
    ceiling = _BACKOFF_S_FIRST
    while True:
        yield ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        ceiling = min(ceiling * 2, _BACKOFF_S_MAX)
