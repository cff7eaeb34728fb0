"""Whether the destination of a service takes records: tried without a record, and without leaving anything behind."""

import contextlib
import fcntl
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from otel_audit.capture import settings
from otel_audit.capture.settings import TRACES_PATH, Destination
from otel_audit.capture.transport import Answer, Fate, connect
from otel_audit.errors import AuditError

__all__ = ["Tried", "try_destination"]

_REACH_S: Final = 5.0
_PROBE_S: Final = 2.0
_NEEDED: Final = ("deltalake", "duckdb", "msgspec", "numpy", "pyarrow")
_SPOKEN: Final = {"grpc": "gRPC", "http": "HTTP"}
_PROTOCOL: Final = {"grpc": "grpc", "http": "http/protobuf"}
_PORT: Final = {"grpc": 4317, "http": 4318}
_START: Final = (
    "start it there (otel-audit serve), or set OTEL_AUDIT_ENDPOINT and OTEL_AUDIT_PROTOCOL; records wait in the spool "
    "until then. Not to try: --offline"
)


class Tried(NamedTuple):
    """What came of trying a destination.

    Args:
        reachable: whether it takes records.
        answer: what it said, or why it takes none.
        remedy: what to do about it; empty if it takes records.
    """

    reachable: bool
    answer: str = ""
    remedy: str = ""


def try_destination(found: dict[str, Any]) -> Tried:
    """Try a destination as `capture.report` describes it: OTLP with an empty request, a folder with a file nobody sees."""
    return _try_log(Path(found["target"])) if found["kind"] == "log" else _try_otlp(found)


# --- a local log ------------------------------------------------------------------------------------------------------------
def _try_log(folder: Path) -> Tried:
    what = _unwritable(folder)
    if what:
        remedy = "name a folder to which the service may write (OTEL_AUDIT_ENDPOINT=file:/path), or ship over OTLP"
        return Tried(False, what, remedy)
    try:
        holder = _holder(folder / "lock")
    except OSError as e:
        return Tried(False, f"{e.filename}: {e.strerror}", "let the service's user write all of that folder")
    if holder:
        what = f"it is open for writing by {holder}; records would wait in the spool until that ends"
        remedy = (
            "ship over OTLP to that process (otel-audit serve listens on http://localhost:4317 unless told otherwise), or "
            "stop it; a process of this very service ships for the others"
        )
        return Tried(False, what, remedy)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        return Tried(False, f"it needs {', '.join(missing)}", "pip install 'otel-audit[server]', or ship over OTLP")
    return Tried(True)


def _unwritable(folder: Path) -> str:
    """Why nothing can be written to `folder`, or it cannot be made; empty: it can."""
    nearest = next((p for p in (folder, *folder.parents) if _exists(p)), Path("/"))
    inner = nearest / "journal" if nearest == folder else nearest
    for place in (nearest, inner) if _exists(inner) else (nearest,):
        if not place.is_dir():
            return f"{place} is not a folder"
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as e:
            how = "cannot be written to" if nearest == folder else "takes no new folder"
            return f"{place} {how} ({e.strerror})"
    return ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that may not be entered
        return False


def _holder(lock: Path) -> str:
    """Who has a log open for writing, as its lock file says; empty: nobody."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 4096, 0).decode(errors="replace").strip() or "another process"
    finally:
        os.close(fd)
    return ""


# --- OTLP -------------------------------------------------------------------------------------------------------------------
def _try_otlp(found: dict[str, Any]) -> Tried:
    to = _described(found)
    answer = _send(to, min(to.timeout_s, _REACH_S))
    if answer.fate is Fate.KEPT:
        return Tried(True, answer.reason)
    if "CERTIFICATE_VERIFY_FAILED" in answer.reason:
        return Tried(False, answer.reason, "set OTEL_AUDIT_CERTIFICATE to the certificate of its CA, as a PEM file")
    return _other_protocol(to, answer.reason) or Tried(False, answer.reason, _START)


def _described(found: dict[str, Any]) -> Destination:
    try:
        asked: Destination | None = settings.destination(os.environ)
    except AuditError:
        asked = None
    return Destination(
        found["kind"],
        found["target"],
        found["tls"],
        # Headers may hold a secret, so the application does not tell them; here the environment is the same.
        headers=asked.headers if asked is not None and asked.target == found["target"] else (),
        timeout_s=found["timeout_s"],
        certificate=found["certificate"],
        client_key=found["client_key"],
        client_certificate=found["client_certificate"],
        gzip=found["gzip"],
    )


def _send(to: Destination, timeout_s: float) -> Answer:
    """What `to` says to a request without any record in it."""
    transport = connect(to)
    try:
        return transport.send(b"", timeout_s)
    finally:
        transport.close()


def _understood(kind: str, reason: str) -> bool:
    """Whether an answer came in the protocol of the request, whatever it says."""
    if kind == "http":
        return reason.startswith("HTTP ")
    code, _, details = reason.partition(": ")
    return code.isupper() and code != "DEADLINE_EXCEEDED" and "failed to connect" not in details


def _other_protocol(to: Destination, reason: str) -> Tried | None:
    """What is spoken at an address that has not understood; None: it has, or nothing is known."""
    plain_http_to_tls = to.kind == "http" and not to.tls and reason.startswith("HTTP 400")
    if _understood(to.kind, reason) and not plain_http_to_tls:
        return None
    address = urlsplit(to.target if to.kind == "http" else f"//{to.target}")
    host, port = address.hostname or "localhost", address.port or _PORT[to.kind]
    speaks_tls = _speaks_tls(host, port)
    if speaks_tls is None:
        return None
    if speaks_tls and not to.tls:
        return Tried(False, "something answers there, but with TLS", "write https:// in the endpoint, not http://")
    for candidate in _candidates(to, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", speaks_tls):
        answer = _send(candidate, _PROBE_S)
        if answer.fate is Fate.KEPT or _understood(candidate.kind, answer.reason):
            return _mismatch(to, candidate)
    return None


def _candidates(to: Destination, address: str, tls: bool) -> Iterator[Destination]:
    """Other ways to ask at the same address."""
    kinds: tuple[Literal["grpc", "http"], ...] = ("grpc", "http") if to.kind == "grpc" else ("http", "grpc")
    for kind in kinds:
        if (kind, tls) != (to.kind, to.tls):
            target = address if kind == "grpc" else f"{'https' if tls else 'http'}://{address}{TRACES_PATH}"
            # What is meant for an encrypted connection is sent on no other.
            yield replace(to, kind=kind, target=target, tls=tls, headers=to.headers if tls == to.tls else ())


def _mismatch(to: Destination, spoken: Destination) -> Tried:
    what, remedies = [], []
    if spoken.tls != to.tls:
        what.append("without TLS")
        remedies.append("write http:// in the endpoint, not https://, if it needs no encryption")
    if spoken.kind != to.kind:
        what.append(f"in {_SPOKEN[spoken.kind]}, not in {_SPOKEN[to.kind]}")
        remedies.append(
            f"set OTEL_AUDIT_PROTOCOL={_PROTOCOL[spoken.kind]}, or name the port of OTLP/{_SPOKEN[to.kind]} "
            f"({_PORT[to.kind]} unless told otherwise)"
        )
    return Tried(False, f"something answers there, but {' and '.join(what)}", "; ".join(remedies))


def _speaks_tls(host: str, port: int) -> bool | None:
    """Whether TLS is spoken at an address, whoever it is there; None: nothing answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        connection = socket.create_connection((host, port), _PROBE_S)
    except OSError:
        return None
    with contextlib.closing(connection):
        try:
            context.wrap_socket(connection, server_hostname=host).close()
        except ssl.SSLError as e:
            return "ALERT" in (e.reason or "")  # it wants another client, in TLS
        except (OSError, ValueError):
            return False
    return True
