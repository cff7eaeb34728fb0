"""Every attribute, column, header and metric name, once.

Attribute names are OpenTelemetry semantic conventions wherever one exists; `audit.*` is what a service or its capture
says about a call; `otel_audit.*` is what this project says about itself.
"""

from typing import Final

# --- audit attributes: set by capture, by a Collector transform, or by the developer -----------------------------------
CLIENT_ID: Final = "audit.client.id"
CLIENT_NAME: Final = "audit.client.name"
CLIENT_AUTH: Final = "audit.client.auth"
CLIENT_IP: Final = "audit.client.ip"
CLIENT_IP_SOURCE: Final = "audit.client.ip.source"
PEER_IP: Final = "audit.peer.ip"
SERVICE: Final = "audit.service"
ACTION: Final = "audit.action"
OUTCOME: Final = "audit.outcome"
TARGET_ID: Final = "audit.target.id"
SOURCE_ID: Final = "audit.source.id"
SOURCE_SEQ: Final = "audit.source.seq"
REASON: Final = "audit.reason"
OPERATION: Final = "audit.operation"
"""What the framework calls the handler: an OpenAPI operation id, an endpoint or view name."""
CLIENT_CLAIMED: Final = "audit.client.claimed_id"
"""The client that a credential names which was checked and found wanting."""
CLIENT_IP_CHAIN: Final = "audit.client.ip.chain"
"""The forwarding header as it came, cut to a bound; for a person to judge."""
CLIENT_IP_CLAIMED: Final = "audit.client.ip.claimed"
"""What `client.address` says where it is not the socket's peer, and nobody says that the peer is to be believed."""
DB_CALLS: Final = "audit.db.calls"
DB_DURATION_NS: Final = "audit.db.duration_ns"
HTTP_CALLS: Final = "audit.http.calls"
HTTP_DURATION_NS: Final = "audit.http.duration_ns"
"""Outgoing HTTP and rpc calls within a call, and the sum of their durations (more than the call's own if they overlap)."""
INCOMPLETE: Final = "audit.incomplete"
"""True on the record of a call whose end was never seen, because its process died (mode fail-closed)."""
LOSS_COUNT: Final = "audit.loss.count"
LOSS_FIRST_SEQ: Final = "audit.loss.first_seq"
LOSS_LAST_SEQ: Final = "audit.loss.last_seq"
LOSS_REASON: Final = "audit.loss.reason"
DURATION_NS: Final = "audit.duration_ns"
"""How long the call took, on a log record, which has one time only."""
RECORD_ID: Final = "audit.record.id"
"""What a log record is recognised by when it comes again; unique, chosen by its sender."""
LOG_BODY: Final = "audit.log.body"
LOG_SPAN_ID: Final = "audit.log.span_id"
"""Body and span id of a log record that became a record."""
AUDIT_PREFIX: Final = "audit."

# --- log records -------------------------------------------------------------------------------------------------------
EVENT_RECORD: Final = "audit.record"
"""Event name of a log record that is an audit record."""
LOG_RECORD_UID: Final = "log.record.uid"
LOG_NAME: Final = "otel_audit.log"
ATTRIBUTES_TEXT: Final = "otel_audit.attributes"
"""The column `attributes` of a record, on a log record, where it is no JSON object."""
LOG_SEQ: Final = "otel_audit.seq"
"""Log and number there, on a log record that another otel-audit passed on: its ids and times are those of the record."""

# --- actions of records that capture makes about itself ----------------------------------------------------------------
ACTION_START: Final = "otel_audit.start"
"""A source began; its first record."""
ACTION_STOP: Final = "otel_audit.stop"
"""A source ended in good order; its last record."""
ACTION_LOSS: Final = "otel_audit.loss"
"""Records of this source were dropped; `audit.loss.*` say how many, which and why."""
ACTION_CANARY: Final = "otel_audit.canary"
"""A call that did not happen: `otel-audit doctor --canary` sent it to see whether it arrives."""

ACTION_OWN_PREFIX: Final = "otel_audit."

# --- what otel-audit says of a record in its `attributes` --------------------------------------------------------------
PROBLEM_PREFIX: Final = "otel_audit."
PROBLEMS: Final = "otel_audit.problems"

# --- OpenTelemetry semantic conventions, new name first, then the old ones instrumentations still emit -----------------
HTTP_METHOD: Final = ("http.request.method", "http.method")
HTTP_ROUTE: Final = ("http.route",)
HTTP_STATUS: Final = ("http.response.status_code", "http.status_code")
URL_PATH: Final = ("url.path",)
HTTP_TARGET: Final = ("http.target",)
HTTP_URL: Final = ("url.full", "http.url")
RPC_SYSTEM: Final = ("rpc.system.name", "rpc.system")
RPC_SERVICE: Final = ("rpc.service",)
RPC_METHOD: Final = ("rpc.method",)
RPC_STATUS: Final = ("rpc.response.status_code", "rpc.grpc.status_code")
CLIENT_ADDRESS: Final = ("client.address", "http.client_ip")
PEER_ADDRESS: Final = ("network.peer.address", "net.sock.peer.addr", "net.peer.ip")
USER_ID: Final = ("user.id", "enduser.id")
SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE: Final = "service.instance.id"
ENVIRONMENT: Final = ("deployment.environment.name", "deployment.environment")
HOST_NAME: Final = "host.name"
EXCEPTION_EVENT: Final = "exception"

# --- metrics of capture ----------------------------------------------------------------------------------------------------
METRIC_SPOOLED: Final = "otel_audit.capture.spooled"
METRIC_DELIVERED: Final = "otel_audit.capture.delivered"
METRIC_REFUSED: Final = "otel_audit.capture.refused"
METRIC_LOST: Final = "otel_audit.capture.lost"
METRIC_SPOOL_BYTES: Final = "otel_audit.capture.spool.size"

# --- environment variables (stable names) --------------------------------------------------------------------------------
ENV_ENDPOINT: Final = "OTEL_AUDIT_ENDPOINT"
ENV_PROTOCOL: Final = "OTEL_AUDIT_PROTOCOL"
ENV_HEADERS: Final = "OTEL_AUDIT_HEADERS"
ENV_TIMEOUT: Final = "OTEL_AUDIT_TIMEOUT"
ENV_COMPRESSION: Final = "OTEL_AUDIT_COMPRESSION"
ENV_CERTIFICATE: Final = "OTEL_AUDIT_CERTIFICATE"
ENV_CLIENT_KEY: Final = "OTEL_AUDIT_CLIENT_KEY"
ENV_CLIENT_CERTIFICATE: Final = "OTEL_AUDIT_CLIENT_CERTIFICATE"
ENV_SPOOL_DIR: Final = "OTEL_AUDIT_SPOOL_DIR"
ENV_SPOOL_BYTES: Final = "OTEL_AUDIT_SPOOL_BYTES"
ENV_BLOCK_TIMEOUT: Final = "OTEL_AUDIT_BLOCK_TIMEOUT"
ENV_EXIT_TIMEOUT: Final = "OTEL_AUDIT_EXIT_TIMEOUT"
ENV_MODE: Final = "OTEL_AUDIT_MODE"
ENV_RULES: Final = "OTEL_AUDIT_RULES"
ENV_CHILD_SPANS: Final = "OTEL_AUDIT_CHILD_SPANS"
ENV_CLIENTS: Final = "OTEL_AUDIT_CLIENTS"
ENV_API_KEY_HEADER: Final = "OTEL_AUDIT_API_KEY_HEADER"
ENV_CLIENT_HEADER: Final = "OTEL_AUDIT_CLIENT_HEADER"
ENV_CLIENT_CERT_HEADER: Final = "OTEL_AUDIT_CLIENT_CERT_HEADER"
ENV_HASH_KEY: Final = "OTEL_AUDIT_HASH_KEY"
ENV_JWKS: Final = "OTEL_AUDIT_JWKS"
ENV_JWT_ISSUER: Final = "OTEL_AUDIT_JWT_ISSUER"
ENV_JWT_AUDIENCE: Final = "OTEL_AUDIT_JWT_AUDIENCE"
ENV_RESOLVER: Final = "OTEL_AUDIT_RESOLVER"
ENV_TRUSTED_PROXIES: Final = "OTEL_AUDIT_TRUSTED_PROXIES"
ENV_TRUSTED_HOPS: Final = "OTEL_AUDIT_TRUSTED_HOPS"
ENV_FORWARDING_HEADER: Final = "OTEL_AUDIT_FORWARDING_HEADER"
ENV_CHECK: Final = "OTEL_AUDIT_CHECK"
"""Set by `otel-audit check` for the command it runs: the folder into which capture writes what it found."""
ENV_DIR: Final = "OTEL_AUDIT_DIR"
