"""Addresses, TLS and credentials of exporters and receivers."""

import re
from collections.abc import Iterator
from typing import Final

from otel_audit._doctor_model import deepest, truth
from otel_audit._doctor_rules import Report
from otel_audit._yaml_file import Node

__all__ = ["check_client", "check_kafka_client", "check_server", "host_of", "is_loopback"]

_CREDENTIAL: Final = re.compile(r"authorization|api[-_]?key|token|secret|password", re.IGNORECASE)


def host_of(endpoint: str) -> str:
    """The host of `host:port`, of a URL or of a gRPC target; empty where there is none."""
    rest = endpoint.strip()
    scheme = re.match(r"(?:https?|grpc|dns|passthrough)://+", rest, re.IGNORECASE)
    if scheme:
        rest = rest[scheme.end() :]
    elif rest.startswith(("unix:", "npipe:")):
        return "localhost"
    rest = rest.partition("/")[0].rpartition("@")[2]
    if rest.startswith("["):
        return rest[1:].partition("]")[0]
    return rest if rest.count(":") > 1 else rest.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether a host can only be this machine; an unknown one counts as such, for nothing can be said of it."""
    return (
        host in ("", "localhost", "::1") or bool(re.fullmatch(r"127(\.\d+){1,3}", host)) or host.endswith(".localhost")
    )


def _texts(node: Node | None) -> str:
    return str(node.value) if node is not None and node.value is not None else ""


def _credential(settings: Node) -> bool:
    auth = settings.at("auth")
    if auth is not None and auth.value:
        return True
    return any(_CREDENTIAL.search(name) and value for name, value in _headers(settings.at("headers")))


def _headers(node: Node | None) -> Iterator[tuple[str, str]]:
    if node is None:
        return
    for name, value in node.mapping.items():
        yield name, _texts(value)
    for item in node.items:  # also a list of {name, value}
        yield _texts(item.at("name")), _texts(item.at("value"))


def check_client(report: Report, settings: Node, name: str) -> None:
    """Judge what an OTLP exporter connects to."""
    endpoints = [n for n in (settings.at("traces_endpoint"), settings.at("endpoint")) if n is not None and _texts(n)]
    endpoint = endpoints[0] if endpoints else None
    tls = settings.at("tls")
    if truth(settings.at("tls", "insecure_skip_verify"), default=False):
        report.add("tls-unverified", deepest(settings, "tls", "insecure_skip_verify"), name)
    if endpoint is None or is_loopback(host_of(_texts(endpoint))):
        return
    plain = _texts(endpoint).lower().startswith("http://")
    insecure = tls.at("insecure") if tls is not None else None
    if not plain and not (truth(insecure, default=False) and not _texts(endpoint).lower().startswith("https://")):
        return
    place = endpoint if plain or insecure is None else insecure
    report.add("credentials-plaintext" if _credential(settings) else "tls-insecure", place, name, _texts(endpoint))


def check_kafka_client(report: Report, settings: Node, name: str) -> None:
    """Judge the connection to Kafka's brokers."""
    brokers = settings.at("brokers")
    hosts = [host_of(_texts(b)) for b in (brokers.items if brokers is not None else [])]
    tls = settings.at("tls")
    if truth(settings.at("tls", "insecure_skip_verify"), default=False):
        report.add("tls-unverified", deepest(settings, "tls", "insecure_skip_verify"), name)
    if tls is None and brokers is not None and any(not is_loopback(host) for host in hosts):
        report.add("credentials-plaintext" if _credential(settings) else "tls-insecure", brokers, name)


def check_server(report: Report, settings: Node, name: str) -> None:
    """Judge what one protocol of a receiver listens on."""
    endpoint = settings.at("endpoint")
    if endpoint is None or (is_loopback(host_of(_texts(endpoint))) and not _texts(endpoint).startswith(":")):
        return
    mutual = settings.at("tls", "client_ca_file")
    auth = settings.at("auth")
    has_auth = auth is not None and bool(auth.value)
    tls = settings.at("tls")
    encrypted = tls is not None and bool(_texts(tls.at("cert_file")) or _texts(tls.at("cert_pem")))
    if encrypted and (has_auth or _texts(mutual)):
        return
    lacks = "neither TLS nor authentication" if not encrypted and not has_auth else "no TLS"
    if encrypted:
        lacks = "TLS, but no client certificates (client_ca_file) and no authentication"
    report.add("receiver-open", endpoint, name, f"it listens on {_texts(endpoint)} with {lacks}")
