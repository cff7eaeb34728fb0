"""Globs and patterns of routes, as regular expressions that no path can make slow.

`*` stands for any characters, `?` for one. Between stars each part is taken where it first fits and never tried again
(an atomic group), so the time grows with the text and not with a power of it.
"""

import re
from typing import Final

__all__ = ["Glob", "RoutePattern"]

_PLACEHOLDER: Final = re.compile(r"\((?:\?P<[^<>]*>)?[^()]*\)|\{[^/{}]*\}|<[^/<>]*>")
"""`{id}`, `<int:id>`, and the groups of routes that are regular expressions (Django's re_path, Tornado)."""
_DEEP: Final = re.compile(r"\{[^/{}:]*:path\}|<path:[^/<>]*>")
_SEGMENT: Final = "[^/]+?"


def _regex(pattern: str, placeholder: str | None) -> str:
    """`pattern` as a regular expression; `placeholder` is what `{}` in it becomes."""
    *parts, last = re.sub(r"\*+", "*", pattern).split("*")
    if not parts:
        return _part(last, placeholder, at_end=True)
    first, *middle = (_part(part, placeholder, at_end=False) for part in parts)
    return first + "".join(f"(?>.*?{part})" for part in middle) + ".*" + _part(last, placeholder, at_end=True)


def _part(part: str, placeholder: str | None, *, at_end: bool) -> str:
    """What stands between two stars; a placeholder ends where what follows it first fits, unless that is the end."""
    first, *others = (re.escape(piece).replace(r"\?", ".") for piece in part.split("{}"))
    if placeholder is None:
        return r"\{\}".join((first, *others))
    last = f"{placeholder}{others.pop()}" if at_end and others else ""
    return first + "".join(f"(?>{placeholder}{piece})" for piece in others) + last


class Glob:
    """A glob; `*` is any characters, `?` one.

    Args:
        pattern: the glob; everything else in it stands for itself.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._match = re.compile(_regex(pattern, None), re.DOTALL).fullmatch

    def matches(self, text: str) -> bool:
        """Whether all of `text` fits."""
        return self._match(text) is not None


def _plain(route: str) -> str:
    """`route` with a leading slash, which Django's lack, without anchors and the names of its placeholders."""
    route = _PLACEHOLDER.sub("{}", route.removeprefix("^").removesuffix("$").removesuffix(r"\Z"))
    return route if route.startswith(("/", "*")) else "/" + route


class RoutePattern:
    """A glob on routes, in which a placeholder stands for any placeholder, or for one segment of a path.

    Args:
        pattern: such as `/contacts/{id}/*`.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._route = re.compile(_regex(_plain(pattern), None), re.DOTALL).fullmatch
        path = _regex(_plain(_DEEP.sub("*", pattern)), _SEGMENT)
        # Frameworks that do not mind a slash at the end route both forms to the same handler.
        self._path = re.compile(path + ("" if path.endswith("*") else "/?"), re.DOTALL).fullmatch

    def matches_route(self, route: str) -> bool:
        """Whether a framework's route fits, whatever its placeholders are called."""
        return self._route(_plain(route)) is not None

    def matches_path(self, path: str) -> bool:
        """Whether the path of a request fits."""
        return self._path(path) is not None
