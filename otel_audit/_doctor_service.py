"""What a Collector itself would refuse, and whether anyone can see what it does."""

import difflib
from collections.abc import Collection
from typing import Final

from otel_audit._doctor_model import KINDS, Collector, Pipeline, Ref
from otel_audit._doctor_rules import Report
from otel_audit._yaml_file import Node

__all__ = ["check_names", "check_operation", "check_settings"]

_TOP: Final = (*KINDS, "service")
_QUEUE: Final = (
    "enabled", "wait_for_result", "sizer", "queue_size", "block_on_overflow", "storage", "num_consumers", "batch",
)  # fmt: skip
_RETRY: Final = (
    "enabled", "initial_interval", "randomization_factor", "multiplier", "max_interval", "max_elapsed_time",
)  # fmt: skip
_FILE_STORAGE: Final = (
    "directory", "timeout", "compaction", "fsync", "create_directory", "directory_permissions", "recreate",
    "max_size",
)  # fmt: skip
_COMPACTION: Final = (
    "on_start", "on_rebound", "directory", "rebound_needed_threshold_mib", "rebound_trigger_threshold_mib",
    "max_transaction_size", "check_interval", "cleanup_on_start",
)  # fmt: skip
_LIMITER: Final = (
    "check_interval", "min_gc_interval_when_soft_limited", "min_gc_interval_when_hard_limited", "limit_mib",
    "spike_limit_mib", "limit_percentage", "spike_limit_percentage",
    "garbage_collector", "max_gc_interval_when_soft_limited", "max_gc_interval_when_hard_limited",
)  # fmt: skip
_REMOTE_SAMPLING: Final = ("jaegerremotesampling", "jaeger_remote_sampling")
_HEALTH: Final = ("health_check", "healthcheck", "healthcheckv2", "health_check_v2")
_REMOVED: Final = frozenset({"memory_ballast"})
_REMOVED_EXPORTERS: Final = frozenset({"logging", "jaeger", "jaeger_thrift"})


def check_names(report: Report, collector: Collector) -> None:
    """Judge names that stand for nothing, and pipelines that are not whole."""
    for where, why in collector.unset:
        report.add("env-unset", where, "", f"{why} is not set")
    for where, what in collector.unresolved:
        report.add("provider-unresolved", where, "", what)
    if not collector.pipelines:
        report.add("no-pipelines", collector.root.mapping.get("service") or collector.root, "service")
    for ref in collector.extensions:
        _defined(report, collector, ref, ("extensions",))
    for pipeline in collector.pipelines.values():
        _pipeline_names(report, collector, pipeline)


def _pipeline_names(report: Report, collector: Collector, pipeline: Pipeline) -> None:
    for ref in pipeline.receivers:
        _defined(report, collector, ref, ("receivers", "connectors"))
    for ref in pipeline.processors:
        _defined(report, collector, ref, ("processors",))
    for ref in pipeline.exporters:
        _defined(report, collector, ref, ("exporters", "connectors"))
        if ref.type in _REMOVED_EXPORTERS and ref.id in collector.components["exporters"]:
            report.add("removed-component", collector.component("exporters", ref), ref.id)
    for kind, refs in (("receiver", pipeline.receivers), ("exporter", pipeline.exporters)):
        if not refs:
            report.add("pipeline-incomplete", pipeline.node, pipeline.id, f"it has no {kind}")


def _defined(report: Report, collector: Collector, ref: Ref, kinds: tuple[str, ...]) -> None:
    if any(ref.id in collector.components[kind] for kind in kinds):
        return
    known = [name for kind in kinds for name in collector.components[kind]]
    report.add(
        "undefined-component", ref.node, ref.id, f"{ref.id} is in no section {' or '.join(kinds)}{_near(ref.id, known)}"
    )


def _near(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def check_settings(report: Report, collector: Collector) -> None:
    """Judge keys that a Collector does not know, in the sections that decide whether data is kept."""
    _known(report, collector.root, "", _TOP)
    service = collector.root.mapping.get("service")
    if service is not None:
        _known(report, service, "service", ("extensions", "pipelines", "telemetry"))
    for pipeline in collector.pipelines.values():
        _known(report, pipeline.node, pipeline.id, ("receivers", "processors", "exporters"))
    for name, node in collector.components["exporters"].items():
        for key, known in (("sending_queue", _QUEUE), ("retry_on_failure", _RETRY)):
            _known(report, node.at(key), name, known)
    for name, node in collector.components["extensions"].items():
        if name.partition("/")[0] == "file_storage":
            _known(report, node, name, _FILE_STORAGE)
            _known(report, node.at("compaction"), name, _COMPACTION)
    for name, node in collector.components["processors"].items():
        if name.partition("/")[0] == "memory_limiter":
            _known(report, node, name, _LIMITER)


def _known(report: Report, node: Node | None, name: str, known: Collection[str]) -> None:
    for key, below in node.mapping.items() if node is not None else ():
        if key not in known:
            report.add("unknown-setting", below, name, f"{key}{_near(key, known)}")


def check_operation(report: Report, collector: Collector) -> None:
    """Judge whether its metrics and health can be seen, and extensions that make services sample."""
    service = collector.root.mapping.get("service") or collector.root
    level, readers = service.at("telemetry", "metrics", "level"), service.at("telemetry", "metrics", "readers")
    if level is not None and str(level.value).lower() == "none":
        report.add("telemetry-off", level, "service", "metrics: level none")
    elif readers is not None and not readers.items:
        report.add("telemetry-off", readers, "service", "metrics: no readers")
    for ref in collector.extensions:
        if ref.type in _REMOTE_SAMPLING:
            report.add("remote-sampling", ref.node, ref.id)
        if ref.type in _REMOVED:
            report.add("removed-component", ref.node, ref.id)
    if not any(ref.type in _HEALTH for ref in collector.extensions):
        report.add("no-health-check", service.mapping.get("extensions") or service, "service")
