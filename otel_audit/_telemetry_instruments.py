"""The one table of what the service says of itself: every metric, its kind, its unit, what it means.

A metric that is not in the table does not exist; one that docs/telemetry.md does not describe fails a test. Names follow
the Collector's own telemetry (`otelcol_receiver_accepted_spans`, …) with `otel_audit` in front.

Source: OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility", for the names in Prometheus; UCUM for units.
"""

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["BY_NAME", "INSTRUMENTS", "Instrument"]

_UNITS: Final = {"s": "_seconds", "By": "_bytes"}


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric.

    Args:
        name: as OpenTelemetry calls it.
        kind: a counter only grows while the process runs; a histogram counts durations into buckets.
        unit: in UCUM; what stands in braces, or nothing, is not part of the name in Prometheus.
        description: one sentence.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str

    @property
    def prometheus(self) -> str:
        """Its name in Prometheus."""
        name = self.name.replace(".", "_") + _UNITS.get(self.unit, "")
        return f"{name}_total" if self.kind == "counter" else name


INSTRUMENTS: Final = (
    Instrument(
        "otel_audit.receiver.accepted_spans",
        "counter",
        "{span}",
        "Spans in requests that were made durable, by transport.",
    ),
    Instrument(
        "otel_audit.receiver.accepted_log_records",
        "counter",
        "{record}",
        "Log records in requests that were made durable, by transport.",
    ),
    Instrument("otel_audit.receiver.skipped_spans", "counter", "{span}", "Accepted spans that are no audit records."),
    Instrument(
        "otel_audit.receiver.not_allowed_records",
        "counter",
        "{record}",
        "Records kept in quarantine because their sender may not speak for their service or source.",
    ),
    Instrument(
        "otel_audit.receiver.stale_files",
        "gauge",
        "{file}",
        "Certificates and lists of senders in use as they were before, because what they hold now cannot be used.",
    ),
    Instrument(
        "otel_audit.receiver.requests",
        "counter",
        "{request}",
        "Requests whose data is durable and that were acknowledged.",
    ),
    Instrument(
        "otel_audit.receiver.refused_requests",
        "counter",
        "{request}",
        "Requests answered otherwise than with success, by reason.",
    ),
    Instrument("otel_audit.receiver.in_flight", "gauge", "By", "Bytes of request bodies held now."),
    Instrument(
        "otel_audit.receiver.in_flight.limit", "gauge", "By", "Bytes beyond which requests are told to come again."
    ),
    Instrument("otel_audit.log.records", "counter", "{record}", "Records that were new and are durable."),
    Instrument("otel_audit.log.duplicates", "counter", "{record}", "Records that were there before: retries."),
    Instrument("otel_audit.log.queue.size", "gauge", "{record}", "Records that wait to be written."),
    Instrument(
        "otel_audit.log.queue.capacity", "gauge", "{record}", "Records that may wait; more are told to come again."
    ),
    Instrument("otel_audit.log.refused", "counter", "{submission}", "Submissions that could not be made durable."),
    Instrument("otel_audit.log.last_seq", "gauge", "", "Number of the last durable record."),
    Instrument("otel_audit.log.commit.duration", "histogram", "s", "Time of a group commit, sync included."),
    Instrument("otel_audit.journal.fsync.duration", "histogram", "s", "Time of a sync of the journal."),
    Instrument(
        "otel_audit.seal.unsealed_records", "gauge", "{record}", "Durable records that are not in a segment yet."
    ),
    Instrument("otel_audit.seal.lag", "gauge", "s", "Age of the oldest record that is not in a segment yet."),
    Instrument("otel_audit.seal.segments", "counter", "{segment}", "Segments made."),
    Instrument("otel_audit.seal.errors", "counter", "{error}", "Tries to seal that failed."),
    Instrument("otel_audit.seal.failed", "gauge", "", "1 while the last try to seal failed, else 0."),
    Instrument("otel_audit.quarantine.entries", "counter", "{entry}", "New entries in the quarantine."),
    Instrument(
        "otel_audit.quarantine.stored_entries",
        "gauge",
        "{entry}",
        "Entries in the quarantine, of earlier runs as well.",
    ),
    Instrument("otel_audit.sources", "gauge", "{source}", "Sources of records that are remembered."),
    Instrument(
        "otel_audit.sources_running", "gauge", "{source}", "Of these, sources that have not said that they ended."
    ),
    Instrument(
        "otel_audit.sources_missing_records",
        "gauge",
        "{record}",
        "Records that the sources' numbers show to be missing, lost or still on their way.",
    ),
    Instrument(
        "otel_audit.sources_lost_records",
        "counter",
        "{record}",
        "Records that were found to be lost and told of in the log.",
    ),
    Instrument("otel_audit.disk.free", "gauge", "By", "What the disk of the log has left."),
    Instrument("otel_audit.disk.ready", "gauge", "By", "With less left on the disk the service is not ready."),
    Instrument("otel_audit.disk.reserve", "gauge", "By", "With less left on the disk appends are refused."),
    Instrument("otel_audit.healthy", "gauge", "", "1 while /readyz says ready, else 0."),
    Instrument(
        "otel_audit.exporter.sent_log_records", "counter", "{record}", "Records another system has taken, by exporter."
    ),
    Instrument(
        "otel_audit.exporter.send_failed_log_records",
        "counter",
        "{record}",
        "Records that another system refused for good, by exporter; they are noted, and still in the log.",
    ),
    Instrument(
        "otel_audit.exporter.retries",
        "counter",
        "{request}",
        "Requests of an exporter that failed and are sent again, by exporter.",
    ),
    Instrument(
        "otel_audit.exporter.lag_records", "gauge", "", "Records that an exporter has yet to send, by exporter."
    ),
    Instrument("otel_audit.process.uptime", "gauge", "s", "Time since the service started."),
    Instrument("otel_audit.process.memory.rss", "gauge", "By", "Memory that the process holds."),
    Instrument("otel_audit.process.open_fds", "gauge", "{file}", "File descriptors that are open."),
    Instrument("otel_audit.process.cpu", "counter", "s", "Processor time, user and system together."),
)

BY_NAME: Final = {i.name: i for i in INSTRUMENTS}
