"""What the exporter towards the audit log does with data: its queue, its storage, its retries.

Source: `exporterhelper` (QueueBatchConfig), `configretry`, `otlpexporter`, `otlphttpexporter`, `kafkaexporter`,
`loadbalancingexporter`, `filestorage` of opentelemetry-collector(-contrib) 0.155.0; see docs/doctor.md for which were checked with 0.165.0.
"""

import os
from typing import Final

from otel_audit._doctor_model import SIGNALS, Collector, Ref, deepest, seconds, truth, type_of
from otel_audit._doctor_rules import Report
from otel_audit._doctor_wire import check_client, check_kafka_client
from otel_audit._yaml_file import Node

__all__ = ["GRPC", "HTTP", "KAFKA", "LOAD_BALANCING", "check_exporter"]

GRPC: Final = ("otlp", "otlp_grpc")
HTTP: Final = ("otlphttp", "otlp_http")
KAFKA: Final = ("kafka",)
LOAD_BALANCING: Final = ("loadbalancing", "load_balancing")
_ALIASES: Final = {"otlp": "otlp_grpc", "otlphttp": "otlp_http", "loadbalancing": "load_balancing"}
_TIMEOUT_S: Final = {"grpc": 5.0, "http": 30.0, "kafka": 5.0}
_ACK_S: Final = 30.0
"""How long the audit log takes for a request at most (`receivers.otlp.ack_timeout`)."""
_QUEUE_MIN: Final = {"requests": 1_001, "items": 100_000, "bytes": 64 * 1024 * 1024}
"""By sizer; 1,000 requests is the Collector's default."""
_KAFKA_BYTES: Final = 1_000_000
_VOLATILE: Final = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/run")  # noqa: S108 - looked for, not used
_DEFAULT_DIRECTORY: Final = "/var/lib/otelcol/file_storage"


def check_exporter(report: Report, collector: Collector, ref: Ref) -> None:
    """Judge an exporter that leads to the audit log, or to the next Collector on the way."""
    settings = collector.component("exporters", ref)
    if ref.type in _ALIASES:
        report.add("deprecated-name", settings, ref.id, f"{ref.type} is now {_ALIASES[ref.type]}")
    if ref.type in GRPC + HTTP:
        kind = "grpc" if ref.type in GRPC else "http"
        check_client(report, settings, ref.id)
        _compression(report, settings, ref.id)
        if kind == "http":
            _path(report, settings, ref.id)
    elif ref.type in KAFKA:
        kind = "kafka"
        _kafka(report, settings, ref.id)
    elif ref.type in LOAD_BALANCING:
        _load_balancing(report, collector, settings, ref.id)
        return
    else:
        report.add("exporter-type", settings, ref.id)
        return
    _queue(report, collector, settings, ref.id)
    _timeout(report, settings, ref.id, _TIMEOUT_S[kind])


def _compression(report: Report, settings: Node, name: str) -> None:
    node = settings.at("compression")
    if node is not None and node.value is not None and str(node.value).lower() in ("none", ""):
        report.add("no-compression", node, name)


def _path(report: Report, settings: Node, name: str) -> None:
    """`endpoint` gets `/v1/<signal>` behind it; `<signal>_endpoint` is taken as it is."""
    for key in ("endpoint", *(f"{signal}_endpoint" for signal in SIGNALS)):
        node = settings.at(key)
        if node is None or not isinstance(node.value, str) or not node.value:
            continue
        path = node.value.partition("?")[0].partition("//")[2].partition("/")[2].rstrip("/")
        ends = [path == f"v1/{signal}" or path.endswith(f"/v1/{signal}") for signal in SIGNALS]
        if any(ends) if key == "endpoint" else not ends[SIGNALS.index(key.partition("_")[0])]:
            report.add("endpoint-path", node, name, f"{key}: {node.value}")


def _timeout(report: Report, settings: Node, name: str, default_s: float) -> None:
    node = settings.at("timeout")
    timeout_s = seconds(node)
    if node is None:
        timeout_s = default_s
    if timeout_s is not None and 0 < timeout_s < _ACK_S:
        report.add("timeout-short", deepest(settings, "timeout"), name, f"timeout {timeout_s:g}s")


# --- queue and retries ----------------------------------------------------------------------------------------------------
def _queue(report: Report, collector: Collector, settings: Node, name: str, *, retries: bool = True) -> None:
    """Judge an exporter's queue, and its retries, which are on by default or not (`retries`)."""
    queue = deepest(settings, "sending_queue")
    own = settings.at("sending_queue") or Node(None, settings.file, settings.line)
    storage = own.at("storage")
    waits = truth(own.at("wait_for_result"), default=False)
    if not truth(own.at("enabled"), default=True) or (waits and storage is None):
        report.add("synchronous", queue, name)
        _batch(report, own, name)
        return
    if waits:
        report.add("queue-wait-and-storage", deepest(own, "wait_for_result"), name)
    if storage is None or not storage.value:
        report.add("queue-in-memory", queue, name, "the queue is in memory")
    else:
        _storage(report, collector, storage)
    if not truth(own.at("block_on_overflow"), default=False):
        report.add("queue-drops", deepest(queue, "block_on_overflow"), name, "block_on_overflow is not set")
    _queue_size(report, own, queue, name)
    consumers = own.at("num_consumers")
    if consumers is not None and consumers.value == 1:
        report.add("consumers-one", consumers, name)
    _batch(report, own, name)
    _retry(report, settings, name, on=retries)


def _queue_size(report: Report, own: Node, queue: Node, name: str) -> None:
    node, sizer = own.at("queue_size"), own.at("sizer")
    unit = str(sizer.value) if sizer is not None and sizer.value else "requests"
    size = node.value if node is not None and isinstance(node.value, int) else None
    if node is None:
        size = 1_000
    if size is not None and size < _QUEUE_MIN.get(unit, 0):
        report.add("queue-small", node or queue, name, f"it holds {size:,} {unit}")
    elif unit == "requests":
        report.add("queue-sizer", sizer or queue, name)


def _batch(report: Report, own: Node, name: str) -> None:
    batch = own.at("batch")
    if batch is None or not truth(batch.at("enabled"), default=True):
        return
    largest = batch.at("max_size")
    if largest is None or largest.value in (0, "0", None):
        report.add("batch-unbounded", largest or batch, name)


def _retry(report: Report, settings: Node, name: str, *, on: bool) -> None:
    retry = settings.at("retry_on_failure")
    if not truth(settings.at("retry_on_failure", "enabled"), default=on):
        report.add("retry-off", deepest(settings, "retry_on_failure", "enabled"), name)
        return
    node = retry.at("max_elapsed_time") if retry is not None else None
    ends_s = seconds(node)
    if node is None or (ends_s is not None and ends_s > 0):
        said = f"after {ends_s:g}s" if ends_s else "after 300s"
        report.add("retry-ends", deepest(settings, "retry_on_failure", "max_elapsed_time"), name, f"retries end {said}")


# --- storage --------------------------------------------------------------------------------------------------------------
def _storage(report: Report, collector: Collector, storage: Node) -> None:
    name = str(storage.value)
    settings = collector.components["extensions"].get(name)
    if settings is None:
        report.add("storage-undefined", storage, name)
        return
    if all(ref.id != name for ref in collector.extensions):
        report.add("storage-not-listed", storage, name)
    if type_of(name) != "file_storage":
        report.add("storage-type", settings, name)
        return
    if not truth(settings.at("fsync"), default=False):
        report.add("storage-no-fsync", deepest(settings, "fsync"), name, "fsync is not set")
    _directory(report, settings, name)
    if truth(settings.at("recreate"), default=False):
        report.add("storage-recreate", deepest(settings, "recreate"), name)


def _directory(report: Report, settings: Node, name: str) -> None:
    node = settings.at("directory")
    directory = str(node.value) if node is not None and node.value else _DEFAULT_DIRECTORY
    normal = os.path.normpath(directory)
    if any(normal == v or normal.startswith(v + "/") for v in _VOLATILE):
        report.add("storage-volatile", deepest(settings, "directory"), name, f"{directory} is a temporary folder")
    if not truth(settings.at("create_directory"), default=False):
        report.add("storage-directory", deepest(settings, "create_directory"), name)
    compaction = settings.at("compaction")
    on = [truth(settings.at("compaction", key), default=False) for key in ("on_start", "on_rebound")]
    if not any(on):
        report.add("storage-compaction", compaction or settings, name)
        return
    own = settings.at("compaction", "directory")
    work = str(own.value) if own is not None and own.value else _DEFAULT_DIRECTORY
    if os.path.normpath(work) != normal:
        report.add("storage-compaction-directory", deepest(settings, "compaction", "directory"), name)


# --- kafka, load balancing ------------------------------------------------------------------------------------------------
def _kafka(report: Report, settings: Node, name: str) -> None:
    check_kafka_client(report, settings, name)
    acks = settings.at("producer", "required_acks")
    if acks is None or str(acks.value).lower() not in ("all", "-1"):
        report.add("kafka-acks", deepest(settings, "producer", "required_acks"), name)
    for path in (("traces", "encoding"), ("logs", "encoding"), ("encoding",)):
        encoding = settings.at(*path)
        if encoding is not None and encoding.value and str(encoding.value) not in ("otlp_proto", "otlp_json"):
            report.add("kafka-encoding", encoding, name, f"encoding {encoding.value}")
    message = settings.at("producer", "max_message_bytes")
    room = message.value if message is not None and isinstance(message.value, int) else _KAFKA_BYTES
    batch = settings.at("sending_queue", "batch")
    largest = batch.at("max_size") if batch is not None else None
    unit = batch.at("sizer") if batch is not None else None
    unit = unit or settings.at("sending_queue", "sizer")
    bounded = largest is not None and isinstance(largest.value, int) and unit is not None and unit.value == "bytes"
    if not (bounded and largest is not None and 0 < largest.value <= room) and room < 16 * 1024 * 1024:
        report.add("kafka-message-size", deepest(settings, "producer", "max_message_bytes"), name)


def _load_balancing(report: Report, collector: Collector, settings: Node, name: str) -> None:
    inner = settings.at("protocol", "otlp")
    queue = settings.at("protocol", "otlp", "sending_queue")
    queued = queue is None or truth(queue.at("enabled"), default=True)
    if queued:
        report.add("loadbalancing-queue", queue or deepest(settings, "protocol", "otlp"), name)
    if inner is not None and truth(inner.at("tls", "insecure"), default=False):
        static = settings.at("resolver", "static", "hostnames")
        hosts = [str(h.value) for h in static.items] if static is not None else ["endpoints"]
        if not all(h.startswith(("localhost", "127.")) for h in hosts):
            report.add("tls-insecure", deepest(inner, "tls", "insecure"), name, ", ".join(hosts))
    report.add("loadbalancing-splits", deepest(settings, "resolver"), name)
    if settings.at("sending_queue") is not None:
        _queue(report, collector, settings, name, retries=False)
    elif not queued:
        report.add("synchronous", settings, name)
