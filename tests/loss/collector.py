"""A collector for the loss matrix, which answers as an event wants it to."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from tests.capture_support import Span, spans_of

_SERVER_KIND = 2


class Reply(NamedTuple):
    """What the collector does with one request.

    Args:
        status: name of a gRPC code, or an HTTP status; empty for success.
        trailers: gRPC trailers or HTTP headers.
        takes: whether it keeps what it was sent.
        rejects: whether it keeps no call, and says so in a success.
        after_s: how long it waits before it answers.
    """

    status: str = ""
    trailers: Mapping[str, Any] = {}
    takes: bool = True
    rejects: bool = False
    after_s: float = 0.0


TAKEN = Reply()


class Collector:
    """What arrived; any thread may ask.

    Args:
        behave: called with the number of the attempt and the spans in it, in a thread of its own; may block.
    """

    def __init__(self, behave: Callable[["Collector", list[Span]], Reply]) -> None:
        self.behave = behave
        self.address = ""
        self.changed = threading.Condition()
        self.attempts = 0
        """Requests."""
        self.recorded: Counter[str] = Counter()
        """Trace id of a call -> how many records of it were taken."""
        self.spans: list[Span] = []
        """Records of calls."""
        self.about: list[Span] = []
        """Records that capture makes about itself."""

    def take(self, body: bytes) -> tuple[Reply, bytes]:
        """What to answer, and the body of a success."""
        spans = spans_of(body)
        with self.changed:
            self.attempts += 1
            self.changed.notify_all()
        reply = self.behave(self, spans)
        if reply.takes:
            with self.changed:
                for span in spans:
                    if _is_about_itself(span):
                        self.about.append(span)
                    elif _is_call(span) and not reply.rejects:
                        self.recorded[span.trace_id] += 1
                        self.spans.append(span)
                self.changed.notify_all()
        time.sleep(reply.after_s)
        return reply, _response(sum(map(_is_call, spans))) if reply.rejects else b""

    def wait(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Whether `true` came to hold within the time; it is asked whenever something arrives."""
        with self.changed:
            return self.changed.wait_for(true, timeout_s)

    def attempted(self, at_least: int) -> bool:
        return self.attempts >= at_least


def _is_about_itself(span: Span) -> bool:
    return str(span.attributes.get("audit.action", "")).startswith("otel_audit.")


def _is_call(span: Span) -> bool:
    return span.kind == _SERVER_KIND and not _is_about_itself(span)


def _response(rejected: int) -> bytes:
    partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message="too old")
    return ExportTraceServiceResponse(partial_success=partial).SerializeToString()


@contextmanager
def grpc_collector(collector: Collector, port: int) -> Iterator[Collector]:
    """`collector` behind OTLP/gRPC on `port`."""

    def export(body: bytes, context: Any) -> bytes:
        reply, response = collector.take(body)
        if reply.status:
            context.set_trailing_metadata(tuple(reply.trailers.items()))
            context.abort(grpc.StatusCode[reply.status], "because")
        return response

    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        {"Export": grpc.unary_unary_rpc_method_handler(export)},
    )
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    collector.address = f"http://127.0.0.1:{port}"
    try:
        yield collector
    finally:
        server.stop(None).wait()


@contextmanager
def http_collector(collector: Collector, port: int) -> Iterator[Collector]:
    """`collector` behind OTLP/HTTP on `port`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            reply, body = collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(int(reply.status or 200))
            for name, value in reply.trailers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the sender has given up
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collector.address = f"http://127.0.0.1:{port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
