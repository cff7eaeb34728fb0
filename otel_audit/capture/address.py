"""Who is at the other end of the connection: the client's IP address, with a verdict on how it was learned.

The peer of the socket cannot be forged; a forwarding header can, by anyone. So such a header counts only when the peer is
a trusted proxy, and is read from the right: each trusted proxy vouches for the hop it appended, and the first hop that is
not a trusted proxy is the client. Where several such headers are there, a proxy wrote one of them and the caller perhaps
the others, so they must agree.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple

from otel_audit import names
from otel_audit.capture._cache import Cache
from otel_audit.capture._quoted import from_right, pairs

__all__ = ["FORWARDING_HEADERS", "ClientAddress", "TrustedProxies", "normal"]

PEER: Final = "peer"
FORWARDED: Final = "forwarded"
UNTRUSTED: Final = "untrusted"
UNIX: Final = "unix"
"""Stands for the peer of a Unix domain socket, in the list of trusted proxies."""

_X_FORWARDED_FOR: Final = "x-forwarded-for"
_FORWARDED: Final = "forwarded"
_X_REAL_IP: Final = "x-real-ip"
FORWARDING_HEADERS: Final = (_X_FORWARDED_FOR, _FORWARDED, _X_REAL_IP)
"""The headers that are looked at unless one is named."""

_HEADER_CHARS_MAX: Final = 4096
_HOPS_MAX: Final = 32
_ADDRESS_CHARS_MAX: Final = 64
_CHAIN_CHARS_MAX: Final = 512
_CACHE_MAX: Final = 4096
_CACHED_CHARS_MAX: Final = 256


class ClientAddress(NamedTuple):
    """The verdict.

    Args:
        client_ip: the client's address; None when it cannot be known.
        source: `peer` (the socket's peer), `forwarded` (a trusted proxy's word) or `untrusted` (a forwarding header
            was there, and was ignored from the first hop that nobody trusted vouches for).
        peer_ip: the socket's peer; None for a Unix domain socket or where the server hides it.
    """

    client_ip: str | None
    source: str | None
    peer_ip: str | None


class _Walk(NamedTuple):
    """How far one header was believed.

    Args:
        client_ip: the last address that is vouched for.
        complete: whether the header was believed up to the client.
        passed: the addresses that were believed, nearest first.
    """

    client_ip: str | None
    complete: bool
    passed: tuple[str, ...] = ()


def normal(text: str) -> str | None:
    """`text` as a plain IP address: without port, brackets, zone or IPv4-in-IPv6; None if it is not one."""
    return _normal(text) if len(text) <= _ADDRESS_CHARS_MAX else None


@lru_cache(maxsize=4096)
def _normal(text: str) -> str | None:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    port = ""
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or ":" not in text or (port and port[0] != ":"):
            return None
        port = port and (port[1:] or "none")
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        port = port or "none"
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5) and not port.startswith("_"):
        return None
    try:
        address = ipaddress.ip_address(text.partition("%")[0] if ":" in text else text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def _list_hops(value: str) -> Iterator[str | None]:
    """The addresses of `X-Forwarded-For`, the nearest hop first; None for what is no address."""
    return map(normal, from_right(_bounded(value)))


def _forwarded_hops(value: str) -> Iterator[str | None]:
    """The addresses that the elements of `Forwarded` are `for`, the nearest hop first (RFC 7239, section 4)."""
    for element in from_right(_bounded(value)):
        found = pairs(element)
        nodes = [node for name, node in found or () if name == "for"]
        yield normal(nodes[0]) if len(nodes) == 1 else None


def _bounded(value: str) -> str:
    """The right end of a value that is too long, behind an element that is no address."""
    return value if len(value) <= _HEADER_CHARS_MAX else "…," + value[-_HEADER_CHARS_MAX:].partition(",")[2]


class TrustedProxies:
    """The proxies whose forwarding headers count.

    Args:
        entries: CIDRs, single addresses, or `unix`.
        hops: how many proxies in front append to the header. Beside `entries`: no more hops are believed than that.
            Without them: every peer is taken for a proxy, and the client is the hop with this number from the right.
        header: the one header that the proxies write, lower case; None: those of `FORWARDING_HEADERS`, which must agree.

    `problems` holds a complaint for each entry that was ignored.
    """

    def __init__(self, entries: tuple[str, ...] = (), *, hops: int | None = None, header: str | None = None) -> None:
        self.problems: list[str] = []
        self.headers: tuple[str, ...] = (header,) if header else FORWARDING_HEADERS
        self._names = frozenset(self.headers)
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._unix = False
        self._hops = hops
        self._listed = bool(entries)  # also when none can be read: a misspelt list must not trust everyone
        for entry in entries:
            if entry == UNIX:
                self._unix = True
                continue
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self.problems.append(f"trusted proxy {entry!r} is not a CIDR, an address or 'unix', and is ignored")
        # Bounded, and per instance: the answers depend on the list.
        self._trusts = lru_cache(maxsize=4096)(self._look_up)
        self._said: Cache[tuple[str | None, ...], dict[str, str]] = Cache(_CACHE_MAX)

    def _look_up(self, address: str) -> bool:
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self._networks)

    def trusts(self, address: str | None) -> bool:
        """Whether `address`, in normal form, is in the list of trusted proxies; None is a Unix domain socket."""
        return self._unix if address is None else self._trusts(address)

    def trusts_peer(self, peer: str | None) -> bool:
        """Whether the socket's peer, as the server gives it, is in the list of trusted proxies."""
        if not peer:
            return self._unix
        address = normal(peer)
        return address is not None and self._trusts(address)

    def attributes(self, peer: str | None, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The verdict as span attributes, with the chain; not to be changed by the caller.

        Args:
            peer: as for `verdict`.
            headers: as for `verdict`.
        """
        if self._names.isdisjoint(headers):
            key: tuple[str | None, ...] = (peer,)
            chars = len(peer) if peer else 0
        else:
            key = (peer, *map(headers.get, self.headers))
            chars = sum(len(part) for part in key if part)
        said = self._said.get(key) if chars <= _CACHED_CHARS_MAX else None
        if said is None:
            client_ip, source, peer_ip = self.verdict(peer, headers)
            found = (
                (names.CLIENT_IP, client_ip),
                (names.CLIENT_IP_SOURCE, source),
                (names.PEER_IP, peer_ip),
                (names.CLIENT_IP_CHAIN, self.chain(headers)),
            )
            said = {name: value for name, value in found if value}
            if chars <= _CACHED_CHARS_MAX:
                self._said.put(key, said)
        return said

    def verdict(self, peer: str | None, headers: Mapping[str, str]) -> ClientAddress:
        """The client's address.

        Args:
            peer: the socket's peer as the server gives it; None or empty for a Unix domain socket.
            headers: those of `headers` that the request has: name in lower case to value, several headers of one name
                joined by commas in their order.
        """
        given = [name for name in self.headers if name in headers]
        peer_ip = normal(peer) if peer else None
        if peer and peer_ip is None:  # "testclient" and the like: a name, which nobody can judge
            return ClientAddress(None, UNTRUSTED if given else None, None)
        if not given:
            return ClientAddress(peer_ip, PEER if peer_ip else None, peer_ip)
        if not (self.trusts(peer_ip) if self._listed else self._hops):
            return ClientAddress(peer_ip, UNTRUSTED, peer_ip)
        walks = {name: self._walk(name, headers[name], peer_ip) for name in given}
        found = _agreed(walks, peer_ip)
        return ClientAddress(found.client_ip, FORWARDED if found.complete else UNTRUSTED, peer_ip)

    def chain(self, headers: Mapping[str, str]) -> str | None:
        """The forwarding headers as they came, bounded; of a long one its right end, which the nearest proxies wrote."""
        given = [(name, headers[name]) for name in self.headers if name in headers]
        if not given:
            return None
        bound = _CHAIN_CHARS_MAX // len(given) - (0 if len(given) == 1 else 20)
        parts = []
        for name, value in given:
            text = value if value.isascii() else value.encode("ascii", "backslashreplace").decode()
            text = text if len(text) <= bound else "..." + text[3 - bound :]
            parts.append(text if name == self.headers[0] else f"{name}: {text}")
        return " | ".join(parts) or None

    # --- how far one header is believed -----------------------------------------------------------------------------------
    def _walk(self, name: str, value: str, peer_ip: str | None) -> _Walk:
        if name not in (_X_FORWARDED_FOR, _FORWARDED):  # holds one address: the client's, as the nearest proxy knows it
            address = normal(value)
            return _Walk(peer_ip, complete=False) if address is None else _Walk(address, True, (address,))
        hops = _list_hops(value) if name == _X_FORWARDED_FOR else _forwarded_hops(value)
        return self._by_list(hops, peer_ip) if self._listed else self._by_count(hops, peer_ip)

    def _by_list(self, hops: Iterator[str | None], peer_ip: str | None) -> _Walk:
        """Up to the first hop that is no trusted proxy, or that nobody can have appended."""
        passed: list[str] = []
        for address in hops:
            if address is None or len(passed) == _HOPS_MAX:  # nothing left of what cannot be read can be believed
                return _Walk(passed[-1] if passed else peer_ip, False, tuple(passed))
            passed.append(address)
            if not self._trusts(address) or len(passed) == self._hops:
                break
        return _Walk(passed[-1], True, tuple(passed))

    def _by_count(self, hops: Iterator[str | None], peer_ip: str | None) -> _Walk:
        """The hop with the number of the count; a shorter header did not come through all proxies, and proves nothing."""
        counted = list(islice(hops, self._hops))
        if len(counted) != self._hops or counted[-1] is None:
            return _Walk(peer_ip, complete=False)
        return _Walk(counted[-1], True, tuple(address for address in counted if address))


def _agreed(walks: Mapping[str, _Walk], peer_ip: str | None) -> _Walk:
    """What all headers say; the peer alone where they do not say the same: any of them may be the caller's.

    `X-Real-IP` names the hop before the proxy that wrote it, which may be another proxy: it agrees with each hop passed.
    """
    if len(walks) == 1:
        return next(iter(walks.values()))
    lists = [walk for name, walk in walks.items() if name != _X_REAL_IP]
    found, real = lists[0], walks.get(_X_REAL_IP)
    same = all(walk.complete and walk.client_ip == found.client_ip for walk in lists)
    if not same or (real is not None and real.client_ip not in found.passed):
        return _Walk(peer_ip, complete=False)
    return found
