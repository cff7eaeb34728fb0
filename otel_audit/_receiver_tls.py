"""TLS of the receiver: certificates from files, taken into use again when the files change.

Each handshake uses one whole set of key, chain and client CA; connections that are open keep theirs. A set is read into
memory and tried before it is used, so that a half-written file, or a key that is not the certificate's, changes nothing.

Sources: RFC 8446; RFC 5280, section 4.1; OpenTelemetry Collector, `config/configtls/README.md`, for the settings.
"""

import logging
import os
import ssl
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import grpc

from otel_audit._receiver_reload import Watched
from otel_audit.errors import ConfigError

__all__ = ["Identity", "TlsSettings", "certificate_names", "grpc_credentials", "http_context", "watch"]

_log = logging.getLogger("otel_audit.receiver")
_SOON: Final = timedelta(days=7)
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS of one protocol.

    Args:
        cert_file: the certificate and those between it and its CA, PEM.
        key_file: its private key, PEM, not encrypted.
        client_ca_file: CAs of client certificates, PEM; None: clients need none.
        min_version: oldest TLS spoken, `1.2` or `1.3`.
        reload_interval_s: how often to look whether the files have changed.
    """

    cert_file: str | None = None
    key_file: str | None = None
    client_ca_file: str | None = None
    min_version: str = "1.2"
    reload_interval_s: float = 10.0

    @property
    def mutual(self) -> bool:
        """Whether clients need a certificate."""
        return self.client_ca_file is not None


@dataclass(frozen=True, slots=True)
class Identity:
    """What one handshake needs, read and tried.

    Args:
        key: private key, PEM.
        chain: certificates, PEM.
        client_ca: CAs of clients, PEM; None: clients need no certificate.
        expires: when the first certificate of the chain does.
        context: all of this for the `ssl` module; clients are asked for a certificate, but may have none.
    """

    key: bytes = field(repr=False)
    chain: bytes
    client_ca: bytes | None
    expires: datetime
    context: ssl.SSLContext


def watch(protocol: str, settings: TlsSettings) -> Watched[Identity]:
    """The certificates of a protocol, kept up to date.

    Args:
        protocol: its name, for messages.
        settings: the files.

    Raises:
        ConfigError: a file is missing or cannot be used.
    """
    key = f"receivers.otlp.protocols.{protocol}.tls"
    if not settings.cert_file or not settings.key_file:
        raise ConfigError("read certificates", key, "needs cert_file and key_file", "give both, or leave tls out")
    paths = [path for path in (settings.cert_file, settings.key_file, settings.client_ca_file) if path]
    _warn_of_mode(settings.key_file)
    what = f"certificates of {key} ({settings.cert_file})"
    return Watched(what, paths, lambda: _load(settings), settings.reload_interval_s, _Expiry(settings.cert_file))


def http_context(watched: Watched[Identity]) -> ssl.SSLContext:
    """A context for asyncio whose every handshake uses what is current."""
    context = _Current(ssl.PROTOCOL_TLS_SERVER)
    context.watched = watched
    return context


def grpc_credentials(watched: Watched[Identity]) -> Any:
    """Credentials of a gRPC server whose every handshake uses what is current."""
    used = watched.current

    def changed() -> Any:
        nonlocal used
        identity = watched.current
        if identity is used:
            return None
        used = identity
        return _configuration(identity)

    return grpc.dynamic_ssl_server_credentials(_configuration(used), changed, used.client_ca is not None)


def certificate_names(peer: Any) -> tuple[str, ...]:
    """The alternative names and common names of a certificate, as `SSLObject.getpeercert` gives it."""
    if not peer:
        return ()
    alternative = [value for _, value in peer.get("subjectAltName", ()) if isinstance(value, str)]
    common = [value for part in peer.get("subject", ()) for key, value in part if key == "commonName"]
    return tuple(dict.fromkeys([*alternative, *common]))


class _Current(ssl.SSLContext):
    """Hands each handshake on to the context that is current: one that is in use cannot be given other CAs."""

    watched: Watched[Identity]

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.watched.current.context.wrap_bio(*args, **kwargs)


def _configuration(identity: Identity) -> Any:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.chain)], identity.client_ca)


# --- reading --------------------------------------------------------------------------------------------------------------
def _load(settings: TlsSettings) -> Identity:
    assert settings.cert_file
    assert settings.key_file
    chain, key = _read(settings.cert_file), _read(settings.key_file)
    client_ca = _read(settings.client_ca_file) if settings.client_ca_file else None
    if b"ENCRYPTED" in key:
        hint = "decrypt it (openssl pkey -in FILE -out FILE), and protect the file by its owner and mode"
        raise ConfigError("read key", settings.key_file, "it is encrypted, and there is nobody to ask", hint)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.min_version]
    context.set_alpn_protocols(["http/1.1"])
    try:
        with _as_file(chain) as chain_file, _as_file(key) as key_file:
            context.load_cert_chain(chain_file, key_file)
    except (ssl.SSLError, OSError) as e:
        raise _unusable(settings, e) from e
    if client_ca is not None:
        # Not required in the handshake: probes of /livez and /readyz have none. Without one there is no way further.
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            with _as_file(client_ca) as ca_file:
                context.load_verify_locations(ca_file)
        except (ssl.SSLError, OSError) as e:
            hint = "it must hold PEM certificates"
            raise ConfigError("read client CA", settings.client_ca_file, _reason(e), hint) from e
    return Identity(key, chain, client_ca, _expiry(settings.cert_file, chain), context)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as e:
        hint = "check the path, and that the user of the service may read it"
        raise ConfigError("read certificates", path, e.strerror or str(e), hint) from e


def _unusable(settings: TlsSettings, error: Exception) -> ConfigError:
    reason = _reason(error)
    if "KEY_VALUES_MISMATCH" in reason or "KEY_TYPE_MISMATCH" in reason:
        hint = "the two must be made together; if they are being replaced, this passes"
        return ConfigError("use key", settings.key_file, f"it is not the key of {settings.cert_file}", hint)
    subject = f"{settings.cert_file} with {settings.key_file}"
    return ConfigError("use certificate", subject, reason, "both must be PEM: a certificate chain, and its key")


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path under which OpenSSL finds bytes that are in memory, so that what was read is what is tried and used."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("pem", os.MFD_CLOEXEC)
        try:
            os.write(number, data)
            yield f"/proc/self/fd/{number}"
        finally:
            os.close(number)
        return
    with tempfile.NamedTemporaryFile() as file:  # readable by its owner alone
        file.write(data)
        file.flush()
        yield file.name


# --- age and mode -------------------------------------------------------------------------------------------------------
class _Expiry:
    """Warns once when a certificate is about to expire, and once when it has."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._told: tuple[datetime, str] | None = None

    def __call__(self, identity: Identity) -> None:
        left = identity.expires - datetime.now(UTC)
        what = "expired" if left <= timedelta() else "expires" if left <= _SOON else ""
        if what and self._told != (identity.expires, what):
            self._told = (identity.expires, what)
            when = f"{identity.expires:%Y-%m-%d %H:%M:%S}Z"
            _log.warning("certificate %s %s at %s: replace the file, it is read again", self._path, what, when)


def _warn_of_mode(path: str) -> None:
    """Warn when everybody on the machine may read a private key."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return
    if mode & stat.S_IROTH:
        hint = "let its owner alone read it (chmod 600; in Kubernetes defaultMode: 0400)"
        _log.warning("key %s can be read by everybody on this machine: %s", path, hint)


def _expiry(path: str, chain: bytes) -> datetime:
    """When the first certificate of a chain expires."""
    try:
        begin = chain.index(b"-----BEGIN CERTIFICATE-----")
        end_mark = b"-----END CERTIFICATE-----"
        pem = chain[begin : chain.index(end_mark, begin) + len(end_mark)]
        return _not_after(ssl.PEM_cert_to_DER_cert(pem.decode("ascii")))
    except (ValueError, IndexError) as e:
        hint = "it must begin with a PEM certificate"
        raise ConfigError("read certificate", path, f"its end cannot be read: {e}", hint) from e


def _not_after(der: bytes) -> datetime:
    """`notAfter` of a certificate: the standard library reads it only of certificates it has verified."""
    certificate = _content(der, 0)[0]
    at, _ = _content(der, certificate)  # tbsCertificate
    if der[at] == 0xA0:  # version
        at = _content(der, at)[1]
    for _ in ("serialNumber", "signature", "issuer"):
        at = _content(der, at)[1]
    at, _ = _content(der, at)  # validity
    at = _content(der, at)[1]  # notBefore
    start, end = _content(der, at)
    text = der[start:end].decode("ascii")
    if der[at] == 0x17:  # UTCTime: two digits of the year, from 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the DER value at `at` begins and ends."""
    size = der[at + 1]
    start = at + 2
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(der[start : start + count], "big")
        start += count
    return start, start + size
