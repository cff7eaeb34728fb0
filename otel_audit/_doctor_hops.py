"""Whether what one Collector takes is also taken by the next on the way, and by the log."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from otel_audit._doctor_exporters import GRPC, HTTP, LOAD_BALANCING
from otel_audit._doctor_model import Collector, Pipeline, Ref, deepest
from otel_audit._doctor_rules import Report
from otel_audit._yaml_file import Node

__all__ = ["Examined", "check_hops"]

_MIB: Final = 1024 * 1024
_LOG_BYTES: Final = 64 * _MIB
"""Of a request to the log, by default; the same for gRPC and HTTP."""
_LOG_COMPRESSIONS: Final = {"grpc": ("", "none", "gzip"), "http": ("", "none", "gzip", "deflate")}
"""What the log decompresses; a Collector in its place takes the others as well."""
_GRPC_KEY: Final = "max_recv_msg_size_mib"
_HTTP_KEY: Final = "max_request_body_size"


class Examined(NamedTuple):
    """A Collector, its exporters towards the log, and the pipelines that lead to them."""

    collector: Collector
    exporters: tuple[str, ...]
    ways: tuple[Pipeline, ...]


class _Limit(NamedTuple):
    size: int
    node: Node
    receiver: str


def check_hops(report: Report, chain: Sequence[Examined]) -> None:
    """Judge the sizes of requests from each Collector to the next, and their compression and sizes from the last to the log."""
    for name in chain[-1].exporters if chain else ():
        _check_compression(report, chain[-1].collector.components["exporters"][name], name)
    for number, one in enumerate(chain):
        following = chain[number + 1] if number + 1 < len(chain) else None
        taken = [limit for kind in ("grpc", "http") for limit in _limits(one, kind)]
        for name in one.exporters:
            settings = one.collector.components["exporters"][name]
            kind = _kind(name)
            if kind is None or not taken:
                continue
            room = _room(following, kind)
            largest = max(taken, key=lambda limit: limit.size)
            if room is not None and min(largest.size, _batched(settings, largest.size)) > room:
                where = "the next Collector" if following is not None else "the log"
                detail = f"it takes {largest.size / _MIB:g} MiB, {where} takes {room / _MIB:g} MiB"
                report.add("limit-shrinks", largest.node, largest.receiver, detail)


def _check_compression(report: Report, settings: Node, name: str) -> None:
    kind = _kind(name)
    if name.partition("/")[0] in LOAD_BALANCING:
        kind, settings = "grpc", settings.at("protocol", "otlp") or settings
    node = settings.at("compression")
    if kind is None or node is None or node.value is None:
        return
    if str(node.value).lower() not in _LOG_COMPRESSIONS[kind]:
        report.add("compression-refused", node, name, f"compression {node.value}")


def _kind(exporter: str) -> str | None:
    type_ = exporter.partition("/")[0]
    return "grpc" if type_ in GRPC else "http" if type_ in HTTP else None


def _room(following: Examined | None, kind: str) -> int | None:
    """The least that the next on the way takes; None where it takes nothing of this kind."""
    if following is None:
        return _LOG_BYTES
    return min((limit.size for limit in _limits(following, kind)), default=None)


def _limits(one: Examined, kind: str) -> list[_Limit]:
    refs = {ref.id: ref for pipeline in one.ways for ref in pipeline.receivers if ref.type == "otlp"}
    return [found for ref in refs.values() if (found := _limit(one.collector, ref, kind)) is not None]


def _limit(collector: Collector, ref: Ref, kind: str) -> _Limit | None:
    protocol = collector.component("receivers", ref).at("protocols", kind)
    if protocol is None:
        return None
    key, default, unit = (_GRPC_KEY, 4, _MIB) if kind == "grpc" else (_HTTP_KEY, 20 * _MIB, 1)
    node = protocol.at(key)
    size = node.value if node is not None and isinstance(node.value, int) and node.value > 0 else default
    return _Limit(size * unit, deepest(protocol, key), ref.id)


def _batched(settings: Node, otherwise: int) -> int:
    """The size to which an exporter splits requests; `otherwise` where it does not."""
    batch = settings.at("sending_queue", "batch")
    unit = (batch.at("sizer") if batch is not None else None) or settings.at("sending_queue", "sizer")
    largest = batch.at("max_size") if batch is not None else None
    bounded = largest is not None and isinstance(largest.value, int) and largest.value > 0
    return (
        largest.value if bounded and largest is not None and unit is not None and unit.value == "bytes" else otherwise
    )
