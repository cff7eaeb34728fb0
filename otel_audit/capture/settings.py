"""What the environment asks of capture: destination, queue, credentials; read once, when capture is installed.

A setting that cannot be meant is never an exception in the application: the reader collects one complaint for each, with
the remedy, and goes on with the default. Only a destination that cannot be understood stops capture (`ConfigError`).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from otel_audit import names
from otel_audit.errors import ConfigError

__all__ = ["ENV_VARS", "Destination", "Settings", "destination", "is_also_theirs", "read"]

ENV_VARS: Final = (
    names.ENV_ENDPOINT,
    names.ENV_PROTOCOL,
    names.ENV_HEADERS,
    names.ENV_TIMEOUT,
    names.ENV_COMPRESSION,
    names.ENV_CERTIFICATE,
    names.ENV_CLIENT_KEY,
    names.ENV_CLIENT_CERTIFICATE,
    names.ENV_SPOOL_DIR,
    names.ENV_SPOOL_BYTES,
    names.ENV_BLOCK_TIMEOUT,
    names.ENV_EXIT_TIMEOUT,
    names.ENV_MODE,
    names.ENV_RULES,
    names.ENV_CHILD_SPANS,
    names.ENV_CLIENTS,
    names.ENV_API_KEY_HEADER,
    names.ENV_CLIENT_HEADER,
    names.ENV_CLIENT_CERT_HEADER,
    names.ENV_HASH_KEY,
    names.ENV_JWKS,
    names.ENV_JWT_ISSUER,
    names.ENV_JWT_AUDIENCE,
    names.ENV_RESOLVER,
    names.ENV_TRUSTED_PROXIES,
    names.ENV_TRUSTED_HOPS,
    names.ENV_FORWARDING_HEADER,
    names.ENV_DIR,
)
"""Every variable capture reads, beside OpenTelemetry's own; `docs/capture.md` describes each."""

Mode = Literal["async", "durable", "fail-closed"]
MODES: Final[tuple[Mode, ...]] = ("async", "durable", "fail-closed")
SPOOL_BYTES_LEAST: Final = 1024 * 1024
TRACES_PATH: Final = "/v1/traces"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where records go; two equal destinations are the same place.

    Args:
        kind: `grpc` and `http` are OTLP; `log` is the folder of a local log.
        target: `host:port`, a URL ending in `/v1/traces`, or an absolute path.
        tls: whether an OTLP connection is encrypted.
        headers: sent with each OTLP request; not part of equality, never printed (they may hold a secret).
        timeout_s: how long one attempt may take.
        certificate: file of trusted CA certificates, PEM; None: the system's.
        client_key: file of the client's private key for mTLS, PEM.
        client_certificate: file of the client's certificate for mTLS, PEM.
        gzip: whether OTLP requests are compressed.
    """

    kind: Literal["grpc", "http", "log"]
    target: str
    tls: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)
    timeout_s: float = field(default=10.0, compare=False)
    certificate: str | None = field(default=None, compare=False)
    client_key: str | None = field(default=None, compare=False)
    client_certificate: str | None = field(default=None, compare=False)
    gzip: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return {"grpc": "OTLP/gRPC ", "http": "OTLP/HTTP ", "log": "the local log "}[self.kind] + self.target


@dataclass(frozen=True)
class Settings:
    """Settings of capture in one process.

    Args:
        destination: where records go.
        mode: what is promised of a call, unless a rule says otherwise for its route.
        spool_dir: folder of the spool; None: the default place.
        spool_bytes: how large the spool of one process may grow.
        block_timeout_s: how long a call may wait for room in a full spool before its record is dropped, or it is refused.
        exit_timeout_s: how long the end of the process may wait for what is spooled to be delivered.
        child_spans: whether database and outgoing calls are recorded (never sampled) to sum their durations.
        rules_path: the file of rules, if there is one.
        clients: the client directory: a file, or `module:callable`; None if there is none.
        api_key_header: name of the header that carries API keys, lower case.
        client_header: name of the header that names the client, lower case; None if there is none.
        certificate_header: name of the header in which trusted proxies pass on the client's certificate, lower case; None:
            nobody said so, and none is taken for verified.
        hash_key: secret of the keyed hash that stands for an unknown key; empty: a fixed, public one.
        jwks_path: file with the keys that JWTs are verified against; None: they are decoded only.
        jwt_issuer, jwt_audience: what a verified JWT must say, one of several separated by commas; None: not looked at.
        resolver: the user's own resolver, `module:callable`; None: the entry point, if there is one.
        trusted_proxies: CIDRs, addresses or `unix`, as given.
        trusted_hops: how many proxies in front append to the forwarding header; None: the list alone counts.
        forwarding_header: name of the one forwarding header that the proxies write, lower case; None: all common ones are
            looked at, and must agree.
        problems: complaints about settings that were ignored, for the log.
    """

    destination: Destination
    mode: Mode = "async"
    spool_dir: str | None = None
    spool_bytes: int = 256 * 1024 * 1024
    block_timeout_s: float = 0.05
    exit_timeout_s: float = 5.0
    child_spans: bool = True
    rules_path: str | None = None
    clients: str | None = None
    api_key_header: str = "x-api-key"
    client_header: str | None = None
    certificate_header: str | None = None
    hash_key: bytes = b""
    jwks_path: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    resolver: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    trusted_hops: int | None = None
    forwarding_header: str | None = None
    problems: tuple[str, ...] = ()


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Headers as OpenTelemetry writes them in the environment: `name=value,name=value`, values URL-encoded."""
    pairs = []
    for item in text.split(","):
        name, separator, value = item.partition("=")
        if separator and name.strip():
            pairs.append((name.strip().lower(), unquote(value.strip())))
    return tuple(pairs)


def _number(
    env: Mapping[str, str], name: str, default: float, least: float, problems: list[str], *, most: float = 1e9
) -> float:
    """The number that a variable holds; the nearest that it may be when it is too small or too large."""
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if least <= value <= most:
        return value
    near = least if value < least else most if value > most else default
    problems.append(f"{name}={text} is not a number from {_plain(least)} to {_plain(most)}; using {_plain(near)}")
    return near


def _plain(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:g}"


def _url(
    text: str, protocol: str, variable: str, *, complete: bool = False
) -> tuple[Literal["grpc", "http"], str, bool]:
    """Kind, target and TLS of an OTLP endpoint; `complete` means that an HTTP URL already has its path."""
    hint = "use http(s)://host:port, or file:/path for a local log"
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = parts.port
    except ValueError as e:
        raise ConfigError("read", f"{variable}={text}", str(e), hint) from e
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("read", f"{variable}={text}", "not an address", hint)
    tls = parts.scheme == "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if protocol == "grpc":
        return "grpc", f"{host}:{port or (443 if tls else 4317)}", tls
    path = parts.path.rstrip("/")
    if not complete and not path.endswith(TRACES_PATH):
        path += TRACES_PATH
    return "http", f"{parts.scheme}://{host}:{port or (443 if tls else 4318)}{path or '/'}", tls


def _folder(text: str, variable: str) -> Destination:
    path = unquote(urlsplit(text).path) if text.startswith("file:") else text
    if text.startswith("file:") and urlsplit(text).netloc not in ("", "localhost"):
        raise ConfigError("read", f"{variable}={text}", "names another host", "use file:/path")
    if not path or "\0" in path:
        raise ConfigError("read", f"{variable}={text}", "no path", "use file:/path")
    return Destination("log", str(Path(path).resolve()))


def destination(
    env: Mapping[str, str] | None = None,
    *,
    endpoint: str | None = None,
    protocol: str | None = None,
    local: bool = False,
) -> Destination:
    """The destination that the arguments and the environment name.

    The first of these that is set counts: `endpoint`, `OTEL_AUDIT_ENDPOINT`; with `local`, the folder `OTEL_AUDIT_DIR`
    or `./audit-log`; `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_ENDPOINT`; OTLP on localhost.

    Args:
        env: the environment; by default the process's own.
        endpoint: as `OTEL_AUDIT_ENDPOINT`.
        protocol: as `OTEL_AUDIT_PROTOCOL`: `grpc` or `http/protobuf`.
        local: whether a local log is meant when no audit endpoint is named (the `audit` traces exporter).

    Raises:
        ConfigError: the endpoint or the protocol cannot be understood.
    """
    env = os.environ if env is None else env
    own = (endpoint or env.get(names.ENV_ENDPOINT, "")).strip()
    if own.startswith("file:"):
        return _folder(own, names.ENV_ENDPOINT)
    if not own and local:
        return _folder(env.get(names.ENV_DIR, "").strip() or "audit-log", names.ENV_DIR)
    chosen = protocol or env.get(names.ENV_PROTOCOL, "").strip()
    shared_protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    wanted = chosen or ("grpc" if own else shared_protocol)
    if wanted not in ("grpc", "http/protobuf"):
        raise ConfigError("read", f"{names.ENV_PROTOCOL}={wanted}", "no such protocol", "use grpc or http/protobuf")
    if own:
        kind, target, tls = _url(own, wanted, names.ENV_ENDPOINT)
        headers = env.get(names.ENV_HEADERS, "")
    else:
        # The user's own telemetry endpoint: its headers are meant for it. They are never sent to another.
        traces = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
        shared = traces or env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
        port = 4317 if wanted == "grpc" else 4318
        kind, target, tls = _url(
            shared or f"http://localhost:{port}", wanted, "OTEL_EXPORTER_OTLP_ENDPOINT", complete=bool(traces)
        )
        headers = env.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or env.get("OTEL_EXPORTER_OTLP_HEADERS", "")
        headers = env.get(names.ENV_HEADERS) or headers

    def either(own_name: str, shared_name: str) -> str | None:
        return env.get(own_name, "").strip() or env.get(f"OTEL_EXPORTER_OTLP_{shared_name}", "").strip() or None

    timeout_name = names.ENV_TIMEOUT if env.get(names.ENV_TIMEOUT) else "OTEL_EXPORTER_OTLP_TIMEOUT"
    return Destination(
        kind,
        target,
        tls,
        headers=_pairs(headers),
        # Seconds in Python, milliseconds in the specification: neither may make an attempt last for hours.
        timeout_s=min(_number(env, timeout_name, 10.0, 0.001, []), 60.0),
        certificate=either(names.ENV_CERTIFICATE, "CERTIFICATE"),
        client_key=either(names.ENV_CLIENT_KEY, "CLIENT_KEY"),
        client_certificate=either(names.ENV_CLIENT_CERTIFICATE, "CLIENT_CERTIFICATE"),
        gzip=(either(names.ENV_COMPRESSION, "COMPRESSION") or "").lower() == "gzip",
    )


def is_also_theirs(own: Destination, env: Mapping[str, str] | None = None) -> bool:
    """Whether the user's own OTLP exporter of traces sends to the same place, as far as the environment tells."""
    env = os.environ if env is None else env
    if "otlp" not in {name.strip() for name in env.get("OTEL_TRACES_EXPORTER", "").split(",")}:
        return False
    try:
        theirs = destination({k: v for k, v in env.items() if not k.startswith("OTEL_AUDIT_")})
    except ConfigError:
        return False

    def place(of: Destination) -> str:
        return of.target.replace("//localhost:", "//127.0.0.1:").replace("localhost:", "127.0.0.1:", 1)

    return place(theirs) == place(own)


def _mode(env: Mapping[str, str], problems: list[str]) -> Mode:
    text = env.get(names.ENV_MODE, "").strip() or "async"
    for mode in MODES:
        if text == mode:
            return mode
    # The strictest: whoever asks for a promise and misspells it must not silently get a weaker one.
    problems.append(f"{names.ENV_MODE}={text} is none of {', '.join(MODES)}; using durable")
    return "durable"


def _text(env: Mapping[str, str], name: str) -> str | None:
    return env.get(name, "").strip() or None


def _header(env: Mapping[str, str], name: str) -> str | None:
    text = _text(env, name)
    return text.lower() if text else None


_NEEDS: Final = (
    ("jwt_issuer", names.ENV_JWT_ISSUER, ("jwks_path",), f"JWTs are verified only with {names.ENV_JWKS}"),
    ("jwt_audience", names.ENV_JWT_AUDIENCE, ("jwks_path",), f"JWTs are verified only with {names.ENV_JWKS}"),
    ("certificate_header", names.ENV_CLIENT_CERT_HEADER, ("trusted_proxies",), f"set {names.ENV_TRUSTED_PROXIES}"),
    (
        "forwarding_header",
        names.ENV_FORWARDING_HEADER,
        ("trusted_proxies", "trusted_hops"),
        f"set {names.ENV_TRUSTED_PROXIES}",
    ),
)
"""A setting, its variable, what it does nothing without, and what to do."""


def _idle(found: Settings) -> list[str]:
    """A complaint for each setting that does nothing, because another one is missing."""
    return [
        f"{variable} has no effect; {remedy}"
        for setting, variable, needed, remedy in _NEEDS
        if getattr(found, setting) and not any(getattr(found, name) for name in needed)
    ]


def read(env: Mapping[str, str] | None = None) -> Settings:
    """The settings that the environment gives; raises `ConfigError` when the destination cannot be understood."""
    env = os.environ if env is None else env
    problems: list[str] = []
    exporters = {name.strip() for name in env.get("OTEL_TRACES_EXPORTER", "").split(",")}
    hops = _number(env, names.ENV_TRUSTED_HOPS, 0, 1, problems)
    found = Settings(
        destination=destination(env, local="audit" in exporters),
        mode=_mode(env, problems),
        spool_dir=_text(env, names.ENV_SPOOL_DIR),
        spool_bytes=int(
            _number(env, names.ENV_SPOOL_BYTES, Settings.spool_bytes, SPOOL_BYTES_LEAST, problems, most=1e15)
        ),
        block_timeout_s=_number(env, names.ENV_BLOCK_TIMEOUT, Settings.block_timeout_s, 0, problems),
        exit_timeout_s=_number(env, names.ENV_EXIT_TIMEOUT, Settings.exit_timeout_s, 0, problems),
        child_spans=env.get(names.ENV_CHILD_SPANS, "").strip().lower() not in ("off", "false", "0", "no"),
        rules_path=_text(env, names.ENV_RULES),
        clients=_text(env, names.ENV_CLIENTS),
        api_key_header=_header(env, names.ENV_API_KEY_HEADER) or "x-api-key",
        client_header=_header(env, names.ENV_CLIENT_HEADER),
        certificate_header=_header(env, names.ENV_CLIENT_CERT_HEADER),
        hash_key=env.get(names.ENV_HASH_KEY, "").encode("utf-8", "surrogateescape"),
        jwks_path=_text(env, names.ENV_JWKS),
        jwt_issuer=_text(env, names.ENV_JWT_ISSUER),
        jwt_audience=_text(env, names.ENV_JWT_AUDIENCE),
        resolver=_text(env, names.ENV_RESOLVER),
        trusted_proxies=tuple(p.strip() for p in env.get(names.ENV_TRUSTED_PROXIES, "").split(",") if p.strip()),
        trusted_hops=int(hops) or None,
        forwarding_header=_header(env, names.ENV_FORWARDING_HEADER),
    )
    return replace(found, problems=(*problems, *_idle(found)))
