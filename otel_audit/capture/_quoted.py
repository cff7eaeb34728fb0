"""Header values that proxies append to: elements separated by commas, each of pairs separated by semicolons.

`Forwarded` (RFC 7239, section 4) and Envoy's `X-Forwarded-Client-Cert` share this form. What stands on the right was
written by the nearest proxy, what stands on the left by anyone. So a value is taken apart from the right: a quote that an
attacker opens and never closes cannot swallow what a proxy appends after it.
"""

from collections.abc import Iterator

__all__ = ["from_right", "pairs"]


def from_right(text: str, separator: str = ",") -> Iterator[str]:
    """The elements of `text`, the last one first; separators within double quotes do not count."""
    if '"' not in text:
        yield from reversed(text.split(separator))
        return
    end, quoted = len(text), False
    for at in range(len(text) - 1, -1, -1):
        char = text[at]
        if char == '"' and not _escaped(text, at):
            quoted = not quoted
        elif char == separator and not quoted:
            yield text[at + 1 : end]
            end = at
    yield text[:end]


def _escaped(text: str, at: int) -> bool:
    first = at
    while first and text[first - 1] == "\\":
        first -= 1
    return (at - first) % 2 == 1


def pairs(element: str) -> list[tuple[str, str]] | None:
    """The pairs of an element in their order, names in lower case, values without quotes; None if it is malformed."""
    found = []
    for part in reversed(list(from_right(element, ";"))):
        name, equals, value = part.strip().partition("=")
        name = name.strip().lower()
        if not equals or not name or not name.replace("-", "").replace("_", "").isalnum():
            return None
        plain = _unquoted(value.strip())
        if plain is None:
            return None
        found.append((name, plain))
    return found


def _unquoted(value: str) -> str | None:
    if '"' not in value:
        return value
    if len(value) < 2 or value[0] != '"' or value[-1] != '"' or _escaped(value, len(value) - 1):
        return None
    inner = value[1:-1]
    if any(char == '"' and not _escaped(inner, at) for at, char in enumerate(inner)):
        return None
    return inner.replace('\\"', '"')
