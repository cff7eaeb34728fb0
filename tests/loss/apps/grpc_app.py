"""A gRPC service that knows nothing of auditing; its argument is the port."""

import os
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from opentelemetry import trace

LOADED = uuid.uuid4().hex


def started(request: bytes) -> None:
    (Path(os.environ["STARTED"]) / request.decode()).touch()


def call(request: bytes, context: Any) -> bytes:
    return f"{os.getpid()} {LOADED}".encode()


def late(request: bytes, context: Any) -> bytes:
    trace.get_current_span().set_attribute("app.late", int(request))
    return b"late"


def broken(request: bytes, context: Any) -> bytes:
    raise RuntimeError(f"out of order {request.decode()}")


def stream(request: bytes, context: Any) -> Iterator[bytes]:
    for part in range(5):
        time.sleep(0.01)
        yield f"{part} {request.decode()}".encode()


def slow(request: bytes, context: Any) -> bytes:
    started(request)
    time.sleep(0.2)
    return b"slow"


def endless(request: bytes, context: Any) -> Iterator[bytes]:
    started(request)
    for _ in range(300):
        yield b"x" * 65536
        time.sleep(0.01)


def leave(request: bytes, context: Any) -> bytes:
    os._exit(int(request))


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(4))
    unary = {"call": call, "late": late, "broken": broken, "slow": slow, "exit": leave}
    methods: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(f) for name, f in unary.items()}
    methods |= {f.__name__: grpc.unary_stream_rpc_method_handler(f) for f in (stream, endless)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("loss.Things", methods),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
