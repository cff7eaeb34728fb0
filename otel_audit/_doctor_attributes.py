"""Which attributes a record is made of, and what a list of keys or a pattern does to them."""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Final

from otel_audit import names

__all__ = [
    "PATH_KEYS",
    "RESOURCE_KEYS",
    "SPAN_KEYS",
    "is_identity",
    "is_path",
    "masks_identity",
    "matching",
    "some",
    "spares_path",
]

_AUDIT: Final = tuple(
    value
    for name, value in vars(names).items()
    if isinstance(value, str) and value.startswith("audit.") and name.isupper()
)
PATH_KEYS: Final = frozenset(names.URL_PATH + names.HTTP_TARGET + names.HTTP_URL)
"""A record's target comes from one of these, where there is no `audit.target.id`; they may hold what must be masked."""
SPAN_KEYS: Final = tuple(
    key
    for key in (
        *(a for a in _AUDIT if a != names.AUDIT_PREFIX),
        *names.CLIENT_ADDRESS,
        *names.PEER_ADDRESS,
        *names.USER_ID,
        *names.HTTP_METHOD,
        *names.HTTP_ROUTE,
        *names.HTTP_STATUS,
        *names.RPC_SYSTEM,
        *names.RPC_SERVICE,
        *names.RPC_METHOD,
        *names.RPC_STATUS,
    )
)
"""Attributes of spans that a record's columns come from."""
RESOURCE_KEYS: Final = (
    names.SERVICE_NAME,
    names.SERVICE_VERSION,
    names.SERVICE_INSTANCE,
    *names.ENVIRONMENT,
    names.HOST_NAME,
)
"""Attributes of resources that a record's columns come from."""

_VALUES: Final = (
    "acme", "sync-01", "plugin-0042", "Nightly sync", "crm-2026", "1234567", "9f3a66c1-07be-4d90-812a-5e2f9a01c0de",
    "192.0.2.10", "2001:db8::1", "jane.doe@example.com", "+4917012345678", "GET", "/contacts/{id}", "pkg.Service/Method",
)  # fmt: skip
"""Values as columns of identity hold them, to try patterns that mask values on."""
_BEHIND_PATH: Final = re.compile(r"(?:\(\?i\))?(?:\[[?#&\\]+\]|\\\?|#|\(\?:?\\\?)")
_USER_INFO: Final = re.compile(r"\^.*://.*@\)?\Z")


def is_identity(key: str, *, resource: bool = False) -> bool:
    """Whether a record says something else when this attribute changes."""
    if resource:
        return key in RESOURCE_KEYS or key.startswith(names.AUDIT_PREFIX)
    return key in SPAN_KEYS or key.startswith(names.AUDIT_PREFIX)


def is_path(key: str) -> bool:
    """Whether it is one that a record's target comes from."""
    return key in PATH_KEYS


def matching(pattern: str, keys: Iterable[str]) -> list[str]:
    """The keys that a regular expression (RE2, searched for) matches; all of them where Python cannot read it."""
    try:
        compiled: Callable[[str], object] = re.compile(pattern).search
    except re.error:
        return list(keys)
    return [key for key in keys if compiled(key)]


def masks_identity(pattern: str) -> bool:
    """Whether a pattern for values also matches what ids, names and addresses look like."""
    return bool(matching(pattern, _VALUES))


def spares_path(pattern: str) -> bool:
    """Whether a pattern can only match the query and fragment of an address, or its user and password, never its path."""
    return bool(_BEHIND_PATH.match(pattern) or _USER_INFO.match(pattern))


def some(keys: Collection[str]) -> str:
    """A few of them, for a message."""
    first = list(keys)[:3]
    more = len(keys) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
