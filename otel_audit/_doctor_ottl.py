"""What an OTTL statement does to the spans it is run on, as far as a record is concerned.

Source: opentelemetry-collector-contrib `pkg/ottl` (grammar, `ottlfuncs`, contexts `ottlspan`, `ottlresource`, `ottllog`), 0.155.0.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from otel_audit._doctor_attributes import (
    RESOURCE_KEYS,
    SPAN_KEYS,
    is_identity,
    is_path,
    masks_identity,
    matching,
    some,
    spares_path,
)

__all__ = ["Harm", "harms"]


class Harm(NamedTuple):
    """One thing that a statement does: the rule's id, and what."""

    rule: str
    detail: str


class _Path(NamedTuple):
    """A place that a statement names: `resource.attributes["k"]` is ("resource", "attributes", "k")."""

    context: str
    field: str
    key: str | None


_CALL: Final = re.compile(r"\s*([a-z][a-z0-9_]*)\s*\(", re.ASCII)
_PATH: Final = re.compile(
    r"\s*(?:(?P<context>resource|span|log|scope|instrumentation_scope|spanevent)\.)?"
    r"(?P<field>[a-z_][a-z0-9_.]*)(?P<keys>(?:\[[^\]]*\])*)\s*\Z"
)
_KEY: Final = re.compile(r'\[\s*"((?:[^"\\]|\\.)*)"\s*\]')
_TEXT: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SPAN_FIELDS: Final = frozenset({
    "trace_id", "trace_id.string", "span_id", "span_id.string", "start_time", "start_time_unix_nano", "end_time",
    "end_time_unix_nano", "time", "time_unix_nano", "status", "status.code", "events",
})  # fmt: skip
_KINDS: Final = frozenset({"kind", "kind.string", "kind.deprecated_string"})
_ATTRIBUTES_MIN: Final = 128
_LENGTH_MIN: Final = 4096


def harms(statement: str, context: str) -> list[Harm]:
    """What a statement does to a record; empty where it does nothing to it.

    Args:
        statement: OTTL.
        context: that of its list (`span`, `resource`, `log`, …); empty where paths name it themselves.
    """
    called = _CALL.match(statement)
    if not called:
        return []
    arguments, where = _split(statement[called.end() :])
    known = _FUNCTIONS.get(called[1])
    if known is None or not arguments:
        return []
    path = _path(_unnamed(arguments[0]), context)
    if path is None or path.context in ("scope", "instrumentation_scope", "spanevent"):
        return []
    return list(known(path, [_unnamed(a) for a in arguments[1:]], where))


def _split(text: str) -> tuple[list[str], str]:
    """The arguments of a call, from behind its opening parenthesis, and the condition behind it."""
    arguments, depth, start, at = [], 0, 0, 0
    while at < len(text):
        character = text[at]
        if character == '"':
            quoted = _TEXT.match(text, at)
            at = quoted.end() if quoted else len(text)
            continue
        if character == ")" and depth == 0:
            break
        if character == "," and depth == 0:
            arguments.append(text[start:at])
            start = at + 1
        depth += (character in "([{") - (character in ")]}")
        at += 1
    arguments.append(text[start:at])
    where = text[at + 1 :].strip()
    return [a.strip() for a in arguments if a.strip()], where.removeprefix("where").strip()


def _unnamed(argument: str) -> str:
    """`target=x` as `x`."""
    name, equals, value = argument.partition("=")
    return value.strip() if equals and re.fullmatch(r"\s*[a-z_]+\s*", name) and not value.startswith("=") else argument


def _path(text: str, context: str) -> _Path | None:
    match = _PATH.match(text)
    if not match:
        return None
    keys = _KEY.findall(match["keys"])
    return _Path(match["context"] or context or "span", match["field"], keys[0] if keys else None)


def _known_keys(path: _Path) -> tuple[str, ...]:
    return RESOURCE_KEYS if path.context == "resource" else SPAN_KEYS


def _name(path: _Path) -> str:
    return path.key if path.key is not None else f"{path.context}.{path.field}"


def _whole(path: _Path) -> bool:
    return path.field == "attributes" and path.key is None


def _only_where_nil(path: _Path, where: str) -> bool:
    """Whether the condition asks, beside whatever else, that the target is not set yet."""
    target = re.escape(path.field)
    if path.key is not None:
        target += rf'\[\s*"{re.escape(path.key)}"\s*\]'
    unset = re.compile(rf'(?:[a-z_]+\.)?{target}\s*==\s*(?:nil|"")')
    return any(unset.fullmatch(part.strip("() ")) for part in _conjuncts(where))


def _conjuncts(where: str) -> list[str]:
    """The conditions that must all hold; none where an `or` stands between them."""
    where = where.strip()
    depth, start, at, parts = 0, 0, 0, []
    while at < len(where):
        quoted = _TEXT.match(where, at)
        if quoted:
            at = quoted.end()
            continue
        depth += (where[at] in "([{") - (where[at] in ")]}")
        word = (
            re.match(r"\b(and|or)\b", where[at:]) if depth == 0 and (at == 0 or not where[at - 1].isalnum()) else None
        )
        if word and word[1] == "or":
            return []
        if word:
            parts.append(where[start:at].strip())
            start = at = at + len(word[1])
            continue
        at += 1
    return [*parts, where[start:].strip()]


# --- functions ------------------------------------------------------------------------------------------------------------
def _set(path: _Path, arguments: list[str], where: str) -> Iterator[Harm]:
    if path.field in _KINDS:
        yield Harm("kind-changed", "it sets the kind of spans")
    elif path.field == "name" and path.context == "span":
        yield Harm("name-changed", "it renames spans")
    elif path.field in _SPAN_FIELDS or _whole(path):
        if not _only_where_nil(path, where):
            yield Harm("span-changed", f"it sets {_name(path)}")
    elif path.field == "attributes" and path.key is not None:
        yield from _set_key(path, arguments, where)


def _set_key(path: _Path, arguments: list[str], where: str) -> Iterator[Harm]:
    assert path.key is not None
    if _only_where_nil(path, where):
        return
    if is_identity(path.key, resource=path.context == "resource"):
        removed = bool(arguments) and arguments[0] == "nil"
        yield Harm("identity-removed" if removed else "identity-changed", f"it sets {path.key}")
    elif is_path(path.key):
        yield Harm("path-changed", f"it sets {path.key}")


def _delete_key(path: _Path, arguments: list[str], _: str) -> Iterator[Harm]:
    if not _whole(path):
        return
    for key in _TEXT.findall(" ".join(arguments)):
        if is_identity(key, resource=path.context == "resource"):
            yield Harm("identity-removed", f"it deletes {key}")
        elif is_path(key):
            yield Harm("path-changed", f"it deletes {key}")


def _delete_matching(path: _Path, arguments: list[str], _: str) -> Iterator[Harm]:
    patterns = _TEXT.findall(" ".join(arguments))
    gone = [k for p in patterns for k in matching(_unquoted(p), _known_keys(path))] if _whole(path) else []
    if gone:
        yield Harm("identity-removed", f"it deletes {some(gone)}")


def _keep_keys(path: _Path, arguments: list[str], _: str) -> Iterator[Harm]:
    kept = {_unquoted(k) for k in _TEXT.findall(" ".join(arguments))}
    gone = [k for k in _known_keys(path) if k not in kept] if _whole(path) else []
    if gone:
        yield Harm("identity-removed", f"it keeps a list of keys without {some(gone)}")


def _keep_matching(path: _Path, arguments: list[str], _: str) -> Iterator[Harm]:
    patterns = _TEXT.findall(" ".join(arguments))
    kept = {k for p in patterns for k in matching(_unquoted(p), _known_keys(path))}
    gone = [k for k in _known_keys(path) if k not in kept] if _whole(path) else []
    if gone:
        yield Harm("identity-removed", f"it keeps keys of a pattern, without {some(gone)}")


def _limit(path: _Path, arguments: list[str], _: str) -> Iterator[Harm]:
    if not _whole(path) or not arguments:
        return
    kept = {_unquoted(k) for k in _TEXT.findall(" ".join(arguments[1:]))}
    at_risk = [k for k in _known_keys(path) if k not in kept]
    if at_risk and _number(arguments[0]) < _ATTRIBUTES_MIN:
        yield Harm("attributes-limited", f"it keeps {arguments[0]} attributes")


def _truncate_all(path: _Path, arguments: list[str], _: str) -> Iterator[Harm]:
    if _whole(path) and arguments and _number(arguments[0]) < _LENGTH_MIN:
        yield Harm("attributes-limited", f"it cuts values to {arguments[0]} characters")


def _replace_one(path: _Path, arguments: list[str], where: str) -> Iterator[Harm]:
    pattern = _unquoted(next(iter(_TEXT.findall(" ".join(arguments))), ""))
    if path.key is not None and is_identity(path.key, resource=path.context == "resource"):
        yield from _set_key(path, [], where)
    elif spares_path(pattern):
        return
    elif path.field == "name" and path.context == "span":
        yield Harm("name-changed", "it renames spans")
    elif path.key is not None:
        yield from _set_key(path, [], where)


def _replace_all(path: _Path, arguments: list[str], _: str) -> Iterator[Harm]:
    texts = [_unquoted(t) for t in _TEXT.findall(" ".join(arguments))]
    if not _whole(path) or not texts:
        return
    if texts[0] == "key" and len(texts) > 1:
        renamed = matching(texts[1], _known_keys(path))
        if renamed:
            yield Harm("identity-removed", f"it renames {some(renamed)}")
    elif masks_identity(texts[1] if texts[0] == "value" and len(texts) > 1 else texts[0]):
        yield Harm("values-masked", "it replaces in all attributes")


def _replace_all_matches(path: _Path, _: list[str], __: str) -> Iterator[Harm]:
    if _whole(path):
        yield Harm("values-masked", "it replaces whole values in all attributes")


def _merge_maps(path: _Path, arguments: list[str], _: str) -> Iterator[Harm]:
    if _whole(path) and '"insert"' not in arguments:
        yield Harm("identity-changed", 'it writes a map over the attributes, whatever its keys are (not with "insert")')


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


_FUNCTIONS: Final = {
    "set": _set,
    "delete_key": _delete_key,
    "delete_keys": _delete_key,
    "delete_matching_keys": _delete_matching,
    "keep_keys": _keep_keys,
    "keep_matching_keys": _keep_matching,
    "limit": _limit,
    "truncate_all": _truncate_all,
    "replace_pattern": _replace_one,
    "replace_match": _replace_one,
    "replace_all_patterns": _replace_all,
    "replace_all_matches": _replace_all_matches,
    "merge_maps": _merge_maps,
}
