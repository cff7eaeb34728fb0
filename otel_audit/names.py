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
AUDIT_PREFIX: Final = "audit."

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

# --- environment variables (stable names) --------------------------------------------------------------------------------
ENV_ENDPOINT: Final = "OTEL_AUDIT_ENDPOINT"
ENV_PROTOCOL: Final = "OTEL_AUDIT_PROTOCOL"
ENV_SPOOL_DIR: Final = "OTEL_AUDIT_SPOOL_DIR"
ENV_CLIENTS: Final = "OTEL_AUDIT_CLIENTS"
ENV_TRUSTED_PROXIES: Final = "OTEL_AUDIT_TRUSTED_PROXIES"
ENV_MODE: Final = "OTEL_AUDIT_MODE"
ENV_DIR: Final = "OTEL_AUDIT_DIR"
