"""What receivers of pipelines towards the audit log refuse, lose, or let in.

Source: `otlpreceiver`, `configgrpc`, `confighttp`, `kafkareceiver` of opentelemetry-collector(-contrib) 0.155.0; see docs/doctor.md for which were checked with 0.165.0.
"""

from typing import Final

from otel_audit._doctor_model import Collector, Ref, deepest, truth
from otel_audit._doctor_rules import Report
from otel_audit._doctor_wire import check_kafka_client, check_server
from otel_audit._yaml_file import Node

__all__ = ["check_receiver"]

_MIB: Final = 1024 * 1024
_REQUEST_MIN_MIB: Final = 16
_UDP: Final = ("thrift_compact", "thrift_binary")
_OTHERS: Final = ("zipkin", "jaeger", "opencensus", "skywalking", "otelarrow", "datadog", "awsxray")


def check_receiver(report: Report, collector: Collector, ref: Ref) -> None:
    """Judge a receiver that feeds a pipeline towards the audit log."""
    settings = collector.component("receivers", ref)
    if ref.type == "otlp":
        _otlp(report, settings, ref.id)
    elif ref.type == "kafka":
        _kafka(report, settings, ref.id)
    elif ref.type == "jaeger":
        for protocol in _UDP:
            node = settings.at("protocols", protocol)
            if node is not None:
                report.add("receiver-udp", node, ref.id, protocol)
    elif ref.type in ("awsxray", "carbon", "statsd"):
        report.add("receiver-udp", settings, ref.id)
    elif ref.type not in _OTHERS:
        report.add("unknown-component", ref.node, ref.id)


def _otlp(report: Report, settings: Node, name: str) -> None:
    grpc, http = settings.at("protocols", "grpc"), settings.at("protocols", "http")
    for protocol in (grpc, http):
        if protocol is not None:
            check_server(report, protocol, name)
    if grpc is not None:
        limit = grpc.at("max_recv_msg_size_mib")
        size = limit.value if limit is not None and limit.value else 4
        if isinstance(size, int) and size < _REQUEST_MIN_MIB:
            report.add("receiver-message-limit", limit or grpc, name, f"gRPC requests are limited to {size} MiB")
    if http is not None:
        limit = http.at("max_request_body_size")
        size = limit.value if limit is not None and limit.value else 20 * _MIB
        if isinstance(size, int) and size < _REQUEST_MIN_MIB * 1_000_000:
            report.add("receiver-message-limit", limit or http, name, f"HTTP requests are limited to {size:,} bytes")


def _kafka(report: Report, settings: Node, name: str) -> None:
    check_kafka_client(report, settings, name)
    marking = settings.at("message_marking")
    after = truth(settings.at("message_marking", "after"), default=False)
    if not after:
        report.add(
            "kafka-marks-early", deepest(settings, "message_marking", "after"), name, "it marks before handing on"
        )
    else:
        _marks_failed(report, marking, name)
    if str((settings.at("initial_offset") or Node("latest", "", 0)).value) != "earliest":
        report.add("kafka-initial-offset", deepest(settings, "initial_offset"), name)
    if after and not truth(settings.at("error_backoff", "enabled"), default=False):
        report.add("kafka-no-backoff", deepest(settings, "error_backoff", "enabled") if marking else settings, name)


def _marks_failed(report: Report, marking: Node | None, name: str) -> None:
    """Permanent errors follow `on_error` unless they are set; what is refused for good would stop the partition."""
    on_error = marking.at("on_error") if marking is not None else None
    on_permanent = marking.at("on_permanent_error") if marking is not None else None
    if on_error is not None and truth(on_error, default=False):
        report.add("kafka-marks-early", on_error, name, "it marks what failed")
    elif on_permanent is not None and truth(on_permanent, default=False):
        detail = "it marks what is refused for good"
        report.add("kafka-marks-early", on_permanent, name, detail, severity="warning")
