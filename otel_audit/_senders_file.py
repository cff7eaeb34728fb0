"""A list of senders as YAML: below `receivers.otlp.senders`, or in a file of its own that is read again when it changes."""

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from otel_audit import _config_values as kinds
from otel_audit._config_values import Kind, UnfitError, hidden
from otel_audit._yaml_file import Node, load_yaml
from otel_audit.errors import ConfigError
from otel_audit.senders import Directory, Sender

__all__ = ["SENDERS", "load_senders"]

_WORD: Final = re.compile(r"(?!oat_)[A-Za-z][A-Za-z0-9_]{,31}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def _one_or_more(node: Node) -> tuple[str, ...]:
    """A text, or a list of at least one."""
    values = kinds.TEXTS.read(node) if isinstance(node.value, list) else (kinds.TEXT.read(node),)
    if not values:
        raise UnfitError("needs at least one text", node)
    return tuple(values)


def _digests(node: Node) -> tuple[str, ...]:
    need = UnfitError("needs the SHA-256 of a token, 64 hexadecimal digits; otel-audit token prints it", hidden(node))
    try:
        digests = tuple(text.lower() for text in _one_or_more(node))
    except UnfitError as e:
        raise need from e
    if not all(map(_SHA256.fullmatch, digests)):
        raise need
    return digests


_KEYS: Final[Mapping[str, tuple[str, Kind]]] = {
    "name": ("name", kinds.TEXT),
    "token_sha256": ("token_sha256", Kind(_digests, list)),
    "certificate": ("certificate", Kind(_one_or_more, list)),
    "services": ("services", Kind(_one_or_more, list)),
    "sources": ("sources", Kind(_one_or_more, list)),
    "rate_records_per_s": ("rate_records_per_s", kinds.INTEGER),
    "burst_records": ("burst_records", kinds.INTEGER),
    "max_request_mib": ("max_request_bytes", kinds.MEBIBYTES),
}
"""The keys of a sender, and the fields they are."""


# Where something has the wrong shape or place, it may be a token: it is not shown.
def _sender(node: Node) -> Sender:
    if not isinstance(node.value, dict):
        raise UnfitError("needs the keys of a sender, such as name and token_sha256", hidden(node))
    for key, below in node.mapping.items():
        if key not in _KEYS:
            hint = "a token itself is never written down; " if key in ("token", "tokens") else ""
            at, shown = (
                (Node(key, below.file, below.line), key) if _WORD.fullmatch(key) else (hidden(below), "such key")
            )
            raise UnfitError(f"{hint}a sender has no {shown}; it has {', '.join(_KEYS)}", at)
    values = {_KEYS[key][0]: _value(key, below) for key, below in node.mapping.items()}
    if "name" not in values:
        raise UnfitError("needs a name", Node("a sender", node.file, node.line))
    return Sender(**values)


def _value(key: str, node: Node) -> Any:
    try:
        return _KEYS[key][1].read(node)
    except UnfitError as e:
        at = e.node or node
        raise UnfitError(str(e), hidden(at) if isinstance(at.value, dict | list) else at) from e


def _senders(node: Node) -> tuple[Sender, ...]:
    senders = tuple(map(_sender, node.items))
    if not senders:
        raise UnfitError("needs a list of at least one sender", hidden(node))
    try:
        Directory(senders)
    except ConfigError as e:
        raise UnfitError(f"{e.reason}; {e.hint}", Node(e.subject, node.file, node.line)) from e
    return senders


def _written(senders: tuple[Sender, ...]) -> object:
    def one(sender: Sender) -> dict[str, Any]:
        given = {key: (kind, getattr(sender, name)) for key, (name, kind) in _KEYS.items()}
        return {key: kind.write(value) for key, (kind, value) in given.items() if value}

    return [one(sender) for sender in senders]


SENDERS: Final = Kind(_senders, _written)


def load_senders(path: str | os.PathLike[str]) -> tuple[Sender, ...]:
    """The senders of a file that holds nothing but the list.

    Raises:
        ConfigError: it cannot be read, or something in it does not fit.
    """
    root = load_yaml(path)
    try:
        return _senders(root)
    except UnfitError as e:
        at = e.node or root
        raise ConfigError("read senders", at.place, f"{at.plain()!r}: {e}") from e
