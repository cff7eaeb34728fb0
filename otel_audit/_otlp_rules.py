"""What a call was: action, method, path, address, status and exclusion, from the values of a span's attributes.

Plain functions of text and numbers; nothing here knows protobuf or Arrow.
"""

import ipaddress
import itertools
import re
from collections.abc import Sequence
from fnmatch import translate
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from otel_audit.record import OUTCOMES, Outcome, outcome_of

__all__ = [
    "RPC_CODES",
    "Call",
    "Calls",
    "Exclusion",
    "Said",
    "address",
    "call_of",
    "path_of_target",
    "path_of_url",
    "rpc_status",
]

# --- paths and addresses ------------------------------------------------------------------------------------------------
_PATH_END: Final = re.compile(r"[?#]")
_PORT: Final = re.compile(r":\d{1,5}\Z")
_GRPC_SCHEME: Final = re.compile(r"ipv[46]:", re.IGNORECASE)


def path_of_target(target: str) -> str:
    """The path of an HTTP request target, without query: of `/a?b`, of `http://h/a`, and `*` as it is."""
    if "://" in target and not target.startswith("/"):
        return path_of_url(target)
    return _PATH_END.split(target, maxsplit=1)[0]


def path_of_url(url: str) -> str:
    """The path of a URL, without query and fragment; `/` when it has a host and no path."""
    rest = _PATH_END.split(url, maxsplit=1)[0]
    _, scheme, after = rest.partition("://")
    if not scheme:
        return rest
    host, slash, path = after.partition("/")
    return slash + path if slash or not host else "/"


def address(text: str) -> str:
    """An IP address in its usual short form, without port, brackets or gRPC's `ipv6:`; other text as it is.

    An IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`), as sockets that serve both report it, becomes the IPv4 one.
    """
    bare = text.strip()
    if _GRPC_SCHEME.match(bare):
        bare = unquote(bare[5:])
    if bare.startswith("[") and "]" in bare:
        bare = bare[1 : bare.index("]")]
    elif bare.count(":") == 1:
        bare = _PORT.sub("", bare)
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        return bare
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ip)


# --- status -------------------------------------------------------------------------------------------------------------
RPC_CODES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_RPC_STATUS: Final = {name: code for code, name in enumerate(RPC_CODES)} | {"CANCELED": 1}


def rpc_status(text: str) -> int | None:
    """The number of a gRPC status name, in upper or lower case (Connect); None when it is not one.

    Source: OpenTelemetry semantic conventions for RPC, `rpc.response.status_code`; gRPC status codes.
    """
    return _RPC_STATUS.get(text.strip().upper())


# --- action of an HTTP call ---------------------------------------------------------------------------------------------
_METHOD_ACTIONS: Final = {
    "POST": "create",
    "PUT": "update",
    "PATCH": "update",
    "DELETE": "delete",
    "HEAD": "read",
    "OPTIONS": "options",
    "TRACE": "trace",
    "CONNECT": "connect",
    "QUERY": "search",
}
_VERBS: Final = frozenset({
    "accept", "activate", "approve", "archive", "assign", "block", "cancel", "clone", "close", "complete",
    "confirm", "convert", "copy", "deactivate", "decline", "disable", "download", "duplicate", "enable", "execute",
    "export", "find", "grant", "import", "invite", "lock", "login", "logout", "lookup", "merge", "move", "preview",
    "print", "publish", "purge", "query", "refresh", "register", "reject", "rename", "reopen", "resend", "reset",
    "restore", "resume", "revoke", "rotate", "run", "search", "send", "share", "start", "stop", "submit",
    "subscribe", "suspend", "sync", "transfer", "unarchive", "unassign", "unblock", "undelete", "unlock",
    "unpublish", "unshare", "unsubscribe", "upload", "validate", "verify",
})  # fmt: skip
_VERB_ALIASES: Final = {
    "sign-in": "login", "sign_in": "login", "signin": "login", "log-in": "login",
    "sign-out": "logout", "sign_out": "logout", "signout": "logout", "log-out": "logout",
}  # fmt: skip
_VERBS_BEFORE_ID: Final = frozenset({"download", "export", "login", "logout", "search"})
"""Verbs that a GET may carry before a parameter (`/export/{format}`); `/archive/{id}` is more likely a thing's name."""
_VERB_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "QUERY"})
"""A verb in the path never hides that something was deleted."""
_ONE_THING: Final = frozenset({"me", "self", "whoami", "profile", "current"})

_LITERAL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.~-]*\Z")
_FILE: Final = re.compile(r".+\.[A-Za-z][A-Za-z0-9]{0,4}\Z")
_CUSTOM_METHOD: Final = re.compile(r"(?P<resource>.+):(?P<verb>[A-Za-z_-]+)\Z")
_RAILS_FORMAT: Final = re.compile(r"\(\.:format\)\Z")
_ID: Final = re.compile(
    r"""
      \d+                                                          # 42
    | [0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}                  # UUID
    | (?=[a-f]*\d)[0-9a-f]{12,}                                    # a hash, an object id
    | (?=[a-z]*\d)[0-7][0-9a-hjkmnp-tv-z]{25}                      # ULID
    | [a-z]{1,8}[_-](?=[a-z_-]*\d)[0-9a-z]{4,}                     # cus_9s6XKzkNRiz8
    | (?=[a-z_-]*\d)[0-9a-z_-]{20,}                                # other long mixtures of letters and digits
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)


def _is_item(segment: str, *, templated: bool) -> bool:
    """Whether a segment stands for one thing: a parameter of a route; in a bare path, something that looks like an id."""
    if templated:
        return not _LITERAL.match(segment)
    return bool(_ID.fullmatch(segment)) or not _LITERAL.match(segment)


def _segments(path: str) -> list[str]:
    stripped = _RAILS_FORMAT.sub("", path).removeprefix("^").removesuffix("$").removesuffix(r"\Z")
    return [s for s in stripped.split("/") if s]


def _verb(segments: Sequence[str], method: str, *, templated: bool) -> str | None:
    """The verb that a path ends in, if it does: `/x/search`, `/x/{id}/merge`, `/x/{id}:archive`, `/export/{format}`."""
    if method not in _VERB_METHODS:
        return None
    last = segments[-1].lower()
    if custom := _CUSTOM_METHOD.fullmatch(last):
        last = custom["verb"]
    last = _VERB_ALIASES.get(last, last)
    if last in _VERBS:
        return last
    if len(segments) > 1 and _is_item(segments[-1], templated=templated):
        before = segments[-2].lower()
        before = _VERB_ALIASES.get(before, before)
        if before in (_VERBS if method != "GET" else _VERBS_BEFORE_ID):
            return before
    return None


def http_action(method: str, path: str | None, *, templated: bool) -> str:
    """The action of an HTTP call: a verb that the path ends in, else by method, with GET told apart into read and list.

    Args:
        method: request method; any that HTTP does not define gives `other`.
        path: route (`/contacts/{id}`, in any framework's way of writing a parameter) or bare path; None if unknown.
        templated: whether `path` is a route.
    """
    method = method.upper()
    known = method == "GET" or method in _METHOD_ACTIONS
    segments = _segments(path) if path else []
    if known and segments and (verb := _verb(segments, method, templated=templated)):
        return verb
    if method != "GET":
        return _METHOD_ACTIONS.get(method, "other")
    if not segments:
        return "read"
    last = segments[-1]
    one = _is_item(last, templated=templated) or last.lower() in _ONE_THING or _FILE.match(last)
    return "read" if one else "list"


# --- the whole call -----------------------------------------------------------------------------------------------------
class Said(NamedTuple):
    """What a span says of the call, as far as few distinct values exist, so that what follows from it is remembered."""

    method: str | None = None
    method_old: str | None = None
    route: str | None = None
    status: int | None = None
    status_old: int | None = None
    rpc_system: str | None = None
    rpc_service: str | None = None
    rpc_method: str | None = None
    rpc_status: int | None = None
    rpc_status_old: int | None = None
    action: str | None = None
    outcome: Outcome | None = None
    span_status: int | None = None
    exception: bool | None = None


_ANY_ROUTES: Final = frozenset({"*", "/*", "/**"})
"""Routes that take whatever comes, as that of a servlet for calls it refuses or does not know: the path says more."""


class Call(NamedTuple):
    """What follows from `Said`.

    Args:
        action: None when it depends on the path (`by_path`) or is the span's name.
        outcome, status_code, method, route: the columns.
        by_path: the action comes from `method` and path.
        exclusion: EXCLUDED, or BY_PATH when the path decides, or KEPT.
    """

    action: str | None
    outcome: Outcome
    status_code: int | None
    method: str | None
    route: str | None
    by_path: bool
    exclusion: int


KEPT: Final = 0
BY_PATH: Final = 1
EXCLUDED: Final = 2


class Exclusion:
    """The `exclude_routes` setting.

    A pattern without wildcards names a route, a path or an rpc method. One with wildcards is matched against the route
    or rpc method; against the path only where there is no route, and never when the path holds dot segments, escapes or
    empty segments, with which a caller could dress up any call as a health check.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.exact = frozenset(p for p in patterns if not any(c in p for c in "*?["))
        globs = [translate(p) for p in patterns if p not in self.exact]
        self.glob = re.compile("|".join(globs)) if globs else None
        self.any = bool(patterns)

    def of_name(self, name: str | None) -> bool:
        """Whether a route or rpc method is excluded."""
        return name is not None and (name in self.exact or bool(self.glob and self.glob.match(name)))

    def of_path(self, path: str | None, route: str | None) -> bool:
        """Whether a path is excluded."""
        if path is None:
            return False
        if path in self.exact:
            return True
        return route is None and self.glob is not None and bool(self.glob.match(path)) and not _DRESSED_UP.search(path)


_DRESSED_UP: Final = re.compile(r"%|//|\\|;|(?:\A|/)\.\.?(?:/|\Z)")


def _rpc_name(said: Said) -> str | None:
    """`pkg.Service/Method`; new conventions have it whole in `rpc.method`, old ones in two attributes."""
    method = (said.rpc_method or "").lstrip("/")
    if "/" in method or not said.rpc_service:
        return method or said.rpc_service
    return f"{said.rpc_service}/{method}" if method else said.rpc_service


def call_of(said: Said, exclusion: Exclusion) -> Call:
    """The columns that follow from what a span says."""
    http_method = said.method if said.method is not None else said.method_old
    rpc = said.rpc_method is not None or (said.rpc_system is not None and http_method is None)
    http_status = said.status if said.status is not None else said.status_old
    code = said.rpc_status if said.rpc_status is not None else said.rpc_status_old
    is_rpc_code = rpc and code is not None
    status = code if is_rpc_code else http_status
    method = _rpc_name(said) if rpc else http_method
    by_path = False
    action = said.action
    if action is None and rpc:
        action = method.rpartition("/")[2] if method else None
    elif action is None and http_method is not None:
        by_path = said.route is None or said.route in _ANY_ROUTES
        action = None if by_path else http_action(http_method, said.route, templated=True)
    outcome = outcome_of(
        status_code=status,
        rpc=is_rpc_code,
        span_error=said.span_status == 2,
        span_ok=said.span_status == 1,
        exception=bool(said.exception),
    )
    excluded = KEPT
    if exclusion.any and said.action is None:
        excluded = EXCLUDED if exclusion.of_name(said.route) or (rpc and exclusion.of_name(method)) else BY_PATH
    return Call(action, said.outcome or outcome, status, method, said.route, by_path, excluded)


def outcome(text: str) -> Outcome | None:
    """`text` as an outcome; None when it is not in the vocabulary."""
    return text if text in OUTCOMES else None


# --- calls, remembered ------------------------------------------------------------------------------------------------
class Calls:
    """The `Call` of each combination of values in `Said`, each with a number.

    Safe for any thread without a lock: a dictionary's own operations are atomic, entries never change, and two threads
    that work out the same call store equal ones. Bounded: when `full` it remembers nothing more, and its owner starts a
    fresh one for the next request.
    """

    ENTRIES_MAX = 16_384

    def __init__(self, exclusion: Exclusion) -> None:
        self.exclusion = exclusion
        self._numbers = itertools.count()
        self._calls: dict[int, Call] = {}
        self._of_shape: dict[tuple[str, ...], CallNumbers] = {}
        self.full = False

    def of_shape(self, fields: tuple[str, ...]) -> "CallNumbers":
        """The numbers of calls by the values of these fields of `Said`; all other fields are as by default."""
        found = self._of_shape.get(fields)
        return found if found is not None else self._of_shape.setdefault(fields, CallNumbers(self, fields))

    def add(self, said: Said) -> int:
        """Work out a call; its number."""
        number = next(self._numbers)
        self._calls[number] = call_of(said, self.exclusion)
        self.full = number >= self.ENTRIES_MAX
        return number

    def __getitem__(self, number: int) -> Call:
        return self._calls[number]


class CallNumbers(dict[tuple[Any, ...], int]):
    """Numbers of calls by the values of some fields of `Said`; a look-up never fails."""

    __slots__ = ("_calls", "_fields")

    TEXT_MAX = 1024
    """Longest text, of all values together, that is remembered."""

    def __init__(self, calls: Calls, fields: tuple[str, ...]) -> None:
        super().__init__()
        self._calls, self._fields = calls, fields

    def __missing__(self, key: tuple[Any, ...]) -> int:
        number = self._calls.add(Said(**dict(zip(self._fields, key, strict=True))))
        if not self._calls.full and sum(len(v) for v in key if isinstance(v, str)) <= self.TEXT_MAX:
            self[key] = number
        return number
