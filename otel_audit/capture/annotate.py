"""What the application says about a call: `annotate`, in a handler or anywhere below it.

It only ever adds to the record, and never raises, whatever it is given; a record that cannot be annotated is still made.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

from otel_audit import names
from otel_audit.capture.call import Call, current_call

__all__ = ["add_to", "annotate", "as_text", "said_of", "warn_once"]

_log = logging.getLogger("otel_audit.capture")

OUTCOMES: Final = ("success", "denied", "failure", "error", "unknown")
_ANNOTATIONS_MAX: Final = 64
_KEY_CHARS_MAX: Final = 128
_VALUE_CHARS_MAX: Final = 4096
_NAMED: Final[Mapping[str, str]] = {
    "action": names.ACTION,
    "target": names.TARGET_ID,
    "reason": names.REASON,
    "user": names.USER_ID[0],
    "service": names.SERVICE,
}
_INT64: Final = range(-(1 << 63), 1 << 63)
_OURS: Final = ("audit.source.", "audit.loss.", names.INCOMPLETE)
"""What capture says about itself; an application that could say it could hide a gap."""

_warned: set[str] = set()  # of a fixed few texts; each is said once in a process


def annotate(
    action: str | None = None,
    target: str | int | None = None,
    *,
    reason: str | None = None,
    outcome: str | None = None,
    user: str | None = None,
    service: str | None = None,
    **attributes: object,
) -> bool:
    """Say more about the call that is being served; what was said last counts. Never raises.

    Args:
        action: what is being done, such as `merge`.
        target: id of the thing acted on.
        reason: why, as a person would put it.
        outcome: `success`, `denied`, `failure`, `error` or `unknown`, where the status says too little.
        user: id of the person on whose behalf.
        service: the service's name in the record.
        attributes: anything else; `note="x"` becomes `audit.note`. Texts (up to 4096 characters), bools and ints as they
            are, other values as text; None is left out. At most 64 of a call.

    Returns:
        Whether it is on the record: False outside of any call, and when the call's record has been made.
    """
    try:
        named = {"action": action, "target": target, "reason": reason, "outcome": outcome, "user": user}
        return add_to(current_call(), said_of({**attributes, **named, "service": service}))
    except Exception:
        _log.debug("annotate a call: left out", exc_info=True)
        return False


def add_to(call: Call | None, said: Mapping[str, Any]) -> bool:
    """Add what was said to a call; whether that will be on its record."""
    if call is None or call.recorded:
        _log.debug(
            "annotate a call: %s", "there is none here" if call is None else "too late, its record has been made"
        )
        return False
    if call.is_job and call.span is None:
        _log.debug("annotate a job: it is not audited")
        return False
    known = call.annotations
    if known is None:
        known = call.annotations = {}
    taken = {k: v for k, v in said.items() if k in known}
    room = _ANNOTATIONS_MAX - len(known)
    new = [k for k in said if k not in known]
    if len(new) > room:
        warn_once(f"annotate a call: over {_ANNOTATIONS_MAX} annotations of one call; the rest is left out")
    taken.update((k, said[k]) for k in new[:room])
    known.update(taken)
    span = call.span
    if span is not None and span.is_recording():
        span.set_attributes(taken)  # the user's own exporters see it too
    return True


def said_of(given: Mapping[str, object]) -> dict[str, Any]:
    """The attributes that the arguments of `annotate` mean."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        if key == "outcome":
            if isinstance(value, str) and value in OUTCOMES:
                found[names.OUTCOME] = str(value)
            else:
                warn_once(f"annotate a call: an outcome was left out that is none of {', '.join(OUTCOMES)}")
            continue
        known = _NAMED.get(key)
        name = known or _name(key)
        told = as_text(value) or None if known else _value(value)
        if name is not None and told is not None:
            found[name] = told
    return found


def _name(key: str) -> str | None:
    name = key if key.startswith(names.AUDIT_PREFIX) else names.AUDIT_PREFIX + key
    if name.startswith(_OURS):
        warn_once("annotate a call: audit.source.*, audit.loss.* and audit.incomplete are otel-audit's own; left out")
        return None
    return name[:_KEY_CHARS_MAX]


def as_text(value: object) -> str | None:
    """`value` as a bounded text; None when its class cannot make one."""
    try:
        return str(value)[:_VALUE_CHARS_MAX]
    except Exception:  # the application's own class
        return None


def _value(value: object) -> str | bool | int | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value in _INT64:
        return int(value)
    return as_text(value)


def warn_once(text: str) -> None:
    """Log a warning, the first time in this process."""
    if text not in _warned:
        _warned.add(text)
        _log.warning("%s; said once", text)
