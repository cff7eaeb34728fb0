"""`python -m tests.collector.sender`: a plain OTLP sender of numbered calls, each sent until it is acknowledged.

It has no disk: what a Collector's OTLP exporter, or any SDK that retries without end, is to the next hop. Each lane is a source
of its own, numbers its calls from 1, and has one batch under way. SIGTERM ends it once what is under way is acknowledged;
`FOLDER/lane-N` always holds how many calls of that lane were acknowledged, and `FOLDER/sent.json` at the end what was sent.
"""

import argparse
import collections
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
NUMBERED = "numbered"
"""Name of the service that the calls are of."""


class Lane:
    """One source, sending batch after batch; everything but `stop` belongs to its thread."""

    def __init__(self, number: int, args: argparse.Namespace, stop: threading.Event) -> None:
        self.name = f"{args.name}-{number}"
        self.acknowledged = 0
        self.answers: collections.Counter[str] = collections.Counter()
        self._args = args
        self._stop = stop
        self._state = os.open(Path(args.folder) / f"lane-{number}", os.O_WRONLY | os.O_CREAT)
        self._padding = "x" * args.padding

    def run(self) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_reconnect_backoff_ms", 500)]
        with grpc.insecure_channel(self._args.endpoint, options=options) as channel:
            export: Any = channel.unary_unary(EXPORT)
            while not self._stop.is_set() and self.acknowledged < self._args.most:
                self._deliver(export, self._body(self.acknowledged + 1))
                self.acknowledged += self._args.spans
                os.pwrite(self._state, f"{self.acknowledged:20}".encode(), 0)
                self._stop.wait(self._args.every)

    def _deliver(self, export: Any, body: bytes) -> None:
        while True:
            try:
                export(body, timeout=self._args.timeout)
            except grpc.RpcError as e:
                self.answers[e.code().name] += 1
                time.sleep(0.1)
                continue
            self.answers["OK"] += 1
            return

    def _body(self, first: int) -> bytes:
        made = ExportTraceServiceRequest()
        resource_spans = made.resource_spans.add()
        for key, value in {"service.name": NUMBERED, "audit.source.id": self.name}.items():
            resource_spans.resource.attributes.add(key=key).value.string_value = value
        spans = resource_spans.scope_spans.add().spans
        for seq in range(first, first + self._args.spans):
            rng = random.Random(f"{self.name}/{seq}")
            start_ns = time.time_ns()
            span = spans.add(
                trace_id=rng.randbytes(16),
                span_id=rng.randbytes(8),
                kind=Span.SPAN_KIND_SERVER,
                name="GET /numbered",
                start_time_unix_nano=start_ns,
                end_time_unix_nano=start_ns + 1_000_000,
            )
            texts = {"http.request.method": "GET", "url.path": f"/numbered/{seq}", "audit.client.id": self.name}
            if self._padding:
                texts["audit.padding"] = self._padding
            for key, value in texts.items():
                span.attributes.add(key=key).value.string_value = value
            span.attributes.add(key="http.response.status_code").value.int_value = 200
            span.attributes.add(key="audit.source.seq").value.int_value = seq
        body: bytes = made.SerializeToString()
        return body


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("folder")
    parser.add_argument("--name", default="sender")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--spans", type=int, default=20, help="in a batch")
    parser.add_argument("--padding", type=int, default=0, help="bytes more in each span")
    parser.add_argument(
        "--every", type=float, default=0.02, help="seconds between an acknowledgement and the next batch"
    )
    parser.add_argument("--most", type=int, default=10**9, help="calls of a lane")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for an attempt")
    args = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    lanes = [Lane(n, args, stop) for n in range(args.lanes)]
    threads = [threading.Thread(target=lane.run) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # a join without end would keep the signal from being seen
            thread.join(0.1)
    sent = {
        "lanes": {lane.name: lane.acknowledged for lane in lanes},
        "answers": dict(sum((lane.answers for lane in lanes), collections.Counter())),
    }
    (Path(args.folder) / "sent.json").write_text(json.dumps(sent))


if __name__ == "__main__":
    main()
