"""A TCP connection between two processes that stalls, breaks or drags on command."""

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Literal, Self

Mode = Literal["pass", "stall", "refuse"]


class Wire:
    """Listens on loopback and passes on what comes, as it is told.

    Its sockets belong to the thread that runs its event loop; `tell`, `cut` and the settings may be used from any thread.

    Args:
        target: port on loopback that it leads to.

    `delay_s` is waited before each piece is passed on. `truncate_after` bytes towards the target, a connection is broken off,
    wherever in a message that is; then the next one has as many.
    """

    def __init__(self, target: int) -> None:
        self.delay_s = 0.0
        self.truncate_after: int | None = None
        self.cuts = 0
        """Connections that were broken."""
        self._target = target
        self._mode: Mode = "pass"
        self._passing = asyncio.Event()
        self._passing.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    def tell(self, mode: Mode) -> None:
        """`stall`: nothing passes, connections stay; `refuse`: every connection is closed at once; `pass`: as before."""
        self._loop.call_soon_threadsafe(self._set, mode)

    def cut(self) -> None:
        """Reset all connections; new ones are let through."""
        self._loop.call_soon_threadsafe(self._reset)

    def _set(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "stall":
            self._passing.clear()
        else:
            self._passing.set()
        if mode == "refuse":
            self._reset()

    def _reset(self) -> None:
        for writer in list(self._open):
            self._break(writer)

    def _break(self, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, not FIN
        writer.transport.abort()
        self.cuts += 1

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if self._mode == "refuse":
                self._break(writer)
                return
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            self._break(writer)
            return
        finally:
            self._open.discard(writer)
        self._open |= {writer, back}
        try:
            await asyncio.gather(self._pump(reader, back, self.truncate_after), self._pump(there, writer, None))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open -= {writer, back}
            writer.transport.abort()
            back.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, most: int | None) -> None:
        passed = 0
        while piece := await source.read(65536):
            await self._passing.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            limit = self.truncate_after if most is not None else None
            if limit is not None and passed + len(piece) > limit:
                sink.write(piece[: max(limit - passed, 0)])
                await sink.drain()
                self.cuts += 1
                raise ConnectionAbortedError
            passed += len(piece)
            sink.write(piece)
            await sink.drain()
        raise ConnectionResetError  # one end has closed: so does the other

    def close(self) -> None:
        """End it with all its connections."""

        async def end() -> None:
            self._server.close()
            self._reset()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
