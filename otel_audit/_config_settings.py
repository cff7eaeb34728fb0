"""The one table of what can be set: under which key of the file, into which field, and of what kind.

A setting that is not in the table does not exist; one that docs/configuration.md does not describe fails a test.

Source: OpenTelemetry Collector, `receiver/otlpreceiver/README.md`, for the names below `receivers`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from otel_audit import _config_telemetry as telemetry_kinds
from otel_audit import _config_values as kinds
from otel_audit._config_values import Kind
from otel_audit._senders_file import SENDERS
from otel_audit.auditlog import LogSettings
from otel_audit.forwarder import OtlpLogsSettings
from otel_audit.otlp import DecodeSettings
from otel_audit.receiver import GrpcSettings, HttpSettings, ReceiverSettings, TlsSettings
from otel_audit.telemetry import TelemetrySettings

__all__ = ["BY_FLAG", "BY_KEY", "DEFAULT_DIRECTORY", "OPTIONAL", "PROTOCOLS", "SECTIONS", "ServerSettings", "Setting"]

DEFAULT_DIRECTORY: Final = "./audit-log"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything `otel-audit serve` needs.

    Args:
        directory: folder of the log.
        receiver: which protocols, on which addresses, within which limits.
        log: how the log stores.
        decode: what becomes a record.
        otlp_logs: where records are passed on to as OTLP log records; None: nowhere.
        telemetry: what the service says of itself.
        shutdown_timeout_s: how long requests under way may take to end when the service is told to stop.
    """

    directory: str = DEFAULT_DIRECTORY
    receiver: ReceiverSettings = field(default_factory=ReceiverSettings)
    log: LogSettings = field(default_factory=LogSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    otlp_logs: OtlpLogsSettings | None = None
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    shutdown_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Args:
        key: dotted path in the file.
        target: dotted path of the field in `ServerSettings`.
        kind: how it is read and written.
        flag: the option of `otel-audit serve` that sets it, if there is one.
        secret: whether `print-config` must not show its value.
    """

    key: str
    target: str
    kind: Kind
    flag: str = ""
    secret: bool = False


def _tls(key: str, target: str) -> tuple[Setting, ...]:
    """The settings of a server's TLS, named as a Collector names them."""
    return (
        Setting(f"{key}.tls.cert_file", f"{target}.tls.cert_file", kinds.TEXT),
        Setting(f"{key}.tls.key_file", f"{target}.tls.key_file", kinds.TEXT),
        Setting(f"{key}.tls.client_ca_file", f"{target}.tls.client_ca_file", kinds.TEXT),
        Setting(f"{key}.tls.min_version", f"{target}.tls.min_version", kinds.choice("1.2", "1.3")),
        Setting(f"{key}.tls.reload_interval", f"{target}.tls.reload_interval_s", kinds.DURATION),
    )


_OTLP: Final = "receivers.otlp"
_GRPC: Final = f"{_OTLP}.protocols.grpc"
_HTTP: Final = f"{_OTLP}.protocols.http"
_LOGS: Final = "exporters.otlp_logs"
_SETTINGS: Final = (
    Setting(f"{_GRPC}.endpoint", "receiver.grpc.endpoint", kinds.ENDPOINT, "grpc"),
    Setting(f"{_GRPC}.max_recv_msg_size_mib", "receiver.grpc.max_body_bytes", kinds.MEBIBYTES),
    Setting(f"{_GRPC}.read_timeout", "receiver.grpc.receive_timeout_s", kinds.DURATION),
    Setting(f"{_GRPC}.workers", "receiver.grpc.workers", kinds.INTEGER),
    Setting(f"{_GRPC}.max_connections", "receiver.grpc.connections_max", kinds.INTEGER),
    *_tls(_GRPC, "receiver.grpc"),
    Setting(f"{_HTTP}.endpoint", "receiver.http.endpoint", kinds.ENDPOINT, "http"),
    Setting(f"{_HTTP}.max_request_body_size", "receiver.http.max_body_bytes", kinds.BYTES),
    Setting(f"{_HTTP}.read_timeout", "receiver.http.receive_timeout_s", kinds.DURATION),
    Setting(f"{_HTTP}.read_header_timeout", "receiver.http.header_timeout_s", kinds.DURATION),
    Setting(f"{_HTTP}.idle_timeout", "receiver.http.idle_timeout_s", kinds.DURATION),
    Setting(f"{_HTTP}.max_connections", "receiver.http.connections_max", kinds.INTEGER),
    *_tls(_HTTP, "receiver.http"),
    Setting(f"{_OTLP}.senders", "receiver.access.senders", SENDERS),
    Setting(f"{_OTLP}.senders_file", "receiver.access.senders_file", kinds.TEXT),
    Setting(f"{_OTLP}.unauthenticated", "receiver.access.unauthenticated", kinds.choice("retry", "refuse")),
    Setting(f"{_OTLP}.allow_insecure", "receiver.access.allow_insecure", kinds.BOOLEAN),
    Setting(f"{_OTLP}.max_in_flight_mib", "receiver.intake.max_in_flight_bytes", kinds.MEBIBYTES),
    Setting(f"{_OTLP}.retry_after", "receiver.intake.retry_after_s", kinds.DURATION),
    Setting(f"{_OTLP}.ack_timeout", "receiver.intake.ack_timeout_s", kinds.DURATION),
    Setting("log.directory", "directory", kinds.TEXT, "dir"),
    Setting("log.name", "log.name", kinds.TEXT),
    Setting("log.segment_rows", "log.segment_rows", kinds.INTEGER),
    Setting("log.segment_age", "log.segment_age_s", kinds.DURATION),
    Setting("log.dedupe_window", "log.dedupe_window_s", kinds.DURATION),
    Setting("log.dedupe_ids_max", "log.dedupe_ids_max", kinds.INTEGER),
    Setting("log.queue_records", "log.queue_records", kinds.INTEGER),
    Setting("log.disk_reserve_mib", "log.disk_reserve_bytes", kinds.MEBIBYTES),
    Setting("log.disk_ready_mib", "log.disk_ready_bytes", kinds.MEBIBYTES),
    Setting("log.late_after", "log.late_s", kinds.DURATION),
    Setting(f"{_LOGS}.endpoint", "otlp_logs.endpoint", kinds.URL),
    Setting(f"{_LOGS}.protocol", "otlp_logs.protocol", kinds.choice("grpc", "http/protobuf")),
    Setting(f"{_LOGS}.headers", "otlp_logs.headers", kinds.HEADERS, secret=True),
    Setting(f"{_LOGS}.timeout", "otlp_logs.timeout_s", kinds.DURATION),
    Setting(f"{_LOGS}.compression", "otlp_logs.compression", kinds.choice("gzip", "none")),
    Setting(f"{_LOGS}.tls.ca_file", "otlp_logs.ca_file", kinds.TEXT),
    Setting(f"{_LOGS}.tls.cert_file", "otlp_logs.cert_file", kinds.TEXT),
    Setting(f"{_LOGS}.tls.key_file", "otlp_logs.key_file", kinds.TEXT),
    Setting(f"{_LOGS}.tls.insecure_skip_verify", "otlp_logs.insecure_skip_verify", kinds.BOOLEAN),
    Setting(f"{_LOGS}.batch_records", "otlp_logs.batch_records", kinds.INTEGER),
    Setting(f"{_LOGS}.from", "otlp_logs.start", kinds.choice("beginning", "now")),
    Setting("exclude_routes", "decode.exclude_routes", kinds.TEXTS),
    Setting("service.telemetry.logs.level", "telemetry.logs.level", telemetry_kinds.LEVEL),
    Setting("service.telemetry.logs.encoding", "telemetry.logs.encoding", kinds.choice("console", "json")),
    Setting("service.telemetry.metrics.readers", "telemetry.readers", telemetry_kinds.READERS),
    Setting("service.telemetry.resource", "telemetry.resource", telemetry_kinds.RESOURCE),
    Setting("service.shutdown_timeout", "shutdown_timeout_s", kinds.DURATION),
)

BY_KEY: Final = {s.key: s for s in _SETTINGS}
BY_FLAG: Final = {s.flag: s for s in _SETTINGS if s.flag}
SECTIONS: Final = {key.rsplit(".", n)[0] for key in BY_KEY for n in range(1, key.count(".") + 1)}

PROTOCOLS: Final = {"grpc": _GRPC, "http": _HTTP}
"""Sections that switch something on by being there: once one of them is, those that are not are off, as in a Collector."""
OPTIONAL: Final[Mapping[str, Callable[[], object]]] = {
    "grpc": GrpcSettings,
    "http": HttpSettings,
    "tls": TlsSettings,
    "otlp_logs": OtlpLogsSettings,
}
"""What stands in a field that may be None, once one of its settings is given."""
