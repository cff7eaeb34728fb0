"""Redaction: attributes dropped, hashed with a key, or cut, as the rules file says, before a record leaves the process.

What is redacted is the thing, not one name of it: the path of a request is in up to four attributes, and whoever drops one
does not want the record to be made from another.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace.status import Status

from otel_audit import names
from otel_audit.capture.rules import Redaction
from otel_audit.capture.wire import attributes_of

__all__ = ["Redactor"]

_PUBLIC_KEY: Final = b"otel-audit redaction"
_HASH_PREFIX: Final = "hmac:"
_KEPT: Final = ("audit.source.", "audit.loss.", names.INCOMPLETE)
"""Without these a gap in a source's numbers could not be seen, or not be explained."""
_CACHE_MAX: Final = 4096
_DEPTH_MAX: Final = 8

_PATHS: Final = (*names.URL_PATH, *names.HTTP_TARGET, *names.HTTP_URL)
_ADDRESSES: Final = (
    names.CLIENT_IP,
    names.PEER_IP,
    names.CLIENT_IP_CHAIN,
    *names.CLIENT_ADDRESS,
    *names.PEER_ADDRESS,
)
_ROUTE: Final = names.HTTP_ROUTE[0]
_QUERY: Final = "url.query"
_HOLD_THE_QUERY: Final = (*names.HTTP_TARGET, *names.HTTP_URL)
_MESSAGE: Final = "exception.message"
_ALSO_BY: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(_PATHS, (*_PATHS, names.TARGET_ID)),  # without a target the record takes the path
    **dict.fromkeys(_ADDRESSES, _ADDRESSES),
    **dict.fromkeys(names.USER_ID, names.USER_ID),
}
"""Attribute -> the names whose redaction means it too, where none means it by its own name."""


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
        self._cuts_query = self._look(_QUERY) is not None
        self._hides_route = self._look(_ROUTE) is not None
        self._hides_path = self._hides_route or any(self._look(name) is not None for name in _PATHS)

    @classmethod
    def strict(cls, hash_key: bytes = b"") -> "Redactor":
        """What hides all that anybody could have meant to hide: for a rules file that cannot be understood.

        Kept is what kind of call it was and how it ended; who and what it was about is hashed, without a key of the user's
        with one that nobody knows; all else is dropped.
        """
        kept = (Redaction.of(name, "keep") for name in _STRICTLY_KEPT)
        hashed = (Redaction.of(name, "hash") for name in _STRICTLY_HASHED)
        return cls((*kept, *hashed, Redaction.of("*", "drop")), hash_key or secrets.token_bytes(32))

    def apply(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """`attributes` as they may be shown; the same object when no redaction matches. Never raises."""
        if self.empty:
            return attributes
        found = self._found
        try:
            hits = [k for k in attributes if (found[k] if k in found else self._look(k)) is not None]
        except KeyError:  # emptied between the two looks
            hits = [k for k in attributes if self._look(k) is not None]
        cut = [k for k in _HOLD_THE_QUERY if k in attributes and k not in hits] if self._cuts_query else ()
        if not hits and not cut:
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
        for key in cut:
            shown[key] = str(shown[key]).partition("?")[0]
        return shown

    def span(self, span: ReadableSpan) -> ReadableSpan:
        """`span` with its name, its exceptions and its status as they may be shown; the same object when all may be.

        The status' text and the message of an exception are one thing: `exception.message`.
        """
        if self.empty:
            return span
        name = self._name_of(span) if self._hides_path else span.name
        began = span.events  # once: another thread may add one
        events = [self._event(event) for event in began]
        status = span.status
        if status.description:
            message = self.apply({_MESSAGE: status.description}).get(_MESSAGE)
            if message != status.description:
                status = Status(status.status_code, message)
        if name == span.name and status is span.status and all(a is b for a, b in zip(events, began, strict=True)):
            return span
        return ReadableSpan(
            name,
            context=span.get_span_context(),
            parent=span.parent,
            resource=span.resource,
            attributes=getattr(span, "_attributes", None),  # which counts those the SDK dropped
            events=events,
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _event(self, event: Event) -> Event:
        said = event.attributes or {}
        shown = self.apply(dict(said))
        return event if len(shown) == len(said) and shown == said else Event(event.name, shown, event.timestamp)

    def _name_of(self, span: ReadableSpan) -> str:
        """A span's name, in which some instrumentations put the path where there is no route."""
        said = attributes_of(span)
        if not any(k in said for k in (*_PATHS, *names.HTTP_METHOD)):
            return span.name  # no HTTP call
        method = next((said[k] for k in names.HTTP_METHOD if k in said), "HTTP")  # a websocket has none
        route = None if self._hides_route else said.get(_ROUTE)
        return span.name if route and span.name in (route, f"{method} {route}") else str(method)

    def _look(self, key: str) -> Redaction | None:
        found = None if key.startswith(_KEPT) else self._first((key,)) or self._first(_ALSO_BY.get(key, ()))
        if found is not None and found.do == "keep":
            found = None
        if len(self._found) >= _CACHE_MAX:
            self._found.clear()
        self._found[key] = found
        return found

    def _first(self, keys: tuple[str, ...]) -> Redaction | None:
        return next((r for r in self._redactions if any(map(r.attribute.matches, keys))), None)

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


_STRICTLY_KEPT: Final = (
    *names.HTTP_METHOD,
    *names.HTTP_ROUTE,
    *names.HTTP_STATUS,
    *names.RPC_SYSTEM,
    *names.RPC_SERVICE,
    *names.RPC_METHOD,
    *names.RPC_STATUS,
    names.ACTION,
    names.OUTCOME,
    names.SERVICE,
    names.OPERATION,
    names.CLIENT_AUTH,
    names.CLIENT_IP_SOURCE,
    names.DB_CALLS,
    names.DB_DURATION_NS,
    names.HTTP_CALLS,
    names.HTTP_DURATION_NS,
)
_STRICTLY_HASHED: Final = (
    names.CLIENT_ID,
    names.CLIENT_NAME,
    names.CLIENT_IP,
    names.PEER_IP,
    *names.USER_ID,
    names.TARGET_ID,
)
