"""Redaction: attributes dropped, hashed with a key, or cut, as the rules file says, before a record leaves the process."""

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from otel_audit import names
from otel_audit.capture.rules import Redaction

__all__ = ["Redactor"]

_PUBLIC_KEY: Final = b"otel-audit redaction"
_HASH_PREFIX: Final = "hmac:"
_KEPT: Final = ("audit.source.", "audit.loss.", names.INCOMPLETE)
"""Without these a gap in a source's numbers could not be seen, or not be explained."""
_CACHE_MAX: Final = 4096
_DEPTH_MAX: Final = 8


class Redactor:
    """Applies redactions; for each attribute the first that matches counts. Safe from any thread.

    Args:
        redactions: `Rules.redactions`.
        hash_key: secret of the keyed hash (`OTEL_AUDIT_HASH_KEY`); empty: a fixed, public one, with which a guessed value
            can be checked.
    """

    def __init__(self, redactions: Iterable[Redaction], hash_key: bytes = b"") -> None:
        self._redactions = tuple(redactions)
        self._key = hash_key or _PUBLIC_KEY
        self._found: dict[str, Redaction | None] = {}  # only ever added to, or emptied
        self.empty = not self._redactions
        """Whether there is nothing to redact."""

    def apply(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """`attributes` as they may be shown; the same object when no redaction matches. Never raises."""
        if self.empty:
            return attributes
        found = self._found
        try:
            hits = [k for k in attributes if (found[k] if k in found else self._look(k)) is not None]
        except KeyError:  # emptied between the two looks
            hits = [k for k in attributes if self._look(k) is not None]
        if not hits:
            return attributes
        shown = dict(attributes)
        for key in hits:
            redaction = self._look(key)
            if redaction is None or redaction.do == "drop":
                del shown[key]
                continue
            try:
                shown[key] = self._redacted(shown[key], redaction, 0)
            except Exception:  # a value that cannot be read must not be shown, nor fail the call
                del shown[key]
        return shown

    def _look(self, key: str) -> Redaction | None:
        kept = key.startswith(_KEPT)
        found = None if kept else next((r for r in self._redactions if r.attribute.matches(key)), None)
        if len(self._found) >= _CACHE_MAX:
            self._found.clear()
        self._found[key] = found
        return found

    def _redacted(self, value: Any, redaction: Redaction, depth: int) -> Any:
        if isinstance(value, list | tuple) and depth < _DEPTH_MAX:
            return type(value)([self._redacted(item, redaction, depth + 1) for item in value])
        if value is None:
            return None
        if redaction.do == "hash":
            return self._hash(value)
        if isinstance(value, str | bytes):
            return value[: redaction.length]
        if isinstance(value, bool | int | float):
            return value
        return _text(value)[: redaction.length]

    def _hash(self, value: Any) -> str:
        raw = value if isinstance(value, bytes) else _text(value).encode("utf-8", "surrogatepass")
        return _HASH_PREFIX + hmac.new(self._key, raw, hashlib.sha256).hexdigest()[:16]


def _text(value: Any) -> str:
    """`value` as a text: the same for equal values."""
    if isinstance(value, str):
        return value
    return json.dumps(dict(value), sort_keys=True, default=str) if isinstance(value, Mapping) else str(value)
