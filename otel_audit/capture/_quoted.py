"""Header values that proxies append to: elements separated by commas, each of pairs separated by semicolons.

`Forwarded` (RFC 7239, section 4) and Envoy's `X-Forwarded-Client-Cert` share this form. What stands on the right was
written by the nearest proxy, what stands on the left by anyone. So a value is taken apart from the right: a quote that an
attacker opens and never closes cannot swallow what a proxy appends after it.
"""

import re
from collections.abc import Iterator
from typing import Final

__all__ = ["from_right", "pairs"]

_MARKS: Final = {separator: re.compile(rf'(?<!\\)(\\*)(["{separator}])') for separator in ",;"}
"""Quotes and separators, with the backslashes before them: an odd number of these escapes a quote."""
_QUOTED: Final = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_NAME: Final = re.compile(r"[0-9A-Za-z_-]+")
_QUOTES_MAX: Final = 64


def from_right(text: str, separator: str = ",") -> Iterator[str]:
    """The elements of `text`, the last one first; separators (`,` or `;`) within double quotes do not count."""
    if '"' not in text:
        yield from reversed(text.split(separator))
        return
    end, quoted = len(text), False
    for mark in reversed(list(_MARKS[separator].finditer(text))):
        if mark[2] == '"':
            if len(mark[1]) % 2 == 0:
                quoted = not quoted
        elif not quoted:
            yield text[mark.end() : end]
            end = mark.end() - 1
    yield text[:end]


def pairs(element: str) -> list[tuple[str, str]] | None:
    """The pairs of an element in their order, names in lower case, values without quotes; None if it is malformed."""
    if element.count('"') > _QUOTES_MAX:
        return None
    found = []
    for part in reversed(list(from_right(element, ";"))):
        name, _, value = part.partition("=")
        name, value = name.strip(), value.strip()
        if not _NAME.fullmatch(name) or "=" not in part:
            return None
        if '"' in value:
            quoted = _QUOTED.fullmatch(value)
            if quoted is None:
                return None
            value = quoted[1].replace('\\"', '"')
        found.append((name.lower(), value))
    return found
