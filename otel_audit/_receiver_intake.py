"""What gRPC and HTTP have in common: a request body goes in, an answer comes out once its data is durable.

The transports differ only in how they carry the body and the answer. Which answer it is, what is counted, how many bytes
may be under way, and whether the log is healthy are decided here.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Final, Literal, Protocol, Self

import pyarrow as pa

from otel_audit._receiver_answer import Answer, TurnedAwayError, Verdict
from otel_audit._receiver_gate import NOT_ALLOWED, Visit
from otel_audit._receiver_inflate import inflate
from otel_audit.auditlog import Receipt
from otel_audit.errors import AuditError, DecodeError, LogClosedError, OverloadedError, TooLargeError
from otel_audit.otlp import Decoded
from otel_audit.record import Quarantined, span_schema

__all__ = [
    "Answer",
    "Compression",
    "Decodes",
    "Encoding",
    "Intake",
    "IntakeSettings",
    "Permit",
    "ReceiverStats",
    "Request",
    "Signal",
    "Sink",
    "Transport",
    "Verdict",
]

Encoding = Literal["protobuf", "json"]
Compression = Literal["", "gzip", "zlib"]
Signal = Literal["traces", "logs"]
Transport = Literal["grpc", "http"]

_log = logging.getLogger("otel_audit.receiver")
_REQUEST_BYTES: Final = 4096  # what a request costs whatever its size, so that many tiny ones are bounded as well
_MESSAGE_CHARS: Final = 500  # gRPC carries it in a header
_QUIET_S: Final = 10.0  # the same complaint is logged at most once in this time
_LARGE_BYTES: Final = 2 << 20
_INFLATERS: Final = 2  # at a time: each may hold its result twice for a moment
_RECOVERY_S: Final = 5.0  # after a failure the log counts as unhealthy this long, unless it proves otherwise


class Sink(Protocol):
    """The part of `AuditLog` that a receiver needs."""

    def submit(self, decoded: Decoded, /) -> "Future[Receipt]":
        """A future that resolves once the data is durable; raises `AuditError` if it is not even taken."""


class Decodes(Protocol):
    """The part of `Decoder` that a receiver needs."""

    def decode(self, body: bytes, /) -> Decoded:
        """Records of a protobuf body; raises `DecodeError`."""

    def decode_json(self, body: bytes, /) -> Decoded:
        """Records of an OTLP/JSON body; raises `DecodeError`."""

    def decode_logs(self, body: bytes, /) -> Decoded:
        """Records of a protobuf body of logs; raises `DecodeError`."""

    def decode_logs_json(self, body: bytes, /) -> Decoded:
        """Records of an OTLP/JSON body of logs; raises `DecodeError`."""


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """Limits that hold for all transports together.

    Args:
        max_in_flight_bytes: bytes of request bodies held at once; requests beyond are told to come again.
        retry_after_s: when a sender that could not be served should try again.
        ack_timeout_s: how long a request waits to become durable before its sender is told to come again.
    """

    max_in_flight_bytes: int = 256 << 20
    retry_after_s: float = 1.0
    ack_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class ReceiverStats:
    """Counters since start.

    Args:
        requests: requests whose data is durable and acknowledged, or would be had the sender waited.
        spans, log_records: what was in those requests, of which `skipped` are not audit records.
        spans_by_transport, log_records_by_transport: the same, by how they came.
        records: new records in the log; `duplicates` were there before.
        quarantined: entries kept in quarantine.
        not_allowed: records kept in quarantine because their sender may not speak for their service or source.
        refused: requests answered otherwise than with success, by reason.
        in_flight_bytes: request bodies held now; `in_flight_bytes_max` is the most there ever were.
        healthy: whether senders should come here now, as `/readyz` says.
        reloads: how often changed files (certificates, senders) were taken into use; `reload_failures`: could not be.
        stale_files: how many of them are in use as they were before, because what they hold now cannot be used.
    """

    requests: int = 0
    spans: int = 0
    log_records: int = 0
    spans_by_transport: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    log_records_by_transport: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    skipped: int = 0
    records: int = 0
    duplicates: int = 0
    quarantined: int = 0
    not_allowed: int = 0
    refused: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    in_flight_bytes: int = 0
    in_flight_bytes_max: int = 0
    healthy: bool = True
    reloads: int = 0
    reload_failures: int = 0
    stale_files: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A request body as it came.

    Args:
        body: the bytes, still compressed if `compression` says so.
        encoding: what the bytes are once decompressed.
        compression: gzip (RFC 1952, any number of members), zlib (RFC 1950), or none.
        limit_bytes: the most it may be, as it came and once decompressed.
        visit: whose it is.
        signal: what the bytes hold.
        transport: how it came, for the counters.
    """

    body: bytes
    encoding: Encoding = "protobuf"
    compression: Compression = ""
    limit_bytes: int = 64 << 20
    visit: Visit = field(default_factory=Visit)
    signal: Signal = "traces"
    transport: Transport = "grpc"


class Permit:
    """The bytes that one request holds, until its data is durable or refused.

    A context manager gives them back, unless `Intake.offer` has taken the permit over: a sender may leave, while what it
    sent still waits for the disk.
    """

    def __init__(self, intake: "Intake") -> None:
        self._intake = intake
        self._lock = threading.Lock()  # guards the fields below: one thread may grow it while another gives it up
        self._held_bytes = 0
        self._closed = False
        self._taken_over = False

    def grow(self, size_bytes: int) -> None:
        """Hold `size_bytes` more; raises `OverloadedError` when that is more than all requests may hold together."""
        with self._lock:
            if self._closed:
                raise OverloadedError("receive", "request", "it was given up", "send it again")
            self._intake.hold(size_bytes)
            self._held_bytes += size_bytes

    def close(self) -> None:
        """Give back everything."""
        with self._lock:
            self._closed = True
            self._intake.release(self._held_bytes)
            self._held_bytes = 0

    def close_with(self, answer: "Future[Answer]") -> None:
        """Give back everything once there is an answer, and not before."""
        self._taken_over = True
        answer.add_done_callback(lambda _: self.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._taken_over:
            self.close()


class Intake:
    """Turns request bodies into answers; thread-safe.

    Args:
        sink: where decoded data goes, an `AuditLog`.
        decoder: a `Decoder`.
        settings: limits.
        clock: monotonic seconds; tests replace it.
        health: why the log behind is not ready, a sentence each; must answer at once.
    """

    def __init__(
        self,
        sink: Sink,
        decoder: Decodes,
        settings: IntakeSettings = IntakeSettings(),
        clock: Callable[[], float] = time.monotonic,
        health: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.settings = settings
        self._health = health
        self._sink = sink
        self._decoder = decoder
        self._clock = clock
        # One at a time: decoding holds the interpreter, so more at once only make each of them slower, and the log's thread
        # wait for all of them. Large bodies have a turn of their own, so that small ones need not wait for them; what
        # decoding takes beside the body, three times its size, is so bounded as well.
        self._decoding_small = threading.Lock()
        self._decoding_large = threading.Lock()
        self._inflating = threading.BoundedSemaphore(_INFLATERS)
        self._lock = threading.Lock()  # guards everything below
        self._in_flight_bytes = 0
        self._in_flight_bytes_max = 0
        self._counts = _Counts()
        self._received: Counter[tuple[Signal, Transport]] = Counter()
        self._refused: Counter[str] = Counter()
        self._complained_s: dict[str, float] = {}
        self._failed_s: float | None = None  # when the log last failed to make data durable; None: it works
        self._draining = False

    # --- admission ------------------------------------------------------------------------------------------------------
    def admit(self) -> Permit:
        """A permit for one request.

        Raises:
            LogClosedError: the receiver is stopping.
            OverloadedError: too many bytes are under way.
        """
        if self._draining:
            raise LogClosedError("receive", "request", "the server is stopping", "send it again")
        permit = Permit(self)
        permit.grow(_REQUEST_BYTES)
        return permit

    def hold(self, size_bytes: int) -> None:
        """Count `size_bytes` as under way; raises `OverloadedError` beyond the limit."""
        limit = self.settings.max_in_flight_bytes
        with self._lock:
            if self._in_flight_bytes + size_bytes <= limit:
                self._in_flight_bytes += size_bytes
                self._in_flight_bytes_max = max(self._in_flight_bytes_max, self._in_flight_bytes)
                return
        raise OverloadedError("receive", "request", f"over {limit} bytes of requests are under way", "send it again")

    def release(self, size_bytes: int) -> None:
        """Give back what `hold` took."""
        with self._lock:
            self._in_flight_bytes -= size_bytes

    def drain(self) -> None:
        """Answer every new request with "come again"; those under way go on."""
        self._draining = True

    # --- requests -------------------------------------------------------------------------------------------------------
    def offer(self, request: Request, permit: Permit) -> "Future[Answer]":
        """The answer to a request, resolved once its data is durable or will not become so.

        Never raises; the future holds an `Answer`, never an exception, and cannot be cancelled.

        Args:
            request: the body.
            permit: holds the bytes of the body already, and is made to hold those of the decompressed body. It is given
                back once there is an answer.
        """
        answer: Future[Answer] = Future()
        answer.set_running_or_notify_cancel()
        permit.close_with(answer)
        try:
            decoded, invalid = self._decode(request, permit)
            decoded = _checked(request, decoded)
            durable = self._sink.submit(decoded)
        except TooLargeError as e:
            answer.set_result(self.refuse("too_large", Answer(Verdict.TOO_LARGE, str(e))))
        except MemoryError:
            request.visit.give_back()
            answer.set_result(self.retry(OverloadedError("receive", "request", "out of memory", "send it again")))
        except Exception as e:
            request.visit.give_back()
            answer.set_result(self.retry(e))
        else:
            what = request.signal, request.transport  # and not all of the request
            visit = request.visit
            durable.add_done_callback(lambda done: answer.set_result(self._settle(done, decoded, invalid, visit, what)))
        return answer

    def _decode(self, request: Request, permit: Permit) -> tuple[Decoded, str]:
        """What to store for a request, and what to tell its sender if it is not OTLP."""
        body = request.body
        if len(body) > request.limit_bytes:
            raise TooLargeError("receive", "request", f"over the limit of {request.limit_bytes} bytes")
        try:
            if request.compression:
                with self._inflating:
                    body = inflate(body, request.compression, request.limit_bytes, permit.grow)
        except TooLargeError:
            raise
        except DecodeError as e:
            return self._not_otlp(request, body, e)
        try:
            with self._decoding_large if len(body) > _LARGE_BYTES else self._decoding_small:
                return self._decoded(request, body), ""
        except MemoryError:
            raise
        except DecodeError as e:
            return self._not_otlp(request, body, e)
        except Exception as e:
            # A fault of ours must neither lose what was sent nor hold up the sender's queue for ever.
            _log.exception("decode request of %d bytes: unexpected error; kept in quarantine, acknowledged", len(body))
            return _quarantined(request, body, "internal_error", f"{type(e).__name__}: {e}"), ""

    def _decoded(self, request: Request, body: bytes) -> Decoded:
        protobuf = request.encoding == "protobuf"
        if request.signal == "logs":
            return self._decoder.decode_logs(body) if protobuf else self._decoder.decode_logs_json(body)
        return self._decoder.decode(body) if protobuf else self._decoder.decode_json(body)

    @staticmethod
    def _not_otlp(request: Request, body: bytes, error: DecodeError) -> tuple[Decoded, str]:
        told = f"{_sendable(str(error))[:_MESSAGE_CHARS]}; it was kept in quarantine, sending it again will not help"
        return _quarantined(request, body, "request_undecodable", str(error)), told

    def _settle(
        self,
        durable: "Future[Receipt]",
        decoded: Decoded,
        invalid: str,
        visit: Visit,
        what: tuple[Signal, Transport],
    ) -> Answer:
        try:
            receipt = durable.result()
        except (Exception, CancelledError) as e:
            visit.give_back()
            return self.retry(e)
        visit.give_back_copies(receipt.duplicates + len(decoded.quarantine) - receipt.quarantined)
        with self._lock:
            self._counts.add(decoded, receipt, what[0], acknowledged=not invalid)
            self._counts.not_allowed += visit.not_allowed
            self._received[what] += decoded.spans
            failed_s, self._failed_s = self._failed_s, None
        if failed_s is not None:
            _log.warning("the log makes data durable again")
        if visit.not_allowed:
            self._complain(NOT_ALLOWED, f"{decoded.quarantine[-1].detail}; kept in quarantine", visit.name)
        if invalid:
            return self.refuse("undecodable", Answer(Verdict.INVALID, invalid))
        return Answer(Verdict.ACCEPTED)

    # --- refusals -------------------------------------------------------------------------------------------------------
    def retry(self, error: BaseException) -> Answer:
        """The answer to a request whose data is not durable, because of `error`."""
        if isinstance(error, OverloadedError):
            return self.refuse("overloaded", Answer(Verdict.RETRY, str(error)))
        if isinstance(error, LogClosedError):
            return self.refuse("stopping", Answer(Verdict.RETRY, str(error)))
        with self._lock:
            was_s, self._failed_s = self._failed_s, self._clock()
        if was_s is None:
            expected = isinstance(error, AuditError) and error.retryable
            trace = None if expected else error
            _log.error("data is not durable, senders are told to come again: %s", error, exc_info=trace)
        message = (
            _sendable(str(error)) if isinstance(error, AuditError) else "append to log: internal error; send it again"
        )
        return self.refuse("unavailable", Answer(Verdict.RETRY, message))

    def fail(self, error: Exception) -> Answer:
        """The answer to a request that a transport could not handle; of the log that says nothing, unless it says so."""
        if isinstance(error, AuditError):
            return self.retry(error)
        told = _sendable(f"{type(error).__name__}: {error}")[:_MESSAGE_CHARS]
        self._complain("internal error", told, "", trace=error)
        return self.refuse("unavailable", Answer(Verdict.RETRY, "receive: internal error; send it again"))

    def refuse(self, reason: str, answer: Answer, *, about: str = "", sender: str = "") -> Answer:
        """Count and log a refusal; gives back `answer`.

        Args:
            reason: under which it is counted.
            answer: what its sender is told.
            about: what the log says beside.
            sender: who it is, where that is known: each is complained of by itself.
        """
        with self._lock:
            self._refused[reason] += 1
            total = self._refused[reason]
        told = f"{answer.message} ({about})" if about else answer.message
        extra = {"reason": reason, "count": total}
        self._complain(f"{reason}, {total} so far", told, sender, key=reason, extra=extra)
        return answer

    def turn_away(self, error: TurnedAwayError) -> Answer:
        """Count and log what the gate has not let in; gives the answer to it."""
        return self.refuse(error.reason, error.answer, about=error.about, sender=error.sender)

    def _complain(
        self,
        what: str,
        told: str,
        sender: str,
        key: str = "",
        extra: Mapping[str, object] | None = None,
        *,
        trace: BaseException | None = None,
    ) -> None:
        """Log a refusal, unless the same has been logged just now."""
        now_s = self._clock()
        key = f"{key or what} {sender}"
        with self._lock:
            speak = now_s - self._complained_s.get(key, -_QUIET_S) >= _QUIET_S
            if speak:
                self._complained_s[key] = now_s
        if speak:
            _log.warning("refused (%s): %s", what, told, extra=extra, exc_info=trace)

    # --- state ----------------------------------------------------------------------------------------------------------
    @property
    def healthy(self) -> bool:
        """Whether senders should come here now."""
        return not self.reasons()

    def reasons(self) -> list[str]:
        """Why senders should not come here now, a sentence each; empty if they should.

        A failure counts for a few seconds only: without requests nobody would ever learn that the log works again. What
        can be known without requests, the `health` of the log says.
        """
        if self._draining:
            return ["the service is stopping"]
        failed_s = self._failed_s
        failing = failed_s is not None and self._clock() - failed_s < _RECOVERY_S
        return [*(["the log cannot make data durable"] if failing else []), *self._health()]

    def _by_transport(self, signal: Signal) -> Mapping[str, int]:
        transports: tuple[Transport, ...] = ("grpc", "http")
        return MappingProxyType({transport: self._received[signal, transport] for transport in transports})

    def stats(self) -> ReceiverStats:
        """The counters now."""
        healthy = self.healthy
        with self._lock:
            return ReceiverStats(
                **asdict(self._counts),
                spans_by_transport=self._by_transport("traces"),
                log_records_by_transport=self._by_transport("logs"),
                refused=MappingProxyType(dict(self._refused)),
                in_flight_bytes=self._in_flight_bytes,
                in_flight_bytes_max=self._in_flight_bytes_max,
                healthy=healthy,
            )


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    spans: int = 0
    log_records: int = 0
    skipped: int = 0
    records: int = 0
    duplicates: int = 0
    quarantined: int = 0
    not_allowed: int = 0

    def add(self, decoded: Decoded, receipt: Receipt, signal: Signal, *, acknowledged: bool) -> None:
        self.requests += acknowledged
        self.spans += decoded.spans if signal == "traces" else 0
        self.log_records += decoded.spans if signal == "logs" else 0
        self.skipped += decoded.skipped
        self.records += receipt.accepted
        self.duplicates += receipt.duplicates
        self.quarantined += receipt.quarantined


def _sendable(text: str) -> str:
    """`text` as UTF-8 can carry it: what an error quotes from a request may hold lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


def _checked(request: Request, decoded: Decoded) -> Decoded:
    """What the sender of a request may say; what it may not is in quarantine."""
    checked = request.visit.check(decoded, lambda: _quarantined(request, request.body, NOT_ALLOWED, "").quarantine[0])
    return checked if checked.raw is None else replace(checked, raw=None)  # it holds the bytes of the whole request


def _quarantined(request: Request, body: bytes, reason: str, detail: str) -> Decoded:
    """A whole request as one quarantine entry; `body` is the request's, decompressed as far as it could be."""
    compressed = f"+{request.compression}" if body is request.body and request.compression else ""
    of = "request" if request.signal == "traces" else "logs_request"
    entry = Quarantined(
        reason=reason, detail=_sendable(detail), payload=body, kind=f"otlp.{of}+{request.encoding}{compressed}"
    )
    return Decoded(records=_no_records(), quarantine=(entry,), spans=0, skipped=0)


@cache
def _no_records() -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=span_schema())
