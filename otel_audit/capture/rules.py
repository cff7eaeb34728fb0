"""The rules file: what calls of a route, an rpc method or an operation are called, and what is promised of them.

For each of service, action and mode the first rule that matches and sets it counts. A pattern of routes is compared with
the route where the span has one, else with the path: some instrumentations know the route only after the handler ran,
and a mode must be known before. A placeholder (`{id}`, `<int:id>`) in a pattern stands for a placeholder of any name in a
route, and for one segment of a path.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast, get_args
from urllib.parse import unquote, urlsplit

from otel_audit import names
from otel_audit.capture._patterns import Glob, RoutePattern
from otel_audit.capture.settings import MODES, Mode
from otel_audit.errors import ConfigError

__all__ = ["Do", "Redaction", "Rule", "Rules"]

_READ: Final = "read rules"
_MORE: Final = "see docs/annotate.md"
_FILE_BYTES_MAX: Final = 1024 * 1024
_RULES_MAX: Final = 1000
_TEXT_CHARS_MAX: Final = 256
_CACHE_MAX: Final = 4096
_CACHED_CHARS_MAX: Final = 512
_PARTS: Final = ("rule", "redact")
_MATCHED: Final = ("method", "route", "rpc", "operation")
_SET: Final = ("service", "action", "mode")
_REDACT: Final = ("attribute", "do", "length")
Do = Literal["drop", "hash", "truncate", "keep"]
_LENGTH_MAX: Final = 65536
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "TRACE", "CONNECT", "_OTHER")
"""Those that OpenTelemetry tells apart; it calls any other `_OTHER`."""
_OPERATION: Final = "{operation}"
_BRACES: Final = re.compile(r"\{[^{}]*\}|[{}]")


class Redaction(NamedTuple):
    """One `[[redact]]`.

    Args:
        attribute: which attributes.
        do: what is done with them; `keep` spares them from the redactions that follow.
        length: truncate: characters that are kept.
    """

    attribute: Glob
    do: Do
    length: int

    @classmethod
    def of(cls, attribute: str, do: Do, length: int = 0) -> "Redaction":
        """The redaction of the attributes that a glob names."""
        return cls(Glob(attribute), do, length)


class Rule(NamedTuple):
    """One `[[rule]]`; None: not looked at, or not set.

    Args:
        methods: HTTP methods, upper case; empty: any.
        route: pattern of routes and paths.
        rpc: pattern of `package.Service/Method`.
        operation: pattern of operation ids and endpoint names.
        service, action, mode: what is set; `{operation}` in an action stands for the call's operation.
    """

    methods: frozenset[str]
    route: RoutePattern | None
    rpc: Glob | None
    operation: Glob | None
    service: str | None
    action: str | None
    mode: Mode | None


class _Subject(NamedTuple):
    """What of a call is compared with rules."""

    method: str
    route: str
    paths: tuple[str, ...]
    rpc: str


class _Decision(NamedTuple):
    names: Mapping[str, str]
    mode: Mode | None


_NOTHING: Final = _Decision({}, None)
_Key = tuple[Any, ...]


class Rules:
    """All rules of a file; safe from any thread: the caches are only ever added to or emptied.

    Args:
        rules: in their order.
        redactions: in their order; `redact.Redactor` applies them.
    """

    def __init__(self, rules: tuple[Rule, ...] = (), redactions: tuple[Redaction, ...] = ()) -> None:
        self.rules = rules
        self.redactions = redactions
        self.empty = not rules and not redactions
        """Whether there is nothing to do at all."""
        self.has_names = any(r.service is not None or r.action is not None for r in rules)
        """Whether any rule sets a service or an action; if not, `names_for` need not be asked."""
        self.has_modes = any(r.mode is not None for r in rules)
        """Whether any rule sets a mode; if not, `mode_at_start` and `mode_at_end` need not be asked."""
        self._decided: dict[_Key, _Decision] = {}

    @classmethod
    def none(cls) -> "Rules":
        """No rules."""
        return cls()

    @classmethod
    def load(cls, path: str | Path) -> "Rules":
        """The rules in a file: TOML, JSON, or YAML if PyYAML is installed; the ending of its name says which.

        Raises:
            ConfigError: the file cannot be read, or says something that cannot be meant.
        """
        document = _document(Path(path))
        _known(document, _PARTS, str(path))
        rules = tuple(_rule(entry, where) for entry, where in _entries(document, "rule", path))
        redactions = tuple(_redaction(entry, where) for entry, where in _entries(document, "redact", path))
        return cls(rules, redactions)

    def names_for(self, attributes: Mapping[str, Any], operation: str | None = None) -> Mapping[str, str]:
        """The service and action that a call is to be given, as attributes; those that `attributes` holds stay.

        Args:
            attributes: the span's, at its end, with what the application annotated.
            operation: what the framework calls the handler.
        """
        if not self.has_names:
            return _NOTHING.names
        found = self._decide(attributes, operation).names
        if found and (names.ACTION in attributes or names.SERVICE in attributes):
            return {k: v for k, v in found.items() if k not in attributes}
        return found

    def mode_at_start(self, attributes: Mapping[str, Any]) -> Mode | None:
        """The mode of a call that begins; None when no rule says. Rules with an operation are not known yet."""
        return self._decide(attributes, None).mode if self.has_modes else None

    def mode_at_end(self, attributes: Mapping[str, Any], operation: str | None = None) -> Mode | None:
        """The mode of a call that ended; None when no rule says."""
        return self._decide(attributes, operation).mode if self.has_modes else None

    def _decide(self, attributes: Mapping[str, Any], operation: str | None) -> _Decision:
        get = attributes.get
        route = get("http.route")
        # Everything that `_subject` looks at, unread: one look into the cache for a call that is known.
        key: _Key
        if route:
            key = (operation, get("http.method"), get("http.request.method"), route)
        else:
            key = (operation, *map(get, _LOOKED_AT))
        try:
            found = self._decided.get(key)
        except TypeError:  # a value that is no text
            return _NOTHING
        if found is None:
            found = self._work_out(_subject(attributes), operation)
            if sum(len(part) for part in key if isinstance(part, str)) <= _CACHED_CHARS_MAX:
                if len(self._decided) >= _CACHE_MAX:
                    self._decided.clear()
                self._decided[key] = found
        return found

    def _work_out(self, subject: _Subject, operation: str | None) -> _Decision:
        named: dict[str, str] = {}
        mode: Mode | None = None
        for rule in self.rules:
            if not _matches(rule, subject, operation):
                continue
            if rule.service is not None:
                named.setdefault(names.SERVICE, rule.service)
            if rule.action is not None and (operation or _OPERATION not in rule.action):
                named.setdefault(names.ACTION, rule.action.replace(_OPERATION, operation or ""))
            mode = mode or rule.mode
        return _Decision(named, mode)


# --- a call -----------------------------------------------------------------------------------------------------------------
_LOOKED_AT: Final = (
    *names.HTTP_METHOD,
    *names.URL_PATH,
    *names.HTTP_TARGET,
    *names.HTTP_URL,
    *names.RPC_SERVICE,
    *names.RPC_METHOD,
)


def _first(attributes: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    for key in keys:
        value = attributes.get(key)
        if value and isinstance(value, str):
            return value
    return ""


def _subject(attributes: Mapping[str, Any]) -> _Subject:
    route = _first(attributes, names.HTTP_ROUTE)
    service, method = _first(attributes, names.RPC_SERVICE), _first(attributes, names.RPC_METHOD)
    rpc = method.lstrip("/") if "/" in method or not service else f"{service}/{method}"
    return _Subject(
        _first(attributes, names.HTTP_METHOD).upper(),
        route,
        () if route or rpc else _paths(attributes),
        rpc,
    )


def _paths(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """The path as it is and with its escapes decoded: frameworks route by the latter, and not all attributes are."""
    path = _first(attributes, names.URL_PATH)
    if not path:
        target = _first(attributes, names.HTTP_TARGET)
        if target and not target.startswith("/"):
            target = _path_of(target)
        path = target.partition("?")[0] or _path_of(_first(attributes, names.HTTP_URL))
    if "%" in path:
        return path, unquote(path)
    return (path,) if path else ()


def _path_of(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _matches(rule: Rule, subject: _Subject, operation: str | None) -> bool:
    if rule.methods and subject.method not in rule.methods:
        return False
    if rule.operation is not None and (operation is None or not rule.operation.matches(operation)):
        return False
    if rule.rpc is not None:
        return bool(subject.rpc) and rule.rpc.matches(subject.rpc)
    if rule.route is None:
        return True
    if subject.route:
        return rule.route.matches_route(subject.route)
    return any(map(rule.route.matches_path, subject.paths))


# --- the file ---------------------------------------------------------------------------------------------------------------
def _document(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as e:
        raise ConfigError(_READ, path, str(e), f"{names.ENV_RULES} must name a file that can be read") from e
    if len(raw) > _FILE_BYTES_MAX:
        raise ConfigError(_READ, path, f"over {_FILE_BYTES_MAX} bytes", "this cannot be a file of rules")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(_READ, path, "not UTF-8", "save it as UTF-8") from e
    found = _parsed(text, path)
    if found is None:
        return {}  # an empty YAML file
    if not isinstance(found, Mapping):
        raise ConfigError(_READ, path, "not a table with `rule` and `redact`", _MORE)
    return found


def _parsed(text: str, path: Path) -> object:
    ending = path.suffix.lower()
    try:
        if ending == ".json":
            return json.loads(text)
        if ending in (".yaml", ".yml"):
            return _yaml(text, path)
        import tomllib

        return tomllib.loads(text)
    except ConfigError:
        raise
    except RecursionError as e:
        raise ConfigError(_READ, path, "nested too deeply", _MORE) from e
    except Exception as e:  # each parser has an error of its own
        reason = " ".join(str(e).split())[:300]
        raise ConfigError(_READ, path, reason, "the ending says the format: .toml, .json, .yaml or .yml") from e


def _yaml(text: str, path: Path) -> object:
    try:
        import yaml
    except ImportError as e:
        hint = "install pyyaml, or write the rules as TOML or JSON"
        raise ConfigError(_READ, path, "YAML needs PyYAML, which is not installed", hint) from e
    return yaml.safe_load(text)


def _entries(document: Mapping[str, Any], part: str, path: str | Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    entries = document.get(part)
    if entries is None:
        return
    if not isinstance(entries, list) or len(entries) > _RULES_MAX:
        raise ConfigError(_READ, f"{path} [{part}]", "not a list of at most 1000", f"write [[{part}]]; {_MORE}")
    for number, entry in enumerate(entries, 1):
        where = f"{path} [{part} {number}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(_READ, where, "not a table", _MORE)
        yield entry, where


def _nearest(word: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, known, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"


def _known(entry: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in entry:
        if key not in known:
            raise ConfigError(_READ, where, f"unknown key {str(key)[:60]!r}", _nearest(str(key), known))


def _text(entry: Mapping[str, Any], key: str, where: str) -> str | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or len(value) > _TEXT_CHARS_MAX:
        reason = f"{key} is not a text of 1 to {_TEXT_CHARS_MAX} characters"
        raise ConfigError(_READ, where, reason, "put it in quotes, or leave it out")
    return value.strip()


def _checked(value: str, key: str, choices: tuple[str, ...], where: str) -> str:
    if value not in choices:
        raise ConfigError(_READ, where, f"no such {key}: {value[:60]!r}", _nearest(value, choices))
    return value


def _choice(entry: Mapping[str, Any], key: str, choices: tuple[str, ...], where: str) -> str | None:
    value = _text(entry, key, where)
    return None if value is None else _checked(value, key, choices, where)


def _methods(entry: Mapping[str, Any], where: str) -> frozenset[str]:
    value = entry.get("method")
    if isinstance(value, list) and value and all(isinstance(m, str) for m in value):
        given = value
    else:
        text = _text(entry, "method", where)
        given = [] if text is None or text == "*" else [text]
    return frozenset(_checked(m.strip().upper(), "method", _METHODS, where) for m in given)


def _route(entry: Mapping[str, Any], where: str) -> RoutePattern | None:
    text = _text(entry, "route", where)
    if text is not None and "://" in text:
        raise ConfigError(_READ, where, "the route is a URL", "leave out scheme and host, such as /contacts/{id}")
    return None if text is None else RoutePattern(text)


def _rpc(entry: Mapping[str, Any], where: str) -> Glob | None:
    text = _text(entry, "rpc", where)
    if text is None:
        return None
    if "/" not in text.lstrip("/") and "*" not in text:
        raise ConfigError(_READ, where, "the rpc names no method", f"write {text.strip('/')}/* for all of a service")
    return Glob(text.lstrip("/"))


def _action(entry: Mapping[str, Any], where: str) -> str | None:
    text = _text(entry, "action", where)
    unknown = [] if text is None else [part for part in _BRACES.findall(text) if part != _OPERATION]
    if unknown:
        raise ConfigError(
            _READ, where, f"no such placeholder in an action: {unknown[0]}", f"there is {_OPERATION} only"
        )
    return text


def _rule(entry: Mapping[str, Any], where: str) -> Rule:
    _known(entry, _MATCHED + _SET, where)
    operation = _text(entry, "operation", where)
    found = _choice(entry, "mode", MODES, where)
    rule = Rule(
        methods=_methods(entry, where),
        route=_route(entry, where),
        rpc=_rpc(entry, where),
        operation=None if operation is None else Glob(operation),
        service=_text(entry, "service", where),
        action=_action(entry, where),
        mode=next((m for m in MODES if m == found), None),
    )
    if rule.rpc is not None and (rule.route is not None or rule.methods):
        what = "a route" if rule.route is not None else "a method"
        raise ConfigError(_READ, where, f"has both {what} and an rpc", "make two rules")
    if not (rule.methods or rule.route or rule.rpc or rule.operation):
        raise ConfigError(_READ, where, "matches nothing in particular", 'name a route, an rpc or an operation, or "*"')
    if rule.service is None and rule.action is None and rule.mode is None:
        raise ConfigError(_READ, where, "sets nothing", "set service, action or mode")
    if operation is not None and rule.mode == "fail-closed":
        hint = "name the route or the rpc instead"
        raise ConfigError(_READ, where, "the operation is known only after the call, too late for fail-closed", hint)
    return rule


def _redaction(entry: Mapping[str, Any], where: str) -> Redaction:
    _known(entry, _REDACT, where)
    attribute = _text(entry, "attribute", where)
    do = _choice(entry, "do", get_args(Do), where)
    length = entry.get("length", 0)
    if attribute is None or do is None:
        raise ConfigError(_READ, where, "needs attribute and do", 'for example attribute = "audit.note", do = "drop"')
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= _LENGTH_MAX:
        raise ConfigError(
            _READ, where, f"length is not a number from 0 to {_LENGTH_MAX}", "give the characters to keep"
        )
    if do != "truncate" and "length" in entry:
        raise ConfigError(_READ, where, f"{do} takes no length", "leave it out, or did you mean truncate?")
    if do == "truncate" and "length" not in entry:
        raise ConfigError(_READ, where, "truncate needs a length", "give the characters to keep, such as length = 8")
    return Redaction.of(attribute, cast("Do", do), length)
