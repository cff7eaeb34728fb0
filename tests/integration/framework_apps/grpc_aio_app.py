"""A gRPC service on asyncio that knows nothing of auditing. Messages are plain bytes."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio


async def get(request: bytes, context: Any) -> bytes:
    return request


async def refuse(request: bytes, context: Any) -> None:
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")


async def set_code(request: bytes, context: Any) -> bytes:
    context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
    return b""


async def break_down(request: bytes, context: Any) -> bytes:
    raise RuntimeError("out of order")


async def hang(request: bytes, context: Any) -> bytes:
    await asyncio.sleep(3600)
    return b""


async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"chunk"
        await asyncio.sleep(0.1)


async def break_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield b"chunk"
    raise RuntimeError("out of order")


unary = {"Get": get, "Refuse": refuse, "SetCode": set_code, "Break": break_down, "Hang": hang}
streams = {"Stream": stream, "BreakStream": break_stream}


async def serve(port: int) -> None:
    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        **{name: grpc.unary_unary_rpc_method_handler(f) for name, f in unary.items()},
        **{name: grpc.unary_stream_rpc_method_handler(f) for name, f in streams.items()},
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("crm.v1.Things", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
