"""The thread that ships from the spool: its own source's records, and those of sources whose process is dead.

No lock is shared between `flush` and the thread, and none is taken in `flush`: it may run in a signal handler that has
interrupted anything in the same thread. `queue.SimpleQueue` is made for that.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.capture.delivery import Delivery, OnRefused
from otel_audit.capture.frames import Frame
from otel_audit.capture.leftovers import left_for_others
from otel_audit.capture.outbox import Outbox, orphans, position_of, sources
from otel_audit.capture.settings import Destination
from otel_audit.capture.spool import Position, Spool

__all__ = ["Shipper"]

_log = logging.getLogger("otel_audit.capture")

_LINGER_S: Final = 0.2
_HURRY_S: Final = 0.25
_BATCH_RECORDS_MAX: Final = 512
_BATCH_RECORDS_GOOD: Final = 256
_BATCH_BYTES_MAX: Final = 1024 * 1024
_ORPHANS_EVERY_S: Final = 5.0
_PEERS_EVERY_S: Final = 0.2
_STAND_BACK_S: Final = 0.3
_NOBODY_SHIPS_S: Final = 10.0

_abandoned: list[object] = []
"""Connections of the parent process, kept for ever: closing them in a forked child can hang it or disturb the parent."""


class _Marker:
    """Set once, when everything before it is dealt with.

    A bare lock, and no `threading.Event`: whoever waits on an Event holds its inner lock now and then, and a signal handler
    that ran just then and flushed would wait for the shipper, and the shipper for that lock.
    """

    def __init__(self, target: Position) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let the one who waits go on."""
        self._lock.release()

    def wait(self, timeout_s: float) -> bool:
        """Whether it was set within the time."""
        return self._lock.acquire(timeout=timeout_s)


class Shipper:
    """Ships what a spool holds, and what the dead have left beside it; its thread starts with the first record.

    Args:
        destination: where records go.
        spool: what this process writes.
        on_refused: told of records of this process that the destination will never take.
    """

    def __init__(self, destination: Destination, spool: Spool, *, on_refused: OnRefused | None = None) -> None:
        self.destination = destination
        self._on_refused = on_refused
        self._start_afresh(spool)

    def _start_afresh(self, spool: Spool) -> None:
        self.spool = spool
        self._parent: Path = spool.folder.parent
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # a token ends a wait of the thread early
        self._markers: queue.SimpleQueue[_Marker] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None  # started under `_starting`
        self._starting = threading.Lock()
        self._threadless = False  # whether it was said that no thread could be started
        self._idle = False  # set by the thread before it waits, cleared by whoever wakes it
        self._hurried = False  # set by whoever flushes, cleared by the thread when nobody waits any more
        self._given_up = False  # set at the end of the process, cleared on delivery
        # The thread's own from here on.
        self.delivery = Delivery(
            self.destination, wait=self._wait, on_refused=self._refused, refused_path=self._parent / "refused.spool"
        )
        self._own: Outbox | None = None
        self._own_generation = 0
        self._others: list[Outbox] = []
        self._waiting: list[_Marker] = []
        self._current: Outbox | None = None
        self._looked = False
        self._look_after_s = 0.0
        self._back_until_s = 0.0
        self._moved_s = time.monotonic()
        self._seen: Position = (0, 0)

    # --- the application's threads -------------------------------------------------------------------------------------
    def notify(self) -> None:
        """Tell the thread that there is something to ship."""
        if self._thread is None:
            self._start()
        elif self._idle:
            self._idle = False
            self._wake.put(None)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was spooled before is delivered or refused; False when that took too long."""
        if self._thread is None or not self.spool.begun:
            return not self.pending()
        if self._given_up:
            return False
        self._hurried = True
        marker = _Marker(self.spool.end)
        self._markers.put(marker)
        self._wake.put(None)
        return marker.wait(max(timeout_s, 0.0))

    def pending(self) -> bool:
        """Whether something of this process is not answered for."""
        return self.spool.begun and self._position() < self.spool.end

    def close(self, timeout_s: float) -> bool:
        """Flush and let go of the destination; False when something stays in the spool.

        After a flush in vain, later ones return at once: the end of a process must not wait twice.
        """
        if self._thread is None:
            return not self.pending()
        if self.flush(timeout_s):
            self.delivery.transport.close()
            self.spool.remove_if_empty(self._position())
            return True
        self._given_up = True
        return False

    def after_fork(self, spool: Spool) -> None:
        """Begin anew in a forked child: what was waiting is the parent's, and so are its thread and connections."""
        _abandoned.append(self.delivery)
        before, outboxes = self.spool, (self._own, *self._others)
        self._start_afresh(spool)
        for outbox in outboxes:
            if outbox is not None:
                outbox.close()
        before.let_go()

    def _start(self) -> None:
        # Without waiting: a signal handler may have interrupted its own thread in here.
        if not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="otel-audit-shipper", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError as e:  # the system gives no thread: tried again with the next record
            if not self._threadless:
                self._threadless = True
                _log.error("ship audit records to %s: %s; they wait in %s", self.destination, e, self.spool.folder)
        finally:
            self._starting.release()

    def _position(self) -> Position:
        own = self._own
        if own is not None and self._own_generation == self.spool.generation:
            return own.position
        return position_of(self.spool.folder)

    # --- the shipping thread ---------------------------------------------------------------------------------------------
    def _run(self) -> None:
        with suppress_instrumentation():  # sending must not be traced: it would be recorded, and sent, and recorded
            while True:
                try:
                    shipped = self._round()
                except Exception:  # a fault of ours must not end shipping; what is spooled stays spooled
                    _log.exception("ship audit records to %s: a fault in otel-audit; trying again", self.destination)
                    self._let_go()
                    shipped = 0
                    self._sleep(1.0)
                self._answer_markers()
                if shipped < _BATCH_RECORDS_GOOD:
                    self._rest(shipped)

    def _round(self) -> int:
        """Ship a batch of each source that has something; how many records that were."""
        if time.monotonic() < self._back_until_s:
            return 0
        if self._own is not None and self._own_generation != self.spool.generation:
            self._own.close()
            self._own = None
        if self._own is None and self.spool.begun:
            self._own_generation = self.spool.generation
            self._own = Outbox.take(self.spool.folder)
        shipped = self._ship(self._own) if self._own is not None else 0
        if time.monotonic() >= self._look_after_s:
            self._look_for_others()
        for outbox in list(self._others):
            shipped += self._ship(outbox)
        return shipped

    def _ship(self, outbox: Outbox) -> int:
        batch = outbox.read(_BATCH_RECORDS_MAX, _BATCH_BYTES_MAX)
        if not batch:
            if outbox.position != outbox.read_to:
                outbox.answered()  # skipped damage
            if outbox is not self._own:
                self._done_with(outbox)
            return 0
        self._current = outbox
        if not self.delivery.deliver(batch):
            self._let_go()
            self._back_until_s = time.monotonic() + _STAND_BACK_S
            return 0
        outbox.answered()
        self._given_up = False
        return len(batch)

    def _done_with(self, outbox: Outbox) -> None:
        self._others.remove(outbox)
        if outbox.dead:
            outbox.clear_away()
            _log.info("ship audit records to %s: all that %s left is delivered", self.destination, outbox.folder.name)
        else:
            outbox.close()

    def _look_for_others(self) -> None:
        """Adopt what the dead left; with a local log open here, ship for the living too, who cannot."""
        self._others += orphans(self._parent, self.spool.folder)
        if not self._looked:
            self._looked = True
            self._tell_of_the_stranded()
        if self.destination.kind != "log":
            self._look_after_s = time.monotonic() + _ORPHANS_EVERY_S
            return
        self._look_after_s = time.monotonic() + _PEERS_EVERY_S
        known = {self.spool.folder, *(outbox.folder for outbox in self._others)}
        for folder in sources(self._parent):
            if folder not in known and (outbox := Outbox.take(folder)) is not None:
                self._others.append(outbox)

    def _tell_of_the_stranded(self) -> None:
        """Say once what dead processes have left for a destination that this one does not ship to."""
        for destination, count in left_for_others(self._parent).items():
            _log.warning(
                "look into spool %s: dead processes (%d) have left records for %s, and this one ships to %s; to hand them "
                "over: otel-audit spool ship",
                self._parent.parent,
                count,
                destination,
                self.destination,
            )

    def _let_go(self) -> None:
        """Ship for nobody, so that another process can."""
        for outbox in (self._own, *self._others):
            if outbox is not None:
                outbox.close()
        self._own, self._others = None, []

    def _answer_markers(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting.append(self._markers.get_nowait())
        if not self._waiting:
            self._hurried = False
            return
        position = self._position()
        for marker in [m for m in self._waiting if position >= m.target]:
            self._waiting.remove(marker)
            marker.set()

    def _rest(self, shipped: int) -> None:
        """Wait for more: a moment while there is something, else until there is."""
        if self._waiting:
            self._sleep(0.02)
        elif self._standing_by() or shipped or time.monotonic() < self._back_until_s:
            # One sleep instead of one wake-up for each record: those would be taken from the application's time.
            self._sleep(_LINGER_S)
        else:
            self._idle = True
            if self._position() < self.spool.end:  # written before it could be seen that nobody is awake
                self._idle = False
                return
            self._sleep(max(self._look_after_s - time.monotonic(), 0.0))
            if not self._idle:
                self._sleep(_LINGER_S)
            self._idle = False

    def _standing_by(self) -> bool:
        """Whether another process ships for this one; complains when that one does not."""
        if self._own is not None or not self.spool.begun:
            return False
        position = self._position()
        if position != self._seen or position >= self.spool.end:
            self._seen, self._moved_s = position, time.monotonic()
        elif time.monotonic() - self._moved_s > _NOBODY_SHIPS_S:
            self._moved_s = time.monotonic() + 60.0
            _log.warning(
                "ship audit records to %s: another process has it open and does not take what this one spools in %s; "
                "ship to that process over OTLP, or give it the same OTEL_AUDIT_SPOOL_DIR",
                self.destination,
                self._parent,
            )
        return True

    def _wait(self, seconds: float, asked: bool) -> None:
        """Wait before the next attempt: not long while somebody waits for it, unless the destination asked for it."""
        self._sleep(min(seconds, _HURRY_S) if self._hurried and not asked else seconds)

    def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=seconds)

    def _refused(self, batch: Sequence[Frame], count: int, reason: str) -> None:
        if self._on_refused is not None and self._current is self._own:
            self._on_refused(batch, count, reason)
