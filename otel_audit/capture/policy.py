"""What the rules file asks of capture as a whole; also when it cannot be understood.

A broken rules file never switches auditing off: every call is recorded, without the names it would have given, under the
strictest of what its text may have meant. Its author meant to hide something if it speaks of `redact`, or cannot be read
at all: then nothing leaves the process that could be it.
"""

from dataclasses import dataclass
from typing import Final

from otel_audit import names
from otel_audit.capture.redact import Redactor
from otel_audit.capture.rules import Rules
from otel_audit.capture.settings import MODES, Mode, Settings
from otel_audit.errors import ConfigError

__all__ = ["Policy", "read_policy"]

_TEXT_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True)
class Policy:
    """What is named, promised and hidden.

    Args:
        rules: names and modes by route.
        redactor: what is hidden; None: nothing.
        mode: what is promised of a call unless a rule says otherwise.
        problems: complaints, for the log.
    """

    rules: Rules
    redactor: Redactor | None
    mode: Mode
    problems: tuple[str, ...] = ()


def read_policy(wanted: Settings) -> Policy:
    """The policy of the rules file that the settings name; never raises for what is in it."""
    if not wanted.rules_path:
        return Policy(Rules.none(), None, wanted.mode)
    try:
        rules = Rules.load(wanted.rules_path)
    except ConfigError as e:
        return _strict(wanted, e)
    if not rules.redactions:
        return Policy(rules, None, wanted.mode)
    problems: tuple[str, ...] = ()
    if not wanted.hash_key and any(r.do == "hash" for r in rules.redactions):
        problems = (
            f"{wanted.rules_path} hashes attributes and {names.ENV_HASH_KEY} is not set: whoever guesses a value can check it",
        )
    return Policy(rules, Redactor(rules.redactions, wanted.hash_key), wanted.mode, problems)


def _strict(wanted: Settings, error: ConfigError) -> Policy:
    text = _text_of(str(wanted.rules_path))
    mode: Mode = "durable" if text is None else max((m for m in MODES if m in text), key=MODES.index, default="async")
    mode = max(mode, wanted.mode, key=MODES.index)
    hides = text is None or "redact" in text
    said = f"{error}; until then calls are audited WITHOUT THE NAMES it gives, all in mode {mode}"
    if hides:
        said += ", and all that it may have meant to hide is hashed or dropped"
    return Policy(Rules.none(), Redactor.strict(wanted.hash_key) if hides else None, mode, (said,))


def _text_of(path: str) -> str | None:
    """The text of a rules file, for the words in it; None when it cannot be read."""
    try:
        with open(path, encoding="utf-8-sig") as file:  # noqa: PTH123 - a path of NUL bytes raises ValueError here
            return file.read(_TEXT_BYTES_MAX)
    except (OSError, ValueError):
        return None
