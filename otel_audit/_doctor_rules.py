"""What `otel-audit doctor` knows: each rule with its id, how grave it is, why, and what to do about it.

Checked with the source that `docs/doctor.md` names, where the table is printed. Ids are a contract: scripts name them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from otel_audit._yaml_file import Node

__all__ = ["RULES", "Finding", "Report", "Rule", "Severity"]

Severity = Literal["error", "warning", "note"]
"""`error`: data is or can be lost or changed. `warning`: a risk. `note`: worth knowing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Args:
        severity: of its findings.
        why: what happens to audit data, in one sentence.
        remedy: what to do: one sentence, or YAML in which NAME stands for the component.
    """

    severity: Severity
    why: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a Collector's configuration that concerns audit data.

    Args:
        rule: id of the rule; severity: of the finding.
        file: as it was named; line: in it, from 1.
        component: id of the component or pipeline; empty where it is about the whole file.
        reason: what is there and what follows from it.
        remedy: a sentence or YAML.
    """

    rule: str
    severity: Severity
    file: str
    line: int
    component: str
    reason: str
    remedy: str

    def json(self) -> dict[str, Any]:
        """As `--json` prints it; the keys are a contract."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Report:
    """Collects findings; one that is found on two ways is there once."""

    _found: dict[tuple[str, str, int, str], Finding] = field(default_factory=dict)

    def add(self, rule: str, node: Node, component: str, detail: str = "", *, severity: Severity | None = None) -> None:
        """Add a finding.

        Args:
            rule: its id.
            node: where.
            component: on what.
            detail: what is there; the rule's reason follows it.
            severity: where it differs from the rule's.
        """
        known = RULES[rule]
        reason = f"{detail}: {known.why}" if detail else known.why
        remedy = known.remedy.replace("NAME", component)
        finding = Finding(rule, severity or known.severity, node.file, node.line, component, reason, remedy)
        self._found.setdefault((rule, node.file, node.line, component), finding)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found.values())


_QUEUE: Final = """\
exporters:
  NAME:
    sending_queue:
      storage: file_storage/audit   # listed in service.extensions
      block_on_overflow: true
      sizer: bytes
      queue_size: 1073741824"""
_STORAGE: Final = """\
extensions:
  NAME:
    directory: /var/lib/otelcol/audit-queue   # on a disk that outlives the Collector
    create_directory: true
    fsync: true"""
_OUT: Final = (
    "take it out of the pipelines that lead to the audit log; a sampled branch for traces may stand beside them"
)
_TLS: Final = """\
exporters:
  NAME:
    tls:
      ca_file: /etc/otelcol/ca.crt"""
_KEEP: Final = (
    "leave these attributes alone in the pipelines that lead to the audit log, or act only where they are not set: "
    'set(span.attributes["audit.action"], …) where span.attributes["audit.action"] == nil'
)

RULES: Final[dict[str, Rule]] = {
    # --- the way there ------------------------------------------------------------------------------------------------
    "env-unset": Rule(
        "warning",
        "a Collector reads a variable that is not set as empty",
        "set it where doctor runs, or give a default: ${env:VARIABLE:-default}",
    ),
    "provider-unresolved": Rule(
        "warning",
        "doctor could not read the value, so it could not judge it",
        "run doctor where the value can be read, or give it as ${env:…} or ${file:…}",
    ),
    "no-pipelines": Rule(
        "error", "the Collector refuses to start, so nothing is received", "add service.pipelines with traces/audit"
    ),
    "pipeline-incomplete": Rule(
        "error",
        "the Collector refuses a pipeline without a receiver or without an exporter",
        "give it both, or remove it",
    ),
    "undefined-component": Rule(
        "error", "the Collector refuses to start over a name that is not defined", "define it, or correct the name"
    ),
    "unknown-setting": Rule(
        "error",
        "the Collector refuses to start over a setting that it does not know",
        "correct the name, or remove it",
    ),
    "exporter-unused": Rule(
        "error",
        "it is defined, but no pipeline uses it: no call reaches the audit log",
        "service:\n  pipelines:\n    traces/audit:\n      receivers: [otlp]\n      processors: [memory_limiter]\n"
        "      exporters: [NAME]",
    ),
    "exporter-no-traces": Rule(
        "warning",
        "calls are spans, and no traces pipeline leads to it",
        "service:\n  pipelines:\n    traces/audit:\n      receivers: [otlp]\n      processors: [memory_limiter]\n"
        "      exporters: [NAME]",
    ),
    "exporter-type": Rule(
        "error",
        "what it writes is not an audit log: no acknowledgement, no numbers, no proof, old files are removed",
        "exporters:\n  otlp_grpc/audit:\n    endpoint: otel-audit:4317",
    ),
    "receiver-not-audited": Rule(
        "note",
        "what it receives goes to other pipelines, never to the audit log",
        "add it to traces/audit, if it should",
    ),
    "shared-receiver": Rule(
        "note",
        "its other branch is coupled to this one: when one refuses, the sender sends again to both (the log collapses copies), "
        "and while the queue of one blocks, the other waits",
        "nothing to do; give the audit branch a receiver of its own if the two must not wait for each other",
    ),
    "unknown-component": Rule(
        "note",
        "doctor does not know what it does to data",
        "make sure that it neither drops nor changes what it is given, and try it: otel-audit doctor --canary",
    ),
    "removed-component": Rule(
        "error", "current Collectors have it no more and refuse to start", "replace it by what its README names"
    ),
    "deprecated-name": Rule(
        "note", "it is a deprecated name, which a later Collector may refuse", "use the name that took its place"
    ),
    # --- processors ---------------------------------------------------------------------------------------------------
    "sampler": Rule("error", "it drops calls on purpose", _OUT),
    "remote-sampling": Rule(
        "warning",
        "services that ask it sample at the head: calls they do not record never reach the Collector",
        "capture with otel-audit in the service, which records whatever the sampler says, or serve a rate of 1",
    ),
    "filter": Rule("error", "it drops what its conditions match", _OUT),
    "event-filter": Rule(
        "warning", "it drops events of spans, and an exception event makes the outcome of a call `error`", _OUT
    ),
    "drops": Rule("error", "it drops data", _OUT),
    "batch-processor": Rule(
        "error",
        "it answers success while the data is in its memory only, and drops what the exporter then refuses",
        "remove it, and let the exporter batch behind its queue on disk:\n"
        "exporters:\n  otlp_grpc/audit:\n    sending_queue:\n      batch: {sizer: bytes, max_size: 4000000, flush_timeout: 200ms}",
    ),
    "holds-in-memory": Rule(
        "error",
        "it answers success while the data waits in its memory: a crash loses it, and a full buffer drops it",
        _OUT,
    ),
    "memory-limiter-missing": Rule(
        "warning",
        "without it a burst ends in the kernel's OOM killer instead of a refusal after which senders come again",
        "processors:\n  memory_limiter: {check_interval: 1s, limit_percentage: 75, spike_limit_percentage: 20}\n"
        "service:\n  pipelines:\n    NAME:\n      processors: [memory_limiter]",
    ),
    "memory-limiter-late": Rule(
        "warning", "it must stand first, to refuse before memory is spent", "put memory_limiter first in the list"
    ),
    "memory-limiter-off": Rule(
        "error",
        "without check_interval and a limit the Collector refuses to start",
        "processors:\n  NAME: {check_interval: 1s, limit_percentage: 75, spike_limit_percentage: 20}",
    ),
    "identity-removed": Rule("error", "a record without it does not say who did what", _KEEP),
    "identity-changed": Rule("error", "the record no longer says what the service said", _KEEP),
    "span-changed": Rule(
        "error",
        "the record's time, duration, outcome or identity comes from it; a new identity also defeats deduplication",
        "do not set ids, times, status or attributes as a whole in the pipelines that lead to the audit log",
    ),
    "kind-changed": Rule(
        "error",
        "only spans of kind SERVER, or with audit.action, become records: calls vanish, or what is no call is recorded",
        "do not set the kind in the pipelines that lead to the audit log; set audit.action on what is to be a record",
    ),
    "name-changed": Rule(
        "warning",
        "the span's name is the action of a call that has neither audit.action nor method and route",
        "rename only in other branches, or set audit.action",
    ),
    "path-changed": Rule("warning", "the record's target and action are taken from the path", _KEEP),
    "values-masked": Rule(
        "warning",
        "a pattern that also matches a client's id or address changes who a call is attributed to",
        "name the keys whose values are to be masked, and leave out audit.*, client.* and user.*",
    ),
    "attributes-limited": Rule(
        "error",
        "attributes of a span that has more, or longer ones, are dropped or cut, whichever these are",
        "raise the limit to 128 attributes and 4096 bytes, or leave it out; limit() takes a list of keys that must stay",
    ),
    "resource-overwritten": Rule(
        "warning",
        "it overwrites what services said of themselves (its default is override: true)",
        "processors:\n  NAME:\n    override: false",
    ),
    "ottl-propagate": Rule(
        "error",
        "a statement that fails on one span drops the whole batch with error_mode: propagate, which is the default up to 0.155 and "
        "no more in 0.165 (not set: a warning)",
        "processors:\n  NAME:\n    error_mode: ignore",
    ),
    # --- connectors ---------------------------------------------------------------------------------------------------
    "connector-converts": Rule(
        "error",
        "it makes other data out of spans; the calls themselves do not come through it",
        "lead the traces pipeline itself to the audit log",
    ),
    "routing-no-default": Rule(
        "error",
        "what matches no route is dropped",
        "connectors:\n  NAME:\n    default_pipelines: [traces/audit]",
    ),
    "routing-away": Rule(
        "error",
        "what takes this route never reaches the audit log",
        "add the audit pipeline to the route's pipelines, or put the audit branch before the connector",
    ),
    "connector-splits": Rule(
        "error",
        "it gives each batch to one of its pipelines only, so calls also go where the audit log is not",
        "put the audit branch before the connector: exporters: [otlp_grpc/audit, NAME]",
    ),
    # --- exporters ----------------------------------------------------------------------------------------------------
    "synchronous": Rule(
        "note",
        "without a queue of its own senders are answered when the audit log has answered: nothing is lost here, but they wait, "
        "and must keep what is refused",
        "nothing to do where senders keep their data (otel-audit's capture does); else use a queue on disk",
    ),
    "queue-in-memory": Rule("error", "a crash or restart loses all that waits, though it was acknowledged", _QUEUE),
    "queue-drops": Rule(
        "error",
        "a full queue refuses what comes, and senders that do not keep it lose it",
        "exporters:\n  NAME:\n    sending_queue:\n      block_on_overflow: true",
    ),
    "queue-wait-and-storage": Rule(
        "error",
        "the Collector refuses wait_for_result together with storage",
        "remove wait_for_result: the queue on disk makes the answer true",
    ),
    "queue-small": Rule(
        "warning", "a short outage of the audit log fills it, and senders then wait or lose data", _QUEUE
    ),
    "queue-sizer": Rule(
        "note",
        "a queue counted in requests takes as much disk as the requests happen to need",
        "exporters:\n  NAME:\n    sending_queue:\n      sizer: bytes\n      queue_size: 1073741824",
    ),
    "batch-unbounded": Rule(
        "warning",
        "without max_size a batch can grow over the receiver's limit, and is then refused for good and dropped",
        "exporters:\n  NAME:\n    sending_queue:\n      batch: {sizer: bytes, max_size: 4000000, flush_timeout: 200ms}",
    ),
    "consumers-one": Rule(
        "note",
        "one request at a time, each waiting for a disk: about one batch per fsync",
        "exporters:\n  NAME:\n    sending_queue:\n      num_consumers: 10",
    ),
    "retry-off": Rule(
        "error",
        "a request that fails once is dropped",
        "exporters:\n  NAME:\n    retry_on_failure: {enabled: true, max_elapsed_time: 0}",
    ),
    "retry-ends": Rule(
        "error",
        "data is dropped when the audit log is away for longer than max_elapsed_time (default 300s)",
        "exporters:\n  NAME:\n    retry_on_failure:\n      max_elapsed_time: 0",
    ),
    "timeout-short": Rule(
        "warning",
        "the log may take 30s to make a request durable (receivers.otlp.ack_timeout); one given up earlier is sent again",
        "exporters:\n  NAME:\n    timeout: 40s",
    ),
    "no-compression": Rule(
        "note",
        "OTLP without compression takes five to ten times the bandwidth",
        "exporters:\n  NAME:\n    compression: gzip",
    ),
    "loadbalancing-queue": Rule(
        "error",
        "its own queues, one for each endpoint, are lost or left behind when the endpoint goes",
        "exporters:\n  NAME:\n    protocol:\n      otlp:\n        sending_queue: {enabled: false}",
    ),
    "loadbalancing-splits": Rule(
        "note",
        "several endpoints: each gets a part, and where they are logs each one alone shows gaps in every source",
        "let it lead to Collectors that lead to one log",
    ),
    "kafka-acks": Rule(
        "error",
        "a broker that fails takes along what it acknowledged alone (the default is 1)",
        "exporters:\n  NAME:\n    producer:\n      required_acks: all   # with min.insync.replicas: 2 on the topic",
    ),
    "kafka-encoding": Rule(
        "error",
        "it is not OTLP: attributes, kinds and times do not come through whole",
        "exporters:\n  NAME:\n    traces: {encoding: otlp_proto}",
    ),
    "kafka-message-size": Rule(
        "warning",
        "a batch over max_message_bytes (default 1,000,000) is refused each time, so it blocks the queue or is dropped",
        "exporters:\n  NAME:\n    producer: {max_message_bytes: 10000000}\n"
        "    sending_queue:\n      batch: {sizer: bytes, max_size: 4000000, flush_timeout: 200ms}",
    ),
    # --- storage ------------------------------------------------------------------------------------------------------
    "storage-undefined": Rule("error", "the Collector refuses to start: the queue's storage is not defined", _STORAGE),
    "storage-not-listed": Rule(
        "error",
        "an extension that is not in service.extensions is not started, and the Collector refuses the queue",
        "service:\n  extensions: [NAME]",
    ),
    "storage-no-fsync": Rule(
        "error",
        "what was acknowledged lies in the page cache: a power cut loses it",
        "extensions:\n  NAME:\n    fsync: true",
    ),
    "storage-volatile": Rule("error", "the folder does not outlive a reboot", _STORAGE),
    "storage-directory": Rule(
        "note",
        "the Collector refuses to start where the folder is not there already",
        "extensions:\n  NAME:\n    create_directory: true",
    ),
    "storage-recreate": Rule(
        "warning",
        "a damaged file is put aside and what waits in it is not sent",
        "set recreate: false, or watch for files named *.backup",
    ),
    "storage-compaction": Rule(
        "note",
        "the file never shrinks: it stays as large as after the longest outage",
        "extensions:\n  NAME:\n    compaction: {on_rebound: true, directory: THE_SAME_DIRECTORY}",
    ),
    "storage-compaction-directory": Rule(
        "warning",
        "compaction works in another folder than the queue's (default /var/lib/otelcol/file_storage): where that is missing the "
        "Collector refuses to start, on another file system replacing the queue is not atomic",
        "extensions:\n  NAME:\n    compaction:\n      directory: THE_SAME_DIRECTORY",
    ),
    "storage-type": Rule(
        "note",
        "how durable it is depends on the database",
        "use file_storage with fsync: true, or be sure of the database",
    ),
    # --- the wire -----------------------------------------------------------------------------------------------------
    "tls-insecure": Rule("warning", "who is on the network can read and change calls", _TLS),
    "tls-unverified": Rule(
        "error", "anyone who answers is taken for the audit log, and its success drops the data here", _TLS
    ),
    "credentials-plaintext": Rule("error", "who is on the network can take the credential and write to the log", _TLS),
    "receiver-open": Rule(
        "warning",
        "anyone who reaches it can write calls that did not happen",
        "receivers:\n  NAME:\n    protocols:\n      grpc:\n        tls: {cert_file: …, key_file: …, client_ca_file: …}",
    ),
    "receiver-message-limit": Rule(
        "warning",
        "a larger request is refused for good, and senders drop it (gRPC default 4 MiB, HTTP 20 MiB)",
        "receivers:\n  NAME:\n    protocols:\n      grpc: {max_recv_msg_size_mib: 16}\n"
        "      http: {max_request_body_size: 16777216}",
    ),
    "limit-shrinks": Rule(
        "error",
        "a request that is taken here and is too large for the next on the way is refused there for good, and dropped here",
        "let limits grow on the way to the log (its own is 64 MiB: receivers.otlp.protocols.grpc.max_recv_msg_size_mib), or bound "
        "what is sent: sending_queue: {batch: {sizer: bytes, max_size: 4000000, flush_timeout: 200ms}}",
    ),
    "compression-refused": Rule(
        "error",
        "the log takes gzip, or deflate over HTTP; it refuses every request of another compression for good, and the Collector drops "
        "them all",
        "exporters:\n  NAME:\n    compression: gzip   # or name the Collector that follows with --next: it takes the others",
    ),
    "endpoint-path": Rule(
        "error",
        "OTLP over HTTP goes to /v1/traces and /v1/logs; any other path is answered with 404, and the Collector drops every request",
        "exporters:\n  NAME:\n    endpoint: https://otel-audit:4318   # the Collector puts /v1/traces behind it",
    ),
    "receiver-udp": Rule("error", "UDP loses packets without anyone knowing", "receive OTLP"),
    "kafka-marks-early": Rule(
        "error",
        "messages count as consumed before they are handed on, or though handing on failed: a crash loses them",
        "receivers:\n  NAME:\n    message_marking: {after: true, on_error: false, on_permanent_error: false}",
    ),
    "kafka-initial-offset": Rule(
        "warning",
        "a consumer group that starts for the first time, or whose offset has expired, skips what is there (default: latest)",
        "receivers:\n  NAME:\n    initial_offset: earliest",
    ),
    "kafka-no-backoff": Rule(
        "warning",
        "when the exporter refuses, a partition is no longer consumed until the Collector restarts",
        "receivers:\n  NAME:\n    error_backoff: {enabled: true, max_elapsed_time: 0}",
    ),
    # --- operation ----------------------------------------------------------------------------------------------------
    "telemetry-off": Rule(
        "warning",
        "nobody sees a queue fill up or data being dropped",
        "service:\n  telemetry:\n    metrics: {level: detailed}",
    ),
    "no-health-check": Rule(
        "note",
        "nothing can tell whether the Collector runs",
        "extensions:\n  health_check:\nservice:\n  extensions: [health_check]",
    ),
}
