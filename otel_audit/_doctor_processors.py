"""What processors and connectors do to the calls that pass through them.

Source: READMEs and configuration structs of opentelemetry-collector(-contrib) 0.155.0; see docs/doctor.md for which were checked with 0.165.0.
"""

from collections.abc import Callable, Iterable
from typing import Final

from otel_audit._doctor_attributes import RESOURCE_KEYS, SPAN_KEYS, is_identity, is_path, masks_identity, matching, some
from otel_audit._doctor_model import Collector, Pipeline, Ref, deepest, seconds, truth
from otel_audit._doctor_ottl import harms
from otel_audit._doctor_rules import Report
from otel_audit._yaml_file import Node

__all__ = ["check_connector", "check_processor"]

_SAMPLERS: Final = ("probabilistic_sampler", "tail_sampling", "adaptive_sampler", "sampling", "dynamic_sampling")
_DROPPERS: Final = {
    "log_dedup": "it counts what looks alike and drops all but one",
    "logdedup": "it counts what looks alike and drops all but one",
    "interval": "it passes on one of what came in an interval",
    "span_pruning": "it folds spans that look alike into one",
    "spanpruning": "it folds spans that look alike into one",
    "ratelimit": "it drops what comes faster than its rate",
    "ratelimiter": "it drops what comes faster than its rate",
    "ratelimitprocessor": "it drops what comes faster than its rate",
    "throttle": "it drops what comes faster than its rate",
    "cardinality": "it drops attributes or data over a limit",
}
_HOLDERS: Final = {"groupbytrace": "it holds traces in memory until they seem complete", "group_by_trace": "the same"}
_HARMLESS: Final = frozenset({
    "memory_limiter", "k8sattributes", "k8s_attributes", "geoip", "geo_ip", "remotetap", "remote_tap", "dns_lookup",
    "dnslookup", "docker_attributes", "experimental_metricsgeneration", "metricstransform", "metrics_transform",
    "metricsgeneration", "metrics_generation", "cumulativetodelta", "deltatocumulative", "deltatorate",
})  # fmt: skip
"""They add attributes, refuse, or act on metrics only."""
_REMOVED: Final = frozenset({"routing", "spanmetrics", "servicegraph", "queued_retry"})


def check_processor(report: Report, collector: Collector, pipeline: Pipeline, ref: Ref) -> None:
    """Judge one processor in a pipeline that leads to the audit log."""
    settings = collector.component("processors", ref)
    if ref.type in _SAMPLERS:
        report.add("sampler", ref.node, ref.id, f"in {pipeline.id}")
    elif ref.type in _DROPPERS:
        report.add("drops", ref.node, ref.id, _DROPPERS[ref.type])
    elif ref.type in _HOLDERS:
        report.add("holds-in-memory", ref.node, ref.id, _HOLDERS[ref.type])
    elif ref.type in _REMOVED:
        report.add("removed-component", ref.node, ref.id)
    elif ref.type in _CHECKS:
        _CHECKS[ref.type](report, settings, ref, pipeline.signal)
    elif ref.type not in _HARMLESS:
        report.add("unknown-component", ref.node, ref.id)
    if ref.type == "memory_limiter":
        _memory_limiter(report, settings, ref)


def _memory_limiter(report: Report, settings: Node, ref: Ref) -> None:
    limits = [settings.at(key) for key in ("limit_mib", "limit_percentage")]
    interval = settings.at("check_interval")
    set_limit = any(limit is not None and limit.value not in (None, 0, "0") for limit in limits)
    if not set_limit or interval is None or seconds(interval) == 0:
        report.add("memory-limiter-off", settings, ref.id)


def _batch(report: Report, _: Node, ref: Ref, __: str) -> None:
    report.add("batch-processor", ref.node, ref.id)


# --- filter ---------------------------------------------------------------------------------------------------------------
_FILTERS: Final = {
    "traces": (("traces", "span"), ("traces", "resource"), ("spans",), ("trace_conditions",)),
    "logs": (("logs",), ("log_conditions",)),
}


def _filter(report: Report, settings: Node, ref: Ref, signal: str) -> None:
    for path in _FILTERS[signal]:
        node = settings.at(*path)
        if node is not None and node.value:
            report.add("filter", node, ref.id)
    events = settings.at("traces", "spanevent")
    if signal == "traces" and events is not None and events.value:
        report.add("event-filter", events, ref.id)


# --- attributes, resource -------------------------------------------------------------------------------------------------
def _attributes(report: Report, settings: Node, ref: Ref, _: str) -> None:
    _actions(report, settings.at("actions"), ref, resource=False)


def _resource(report: Report, settings: Node, ref: Ref, _: str) -> None:
    _actions(report, settings.at("attributes"), ref, resource=True)


def _actions(report: Report, actions: Node | None, ref: Ref, *, resource: bool) -> None:
    for action in actions.items if actions is not None else []:
        said = {key: node.value for key, node in action.mapping.items()}
        kind, key, pattern = str(said.get("action", "")).lower(), said.get("key"), said.get("pattern")
        known = RESOURCE_KEYS if resource else SPAN_KEYS
        if kind == "delete" and not key and isinstance(pattern, str):
            gone = matching(pattern, known)
            if gone:
                report.add("identity-removed", action, ref.id, f"it deletes {some(gone)}")
        if not isinstance(key, str) or kind not in ("delete", "update", "upsert", "hash"):
            continue
        does = {"delete": "deletes", "hash": "hashes"}.get(kind, "sets")
        if is_identity(key, resource=resource):
            rule = "identity-removed" if kind == "delete" else "identity-changed"
            report.add(rule, action, ref.id, f"it {does} {key}")
        elif not resource and is_path(key):
            report.add("path-changed", action, ref.id, f"it {does} {key}")


def _groupbyattrs(report: Report, settings: Node, ref: Ref, _: str) -> None:
    keys = settings.at("keys")
    for key in keys.items if keys is not None else []:
        if is_identity(str(key.value)):
            report.add("identity-removed", key, ref.id, f"it moves {key.value} from the span to its resource")


def _resourcedetection(report: Report, settings: Node, ref: Ref, _: str) -> None:
    if truth(settings.at("override"), default=True):
        report.add("resource-overwritten", deepest(settings, "override"), ref.id)


# --- redaction, span, transform -------------------------------------------------------------------------------------------
def _texts(node: Node | None) -> list[str]:
    return [str(item.value) for item in node.items] if node is not None else []


def _redaction(report: Report, settings: Node, ref: Ref, _: str) -> None:
    ignored = set(_texts(settings.at("ignored_keys")))
    for pattern in _texts(settings.at("ignored_key_patterns")):
        ignored.update(matching(pattern, SPAN_KEYS))
    if not truth(settings.at("allow_all_keys"), default=False):
        allowed = ignored | set(_texts(settings.at("allowed_keys")))
        gone = [key for key in SPAN_KEYS if key not in allowed]
        if gone:
            report.add(
                "identity-removed", deepest(settings, "allowed_keys"), ref.id, f"its allowed_keys lack {some(gone)}"
            )
    blocked = settings.at("blocked_key_patterns")
    for item in blocked.items if blocked is not None else []:
        masked = [key for key in matching(str(item.value), SPAN_KEYS) if key not in ignored]
        if masked:
            report.add("identity-changed", item, ref.id, f"it masks {some(masked)}")
    values = settings.at("blocked_values")
    if values is not None and any(masks_identity(pattern) for pattern in _texts(values)):
        report.add("values-masked", values, ref.id, "it masks values in all attributes that are not in ignored_keys")


def _span(report: Report, settings: Node, ref: Ref, _: str) -> None:
    name, status = settings.at("name"), settings.at("status")
    if name is not None:
        report.add("name-changed", name, ref.id, "it renames spans")
    if status is not None:
        report.add("span-changed", status, ref.id, "it sets the status")


def _transform(report: Report, settings: Node, ref: Ref, signal: str) -> None:
    blocks = settings.at("trace_statements" if signal == "traces" else "log_statements")
    if blocks is None or not blocks.items:
        return
    own = settings.at("error_mode")
    inherited = str(own.value) if own is not None and own.value else "propagate"
    propagates: Node | None = None
    for block in blocks.items:
        if isinstance(block.value, str):
            _statements(report, [block], "", ref)
            mode = inherited
        else:
            context = block.at("context")
            statements = block.at("statements")
            _statements(report, statements.items if statements is not None else [], _text(context), ref)
            mode = _text(block.at("error_mode")) or inherited
        if mode == "propagate" and propagates is None:
            propagates = block
    if propagates is not None:
        place = propagates.at("error_mode") or own
        if place is None:
            report.add("ottl-propagate", settings, ref.id, "error_mode is not set", severity="warning")
        else:
            report.add("ottl-propagate", place, ref.id)


def _text(node: Node | None) -> str:
    return str(node.value) if node is not None and node.value is not None else ""


def _statements(report: Report, statements: Iterable[Node], context: str, ref: Ref) -> None:
    for statement in statements:
        for harm in harms(str(statement.value), context):
            report.add(harm.rule, statement, ref.id, harm.detail)


_Check = Callable[[Report, Node, Ref, str], None]
_CHECKS: Final[dict[str, _Check]] = {
    "batch": _batch,
    "filter": _filter,
    "attributes": _attributes,
    "resource": _resource,
    "groupbyattrs": _groupbyattrs,
    "group_by_attributes": _groupbyattrs,
    "resourcedetection": _resourcedetection,
    "resource_detection": _resourcedetection,
    "redaction": _redaction,
    "span": _span,
    "transform": _transform,
}

# --- connectors -----------------------------------------------------------------------------------------------------------
_CONVERTERS: Final = frozenset({
    "spanmetrics", "span_metrics", "servicegraph", "service_graph", "count", "sum", "exceptions", "signaltometrics",
    "signal_to_metrics", "datadog", "otlpjson", "otlp_json", "grafanacloud", "metricsaslogs", "spanevents",
})  # fmt: skip
_SPLITTERS: Final = {
    "failover": "it gives to the first of its levels that works",
    "roundrobin": "it gives to one after the other",
    "round_robin": "it gives to one after the other",
}


def check_connector(
    report: Report, collector: Collector, pipeline: Pipeline, ref: Ref, ways: Iterable[Pipeline]
) -> None:
    """Judge a connector that feeds a pipeline on the way to the audit log.

    Args:
        report: gets the findings.
        collector: it is part of.
        pipeline: that it feeds.
        ref: where the pipeline names it.
        ways: all pipelines that lead to the audit log.
    """
    feeding = list(collector.fed_by(ref.id))
    for one in feeding:
        if one.signal != pipeline.signal:
            report.add("connector-converts", ref.node, ref.id, f"{one.id} becomes {pipeline.id}")
    if not any(one.signal == pipeline.signal for one in feeding):
        return
    settings = collector.component("connectors", ref)
    if ref.type in _SPLITTERS:
        _splitter(report, collector, ref, settings, {p.id for p in ways})
    elif ref.type == "routing":
        _routing(report, ref, settings, {p.id for p in ways})
    elif ref.type != "forward" and ref.type not in _CONVERTERS:
        report.add("unknown-component", ref.node, ref.id)


def _splitter(report: Report, collector: Collector, ref: Ref, settings: Node, ways: set[str]) -> None:
    others = [
        p.id for p in collector.pipelines.values() if any(r.id == ref.id for r in p.receivers) and p.id not in ways
    ]
    if others:
        report.add("connector-splits", settings, ref.id, f"{_SPLITTERS[ref.type]}, also to {some(others)}")


def _routing(report: Report, ref: Ref, settings: Node, ways: set[str]) -> None:
    default = settings.at("default_pipelines")
    if default is None or not _names(default):
        report.add("routing-no-default", settings, ref.id)
    elif not ways & _names(default):
        report.add("routing-away", default, ref.id, "default_pipelines")
    table = settings.at("table")
    for route in table.items if table is not None else []:
        targets = route.at("pipelines")
        action = route.at("action")
        if targets is not None and not ways & _names(targets) and _text(action) != "copy":
            report.add("routing-away", targets, ref.id, f"to {some(sorted(_names(targets)))}")


def _names(node: Node) -> set[str]:
    return {str(item.value) for item in node.items} or ({str(node.value)} if isinstance(node.value, str) else set())
