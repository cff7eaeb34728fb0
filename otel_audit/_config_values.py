"""How the values of a configuration are read and written: durations, sizes, addresses, lists.

A `Kind` reads a node of the file into what the program works with, and writes it back as `print-config` shows it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from otel_audit._receiver_bind import parse_endpoint
from otel_audit._yaml_file import Node
from otel_audit.errors import ConfigError

__all__ = [
    "BOOLEAN",
    "BYTES",
    "DURATION",
    "ENDPOINT",
    "HEADERS",
    "INTEGER",
    "MEBIBYTES",
    "TEXT",
    "TEXTS",
    "URL",
    "Kind",
    "UnfitError",
    "choice",
    "hidden",
    "without_userinfo",
]


class UnfitError(ValueError):
    """A value does not fit; the text says what does.

    Args:
        text: what is needed.
        node: the value within a composed one that does not fit; None: the value itself.
    """

    def __init__(self, text: str, node: Node | None = None) -> None:
        super().__init__(text)
        self.node = node


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value.

    Args:
        read: from a node to the value; raises `UnfitError`.
        write: from the value to what YAML shows.
    """

    read: Callable[[Node], Any]
    write: Callable[[Any], object] = lambda value: value


def _text(node: Node) -> str:
    value = node.text or node.value
    if not isinstance(value, str) or not value:
        raise UnfitError("needs text", node)
    return value


def _boolean(node: Node) -> bool:
    if not isinstance(node.value, bool):
        raise UnfitError("needs true or false", node)
    return node.value


def _integer(node: Node) -> int:
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise UnfitError("needs a whole number above zero", node)
    return value


def _endpoint(node: Node) -> str:
    text = _text(node)
    try:
        parse_endpoint(text)
    except ConfigError as e:
        raise UnfitError(f"{e.reason}; {e.hint}", node) from e
    return text


def hidden(node: Node) -> Node:
    """The place of a value that may be secret, without the value."""
    return Node("[redacted]", node.file, node.line)


_USERINFO: Final = re.compile(r"^((?:[A-Za-z][A-Za-z0-9+.-]*://)?)[^/?#]*@")


def without_userinfo(url: str) -> str:
    """A good URL without the name and password it may hold, as it can be shown."""
    return _USERINFO.sub(r"\1", url)


_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration(node: Node) -> float:
    """Seconds of a duration as Go and the Collector write it."""
    value = node.value
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise UnfitError("needs a duration with its unit, such as 500ms, 60s, 15m or 1h30m", node)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value)
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if seconds <= 0:
        raise UnfitError("needs a duration above zero", node)
    return seconds


def _duration_text(seconds: float) -> str:
    for unit in ("h", "m", "s"):
        if seconds % _UNITS_S[unit] == 0:
            return f"{seconds / _UNITS_S[unit]:g}{unit}"
    return f"{seconds * 1000:g}ms"


def _texts(node: Node) -> tuple[str, ...]:
    if not isinstance(node.value, list):
        raise UnfitError("needs a list of texts", node)
    return tuple(_text(item) for item in node.items)


_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def _headers(node: Node) -> tuple[tuple[str, str], ...]:
    """Header fields, name to value."""
    if not isinstance(node.value, dict):
        raise UnfitError("needs names and values of headers", node)
    for name, value in node.mapping.items():
        if not _HEADER.fullmatch(name) or not _text(value).isprintable():
            raise UnfitError("needs header names, and values that can be printed", value)
    return tuple((name, _text(value)) for name, value in node.mapping.items())


TEXT: Final = Kind(_text)
URL: Final = Kind(_text, without_userinfo)
HEADERS: Final = Kind(_headers, dict)
BOOLEAN: Final = Kind(_boolean)
INTEGER: Final = Kind(_integer)
BYTES: Final = INTEGER
MEBIBYTES: Final = Kind(lambda node: _integer(node) << 20, lambda size: size >> 20)
ENDPOINT: Final = Kind(_endpoint)
DURATION: Final = Kind(_duration, _duration_text)
TEXTS: Final = Kind(_texts, list)


def choice(*allowed: str) -> Kind:
    """One of some words."""

    def read(node: Node) -> str:
        word = node.text or str(node.value)  # YAML reads some words, as 1.2, as numbers
        if word not in allowed:
            raise UnfitError(f"needs one of {', '.join(allowed)}", node)
        return word

    return Kind(read)
