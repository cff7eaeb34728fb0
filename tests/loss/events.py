"""The events of the loss matrix."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from tests.capture_support import Span, wait_until
from tests.loss.cell import Event, Scene
from tests.loss.client import HttpClient
from tests.loss.collector import TAKEN, Reply

_Act = Callable[[Scene], None]

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
"""The stock timer of 5 s only makes a run longer where nothing is killed."""
NO_TICK = {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
"""So that the batch processor's timer does not run out by chance between the last call and the event."""


# --- the end of a process -----------------------------------------------------------------------------------------------
def _terminate(scene: Scene) -> None:
    scene.call()
    scene.at_rest().terminate()


def _kill(scene: Scene) -> None:
    scene.call()
    scene.running.kill()


def _kill_after(what: str) -> _Act:
    def act(scene: Scene) -> None:
        scene.call(what)
        scene.running.kill()

    return act


def _reload(scene: Scene) -> None:
    old = set(scene.call())
    scene.at_rest().reload()
    seen: set[str] = set()

    def replaced() -> bool:
        time.sleep(0.2)  # a flood of such calls would fill a batch, and have the plain SDK send it before its time
        answer = scene.client.call("call", 0, trace_id="")
        if answer and answer not in old:
            seen.add(answer)
        return bool(seen) and all(not _alive(one) or any(_pid(one) == _pid(new) for new in seen) for one in old)

    wait_until(replaced, 120)
    if scene.pipeline == "ours":  # what is loaded now is audited too
        scene.call(count=5)
        scene.at_rest().terminate()


def _pid(answer: str) -> str:
    return answer.split(maxsplit=1)[0].strip('"')


def _alive(answer: str) -> bool:
    try:
        return Path(f"/proc/{_pid(answer)}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _exit(scene: Scene) -> None:
    scene.call()
    scene.client.call("exit", 3, trace_id="")
    scene.running.kill()


# --- calls --------------------------------------------------------------------------------------------------------------
def _calls(what: str, *, sampled: bool = True) -> _Act:
    def act(scene: Scene) -> None:
        scene.call(what, sampled=sampled)
        _end(scene)

    return act


def _leave(what: str, parts: int) -> _Act:
    def act(scene: Scene) -> None:
        scene.leave(what, parts=parts)
        _end(scene)

    return act


def _end(scene: Scene) -> None:
    scene.settle()
    scene.at_rest().terminate()


def _late(scene: Scene) -> None:
    scene.call("late")
    _end(scene)
    said = [span for span in scene.collector.spans if "app.late" in span.attributes]
    assert len(said) == scene.recorded(), "a record without what was set last"


# --- the collector ------------------------------------------------------------------------------------------------------
def _in_order(scene: Scene) -> None:
    scene.call()
    scene.collector.wait(lambda: scene.collector.attempted(1), 30)
    if scene.pipeline == "plain":
        scene.settle_in_order()
    scene.at_rest().terminate()


def _down(scene: Scene) -> None:
    scene.call()
    scene.at_rest().terminate()


class _FirstTwo:
    """Does something to the first two attempts of each batch that has a call of the cell, and takes everything else."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, frozenset[str]], int] = {}  # guarded by `_lock`

    def __call__(self, scene: Scene, spans: list[Span]) -> Reply:
        if not scene.mine(spans):
            return TAKEN
        batch = (str(scene.folder), frozenset(span.span_id for span in spans))
        with self._lock:
            self._seen[batch] = attempt = self._seen.get(batch, 0) + 1
        return self._reply if attempt <= 2 else TAKEN


def _away(scene: Scene, spans: list[Span]) -> Reply:
    """Away until ours has tried five times, or the plain exporter has given up and goes on with another batch."""
    return Reply("UNAVAILABLE", takes=False) if scene.mine(spans) and not scene.collector.attempted(6) else TAKEN


def _queue_full(scene: Scene) -> None:
    client = HttpClient(scene.running.port, keep=True)
    scene.client, one_by_one = client, scene.client
    scene.call(count=1)
    assert scene.collector.wait(lambda: scene.collector.attempted(1), 30)
    scene.call(count=1499)
    (scene.folder / "released").touch()
    scene.client = one_by_one
    client.close()
    if scene.pipeline == "plain":
        scene.settle_in_order()
    scene.at_rest().terminate()


def _blocked(scene: Scene, spans: list[Span]) -> Reply:
    wait_until((scene.folder / "released").exists, 120)
    return TAKEN


def _retry_info(seconds: int) -> dict[str, bytes]:
    packed = AnyMessage()
    packed.Pack(RetryInfo(retry_delay=Duration(seconds=seconds)))
    return {"grpc-status-details-bin": Status(code=8, details=[packed]).SerializeToString()}


def _answers(status: str, name: str = "", trailers: dict[str, Any] | None = None) -> Event:
    http = status.isdigit()
    # One batch for all calls: an exporter that gives up after the first answer loses all of them or none.
    return Event(
        name or f"{'HTTP' if http else 'gRPC'} {status}",
        _in_order,
        _FirstTwo(Reply(status, trailers or {}, takes=False)),
        plain={"OTEL_BSP_SCHEDULE_DELAY": "1000"},
        protocol="http/protobuf" if http else "grpc",
    )


GRPC_CODES = (
    "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS", "UNKNOWN",
    "INTERNAL", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND", "ALREADY_EXISTS",
    "FAILED_PRECONDITION", "INVALID_ARGUMENT",
)  # fmt: skip
HTTP_STATUSES = ("302", "400", "401", "403", "404", "408", "413", "429", "500", "502", "503", "504")

_SHORT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}

PROCESS = (
    Event("SIGTERM", _terminate, plain=NO_TICK),
    Event("SIGKILL", _kill, peaceful=False, plain=NO_TICK),
    Event("reload", _reload, peaceful=False, plain=NO_TICK, reloads=True),
    Event("os._exit", _exit, peaceful=False, plain=NO_TICK),
)
COLLECTOR = (
    Event(
        "down for the whole run",
        _down,
        peaceful=False,
        plain={**NO_TICK, **_SHORT},
        ours={"OTEL_AUDIT_EXIT_TIMEOUT": "0.2"},
        up=False,
    ),
    Event("away for longer than the exporter's deadline", _in_order, _away, plain={**SOON, **_SHORT}),
    Event(
        "slower than the exporter's deadline at first",
        _in_order,
        _FirstTwo(Reply("CANCELLED", takes=False, after_s=2.0)),
        env=_SHORT,
        plain=SOON,
    ),
    Event(
        "takes records and answers after the deadline at first",
        _in_order,
        _FirstTwo(Reply(after_s=2.0)),
        env=_SHORT,
        plain=SOON,
    ),
    Event("blocked during a burst of 1500 calls", _queue_full, _blocked, env={"OTEL_EXPORTER_OTLP_TIMEOUT": "60"}),
)
ANSWERS = (
    *(_answers(code) for code in GRPC_CODES),
    _answers("RESOURCE_EXHAUSTED", "gRPC RESOURCE_EXHAUSTED with RetryInfo", _retry_info(1)),
    *(_answers(status) for status in HTTP_STATUSES),
    _answers("429", "HTTP 429 with Retry-After", {"Retry-After": "1"}),
    Event(
        "gRPC partial success", _in_order, _FirstTwo(Reply(rejects=True)),
        plain={"OTEL_BSP_SCHEDULE_DELAY": "1000"},
    ),
    Event(
        "HTTP partial success", _in_order, _FirstTwo(Reply(rejects=True)),
        plain={"OTEL_BSP_SCHEDULE_DELAY": "1000"}, protocol="http/protobuf",
    ),
)  # fmt: skip
CONTENT = (
    Event(
        "1 % sampling", _calls("call"), plain=SOON,
        env={"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    ),
    Event("always_off", _calls("call"), plain=SOON, env={"OTEL_TRACES_SAMPLER": "always_off"}),
    Event("traceparent unsampled", _calls("call", sampled=False), plain=SOON),
    Event("exception in the handler", _calls("broken"), plain=SOON),
    Event("client gone before the answer", _leave("slow", 0), plain=SOON),
    Event("client gone in the middle of the answer", _leave("endless", 1), plain=SOON),
    Event("streaming response", _calls("stream"), plain=SOON),
    Event("streaming response, SIGKILL after its end", _kill_after("stream"), peaceful=False, plain=NO_TICK),
    Event("attribute set last", _late, plain=SOON),
)  # fmt: skip
GROUPS: dict[str, tuple[Event, ...]] = {
    "The end of a process": PROCESS,
    "The collector": COLLECTOR,
    "What the collector answers": ANSWERS,
    "The call": CONTENT,
}
EVENTS: dict[str, Event] = {event.name: event for group in GROUPS.values() for event in group}
