"""OTLP over HTTP/1.1: POST /v1/traces and /v1/logs in protobuf or JSON, and GET /livez and /readyz.

The event loop only moves bytes; decompressing and decoding run on a few threads.

Source: OTLP specification 1.10, "OTLP/HTTP".
"""

import asyncio
import contextlib
import errno
import logging
import math
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import h11
import uvicorn
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from otel_audit._receiver_answer import Answer, TurnedAwayError, Verdict
from otel_audit._receiver_bind import bind, join_address, listen
from otel_audit._receiver_gate import Credentials, Gate
from otel_audit._receiver_intake import Compression, Encoding, Intake, Permit, Request, Signal
from otel_audit._receiver_status import status_of
from otel_audit._receiver_tls import TlsSettings, certificate_names, http_context, watch
from otel_audit.errors import ConfigError, LogClosedError, StorageError, UnavailableError

__all__ = ["PATHS", "HttpServer", "HttpSettings"]

PATHS: Final[Mapping[str, Signal]] = {"/v1/traces": "traces", "/v1/logs": "logs"}

_log = logging.getLogger("otel_audit.receiver")
_ENCODINGS: Final[Mapping[str, Encoding]] = {"application/x-protobuf": "protobuf", "application/json": "json"}
_MEDIA_TYPES: Final[Mapping[Encoding, str]] = {encoding: name for name, encoding in _ENCODINGS.items()}
_COMPRESSIONS: Final[Mapping[str, Compression]] = {"": "", "identity": "", "gzip": "gzip", "deflate": "zlib"}
_STRANGERS_BYTES: Final = 1 << 20  # of a body that is read and forgotten for somebody who is not known
_STRANGERS_S: Final = 2.0
_START_S: Final = 10.0
_CERTIFICATE: Final = "otel_audit.certificate"
_RESPONSES: Final[Mapping[Encoding, bytes]] = {"protobuf": b"", "json": b"{}"}  # without partial_success
_CODES: Final = {Verdict.INVALID: 400, Verdict.TOO_LARGE: 413, Verdict.RETRY: 503, Verdict.UNAUTHENTICATED: 401}


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """OTLP/HTTP.

    Args:
        endpoint: `host:port` to listen on.
        max_body_bytes: largest body, as sent and after decompression.
        workers: threads that decompress and decode.
        header_timeout_s: how long a client may take to send the head of a request.
        receive_timeout_s: how long a sender may take to send the body.
        idle_timeout_s: how long a connection may stay open without a request.
        connections_max: connections at a time; more are closed at once.
        tls: certificates; None: no encryption.
    """

    endpoint: str = "localhost:4318"
    max_body_bytes: int = 64 << 20
    workers: int = 4
    header_timeout_s: float = 10.0
    receive_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    connections_max: int = 1000
    tls: TlsSettings | None = None


class _Refused(Exception):  # noqa: N818 - not an error but an answer
    """Answer this and read no further."""

    def __init__(self, code: int, reason: str, answer: Answer) -> None:
        super().__init__(answer.message)
        self.code = code
        self.reason = reason
        self.answer = answer


class _Body:
    """The body of one HTTP request, read part by part."""

    def __init__(self, http: HttpRequest) -> None:
        self._http = http
        self._whole = False

    async def parts(self) -> AsyncIterator[bytes]:
        """What is not read yet; raises `ClientDisconnect`."""
        while not self._whole:
            message = await self._http.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self._whole = not message.get("more_body", False)
            yield message.get("body", b"")

    async def discard(self, limit_bytes: int, timeout_s: float) -> bool:
        """Read the rest and forget it, within bounds; whether that was all of it.

        A sender that is still sending reads no answer, and a connection that is closed on it looks like a fault of the
        network, after which it would send the same again.
        """
        if "expect" in self._http.headers:
            return self._whole  # it waits to be asked for the body
        with contextlib.suppress(ClientDisconnect, TimeoutError):
            async with asyncio.timeout(timeout_s):
                async for part in self.parts():
                    limit_bytes -= len(part)
                    if limit_bytes < 0:
                        break
        return self._whole


class _App:
    """The ASGI application."""

    def __init__(self, intake: Intake, gate: Gate, settings: HttpSettings) -> None:
        self._intake = intake
        self._gate = gate
        self._settings = settings
        self.stopping = False
        """From then on uvicorn cancels requests that take too long. It would answer them with 500, after which senders drop
        what they sent; they are told to come again."""
        self.pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="otlp-http")
        routes = [
            *(Route(path, self._export, methods=["POST"]) for path in PATHS),
            Route("/livez", self._live, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
        ]
        self.asgi = Starlette(routes=routes, exception_handlers={HTTPException: self._http_error})

    async def _live(self, _: HttpRequest) -> Response:
        return PlainTextResponse("alive\n")

    async def _ready(self, _: HttpRequest) -> Response:
        reasons = self._intake.reasons()
        if not reasons:
            return PlainTextResponse("ready\n")
        text = "".join(f"{' '.join(reason.split())}\n" for reason in reasons)
        return PlainTextResponse(text.encode(errors="backslashreplace"), 503, self._retry_after())

    async def _http_error(self, http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        answer = Answer(Verdict.INVALID, f"{error.detail}; send OTLP by POST to {' or '.join(PATHS)}")
        # Senders drop what is answered so: whoever runs the service has to learn of it.
        about = f"{http.method[:20]} {http.scope['path'][:100]!a} from {_credentials_of(http).address}"
        self._intake.refuse("path", answer, about=about)
        return self._respond(error.status_code, "json", answer, error.headers)

    async def _export(self, http: HttpRequest) -> Response:
        signal = PATHS.get(http.scope["path"])
        if signal is None:  # the route lets a line break at the end of a path pass
            raise HTTPException(404)
        try:
            return await self._take(http, signal)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.stopping or task is None:
                raise
            task.uncancel()
            answer = self._intake.retry(LogClosedError("append", "request", "the service is stopping", "send it again"))
            encoding: Encoding = _known_encoding(http) or "protobuf"
            return self._respond(_CODES[Verdict.RETRY], encoding, answer, {"connection": "close"})

    async def _take(self, http: HttpRequest, signal: Signal) -> Response:
        body = _Body(http)
        encoding: Encoding = _known_encoding(http) or "json"  # also of an answer to a request of an unknown kind
        bounds, headers = (self._settings.max_body_bytes, self._settings.receive_timeout_s), dict[str, str]()
        try:
            wanted = self._settings.tls is not None and self._settings.tls.mutual
            visit = self._gate.enter(lambda: _credentials_of(http), certificate_wanted=wanted)
            encoding = _encoding_of(http)
            compression = _compression_of(http)
            with self._intake.admit() as permit:
                limit = visit.limit_bytes(self._settings.max_body_bytes)
                data = await self._read(http, body, permit, limit)
                request = Request(data, encoding, compression, limit, visit=visit, signal=signal, transport="http")
                answer = await self._answer(request, permit)
            code = _CODES.get(answer.verdict, 200)
        except TurnedAwayError as e:
            answer = self._intake.turn_away(e)
            code = _CODES[answer.verdict]
            if e.challenge:
                headers |= {"www-authenticate": e.challenge, "connection": "close"}  # a stranger keeps no place
                bounds = (_STRANGERS_BYTES, _STRANGERS_S)
        except _Refused as e:
            code, answer = e.code, self._intake.refuse(e.reason, e.answer)
        except Exception as e:
            # Also what nobody expected: senders drop what is answered with 500.
            answer = self._intake.fail(e)
            code = _CODES[Verdict.RETRY]
        if not await body.discard(*bounds):
            headers["connection"] = "close"
        return self._respond(code, encoding, answer, headers)

    async def _read(self, http: HttpRequest, body: _Body, permit: Permit, limit: int) -> bytes:
        too_large = _Refused(
            413, "too_large", Answer(Verdict.TOO_LARGE, f"the body is over the limit of {limit} bytes")
        )
        if int(http.headers.get("content-length", "0")) > limit:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.receive_timeout_s):
                async for part in body.parts():
                    size += len(part)
                    if size > limit:
                        raise too_large
                    permit.grow(len(part))
                    parts.append(part)
        except TimeoutError:
            slow = f"the body did not arrive within {self._settings.receive_timeout_s:g} s"
            raise _Refused(503, "incomplete", Answer(Verdict.RETRY, slow)) from None
        except ClientDisconnect:
            raise _Refused(
                503, "incomplete", Answer(Verdict.RETRY, "the sender left before the body was whole")
            ) from None
        return b"".join(parts)

    async def _answer(self, request: Request, permit: Permit) -> Answer:
        loop = asyncio.get_running_loop()
        pending = await loop.run_in_executor(self.pool, self._intake.offer, request, permit)
        try:
            async with asyncio.timeout(self._intake.settings.ack_timeout_s):
                return await asyncio.wrap_future(pending)
        except TimeoutError:
            return self._intake.retry(UnavailableError("append", "request", "not durable in time", "send it again"))

    def _respond(
        self, code: int, encoding: Encoding, answer: Answer, headers: Mapping[str, str] | None = None
    ) -> Response:
        """An Export…ServiceResponse or a google.rpc.Status, written as the request was."""
        if answer.verdict is Verdict.ACCEPTED:
            content = _RESPONSES[encoding]
        else:
            status = status_of(answer, self._intake.settings.retry_after_s)
            json = encoding == "json"
            content = json_format.MessageToJson(status, indent=None).encode() if json else status.SerializeToString()
        retry = self._retry_after(answer.retry_after_s) if code == _CODES[Verdict.RETRY] else {}
        return Response(content, code, {**(headers or {}), **retry}, _MEDIA_TYPES[encoding])

    def _retry_after(self, after_s: float | None = None) -> dict[str, str]:
        return {"retry-after": str(max(1, math.ceil(after_s or self._intake.settings.retry_after_s)))}


def _credentials_of(http: HttpRequest) -> Credentials:
    """What a request shows of its sender."""
    certificate = http.scope["state"].get(_CERTIFICATE)
    return Credentials(
        http.headers.get("authorization", ""),
        certificate_names(certificate),
        bool(certificate),
        join_address(*http.client) if http.client else "",
    )


def _known_encoding(http: HttpRequest) -> Encoding | None:
    return _ENCODINGS.get(http.headers.get("content-type", "").partition(";")[0].strip().lower())


def _encoding_of(http: HttpRequest) -> Encoding:
    encoding = _known_encoding(http)
    if encoding is None:
        given, wanted = http.headers.get("content-type", ""), " or ".join(_ENCODINGS)
        told = f"Content-Type {given[:100]!r} is not OTLP; send {wanted}"
        raise _Refused(415, "content_type", Answer(Verdict.INVALID, told))
    return encoding


def _compression_of(http: HttpRequest) -> Compression:
    given = http.headers.get("content-encoding", "")
    compression = _COMPRESSIONS.get(given.strip().lower())
    if compression is None:
        told = f"Content-Encoding {given[:100]!r} is not supported; send gzip or none"
        raise _Refused(415, "content_encoding", Answer(Verdict.INVALID, told))
    return compression


# --- connections --------------------------------------------------------------------------------------------------------
class _Places:
    """How many connections may be open at a time; of one thread.

    Args:
        most: of them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class _Connection(socket.socket):
    """A connection that has a place until it is closed."""

    def __init__(self, accepted: socket.socket, places: _Places) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self._places = places
        places.taken.add(self)

    def close(self) -> None:
        self._places.taken.discard(self)
        super().close()


class _Listening(socket.socket):
    """A listening socket with a limit to connections, from their first byte: strangers need not finish a handshake."""

    def __init__(self, listening: socket.socket, places: _Places) -> None:
        super().__init__(listening.family, listening.type, listening.proto, listening.detach())
        self._places = places

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, address = super().accept()
        if len(self._places.taken) >= self._places.most:
            accepted.close()  # OTLP senders come again
            raise ConnectionAbortedError(errno.ECONNABORTED, "too many connections")  # which the loop passes over
        return _Connection(accepted, self._places), address


# --- the server ---------------------------------------------------------------------------------------------------------
class _Protocol(H11Protocol):
    """uvicorn's protocol, with a limit to the time that the head of a request may take."""

    header_timeout_s: float
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        encrypted = transport.get_extra_info("ssl_object")
        if encrypted is not None:
            self.app_state = {**self.app_state, _CERTIFICATE: encrypted.getpeercert()}
        self._watch_header()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_header()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:  # the next request has begun already
            self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch_header(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout_s, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class _Uvicorn(uvicorn.Server):
    """uvicorn that says when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        except Exception:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            raise


class _Loop(asyncio.SelectorEventLoop):
    """A loop whose servers bound the time of a handshake, which uvicorn cannot be told."""

    def __init__(self, handshake_timeout_s: float) -> None:
        super().__init__()
        self._handshake_timeout_s = handshake_timeout_s

    async def create_server(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("ssl") is not None:
            kwargs.setdefault("ssl_handshake_timeout", self._handshake_timeout_s)
        return await super().create_server(*args, **kwargs)


class HttpServer:
    """OTLP/HTTP on a thread and an event loop of its own.

    Args:
        intake: where requests go.
        gate: who may send them.
        settings: address and limits.
        if_exposed: raised if other machines reach the address; None: they may.

    Raises `ConfigError` if the address or a certificate cannot be used.
    """

    def __init__(
        self, intake: Intake, gate: Gate, settings: HttpSettings, if_exposed: ConfigError | None = None
    ) -> None:
        self.certificates = watch("http", settings.tls) if settings.tls else None
        """Whoever polls them keeps them up to date."""
        self._app = _App(intake, gate, settings)
        self._sockets: list[socket.socket] = []
        self._places = _Places(settings.connections_max)
        try:
            host, port = bind(settings.endpoint, self._bind_one, if_exposed)
        except BaseException:
            self._close_sockets()
            raise
        self.address = join_address(host, port)
        limits = {"header_timeout_s": settings.header_timeout_s}
        config = uvicorn.Config(
            self._app.asgi,
            http=type("_LimitedProtocol", (_Protocol,), limits),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(settings.idle_timeout_s),
        )
        if self.certificates is not None:
            config.load()
            config.ssl = http_context(self.certificates)
        self._header_timeout_s = settings.header_timeout_s
        self._server = _Uvicorn(config)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="otlp-http", daemon=True)

    def start(self) -> None:
        """Answer requests from now on; raises `StorageError` if it cannot."""
        self._thread.start()
        self._server.accepting.wait(_START_S)  # also set when it ends
        if not self._server.started:
            reason = repr(self._failure) if self._failure else f"it does not begin within {_START_S:g} s"
            hint = "check the limits of the process (open files, memory), then start it again"
            raise StorageError("start OTLP/HTTP on", self.address, reason, hint)

    def faults(self) -> list[str]:
        """Why nobody answers here, although nobody has stopped it: a sentence; empty if all is well."""
        started = self._thread.ident is not None
        dead = started and not self._app.stopping and not self._thread.is_alive()
        return ["OTLP/HTTP has ended by a fault of its own; restart the service"] if dead else []

    def begin_stop(self, grace_s: float) -> None:
        """Take no new connections; requests under way may take `grace_s` more."""
        self._app.stopping = True
        self._server.config.timeout_graceful_shutdown = math.ceil(grace_s)
        self._server.should_exit = True

    def finish_stop(self) -> None:
        """Wait for the end of requests under way, as `begin_stop` allows, and end the threads."""
        if self._thread.ident is not None:
            self._thread.join()
        self._close_sockets()
        self._app.pool.shutdown(wait=True)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: _Loop(self._header_timeout_s)) as runner:
                runner.run(self._server.serve(sockets=self._sockets))
        except Exception as e:
            self._failure = e
            _log.exception("OTLP/HTTP stopped")
        finally:
            self._close_sockets()  # or clients would wait in the queue of a socket that nobody looks at
            self._server.accepting.set()

    def _bind_one(self, address: str, port: int) -> int:
        sock = _Listening(listen(address, port), self._places)
        self._sockets.append(sock)
        return int(sock.getsockname()[1])

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()
