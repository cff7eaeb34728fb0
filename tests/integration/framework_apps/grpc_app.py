"""A gRPC service, sync, that knows nothing of auditing. Messages are plain bytes."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc


def get(request: bytes, context: Any) -> bytes:
    return request


def refuse(request: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
    return b""


def refuse_with_status(request: bytes, context: Any) -> bytes:
    class Status(grpc.Status):
        code = grpc.StatusCode.NOT_FOUND
        details = "no such thing"
        trailing_metadata = ()

    context.abort_with_status(Status())
    return b""


def set_code(request: bytes, context: Any) -> bytes:
    context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
    return b""


def break_down(request: bytes, context: Any) -> bytes:
    raise RuntimeError("out of order")


def stream(request: bytes, context: Any) -> Iterator[bytes]:
    for _ in range(3):
        yield b"chunk"
        time.sleep(0.1)


def break_stream(request: bytes, context: Any) -> Iterator[bytes]:
    yield b"chunk"
    raise RuntimeError("out of order")


unary = {
    "Get": get,
    "Refuse": refuse,
    "RefuseWithStatus": refuse_with_status,
    "SetCode": set_code,
    "Break": break_down,
}
streams = {"Stream": stream, "BreakStream": break_stream}


def make(port: int) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(4))
    handlers: dict[str, Any] = {
        **{name: grpc.unary_unary_rpc_method_handler(f) for name, f in unary.items()},
        **{name: grpc.unary_stream_rpc_method_handler(f) for name, f in streams.items()},
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("crm.v1.Things", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    return server


if __name__ == "__main__":
    serving = make(int(sys.argv[1]))
    serving.start()
    serving.wait_for_termination()
