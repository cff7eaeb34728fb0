"""An asyncio gRPC service that knows nothing of auditing; its argument is the port."""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from opentelemetry import trace

LOADED = uuid.uuid4().hex


def started(request: bytes) -> None:
    (Path(os.environ["STARTED"]) / request.decode()).touch()


async def call(request: bytes, context: Any) -> bytes:
    return f"{os.getpid()} {LOADED}".encode()


async def late(request: bytes, context: Any) -> bytes:
    trace.get_current_span().set_attribute("app.late", int(request))
    return b"late"


async def broken(request: bytes, context: Any) -> bytes:
    raise RuntimeError(f"out of order {request.decode()}")


async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for part in range(5):
        await asyncio.sleep(0.01)
        yield f"{part} {request.decode()}".encode()


async def slow(request: bytes, context: Any) -> bytes:
    started(request)
    await asyncio.sleep(0.2)
    return b"slow"


async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
    started(request)
    for _ in range(300):
        yield b"x" * 65536
        await asyncio.sleep(0.01)


async def main() -> None:
    server = grpc.aio.server()
    unary: dict[str, Any] = {f.__name__: grpc.unary_unary_rpc_method_handler(f) for f in (call, late, broken, slow)}
    streams: dict[str, Any] = {f.__name__: grpc.unary_stream_rpc_method_handler(f) for f in (stream, endless)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("loss.Things", {**unary, **streams}),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
