"""Passes audit records on as OTLP log records, to an existing log backend or another otel-audit.

One thread beside an open log. The log itself is the queue: records are read from it by number when the destination takes
them, so that a destination that is away for hours costs no memory and never holds up who sends to the log. The cursor is
written after the destination's acknowledgement, never before: a crash between the two repeats a batch, and each log record
has an id (`log.record.uid`) by which it can be told.

What the destination refuses for good is found by halving the batch, noted durably with the reason, and passed over, but only
when the destination is known to take other records; one that refuses everything is tried again without end. `_forwarder_source`
reads, `_forwarder_encode` encodes, `_forwarder_send` sends, `_forwarder_state` keeps the place.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from otel_audit._forwarder_encode import Encoded, RecordEncoder, request_of
from otel_audit._forwarder_send import Answer, Fate, OtlpLogsSettings, Transport, connect
from otel_audit._forwarder_source import LogSource
from otel_audit._forwarder_state import ForwardState
from otel_audit.auditlog import AuditLog
from otel_audit.errors import AuditError

__all__ = ["Forwarder", "ForwarderStats", "OtlpLogsSettings"]

_log = logging.getLogger("otel_audit.forwarder")
_POLL_S: Final = 0.2
_BYTES_MAX: Final = 2 << 20  # of a request: servers of gRPC take 4 MiB unless told otherwise
_BACKOFF_S: Final = (0.5, 30.0)
_QUIET_S: Final = 60.0  # the same complaint is logged once in this time
_STOP_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ForwarderStats:
    """Counters since start, and where forwarding stands.

    Args:
        sent: log records that the destination has acknowledged.
        send_failed: log records that it refused for good; noted, and still in the log.
        retries: attempts after which the same records were sent again.
        next_seq: number of the first record that is not done; `lag` is how many of the log are not.
        buffered: records held in memory.
        error: why the last attempt failed; empty when it did not.
    """

    sent: int
    send_failed: int
    retries: int
    next_seq: int
    lag: int
    buffered: int
    error: str


class _Refusal(NamedTuple):
    """Records that the destination refused."""

    first_seq: int
    last_seq: int
    records: int
    reason: str


class _EndingError(Exception):
    """The forwarder is to end; nothing of what is under way counts."""


class Forwarder:
    """A thread that passes a log on.

    Args:
        log: open for writing; it stays open when the forwarder stops.
        settings: where to, and how.
        transport: replaces the one that `settings` say; for tests.

    Raises:
        ConfigError: the settings do not go together.
        CorruptLogError: the file that says where forwarding stands is not what was written.
    """

    def __init__(self, log: AuditLog, settings: OtlpLogsSettings, transport: Transport | None = None) -> None:
        settings.check()
        self._log, self._settings = log, settings
        self._transport = transport or connect(settings)
        self._ending = threading.Event()
        # The thread's own; others only read numbers and texts.
        self._state = ForwardState(log.directory, log.name)
        self._next_seq = self._place()
        self._source = LogSource(log.directory, log.name)
        self._encoder = RecordEncoder()
        self._bytes_max = _BYTES_MAX
        self._held = 0
        self._sent = self._send_failed = self._retries = self._failures = 0
        self._error = ""
        self._complained_s: dict[str, float] = {}
        self._doubtful = False  # the destination has refused a whole batch, and has taken nothing since
        self._given_up = False  # `stop` has waited long enough: the log may be closed, and opened by another process
        self._thread = threading.Thread(target=self._run, name="otel-audit-forward", daemon=True)

    def _place(self) -> int:
        """Number of the first record to pass on."""
        last_seq = self._log.stats().last_seq
        next_seq = self._state.next_seq
        if next_seq is None:
            return last_seq + 1 if self._settings.start == "now" else 1
        if next_seq > last_seq + 1:
            _log.warning(
                "records up to %d were passed on, but the log ends at %d: it is an older copy; going on from there",
                next_seq - 1,
                last_seq,
            )
            return last_seq + 1
        return next_seq

    def start(self) -> None:
        """Pass on from now on."""
        self._thread.start()

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """End within `timeout_s` seconds and a moment; what is not passed on is when the log is opened again."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            self._transport.abort()
            self._thread.join(_STOP_S)
            self._given_up = True

    def stats(self) -> ForwarderStats:
        """The counters now."""
        next_seq = self._next_seq
        return ForwarderStats(
            sent=self._sent,
            send_failed=self._send_failed,
            retries=self._retries,
            next_seq=next_seq,
            lag=max(self._log.stats().last_seq + 1 - next_seq, 0),
            buffered=self._source.buffered + self._held,
            error=self._error,
        )

    # --- the thread -------------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                try:
                    self._step()
                except (AuditError, OSError) as e:  # the log cannot be read, or the cursor not be written, now
                    self._wait(str(e))
                except _EndingError:
                    raise
                except Exception as e:
                    _log.exception("passing on log records failed unexpectedly; it is tried again")
                    self._wait(repr(e))
        except _EndingError:
            pass
        finally:
            self._transport.close()

    def _step(self) -> None:
        """Pass on what is next, if there is any."""
        if self._state.next_seq != self._next_seq:
            self._state.advance(self._next_seq)
        last_seq = self._log.stats().last_seq
        if self._next_seq > last_seq:
            self._ending.wait(_POLL_S)
            return
        batches = self._source.read(self._next_seq, last_seq, self._settings.batch_records)
        encoded = [record for batch in batches for record in self._encoder.encode(batch)]
        self._held = len(encoded)
        try:
            for records in self._requests(encoded):
                self._deliver(records)
                if self._given_up:
                    raise _EndingError
                self._next_seq = records[-1].seq + 1
                self._held -= len(records)
                self._state.advance(self._next_seq)
        finally:
            self._held = 0

    def _requests(self, encoded: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
        """The records in pieces of which each fits one request."""
        first = size = 0
        for index, record in enumerate(encoded):
            if index > first and size + record.size > self._bytes_max:
                yield encoded[first:index]
                first, size = index, 0
            size += record.size
        if first < len(encoded):
            yield encoded[first:]

    # --- one request ------------------------------------------------------------------------------------------------------
    def _deliver(self, records: Sequence[Encoded]) -> None:
        """Send records until the destination has each, or has refused it and that is noted; raises `_EndingError`."""
        waiting = [records]
        refusals: list[_Refusal] = []
        accepted = suspects = 0
        while waiting:
            part = waiting.pop()
            answer = self._attempt(part)
            if answer.fate is Fate.SENT:
                accepted += len(part) - answer.rejected
                self._took(part, answer, refusals)
            elif answer.fate is Fate.REFUSED and self._still_doubtful(part):
                self._wait(self._doubt(answer))
                waiting.append(part)
            elif len(part) > 1:
                self._retries += 1
                half = len(part) // 2
                waiting += [part[half:], part[:half]]  # the first half comes next
                if answer.fate is Fate.TOO_LARGE and answer.certain:
                    self._bytes_max = min(self._bytes_max, max(sum(r.size for r in part) // 2, 1))
            elif answer.fate is Fate.TOO_LARGE and not answer.certain:
                self._wait(answer.reason)
                waiting.append(part)
            else:
                refusals.append(_Refusal(part[0].seq, part[0].seq, 1, answer.reason))
                suspects += 1
            if not waiting and suspects and not accepted:
                takes_others = self._takes_others(records)
                if self._doubtful or not takes_others:
                    # Perhaps it would refuse any record: then it is the destination that is wrong, and not the records.
                    self._doubtful, self._bytes_max = not takes_others, _BYTES_MAX
                    self._wait(self._doubt(answer))
                    waiting, refusals, suspects = [records], [], 0
        self._note(refusals)
        self._failures, self._error, self._doubtful = 0, "", False

    def _attempt(self, records: Sequence[Encoded]) -> Answer:
        """The destination's answer to these records, once it has one that waiting does not change."""
        body = request_of(records)
        while True:
            answer = self._transport.send(body)
            if self._ending.is_set() and answer.fate is not Fate.SENT:
                raise _EndingError
            if answer.fate not in (Fate.AGAIN, Fate.MISCONFIGURED):
                return answer
            reason = answer.reason
            if answer.fate is Fate.MISCONFIGURED:
                reason += "; check exporters.otlp_logs, and what is allowed at the destination"
            self._wait(reason, answer.delay_s)

    def _still_doubtful(self, refused: Sequence[Encoded]) -> bool:
        if self._doubtful:
            self._doubtful = not self._takes_others(refused)
        return self._doubtful

    def _takes_others(self, refused: Sequence[Encoded]) -> bool:
        """Whether the destination takes the newest record, though it takes none of these; sent again later, it is there twice."""
        last_seq = self._log.stats().last_seq
        if last_seq == refused[0].seq:
            return False
        source = LogSource(self._log.directory, self._log.name)
        (batch,) = source.read(last_seq, last_seq, 1)
        answer = self._transport.send(request_of(self._encoder.encode(batch)))
        return answer.fate is Fate.SENT and not answer.rejected

    def _took(self, part: Sequence[Encoded], answer: Answer, refusals: list[_Refusal]) -> None:
        """Count what was sent; OTLP forbids to send again what a partial success rejects."""
        self._sent += len(part) - answer.rejected
        if answer.rejected:
            refusals.append(_Refusal(part[0].seq, part[-1].seq, answer.rejected, answer.reason or "partial success"))
        elif answer.reason:
            self._complain("the destination took log records and says: " + answer.reason)

    def _note(self, refusals: Sequence[_Refusal]) -> None:
        """Keep durably what was refused; neighbours refused for the same reason as one."""
        joined: list[_Refusal] = []
        for refusal in sorted(refusals):
            if joined and (joined[-1].last_seq + 1, joined[-1].reason) == (refusal.first_seq, refusal.reason):
                before = joined.pop()
                refusal = before._replace(last_seq=refusal.last_seq, records=before.records + refusal.records)  # noqa: PLW2901
            joined.append(refusal)
        for first_seq, last_seq, count, reason in joined:
            self._state.note_refused(first_seq, last_seq, count, reason)
            self._send_failed += count
            _log.error(
                "the destination refused %d of records %d to %d (%s); they stay in the log, noted in %s",
                count,
                first_seq,
                last_seq,
                reason,
                self._state.refused,
            )

    # --- waiting ----------------------------------------------------------------------------------------------------------
    @staticmethod
    def _doubt(answer: Answer) -> str:
        return f"{answer.reason}; it refuses every record, which are kept until it takes one: check the destination"

    def _wait(self, reason: str, delay_s: float | None = None) -> None:
        """Say why, and wait before the next attempt; raises `_EndingError` when there is to be none."""
        self._retries += 1
        self._error = reason
        self._complain(f"log records are not passed on, it is tried again: {reason}")
        least_s, most_s = _BACKOFF_S
        backoff_s = min(least_s * 2 ** min(self._failures, 10), most_s) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._failures += 1
        if self._ending.wait(max(backoff_s, delay_s or 0.0)):
            raise _EndingError

    def _complain(self, text: str) -> None:
        """Log a complaint, the same one not too often."""
        now_s = time.monotonic()
        if now_s - self._complained_s.get(text, -_QUIET_S) >= _QUIET_S:
            if len(self._complained_s) > 100:
                self._complained_s.clear()
            self._complained_s[text] = now_s
            _log.warning("%s", text)
