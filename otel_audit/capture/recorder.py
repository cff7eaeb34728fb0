"""From a finished call to a numbered record in the spool, and the records that a source makes about itself.

Numbers have no gaps of their own: each number that is given belongs to a record that was spooled, or is named by a loss
record. A number that the log misses is a record that was lost on the way.
"""

import itertools
import logging
import os
import platform
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.version import __version__ as sdk_version

from otel_audit import __version__, names
from otel_audit.capture.frames import Frame
from otel_audit.capture.settings import Settings
from otel_audit.capture.shipper import Shipper
from otel_audit.capture.spool import Spool, SpoolFullError, find_root, folder_of
from otel_audit.capture.wire import EncodedSpan, SpanEncoder
from otel_audit.errors import CaptureError

__all__ = ["Recorder", "Source"]

_log = logging.getLogger("otel_audit.capture")

_SAY_AGAIN_S: Final = 60.0
_TOLD_MAX: Final = 100_000


class Source:
    """One emitter of records: an id that no other process start shares, and a counter from 1.

    `id` reads host-pid-random.
    """

    def __init__(self) -> None:
        host = socket.gethostname().encode("ascii", "replace").decode()[:64].replace("/", "_") or "host"
        self.id = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self.encoder = SpanEncoder(self.id)
        self._numbers = itertools.count(1)  # next() is atomic

    def next_seq(self) -> int:
        """The next number."""
        return next(self._numbers)


class _Losses:
    """Records that were dropped and not yet reported; guarded by the recorder's `_losing`."""

    def __init__(self) -> None:
        self.count = 0
        self.first = 0
        self.last = 0
        self.reason = ""

    def add(self, seq: int, reason: str) -> None:
        self.first = min(self.first, seq) if self.count else seq
        self.last = max(self.last, seq)
        self.count += 1
        self.reason = reason


class Recorder:
    """Numbers, spools and ships the records of one process; every method may be called from any thread.

    Args:
        wanted: the settings.
        durable: whether any call may need its record synced.

    Raises:
        CaptureError: there is no folder that can be spooled to.
    """

    def __init__(self, wanted: Settings, *, durable: bool = False) -> None:
        self._wanted = wanted
        self._durable = durable
        root, problems = find_root(wanted.spool_dir)
        for problem in problems:
            _log.warning("make the spool of otel-audit: %s; using %s", problem, root)
        self._parent = folder_of(root, wanted.destination)
        self.lost = 0
        """Records dropped because there was no room for them."""
        self._begin()
        self.shipper = Shipper(wanted.destination, self.spool, on_refused=self._refused)
        self.forked: Callable[[], None] = self.after_fork
        """Called in a child that Python did not fork, before it does anything."""
        self._pid = os.getpid()
        self._forking = threading.Lock()  # so that one thread of such a child begins anew, and the others wait

    def _begin(self) -> None:
        self.source = Source()
        self.spool = Spool(
            self._parent,
            self.source.id,
            bytes_max=self._wanted.spool_bytes,
            synced=self._durable,
            destination=str(self._wanted.destination),
        )
        # `_losing` guards the losses and whether the source has begun; re-entrant, as a signal handler may record too.
        self._losing = threading.RLock()
        self._losses = _Losses()
        self._loss_said_s = 0.0
        self._given: set[int] = set()
        """Numbers of calls that are given and not written yet; its operations are atomic."""
        self._told: set[int] = set()
        """Numbers of this source's own loss records."""
        self._begun = False
        self._stopped = False
        self._resource: Resource | None = None
        self._stalled = False  # a call has waited for room in vain, and nothing was spooled since

    def after_fork(self) -> None:
        """Be another source, with a spool of its own."""
        self.lost = 0
        self._begin()
        self.shipper.after_fork(self.spool)
        self._pid = os.getpid()

    def look_for_fork(self) -> None:
        """Begin anew where Python was not told of a fork: uwsgi forks its workers without `os.register_at_fork`'s hooks.

        Else all workers would be one source, with the same numbers, in one folder.
        """
        if os.getpid() == self._pid:
            return
        with self._forking:
            if os.getpid() != self._pid:
                self.forked()

    # --- calls -------------------------------------------------------------------------------------------------------------
    def record(
        self,
        span: ReadableSpan,
        attributes: Mapping[str, Any],
        *,
        served: bool = False,
        end_ns: int = 0,
        seq: int | None = None,
        sync: bool = False,
    ) -> bool:
        """Number and spool a call; False when it had to be dropped.

        Args:
            span: the call.
            attributes: what its record is to say, instead of the span's own.
            served: whether it was served here, of whatever kind its span is.
            end_ns: when it ended, Unix time, where its span has not.
            seq: its number, when it was given as the call began.
            sync: whether to return only when the record survives the loss of power.
        """
        self.look_for_fork()
        if not self._begun:
            self.begin(span.resource)
        number = self.source.next_seq() if seq is None else seq
        self._given.add(number)
        try:
            record = self.source.encoder.encode(span, attributes, number, served=served, end_ns=end_ns)
            kept = self._put(number, record)
        except Exception as e:
            self._lose(number, f"cannot be recorded: {type(e).__name__}: {e}")
            kept = False
        finally:
            self._given.discard(number)
        if kept and seq is not None:
            try:
                self.spool.end_call(seq)
            except (OSError, CaptureError) as e:  # its start may become a second record, which the log takes for a copy
                self._say(f"the end of a call cannot be noted ({e})")
        if kept and sync:
            self.sync()
        return kept

    def begin_call(self, span: ReadableSpan, attributes: Mapping[str, Any]) -> int:
        """Note durably that a call began, and give the number its record will have.

        Raises:
            CaptureError: that could not be done; the call must not happen.
        """
        if not self._begun:
            self.begin(span.resource)
        number = self.source.next_seq()
        said = {**attributes, names.INCOMPLETE: True, names.OUTCOME: "unknown"}
        try:
            self.spool.begin_call(number, self.source.encoder.encode(span, said, number, served=True))
        except Exception as e:  # whatever it is: its number is given, and the call must not happen
            self._lose(number, f"refused: {e}")
            raise CaptureError(
                "audit call", span.name, str(e), "the mode is fail-closed: make room for the spool"
            ) from e
        return number

    def fault(self, error: Exception) -> None:
        """A call could not be made a record of: give it a number, and name that in a loss record."""
        self._lose(self.source.next_seq(), f"cannot be recorded: {type(error).__name__}")

    def sync(self) -> None:
        """Have all that was recorded before survive the loss of power."""
        try:
            self.spool.sync()
        except OSError as e:
            self._say(f"cannot be synced ({e}); a loss of power now would lose records")

    def _put(self, seq: int, record: EncodedSpan) -> bool:
        reason = self._try(seq, record)
        if reason and not self._stalled:
            reason = self._wait_for_room(seq, record, reason)
            self._stalled = bool(reason)
        if reason:
            self._lose(seq, reason)
            return False
        self._stalled = False
        if self._losses.count:
            self._report_losses()
        self.shipper.notify()
        return True

    def _try(self, seq: int, record: EncodedSpan, *, beyond: bool = False) -> str:
        """Why a record could not be spooled; empty when it was."""
        try:
            self.spool.append(seq, record, beyond=beyond)
        except SpoolFullError as e:
            return e.reason
        except OSError as e:
            return str(e)
        return ""

    def _wait_for_room(self, seq: int, record: EncodedSpan, reason: str) -> str:
        """Only one call of an outage waits."""
        self.shipper.notify()
        deadline = time.monotonic() + self._wanted.block_timeout_s
        while reason and time.monotonic() < deadline:
            time.sleep(0.005)
            reason = self._try(seq, record)
        return reason

    # --- losses --------------------------------------------------------------------------------------------------------------
    def _lose(self, seq: int, reason: str) -> None:
        with self._losing:
            self.lost += 1
            self._losses.add(seq, reason)
        self._say(
            f"{self.lost} records lost so far ({reason}; {self.shipper.delivery.outage or 'it fills faster than it empties'})"
            "; bring the destination back, or raise OTEL_AUDIT_SPOOL_BYTES"
        )

    def _report_losses(self, *, beyond: bool = False) -> None:
        """Spool a record of what was lost."""
        with self._losing:
            losses, self._losses = self._losses, _Losses()
        if losses.count and not self._event(names.ACTION_LOSS, _said_of(losses), beyond=beyond):
            with self._losing:
                for seq in (losses.first, losses.last):
                    self._losses.add(seq, losses.reason)
                self._losses.count += losses.count - 2

    def _refused(self, batch: Sequence[Frame], count: int, reason: str) -> None:
        """The destination will never take records of this source: say in the log itself that they are missing."""
        calls = [one.seq for one in batch if one.seq not in self._told]
        if not calls:
            return
        losses = _Losses()
        losses.add(min(calls), f"refused by {self._wanted.destination}: {reason}"[:500])
        losses.count, losses.last = count, max(calls)
        self._event(names.ACTION_LOSS, _said_of(losses), beyond=True)

    def _say(self, what: str) -> None:
        if self._loss_said_s and time.monotonic() - self._loss_said_s < _SAY_AGAIN_S:
            return
        self._loss_said_s = time.monotonic()
        _log.error("spool audit records in %s: %s", self.spool.folder, what)

    # --- records about itself --------------------------------------------------------------------------------------------
    def begin(self, resource: Resource) -> None:
        """Make the source's first record, once."""
        said = {
            names.OUTCOME: "success",
            "audit.capture.version": __version__,
            "audit.capture.mode": self._wanted.mode,
            "audit.capture.sdk": sdk_version,
            "audit.capture.python": platform.python_version(),
            "audit.capture.pid": os.getpid(),
        }
        with self._losing:  # whoever else has a first record waits: this one comes before it
            if self._begun:
                return
            self._resource = resource
            self._event(names.ACTION_START, said)
            self._begun = True
        self.shipper.notify()

    def stop(self) -> None:
        """Make the source's last record; a call that ends after all is recorded behind it."""
        if not self._begun or self._stopped:
            return
        self._stopped = True
        with self._losing:
            for number in sorted(self._given):  # of calls that this thread was about to write when a signal came
                self._losses.add(number, "the process was ended before it was written")
        self._report_losses(beyond=True)
        if self._event(names.ACTION_STOP, {names.OUTCOME: "success"}, beyond=True):
            self.shipper.notify()

    def goes_on(self) -> None:
        """The process did not end after `stop`."""
        self._stopped = False

    def _event(self, action: str, said: Mapping[str, Any], *, beyond: bool = False) -> bool:
        number = self.source.next_seq()
        if action == names.ACTION_LOSS and len(self._told) < _TOLD_MAX:
            self._told.add(number)
        record = self.source.encoder.event(action, said, number, self._resource or Resource.create({}))
        reason = self._try(number, record, beyond=beyond)
        if reason:
            with self._losing:
                self.lost += 1
                self._losses.add(number, reason)
        return not reason


def _said_of(losses: _Losses) -> dict[str, Any]:
    return {
        names.OUTCOME: "error",
        names.LOSS_COUNT: losses.count,
        names.LOSS_FIRST_SEQ: losses.first,
        names.LOSS_LAST_SEQ: losses.last,
        names.LOSS_REASON: losses.reason,
    }
