"""What to look for, checked, and as parametrised SQL: a value never becomes part of the query's text."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from otel_audit import record
from otel_audit.errors import RecordError, UsageError
from otel_audit.names import ACTION_OWN_PREFIX

__all__ = ["IP6_MACRO", "TEXT_FILTERS", "Clause", "Filters"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

TEXT_FILTERS: Final = {
    "client": "client_id",
    "service": "service",
    "action": "action",
    "outcome": "outcome",
    "user": "user_id",
    "target": "target",
    "route": "route",
    "method": "method",
}
"""Filter name to the column it compares, for the filters that compare text exactly."""

IP6_MACRO: Final = """
CREATE OR REPLACE MACRO ip6_hex(address) AS (
  SELECT array_to_string(list_transform(
    list_concat(head, list_resize([]::VARCHAR[], greatest(0, 8 - len(head) - len(tail)), '0'), tail),
    lambda g: lpad(g, 4, '0')), '')
  FROM (SELECT
    list_filter(string_split(split_part(address, '::', 1), ':'), lambda g: g <> '') AS head,
    list_filter(string_split(split_part(address, '::', 2), ':'), lambda g: g <> '') AS tail))
"""
"""The 32 hex digits of an IPv6 address in any of its short forms, so that a network is a range of text."""

_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IP4: Final = rf"{_OCTET}(\.{_OCTET}){{3}}"
_G: Final = "[0-9a-f]{1,4}"
_IP6: Final = "|".join(
    [
        f"{_G}(:{_G}){{7}}",
        f"::({_G}(:{_G}){{0,6}})?",
        *(f"{_G}(:{_G}){{{n}}}::({_G}(:{_G}){{0,{5 - n}}})?" for n in range(6)),
        f"{_G}(:{_G}){{6}}::",
    ]
)
"""Eight groups, or fewer around one `::` (RFC 4291, section 2.2)."""
_MAPPED: Final = "::ffff:"
_TRACE: Final = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class Clause:
    """A SQL condition and the values of its `?`, in order."""

    sql: str
    params: tuple[Any, ...] = ()

    @staticmethod
    def all_of(clauses: "Sequence[Clause]") -> "Clause":
        """True where every clause is; with none, true everywhere."""
        return Clause._join(" AND ", clauses) if clauses else Clause("true")

    @staticmethod
    def any_of(clauses: "Sequence[Clause]") -> "Clause":
        """True where one of the clauses is."""
        return Clause._join(" OR ", clauses)

    @staticmethod
    def _join(word: str, clauses: "Sequence[Clause]") -> "Clause":
        sql = "(" + word.join(c.sql for c in clauses) + ")"
        return Clause(sql, tuple(p for c in clauses for p in c.params))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which records are wanted: values of one filter are alternatives, filters together narrow.

    Text is compared exactly. An empty text stands for "none": `client=("",)` finds calls that named no client.

    Args:
        since_us: earliest Execution Time, included; microseconds since 1970 UTC.
        until_us: end of Execution Time, excluded.
        client: API Client IDs. service, action, outcome, user, target, route, method: likewise.
        ip: client addresses or networks (CIDR), IPv4 or IPv6.
        trace: trace ids, 32 hex digits.
        min_duration_ns: calls that took at least this long.
        calls: only calls, without the records that sources make about themselves (`otel_audit.start` and so on).

    Raises:
        UsageError: a filter that cannot be meant, saying what to write instead.
    """

    since_us: int | None = None
    until_us: int | None = None
    client: tuple[str, ...] = ()
    service: tuple[str, ...] = ()
    action: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    route: tuple[str, ...] = ()
    method: tuple[str, ...] = ()
    ip: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    min_duration_ns: int | None = None
    calls: bool = False
    _networks: tuple[Network, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        for name in (*TEXT_FILTERS, "ip", "trace"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for outcome in self.outcome:
            if outcome not in record.OUTCOMES:
                raise UsageError("filter by", "outcome", f"{outcome!r} is none", f"use {', '.join(record.OUTCOMES)}")
        object.__setattr__(self, "trace", tuple(_trace(t) for t in self.trace))
        object.__setattr__(self, "_networks", tuple(_network(i) for i in self.ip))
        self._check_range()

    def _check_range(self) -> None:
        since, until = self.since_us, self.until_us
        for moment in (since, until):
            if moment is not None:
                _checked_time(moment)
        if since is not None and until is not None and since >= until:
            texts = f"{record.format_time(since)} is not before {record.format_time(until)}"
            raise UsageError("filter by", "time", texts, "give a since that is earlier than until")
        if self.min_duration_ns is not None and not 0 <= self.min_duration_ns < 2**63:
            raise UsageError("filter by", "duration", f"{self.min_duration_ns} ns is none", "give 0 or more")

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the filters that are set, but for `calls`."""
        unset: tuple[object, ...] = ((), None)
        names = (f.name for f in fields(self) if f.name[0] != "_" and f.name != "calls")
        return tuple(name for name in names if getattr(self, name) not in unset)

    def clause(self) -> Clause:
        """The filters as one SQL condition on the columns of the record."""
        clauses = []
        if self.since_us is not None:
            clauses.append(Clause("time >= make_timestamptz(?)", (self.since_us,)))
        if self.until_us is not None:
            clauses.append(Clause("time < make_timestamptz(?)", (self.until_us,)))
        if self.min_duration_ns is not None:
            clauses.append(Clause("duration_ns >= ?", (self.min_duration_ns,)))
        clauses += [_text_clause(col, getattr(self, name)) for name, col in TEXT_FILTERS.items() if getattr(self, name)]
        if self.calls or "" in self.client:
            clauses.append(Clause("NOT starts_with(action, ?)", (ACTION_OWN_PREFIX,)))
        if self.trace:
            clauses.append(_one_of("trace_id", tuple(bytes.fromhex(t) for t in self.trace)))
        if self._networks:
            clauses.append(Clause.any_of([_network_clause(n) for n in self._networks]))
        return Clause.all_of(clauses)

    def overlaps(self, time_min_us: int, time_max_us: int) -> bool:
        """Whether records between these times, both included, can match."""
        return (self.since_us is None or time_max_us >= self.since_us) and (
            self.until_us is None or time_min_us < self.until_us
        )


def _checked_time(us: int) -> None:
    try:
        record.format_time(us)
    except RecordError as e:
        raise UsageError("filter by", "time", e.reason, "give a time between the years 1 and 9999") from e


def _texts(name: str, values: object) -> tuple[str, ...]:
    """`values` as a tuple of text without repeats; a lone string is the usual slip and would match its letters."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UsageError("filter by", name, "needs a list of texts", f"write {name}=[...]")
    for value in values:
        if not isinstance(value, str):
            raise UsageError("filter by", name, f"needs text, not {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise UsageError("filter by", name, "the value is not valid UTF-8", "no record holds such text") from e
    return tuple(dict.fromkeys(values))


def _trace(text: str) -> str:
    lower = text.lower()
    if not _TRACE.match(lower):
        raise UsageError("filter by", "trace", f"{text!r} is no trace id", "give its 32 hex digits")
    return lower


def _network(text: str) -> Network:
    address, slash, length = text.strip().partition("/")
    try:
        ip = ipaddress.ip_address(address.split("%")[0])
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) and not slash else None
        return ipaddress.ip_network(f"{mapped or ip}{slash}{length}", strict=False)
    except ValueError as e:
        hint = "give an address or a network, such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
        raise UsageError("filter by", "ip", f"{text!r} is neither", hint) from e


# --- conditions -----------------------------------------------------------------------------------------------------------
def _one_of(column: str, values: tuple[Any, ...]) -> Clause:
    if len(values) == 1:
        return Clause(f"{column} = ?", values)
    return Clause(f"{column} IN ({', '.join('?' * len(values))})", values)


def _text_clause(column: str, values: tuple[str, ...]) -> Clause:
    named = tuple(v for v in values if v)
    clauses = [_one_of(column, named)] if named else []
    if "" in values:
        clauses.append(Clause(f"({column} IS NULL OR {column} = '')"))
    return Clause.any_of(clauses)


def _network_clause(network: Network) -> Clause:
    """Records whose client address lies in `network`; text that is no address lies in none."""
    if network.prefixlen == network.max_prefixlen:
        address = str(network.network_address)
        return _one_of("client_ip", (address, _MAPPED + address) if network.version == 4 else (address,))
    if isinstance(network, ipaddress.IPv4Network):
        plain = _ip4_clause("client_ip", network)
        mapped = _ip4_clause(f"substr(client_ip, {len(_MAPPED) + 1})", network)
        return Clause.any_of([plain, Clause.all_of([Clause("starts_with(client_ip, ?)", (_MAPPED,)), mapped])])
    return _ip6_clause(network)


def _ip4_clause(text: str, network: ipaddress.IPv4Network) -> Clause:
    """Whole octets are a prefix of the text, which is fast; the octet that is cut is compared as a number."""
    whole, rest = divmod(network.prefixlen, 8)
    octets = str(network.network_address).split(".")
    clauses = [Clause(f"regexp_full_match({text}, ?)", (_IP4,))]
    if whole:
        clauses.append(Clause(f"starts_with({text}, ?)", ("".join(o + "." for o in octets[:whole]),)))
    if rest:
        low = int(octets[whole])
        octet = f"TRY_CAST(split_part({text}, '.', {whole + 1}) AS INTEGER)"
        clauses.append(Clause(f"{octet} BETWEEN ? AND ?", (low, low + 2 ** (8 - rest) - 1)))
    return Clause.all_of(clauses)


def _ip6_clause(network: ipaddress.IPv6Network) -> Clause:
    bounds = (network.network_address, network.broadcast_address)
    params = (_IP6, *(f"{int(b):032x}" for b in bounds))
    address = "lower(split_part(client_ip, '%', 1))"
    return Clause(
        f"CASE WHEN contains(client_ip, ':') AND regexp_full_match({address}, ?) "
        f"THEN ip6_hex({address}) BETWEEN ? AND ? ELSE false END",
        params,
    )
