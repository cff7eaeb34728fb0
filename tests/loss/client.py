"""Clients of the loss matrix: each call has a trace of its own, by which its record is found again."""

import http.client
import socket
from typing import Any, Protocol

import grpc

_TIMEOUT_S = 30.0


class Client(Protocol):
    """Makes calls, one at a time."""

    def call(self, what: str, n: int, *, trace_id: str, sampled: bool = True) -> str | None:
        """The whole answer; None when there was none, `!` and the status when it told of a failure.

        Args:
            what: name of the operation.
            n: its argument.
            trace_id: of the call, 32 digits; empty: no `traceparent` is sent.
            sampled: what the `traceparent` says.
        """

    def leave(self, what: str, n: int, *, trace_id: str, started: Any, parts: int) -> None:
        """Make a call and go away in the middle: after `started()` and after `parts` parts of the answer."""

    def close(self) -> None:
        """End its connection."""


def traceparent(trace_id: str, *, sampled: bool) -> list[tuple[str, str]]:
    return [("traceparent", f"00-{trace_id}-b7ad6b7169203331-{'01' if sampled else '00'}")] if trace_id else []


class HttpClient:
    """HTTP; a connection of its own for each call, so that each worker gets some, unless `keep` says otherwise."""

    def __init__(self, port: int, *, keep: bool = False) -> None:
        self._port = port
        self._keep = keep
        self._connection: http.client.HTTPConnection | None = None

    def call(self, what: str, n: int, *, trace_id: str, sampled: bool = True) -> str | None:
        connection = self._connection or http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        self._connection = connection if self._keep else None
        try:
            connection.request("GET", f"/{what}/{n}", headers=dict(traceparent(trace_id, sampled=sampled)))
            response = connection.getresponse()
            body = response.read().decode()
        except (OSError, http.client.HTTPException):
            self._connection = None
            return None
        finally:
            if not self._keep:
                connection.close()
        return body if response.status == 200 else f"!{response.status}"

    def leave(self, what: str, n: int, *, trace_id: str, started: Any, parts: int) -> None:
        header = "".join(f"{k}: {v}\r\n" for k, v in traceparent(trace_id, sampled=True))
        with socket.create_connection(("127.0.0.1", self._port), timeout=_TIMEOUT_S) as s:
            s.sendall(f"GET /{what}/{n} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
            started()
            for _ in range(parts):
                assert s.recv(65536)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class GrpcClient:
    """gRPC, on one connection."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200),
             ("grpc.use_local_subchannel_pool", 1)),
        )  # fmt: skip

    def _start(self, what: str, n: int, trace_id: str, *, sampled: bool) -> Any:
        method = f"/loss.Things/{what}"
        start: Any = self._channel.unary_stream(method)
        return start(str(n).encode(), timeout=_TIMEOUT_S, metadata=traceparent(trace_id, sampled=sampled))

    def call(self, what: str, n: int, *, trace_id: str, sampled: bool = True) -> str | None:
        try:
            return b"".join(self._start(what, n, trace_id, sampled=sampled)).decode()
        except grpc.RpcError as e:
            code = e.code()
            return None if code is grpc.StatusCode.UNAVAILABLE else f"!{code.name}"

    def leave(self, what: str, n: int, *, trace_id: str, started: Any, parts: int) -> None:
        answers = self._start(what, n, trace_id, sampled=True)
        started()
        for _ in range(parts):
            next(answers)
        answers.cancel()

    def close(self) -> None:
        self._channel.close()
