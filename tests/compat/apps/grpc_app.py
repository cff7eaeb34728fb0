"""A gRPC service that knows nothing of auditing: `/things.Things/Read` answers with what it was sent."""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc


def read(request: bytes, context: Any) -> bytes:
    return request


def main(port: str) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    handlers: dict[str, Any] = {"Read": grpc.unary_unary_rpc_method_handler(read)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("things.Things", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1])
