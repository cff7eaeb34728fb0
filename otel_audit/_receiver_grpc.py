"""OTLP over gRPC: Export of traces and of logs on raw bytes, and the standard health service.

Export is registered as a method that takes a stream and gives one message, which on the wire is what a unary call is. The
handler so decides when the message is read: not while the server is stopping, not for ever from a sender that does not
send; and it learns of a message that was dropped for its size. gRPC's own decompression is switched off: it has a limit for
one message but none for all of them together, and a few kilobytes can ask for the limit.

Source: OTLP specification 1.10, "OTLP/gRPC"; gRPC health checking protocol v1.
"""

import errno
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from otel_audit._receiver_answer import Answer, TurnedAwayError, Verdict
from otel_audit._receiver_bind import bind, join_address, listen
from otel_audit._receiver_gate import Credentials, Gate
from otel_audit._receiver_intake import Compression, Intake, Request, Signal
from otel_audit._receiver_status import retry_info, status_of
from otel_audit._receiver_tls import TlsSettings, grpc_credentials, watch
from otel_audit.errors import UnavailableError

__all__ = ["SERVICES", "GrpcServer", "GrpcSettings"]

SERVICES: Final[Mapping[Signal, str]] = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
}

_log = logging.getLogger("otel_audit.receiver")
_RESPONSE: Final = b""  # an Export…ServiceResponse without partial_success
_IDENTITY_DEFLATE_GZIP: Final = 0b111
_TICK_S: Final = 0.25
_HANDSHAKE_MS: Final = 10_000

_CODES: Final = {
    Verdict.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Verdict.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Verdict.RETRY: grpc.StatusCode.UNAVAILABLE,
    Verdict.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
}


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """OTLP/gRPC.

    Args:
        endpoint: `host:port` to listen on.
        max_body_bytes: largest message, as sent and after decompression.
        workers: requests received, decoded or waiting for the disk at a time; more of them wait in the senders' streams.
        receive_timeout_s: how long a sender may take to send one request.
        ping_interval_s: how often a sender may ping to keep its connection open.
        tls: certificates; None: no encryption.
    """

    endpoint: str = "localhost:4317"
    max_body_bytes: int = 64 << 20
    workers: int = 32
    receive_timeout_s: float = 30.0
    ping_interval_s: float = 10.0
    tls: TlsSettings | None = None


class _Status(grpc.Status):
    """An answer as `abort_with_status` takes it."""

    def __init__(self, answer: Answer, retry_after_s: float) -> None:
        self.code = _CODES[answer.verdict]
        self.details = answer.message
        trailers = [("grpc-status-details-bin", status_of(answer, retry_after_s).SerializeToString())]
        if answer.verdict is Verdict.RETRY:
            # The Python exporter looks for RetryInfo only here.
            trailers.append(
                ("google.rpc.retryinfo-bin", retry_info(answer.retry_after_s or retry_after_s).SerializeToString())
            )
        self.trailing_metadata = tuple(trailers)


def _compression_of(body: bytes) -> Compression:
    """How a message is compressed: gRPC does not tell the handler, but no OTLP message begins like this.

    0x1f would be field 3 of a wire type that does not exist; 0x78 and a valid check (RFC 1950) would be field 15.
    """
    if body[:2] == b"\x1f\x8b":
        return "gzip"
    if body[:1] == b"\x78" and int.from_bytes(body[:2], "big") % 31 == 0:
        return "zlib"
    return ""


class _IncompleteError(Exception):
    """A call without a whole message; its sender has been told already, unless it sent none."""


class _Receiving:
    """The calls whose message is being received; the late ones are cancelled."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._open: dict[int, tuple[float, grpc.ServicerContext]] = {}  # guarded by _lock

    def receive(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """The message; raises `StopIteration` if there is none, `grpc.RpcError` if the call ended or came too late."""
        key = id(context)
        with self._lock:
            self._open[key] = (time.monotonic() + self._timeout_s, context)
        try:
            return next(messages)
        finally:
            with self._lock:
                del self._open[key]

    def cancel_late(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            late = [context for due_s, context in self._open.values() if due_s <= now_s]
        for context in late:
            context.cancel()


class _Export:
    """The handler of Export, run by threads of its own so that health is answered whatever the disk does.

    Args:
        intake: where requests go.
        gate: who may send them.
        settings: limits.
        signal: what the requests hold.
        beside: another signal's handler, to share its threads.
    """

    def __init__(
        self,
        intake: Intake,
        gate: Gate,
        settings: GrpcSettings,
        signal: Signal = "traces",
        beside: "_Export | None" = None,
    ) -> None:
        self._intake = intake
        self._gate = gate
        self._settings = settings
        self._signal: Signal = signal
        self.receiving: _Receiving = beside.receiving if beside else _Receiving(settings.receive_timeout_s)
        # grpc runs a handler that has this attribute on these threads.
        self.experimental_thread_pool: ThreadPoolExecutor = (
            beside.experimental_thread_pool
            if beside
            else ThreadPoolExecutor(settings.workers, thread_name_prefix="otlp-grpc")
        )

    def __call__(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        try:
            wanted = self._settings.tls is not None and self._settings.tls.mutual
            visit = self._gate.enter(lambda: _credentials_of(context), certificate_wanted=wanted)
            with self._intake.admit() as permit:
                body = self._receive(messages, context)
                permit.grow(len(body))
                limit = visit.limit_bytes(self._settings.max_body_bytes)
                request = Request(body, "protobuf", _compression_of(body), limit, visit=visit, signal=self._signal)
                answer = self._wait(self._intake.offer(request, permit), context)
        except TurnedAwayError as e:
            answer = self._intake.turn_away(e)
        except _IncompleteError as e:
            answer = self._intake.refuse("incomplete", Answer(Verdict.INVALID, str(e)))
        except Exception as e:
            # Also what nobody expected: senders drop what is answered with UNKNOWN.
            answer = self._intake.retry(e)
        if answer.verdict is not Verdict.ACCEPTED:
            context.abort_with_status(_Status(answer, self._intake.settings.retry_after_s))
        return _RESPONSE

    def _receive(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        try:
            return self.receiving.receive(messages, context)
        except StopIteration:
            raise _IncompleteError("the call ended without a message") from None
        except grpc.RpcError:
            limit = self._settings.max_body_bytes
            why = f"a call ended before its message was whole: over {limit} bytes, too slow, or cancelled by the sender"
            raise _IncompleteError(why) from None

    def _wait(self, answer: "Future[Answer]", context: grpc.ServicerContext) -> Answer:
        """The answer, or "come again" if it takes longer than the sender or the settings allow."""
        settled = threading.Event()
        answer.add_done_callback(lambda _: settled.set())
        # The end of the call, by the sender or by its deadline, ends the wait as well.
        if not context.add_callback(settled.set):
            settled.set()
        settled.wait(self._intake.settings.ack_timeout_s)
        if answer.done():
            return answer.result()
        if not context.is_active():
            return self._intake.refuse(
                "abandoned", Answer(Verdict.RETRY, "the sender left before its data was durable")
            )
        return self._intake.retry(UnavailableError("append", "request", "not durable in time", "send it again"))


def _credentials_of(context: grpc.ServicerContext) -> Credentials:
    """What a call shows of its sender."""
    metadata = context.invocation_metadata() or ()
    authorization = next((value for key, value in metadata if key == "authorization"), "")
    shown: Any = context.auth_context()
    names = [*shown.get("x509_subject_alternative_name", ()), *shown.get("x509_common_name", ())]
    return Credentials(
        authorization if isinstance(authorization, str) else "",
        tuple(dict.fromkeys(name.decode("utf-8", "replace") for name in names)),
        "x509_pem_cert" in shown,
        context.peer(),
    )


class _Service(grpc.GenericRpcHandler):
    def __init__(self, exports: Mapping[Signal, _Export]) -> None:
        self._handlers: dict[str, Any] = {
            f"/{SERVICES[signal]}/Export": grpc.stream_unary_rpc_method_handler(export)
            for signal, export in exports.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)


class GrpcServer:
    """OTLP/gRPC and health on one port.

    Args:
        intake: where requests go.
        gate: who may send them.
        settings: address and limits.

    Raises `ConfigError` if the address or a certificate cannot be used.
    """

    def __init__(self, intake: Intake, gate: Gate, settings: GrpcSettings) -> None:
        self._intake = intake
        self.certificates = watch("grpc", settings.tls) if settings.tls else None
        """Whoever polls them keeps them up to date."""
        self._export = _Export(intake, gate, settings)
        exports: dict[Signal, _Export] = {
            "traces": self._export,
            "logs": _Export(intake, gate, settings, "logs", self._export),
        }
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="grpc")
        self._server = grpc.server(self._pool, handlers=[_Service(exports)], options=_options(settings))
        # `maximum_concurrent_rpcs` stays unset: its RESOURCE_EXHAUSTED without RetryInfo makes a Collector drop the data.
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._set_health(serving=True)
        self._started = False
        self._stopping = threading.Event()
        self._caretaker = threading.Thread(target=self._take_care, name="otlp-grpc-care", daemon=True)
        host, port = bind(settings.endpoint, self._bind_one)
        self.address = join_address(host, port)

    def start(self) -> None:
        """Answer calls from now on."""
        self._started = True
        self._server.start()
        self._caretaker.start()

    def begin_stop(self, grace_s: float) -> threading.Event:
        """Take no new calls; the event is set when those under way have ended, after `grace_s` at the latest."""
        self._health.enter_graceful_shutdown()
        self._stopping.set()
        if not self._started:
            self._server.start()  # else gRPC keeps its ports; the intake takes nothing any more
        return self._server.stop(grace_s)

    def finish_stop(self) -> None:
        """End the threads; call it after the event of `begin_stop` is set."""
        self._stopping.set()
        self._export.experimental_thread_pool.shutdown(wait=True)
        self._pool.shutdown(wait=True)
        if self._caretaker.ident is not None:
            self._caretaker.join()

    def _bind_one(self, address: str, port: int) -> int:
        listen(address, port).close()  # grpc does not say why it cannot
        try:
            if self.certificates is not None:
                credentials = grpc_credentials(self.certificates)
                return self._server.add_secure_port(join_address(address, port), credentials)
            return self._server.add_insecure_port(join_address(address, port))
        except RuntimeError as e:
            raise OSError(errno.EADDRINUSE, str(e)) from e

    def _take_care(self) -> None:
        """Cancel what is not received in time, and let the health service say what the log is like."""
        serving = True
        while not self._stopping.wait(_TICK_S):
            self._export.receiving.cancel_late()
            if self._intake.healthy != serving:
                serving = not serving
                self._set_health(serving=serving)

    def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICES.values()):
            self._health.set(name, status)


def _options(settings: GrpcSettings) -> list[tuple[str, int]]:
    ping_ms = round(settings.ping_interval_s * 1000)
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.per_message_decompression", 0),
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_DEFLATE_GZIP),
        ("grpc.so_reuseport", 0),  # two servers on one port would each get half of the calls
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", ping_ms),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
    ]
