"""What in the configuration of Collectors would lose or change audit data: `otel-audit doctor`.

Reads the YAML as a Collector does, follows data upstream from the exporter that leads to the audit log through pipelines and
connectors to the receivers, and judges everything on the way. Rules and remedies: `docs/doctor.md`.
"""

from collections.abc import Sequence
from typing import Final

from otel_audit import _doctor_exporters as exporting
from otel_audit._doctor_exporters import check_exporter
from otel_audit._doctor_hops import Examined, check_hops
from otel_audit._doctor_model import SIGNALS, Collector, Pipeline, Ref, load_collector, type_of
from otel_audit._doctor_processors import check_connector, check_processor
from otel_audit._doctor_receivers import check_receiver
from otel_audit._doctor_rules import RULES, Finding, Report, Rule, Severity
from otel_audit._doctor_service import check_names, check_operation, check_settings
from otel_audit._doctor_wire import host_of
from otel_audit._yaml_file import Node
from otel_audit.errors import UsageError

__all__ = ["RULES", "Finding", "Rule", "Severity", "examine", "guess_exporters"]

_ORDER: Final[dict[Severity, int]] = {"error": 0, "warning": 1, "note": 2}
_OTLP: Final = exporting.GRPC + exporting.HTTP + exporting.LOAD_BALANCING
_SENDING: Final = _OTLP + exporting.KAFKA


def examine(collectors: Sequence[Sequence[str]], *, exporters: Sequence[str] = ()) -> list[Finding]:
    """Everything in the way of audit data, the gravest first, then by file and line.

    Args:
        collectors: for each Collector on the way, the files that configure it together; the one nearest to the services first.
        exporters: ids of the exporters that lead to the audit log, or to the next Collector; none: they are guessed.

    Raises:
        ConfigError: a file cannot be read, or is not YAML.
        UsageError: which exporter leads to the audit log cannot be told.
    """
    report = Report()
    loaded = [load_collector(files) for files in collectors]
    missing = [name for name in exporters if all(name not in c.components["exporters"] for c in loaded)]
    if missing:
        known = sorted({name for c in loaded for name in c.components["exporters"]})
        raise UsageError(
            "examine", f"exporter {missing[0]}", "it is in none of the files", f"they have {', '.join(known)}"
        )
    chain = [_examine(report, c, [name for name in exporters if name in c.components["exporters"]]) for c in loaded]
    check_hops(report, chain)
    return sorted(report, key=lambda f: (_ORDER[f.severity], f.file, f.line, f.rule))


def guess_exporters(collector: Collector) -> list[str]:
    """The exporters that lead to the audit log: named so, or going to a host named so, or the only one there is.

    Raises:
        UsageError: none, or several that could be meant.
    """
    defined = collector.components["exporters"]
    named = [n for n in defined if "audit" in n.partition("/")[2].lower() or "audit" in type_of(n)]
    named = named or [n for n, node in defined.items() if type_of(n) in _SENDING and _goes_to_audit(node)]
    used = {ref.id for p in collector.pipelines.values() if p.signal in SIGNALS for ref in p.exporters}
    found = named or [n for n in defined if n in used and type_of(n) in _SENDING]
    if len(found) == 1 or named:
        return found
    reason = f"several could be meant: {', '.join(found)}" if found else "no exporter has audit in its name or endpoint"
    hint = "name it with --exporter NAME, or call it otlp_grpc/audit"
    raise UsageError("find the exporter to the audit log in", collector.name, reason, hint)


def _goes_to_audit(node: Node) -> bool:
    endpoint = node.at("endpoint")
    return endpoint is not None and "audit" in host_of(str(endpoint.value or "")).lower()


def _examine(report: Report, collector: Collector, exporters: Sequence[str]) -> Examined:
    check_names(report, collector)
    check_settings(report, collector)
    check_operation(report, collector)
    ways: list[Pipeline] = []
    leading = exporters or _guessed(report, collector)
    for name in leading:
        settings = collector.components["exporters"][name]
        check_exporter(report, collector, Ref(name, settings))
        _use(report, collector, name, settings)
        ways += [p for p in collector.leading_to(name) if p not in ways]
    for pipeline in ways:
        _pipeline(report, collector, pipeline, ways)
    _receivers(report, collector, ways)
    return Examined(collector, tuple(leading), tuple(ways))


def _guessed(report: Report, collector: Collector) -> list[str]:
    """The exporters that lead to the log; none where the configuration is so broken that the Collector would refuse it."""
    if not collector.pipelines:
        return []
    try:
        return guess_exporters(collector)
    except UsageError:
        if any(f.severity == "error" for f in report):
            return []
        raise


def _use(report: Report, collector: Collector, name: str, settings: Node) -> None:
    signals = {p.signal for p in collector.pipelines.values() if any(ref.id == name for ref in p.exporters)}
    if not signals:
        report.add("exporter-unused", settings, name)
    elif "traces" not in signals:
        only = " and ".join(sorted(signals))
        severity: Severity = "warning" if "logs" in signals else "error"
        report.add("exporter-no-traces", settings, name, f"it is in {only} pipelines only", severity=severity)


def _pipeline(report: Report, collector: Collector, pipeline: Pipeline, ways: Sequence[Pipeline]) -> None:
    connectors = collector.components["connectors"]
    for ref in pipeline.processors:
        check_processor(report, collector, pipeline, ref)
    for ref in pipeline.receivers:
        if ref.id in connectors:
            check_connector(report, collector, pipeline, ref, ways)
    limiters = [n for n, ref in enumerate(pipeline.processors) if ref.type == "memory_limiter"]
    begins = any(ref.id not in connectors for ref in pipeline.receivers)
    extension = any(ref.type == "memory_limiter" for ref in collector.extensions)
    if begins and not limiters and not extension:
        report.add("memory-limiter-missing", pipeline.node.at("processors") or pipeline.node, pipeline.id)
    elif begins and limiters and limiters[0] > 0:
        report.add("memory-limiter-late", pipeline.processors[limiters[0]].node, pipeline.processors[limiters[0]].id)


def _receivers(report: Report, collector: Collector, ways: Sequence[Pipeline]) -> None:
    connectors = collector.components["connectors"]
    audited = {ref.id: ref for p in ways for ref in p.receivers if ref.id not in connectors}
    for ref in audited.values():
        check_receiver(report, collector, ref)
    for pipeline in collector.pipelines.values():
        if pipeline in ways or pipeline.signal != "traces":
            continue
        for ref in pipeline.receivers:
            if ref.id in audited:
                report.add("shared-receiver", ref.node, ref.id, f"it also feeds {pipeline.id}")
            elif ref.id not in connectors:
                report.add("receiver-not-audited", ref.node, ref.id, f"it feeds {pipeline.id} only")
