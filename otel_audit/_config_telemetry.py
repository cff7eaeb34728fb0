"""How the telemetry settings are read and written: levels, readers of metrics, attributes of the service.

Source: OpenTelemetry Collector 0.155, `service/telemetry/otelconftelemetry`; the shape of `readers` is that of OpenTelemetry
declarative configuration 0.3 (`MetricReader`), times are in milliseconds there.
"""

import difflib
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from otel_audit._config_values import Kind, UnfitError, hidden, without_userinfo
from otel_audit._yaml_file import Node
from otel_audit.telemetry import OtlpReader, PrometheusReader, Reader

__all__ = ["LEVEL", "READERS", "RESOURCE"]

_HIDDEN: Final = "[redacted]"
_LEVELS: Final = ("debug", "info", "warn", "error")


def _level(node: Node) -> str:
    """The Collector takes either case."""
    value = str(node.value).lower() if isinstance(node.value, str) else ""
    if value not in _LEVELS:
        raise UnfitError(f"needs one of {', '.join(_LEVELS)}", node)
    return value


# --- within a reader ------------------------------------------------------------------------------------------------------
def _only(node: Node, known: tuple[str, ...]) -> dict[str, Node]:
    """The mapping of a node that has no other keys than those."""
    if not isinstance(node.value, dict):
        raise UnfitError(f"needs keys and values below it: {', '.join(known)}", _bare(node))
    for key, below in node.mapping.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            raise UnfitError(f"there is no such setting; {hint}", Node(key, below.file, below.line))
    return node.mapping


def _one(node: Node, known: tuple[str, ...]) -> tuple[str, Node]:
    """The one key of a mapping, and what is below it."""
    found = _only(node, known)
    if len(found) != 1:
        raise UnfitError(f"needs exactly one of {', '.join(known)}", _bare(node))
    return next(iter(found.items()))


def _bare(node: Node) -> Node:
    """The place of a node without what it holds, which may be secret."""
    return Node(None if isinstance(node.value, dict | list) else node.value, node.file, node.line)


def _text(node: Node) -> str:
    value = node.text or node.value
    if not isinstance(value, str) or not value:
        raise UnfitError("needs text", _bare(node))
    return value


def _whole(node: Node) -> int:
    if isinstance(node.value, bool) or not isinstance(node.value, int) or node.value <= 0:
        raise UnfitError("needs milliseconds, a whole number above zero", _bare(node))
    return node.value


def _port(node: Node) -> int:
    if isinstance(node.value, bool) or not isinstance(node.value, int) or not 0 <= node.value <= 65535:
        raise UnfitError("needs a port, 0 to 65535", _bare(node))
    return node.value


def _boolean(node: Node) -> bool:
    if not isinstance(node.value, bool):
        raise UnfitError("needs true or false", _bare(node))
    return node.value


def _words(*allowed: str) -> Callable[[Node], str]:
    def read(node: Node) -> str:
        if node.value not in allowed:
            raise UnfitError(f"needs one of {', '.join(allowed)}", _bare(node))
        return str(node.value)

    return read


def _headers(node: Node) -> tuple[tuple[str, str], ...]:
    """Nothing of what is below is ever shown: in a wrong shape, a secret may stand anywhere."""
    try:
        return _pairs(node)
    except UnfitError as e:
        raise UnfitError(str(e), hidden(e.node or node)) from e


def _pairs(node: Node) -> tuple[tuple[str, str], ...]:
    """A list of names and values as the Collector has it now, or a mapping as it had it before."""
    if isinstance(node.value, dict):
        return tuple((name, _header_value(value)) for name, value in node.mapping.items())
    if not isinstance(node.value, list):
        raise UnfitError("needs a list of {name, value}", _bare(node))
    pairs = []
    for item in node.items:
        found = _only(item, ("name", "value"))
        if len(found) != 2:
            raise UnfitError("needs a name and a value", _bare(item))
        pairs.append((_text(found["name"]), _header_value(found["value"])))
    return tuple(pairs)


def _header_value(node: Node) -> str:
    value = node.text or node.value
    if not isinstance(value, str):
        raise UnfitError("a header needs text as its value: quote it", node)
    return value


def _endpoint(node: Node) -> str:
    text = _text(node)
    shown = Node(text.rpartition("@")[2], node.file, node.line)  # of a bad URL, a password may reach anywhere
    try:
        url = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError as e:
        raise UnfitError("is no URL", shown) from e
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise UnfitError("needs a URL such as http://localhost:4317", shown)
    try:
        _ = url.port
    except ValueError as e:
        raise UnfitError("has no port between 0 and 65535", shown) from e
    return text


# --- readers --------------------------------------------------------------------------------------------------------------
_PROMETHEUS: Final[dict[str, Callable[[Node], Any]]] = {"host": _text, "port": _port}
_OTLP: Final[dict[str, Callable[[Node], Any]]] = {
    "endpoint": _endpoint,
    "protocol": _words("grpc", "http/protobuf"),
    "headers": _headers,
    "timeout": _whole,
    "compression": _words("none", "gzip"),
    "insecure": _boolean,
    "certificate": _text,
    "client_key": _text,
    "client_certificate": _text,
    "temporality_preference": _words("cumulative"),
}
_FIELDS: Final = {"timeout": "timeout_ms"}


def _reader(node: Node) -> Reader:
    kind, below = _one(node, ("pull", "periodic"))
    if kind == "pull":
        exporter = _exporter(below, _only(below, ("exporter",)), "prometheus")
        given = _only(exporter, tuple(_PROMETHEUS)) if exporter.value is not None else {}
        return PrometheusReader(**{key: _PROMETHEUS[key](n) for key, n in given.items()})
    found = _only(below, ("interval", "timeout", "exporter"))
    exporter = _exporter(below, found, "otlp")
    given = _only(exporter, tuple(_OTLP))
    if "endpoint" not in given:
        raise UnfitError("needs an endpoint", _bare(exporter))
    values = {_FIELDS.get(key, key): _OTLP[key](n) for key, n in given.items()}
    values.pop("temporality_preference", None)  # checked; there is only the one
    if "interval" in found:
        values["interval_ms"] = _whole(found["interval"])
    if "timeout" in found:
        values["export_timeout_ms"] = _whole(found["timeout"])
    return OtlpReader(**values)


def _exporter(reader: Node, found: dict[str, Node], name: str) -> Node:
    if "exporter" not in found:
        raise UnfitError(f"needs an exporter: {name}", _bare(reader))
    return _one(found["exporter"], (name,))[1]


def _readers(node: Node) -> tuple[Reader, ...]:
    if not isinstance(node.value, list):
        raise UnfitError("needs a list of readers, each with pull or periodic", _bare(node))
    return tuple(_reader(item) for item in node.items)


def _readers_written(readers: tuple[Reader, ...]) -> list[object]:
    return [_prometheus_written(r) if isinstance(r, PrometheusReader) else _otlp_written(r) for r in readers]


def _prometheus_written(reader: PrometheusReader) -> object:
    return {"pull": {"exporter": {"prometheus": {"host": reader.host, "port": reader.port}}}}


def _otlp_written(reader: OtlpReader) -> object:
    """Without the values of headers, and the password of a URL."""
    exporter: dict[str, object] = {"protocol": reader.protocol, "endpoint": without_userinfo(reader.endpoint)}
    if reader.headers:
        exporter["headers"] = [{"name": name, "value": _HIDDEN} for name, _ in reader.headers]
    exporter |= {"timeout": reader.timeout_ms, "compression": reader.compression, "insecure": reader.insecure}
    files = {"certificate": reader.certificate, "client_key": reader.client_key}
    files["client_certificate"] = reader.client_certificate
    exporter |= {key: path for key, path in files.items() if path}
    times = {"interval": reader.interval_ms, "timeout": reader.export_timeout_ms}
    return {"periodic": {**times, "exporter": {"otlp": exporter}}}


# --- resource -------------------------------------------------------------------------------------------------------------
def _resource(node: Node) -> tuple[tuple[str, str | None], ...]:
    """Attributes by name; null takes an automatic one away. Also in the list form of declarative configuration."""
    if not isinstance(node.value, dict):
        raise UnfitError("needs attributes and their values", _bare(node))
    listed = node.mapping.get("attributes")
    if listed is not None and isinstance(listed.value, list):
        if len(node.mapping) > 1:
            raise UnfitError("needs either attributes or a list below attributes, not both", _bare(node))
        pairs = [_only(item, ("name", "value")) for item in listed.items]
        if any(len(p) != 2 for p in pairs):
            raise UnfitError("needs a name and a value for each attribute", _bare(listed))
        return tuple(sorted((_text(p["name"]), _attribute(p["value"])) for p in pairs))
    return tuple(sorted((key, _attribute(value)) for key, value in node.mapping.items()))


def _attribute(node: Node) -> str | None:
    value = node.text or node.value
    if value is not None and not isinstance(value, str):
        raise UnfitError("an attribute needs text as its value: quote it", _bare(node))
    return value


LEVEL: Final = Kind(_level)
READERS: Final = Kind(_readers, _readers_written)
RESOURCE: Final = Kind(_resource, dict)
