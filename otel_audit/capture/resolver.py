"""The service's own word on who is calling: a callable of the user's, asked once a request.

    def resolve(caller: Caller) -> Mapping[str, str | None] | None:
        tenant = TENANTS.get(caller.headers.get("x-tenant", ""))
        return {"id": tenant.id, "name": tenant.name, "auth": "tenant"} if tenant else None

    resolve.headers = ("x-tenant",)

It runs on the request path, so it is to answer from memory. It can fail no call: what it raises is logged once and the
built-in answer stands; after it took too long it is not asked for a while.
"""

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from otel_audit import names
from otel_audit.capture._watch import load_callable
from otel_audit.errors import ConfigError

__all__ = ["ENTRY_POINT_GROUP", "Caller", "Resolver"]

_log = logging.getLogger("otel_audit.capture")

ENTRY_POINT_GROUP: Final = "otel_audit_resolver"

_SLOW_S: Final = 0.25
_PAUSE_S: Final = 30.0
_KEYS: Final = frozenset({"id", "name", "auth", "user"})


class Caller(NamedTuple):
    """What a resolver is given.

    Args:
        headers: the request's headers that capture reads, and those that the resolver declares in its attribute
            `headers`: name in lower case to value, several of one name joined by commas. Do not keep them.
        certificate: subject of the certificate that the peer proved to own (mTLS), or None.
        client_ip, peer_ip: the client's address as far as it can be believed, and the socket's peer.
        client_id, client_name, client_auth, user_id: the built-in answer.
    """

    headers: Mapping[str, str]
    certificate: str | None
    client_ip: str | None
    peer_ip: str | None
    client_id: str | None
    client_name: str | None
    client_auth: str
    user_id: str | None


class Resolver:
    """Asks the user's callable; safe from any thread, never raises.

    Args:
        function: takes a `Caller` and gives a mapping with any of `id`, `name`, `auth` and `user`, or None to let the
            built-in answer stand. Its attribute `headers`, if it has one, names the headers it wants.
        name: what to call it in messages.
    """

    def __init__(self, function: Callable[[Caller], object], name: str) -> None:
        self._function = function
        self._name = name
        self._complained: set[str] = set()  # each kind of complaint is logged once; a race logs one twice
        self._ask_after_s = 0.0
        wanted: Any = getattr(function, "headers", ())
        if isinstance(wanted, str) or not isinstance(wanted, Iterable):
            self._complain("headers", "its attribute headers is no list of names and is ignored")
            wanted = ()
        self.headers = tuple(str(header).lower() for header in wanted)
        """The headers it wants, lower case."""

    @classmethod
    def load(cls, setting: str | None) -> "Resolver | None":
        """The resolver that the setting names, else the one entry point; None, with a warning if it is a fault."""
        try:
            if setting is not None:
                return cls(load_callable(setting, names.ENV_RESOLVER), setting)
            return cls._installed()
        except ConfigError as e:
            _log.warning("%s; the built-in answer names the clients", e)
        except Exception as e:
            hint = "put it right, or set OTEL_AUDIT_RESOLVER; the built-in answer names the clients"
            _log.warning("load resolver: %s: %s; %s", type(e).__name__, e, hint)
        return None

    @classmethod
    def _installed(cls) -> "Resolver | None":
        from importlib.metadata import entry_points

        found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: str(point.value))
        if not found:
            return None
        if len({point.value for point in found}) > 1:
            all_of_them = ", ".join(point.value for point in found)
            hint = f"set {names.ENV_RESOLVER} to one of them"
            raise ConfigError(
                "load resolver from", f"entry points {ENTRY_POINT_GROUP}", f"several: {all_of_them}", hint
            )
        return cls(found[0].load(), found[0].value)

    def resolve(self, caller: Caller) -> Mapping[str, Any] | None:
        """What the callable answers; None when it has nothing to say, fails, or is not asked."""
        began_s = time.monotonic()
        if began_s < self._ask_after_s:
            return None
        try:
            found = self._function(caller)
            answer = dict(found) if isinstance(found, Mapping) else None
        except Exception as e:
            # Of the application: only its type and place are logged, for its text may hold what it was given.
            self._complain("raises", f"it raised {type(e).__name__} ({_place(e)})")
            found = answer = None
        now_s = time.monotonic()
        if now_s - began_s > _SLOW_S:
            self._ask_after_s = now_s + _PAUSE_S
            self._complain(
                "slow", f"it took {now_s - began_s:.2f} s; each time it is that slow it is not asked for 30 s"
            )
        if found is None:
            return None
        if answer is None:
            if inspect.iscoroutine(found):
                found.close()
            self._complain("answer", f"it gave a {type(found).__name__} and no mapping or None")
            return None
        if not _KEYS.issuperset(answer):
            self._complain("keys", "it gave other keys than id, name, auth and user, which are ignored")
        return answer

    def _complain(self, kind: str, text: str) -> None:
        if kind not in self._complained:
            self._complained.add(kind)
            _log.warning(
                "resolve client with %s: %s; the built-in answer names the clients (logged once)", self._name, text
            )


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "unknown place"
