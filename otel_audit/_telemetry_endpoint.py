"""A small HTTP server for one text: what Prometheus scrapes.

It runs on a thread of its own and shares nothing with the receivers. A client has a few seconds for everything, is read
a few kilobytes at most, and gets one answer; more than a handful at a time are sent away.

Source: RFC 9112, as far as answering GET and HEAD goes.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Final

from otel_audit._receiver_bind import bind, join_address, listen

__all__ = ["Endpoint"]

_log = logging.getLogger("otel_audit.telemetry")
_HEAD_BYTES: Final = 16 << 10
_CLIENTS_MAX: Final = 16
_TIMEOUT_S: Final = 10.0
_PATHS: Final = ("/metrics", "/")
_PLAIN: Final = "text/plain; charset=utf-8"


class Endpoint:
    """Serves `text` at `/metrics`.

    Args:
        host: to listen on; port: 0 is any free one.
        text: gives the body; called on the server's own thread.
        content_type: of the body.
        timeout_s: how long a client may take from connecting to having read the answer.

    Raises `ConfigError` if the address cannot be used.
    """

    def __init__(
        self, host: str, port: int, text: Callable[[], str], content_type: str, *, timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._text = text
        self._content_type = content_type
        self._timeout_s = timeout_s
        self._sockets: list[socket.socket] = []
        try:
            host, port = bind(join_address(host, port), self._bind_one)
        except BaseException:
            self._close_sockets()
            raise
        self.address = join_address(host, port)
        # The loop's own: who is being answered, by the task that does it.
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otel-audit-metrics", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()
        self._running.wait(10)

    def stop(self, timeout_s: float = 2.0) -> None:
        """End; clients that are being answered are cut off."""
        if self._thread.ident is not None:
            if self._loop is not None and self._ending is not None:
                with contextlib.suppress(RuntimeError):  # it has ended already
                    self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join(timeout_s)
        self._close_sockets()

    def _bind_one(self, address: str, port: int) -> int:
        sock = listen(address, port)
        self._sockets.append(sock)
        return int(sock.getsockname()[1])

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            _log.exception("the endpoint for metrics stopped")
        finally:
            self._running.set()

    async def _serve(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        servers = [await asyncio.start_server(self._connected, sock=s, limit=_HEAD_BYTES) for s in self._sockets]
        self._running.set()
        await self._ending.wait()
        for server in servers:
            server.close()
        clients = dict(self._clients)
        for client in clients.values():
            client.transport.abort()
        if clients:
            await asyncio.wait(clients)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= _CLIENTS_MAX:
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._client(reader, writer))
        self._clients[task] = writer
        task.add_done_callback(self._clients.pop)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # its trouble alone
        finally:
            writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        if method not in {b"GET", b"HEAD"}:
            return _response("405 Method Not Allowed", "only GET and HEAD\n", _PLAIN, "Allow: GET, HEAD\r\n")
        if path not in _PATHS:
            return _response("404 Not Found", "metrics are at /metrics\n", _PLAIN)
        try:
            text = self._text()
        except Exception:
            _log.exception("metrics could not be collected")
            return _response("500 Internal Server Error", "metrics could not be collected\n", _PLAIN)
        return _response("200 OK", text, self._content_type, with_body=method == b"GET")


def _response(status: str, text: str, content_type: str, more: str = "", *, with_body: bool = True) -> bytes:
    body = text.encode(errors="backslashreplace")
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}"
    return f"{head}Connection: close\r\n\r\n".encode() + (body if with_body else b"")
