"""Records waiting in memory, and the thread that ships them; retries until they are delivered.

The spool on disk is to take this module's place: `Shipper` is what the processor knows of shipping (`put`, `flush`,
`after_fork`, `pending`). Until then a record that waits here is lost when the process is killed.

No lock is shared between `put` and the thread, and none is taken in `flush`: both may run in a signal handler that has
interrupted `put` in the same thread. `queue.SimpleQueue` is made for that.
"""

import contextlib
import logging
import queue
import random
import threading
import time
from collections.abc import Iterator
from typing import Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.capture import wire
from otel_audit.capture.settings import Destination
from otel_audit.capture.transport import Answer, Fate, Transport, connect
from otel_audit.capture.wire import EncodedSpan

__all__ = ["Shipper"]

_log = logging.getLogger("otel_audit.capture")

_LINGER_S: Final = 0.2
_BATCH_RECORDS_MAX: Final = 512
_BATCH_BYTES_MAX: Final = 1024 * 1024
_QUEUE_BYTES_MAX: Final = 32 * 1024 * 1024
_BLOCK_S: Final = 0.05
_BACKOFF_S_FIRST: Final = 0.25
_BACKOFF_S_MAX: Final = 15.0
_SAY_AGAIN_S: Final = 60.0
_SHARED_BYTES: Final = 64  # what a queue entry costs beside the span's own bytes, roughly

_abandoned: list[object] = []
"""Connections of the parent process, kept for ever: closing them in a forked child can hang it or disturb the parent."""


class _Marker:
    """Put into the queue by one who waits, and set when everything before it is dealt with; set once.

    A bare lock, and no `threading.Event`: whoever waits on an Event holds its inner lock now and then, and a signal handler
    that ran just then and flushed would wait for the shipper, and the shipper for that lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let the one who waits go on."""
        self._lock.release()

    def wait(self, timeout_s: float) -> bool:
        """Whether it was set within the time."""
        return self._lock.acquire(timeout=timeout_s)


class Shipper:
    """A bounded queue of encoded records and the thread that delivers them, started with the first record.

    When the queue is full, because the destination cannot be reached, the first record that finds it so waits for
    50 ms; then records are dropped, counted and reported, until something is delivered again. Each dropped record has a
    number already, so the log's readers see the gap too.

    Args:
        destination: where records go.
        queue_records: how many records may wait.
    """

    def __init__(self, destination: Destination, *, queue_records: int = 16_384) -> None:
        self.destination = destination
        self._queue_records = queue_records
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._queue: queue.SimpleQueue[EncodedSpan | _Marker] = queue.SimpleQueue()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # a token ends a wait of the thread early
        self._transport: Transport = connect(self.destination)  # the thread's alone
        self._thread: threading.Thread | None = None  # started under `_starting`
        self._starting = threading.Lock()
        self._loss = threading.Lock()  # guards `lost` and `_loss_said_s`; never held by the thread
        self._loss_said_s = 0.0
        self.lost = 0
        """Records dropped because the queue was full."""
        self.delivered = 0
        """Records that the destination answers for; written by the thread alone."""
        self.refused = 0
        """Records that the destination would not take; written by the thread alone."""
        # Bytes put and bytes taken. Two threads that put at once may lose an addition; `_taken` catches up whenever
        # the queue is empty, so an error does not last.
        self._put_bytes = 0
        self._taken_bytes = 0
        self._stalled = False  # set by `put` after it has waited in vain, cleared by the thread on delivery
        self._in_hand = 0  # records the thread has taken and not yet seen the end of
        self._given_up = False  # set at the end of the process, cleared on delivery
        self._last_reason = ""  # of the outage that goes on; the thread's, as the two below
        self._outage_said_s = 0.0
        self._refusal_said_s = 0.0

    # --- the application's threads ---------------------------------------------------------------------------------------
    def put(self, record: EncodedSpan) -> bool:
        """Take `record` for shipping; False when it was dropped because the queue is full."""
        if self._thread is None:
            self._start()
        if self._full() and not self._room():
            self._lose()
            return False
        self._put_bytes += len(record.span) + _SHARED_BYTES
        self._queue.put(record)
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was put before is delivered or refused; False when that took too long."""
        if self._thread is None:
            return True
        if self._given_up:
            return False
        marker = _Marker()
        self._queue.put(marker)
        self._wake.put(None)
        return marker.wait(max(timeout_s, 0.0))

    def pending(self) -> int:
        """About how many records are neither delivered nor refused nor dropped."""
        return self._queue.qsize() + self._in_hand

    def close(self, timeout_s: float) -> int:
        """Flush, let go of the destination, and give the number of records that were not delivered.

        After a flush in vain, later ones return at once: the end of a process must not wait twice.
        """
        if self._thread is None:
            return 0
        if self.flush(timeout_s):
            self._transport.close()
            return 0
        self._given_up = True
        return self._in_hand + self._waiting()

    def _waiting(self) -> int:
        """How many records are in the queue; markers of those who wait are none."""
        entries = []
        with contextlib.suppress(queue.Empty):
            while True:
                entries.append(self._queue.get_nowait())
        for entry in entries:
            self._queue.put(entry)
        return sum(not isinstance(entry, _Marker) for entry in entries)

    def after_fork(self) -> None:
        """Begin anew in a forked child: what was waiting is the parent's, and so are its thread and connections."""
        _abandoned.append(self._transport)
        self._start_afresh()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="otel-audit-shipper", daemon=True)
                thread.start()
                self._thread = thread

    def _full(self) -> bool:
        waiting = self._put_bytes - self._taken_bytes
        return self._queue.qsize() >= self._queue_records or waiting >= _QUEUE_BYTES_MAX

    def _room(self) -> bool:
        """Whether there is room after a short wait; only one record of an outage waits."""
        if self._stalled:
            return False
        deadline = time.monotonic() + _BLOCK_S
        while time.monotonic() < deadline:
            time.sleep(0.005)
            if not self._full():
                return True
        self._stalled = True
        return False

    def _lose(self) -> None:
        with self._loss:
            self.lost += 1
            if self._loss_said_s and time.monotonic() - self._loss_said_s < _SAY_AGAIN_S:
                return
            self._loss_said_s = time.monotonic()
            lost = self.lost
        _log.error(
            "ship audit records to %s: the queue is full, %d lost so far (%s); bring the destination back, or raise "
            "OTEL_AUDIT_QUEUE_RECORDS",
            self.destination,
            lost,
            self._last_reason or "it takes them too slowly",
        )

    # --- the shipping thread ---------------------------------------------------------------------------------------------
    def _run(self) -> None:
        with suppress_instrumentation():  # sending must not be traced: it would be recorded, and sent, and recorded
            while True:
                batch, marker = self._gather()
                try:
                    self._ship(batch)
                except Exception:  # a fault of ours must not end shipping; what was in hand is gone, and said to be
                    _log.exception("ship audit records to %s: %d lost by a fault", self.destination, len(batch))
                    self.refused += len(batch)
                self._in_hand = 0
                if marker is not None:
                    marker.set()

    def _gather(self) -> tuple[list[EncodedSpan], _Marker | None]:
        """Wait for a record, then a moment for more; a marker ends the batch."""
        batch: list[EncodedSpan] = []
        size = 0
        entry = self._queue.get()
        if not isinstance(entry, _Marker):
            # One sleep instead of one wake-up for each record: those would be taken from the application's time.
            self._sleep(_LINGER_S)
        while True:
            if isinstance(entry, _Marker):
                return batch, entry
            batch.append(entry)
            self._in_hand = len(batch)
            size += len(entry.span)
            self._taken_bytes += len(entry.span) + _SHARED_BYTES
            if len(batch) >= _BATCH_RECORDS_MAX or size >= _BATCH_BYTES_MAX:
                return batch, None
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                self._taken_bytes = self._put_bytes
                return batch, None

    def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=seconds)

    def _ship(self, batch: list[EncodedSpan]) -> None:
        if not batch:
            return
        body = wire.request(batch)
        for backoff_s in _backoff():
            answer = self._transport.send(body, self.destination.timeout_s)
            if answer.fate is Fate.AGAIN:
                self._say_outage(answer.reason)
                self._sleep(backoff_s if answer.delay_s is None else max(answer.delay_s, backoff_s / 4))
                continue
            if answer.fate is Fate.KEPT:
                self._count_kept(len(batch), answer)
            elif len(batch) > 1:  # something in it is refused: find out what, and deliver the rest
                middle = len(batch) // 2
                self._ship(batch[:middle])
                self._ship(batch[middle:])
            else:
                self.refused += 1
                self._say_refusal(answer.reason)
            return

    def _count_kept(self, records: int, answer: Answer) -> None:
        self.delivered += records - answer.dropped
        self._stalled = self._given_up = False
        if answer.dropped:
            self.refused += answer.dropped
            _log.error("ship audit records to %s: it dropped %d: %s", self.destination, answer.dropped, answer.reason)
        if self._last_reason:
            _log.warning("ship audit records to %s: delivering again (%d waiting)", self.destination, self.pending())
            self._last_reason = ""

    def _say_refusal(self, reason: str) -> None:
        if not self._refusal_said_s or time.monotonic() - self._refusal_said_s >= _SAY_AGAIN_S:
            self._refusal_said_s = time.monotonic()
            _log.error(
                "ship audit records to %s: %d refused and lost so far: %s", self.destination, self.refused, reason
            )

    def _say_outage(self, reason: str) -> None:
        if not self._last_reason or time.monotonic() - self._outage_said_s >= _SAY_AGAIN_S:
            self._outage_said_s = time.monotonic()
            _log.warning(
                "ship audit records to %s: %s (%d waiting in memory; trying again until they are delivered)",
                self.destination,
                reason,
                self.pending(),
            )
        self._last_reason = reason


def _backoff() -> Iterator[float]:
    """Delays between attempts, for ever: exponential, with jitter so that many senders do not come back at once."""
    ceiling = _BACKOFF_S_FIRST
    while True:
        yield ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        ceiling = min(ceiling * 2, _BACKOFF_S_MAX)
