"""Who is at the other end of the connection: the client's IP address, with a verdict on how it was learned.

The peer of the socket cannot be forged; a forwarding header can, by anyone. So `X-Forwarded-For` counts only when the peer
is a trusted proxy, and is read from the right: each trusted proxy vouches for the hop it appended, and the first hop that
is not a trusted proxy is the client.
"""

import ipaddress
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = ["ClientAddress", "TrustedProxies", "normal"]

PEER: Final = "peer"
FORWARDED: Final = "forwarded"
UNTRUSTED: Final = "untrusted"
UNIX: Final = "unix"
"""Stands for the peer of a Unix domain socket, in the list of trusted proxies."""

_HEADER_BYTES_MAX: Final = 4096
_HOPS_MAX: Final = 32
_ADDRESS_CHARS_MAX: Final = 64


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


def normal(text: str) -> str | None:
    """`text` as a plain IP address: without port, brackets, zone or IPv4-in-IPv6; None if it is not one."""
    return _normal(text) if len(text) <= _ADDRESS_CHARS_MAX else None


@lru_cache(maxsize=4096)
def _normal(text: str) -> str | None:
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


class TrustedProxies:
    """The proxies whose `X-Forwarded-For` counts.

    Args:
        entries: CIDRs, single addresses, or `unix`.

    `problems` holds a complaint for each entry that was ignored.
    """

    def __init__(self, entries: tuple[str, ...] = ()) -> None:
        self.problems: list[str] = []
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._unix = False
        for entry in entries:
            if entry == UNIX:
                self._unix = True
                continue
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self.problems.append(f"trusted proxy {entry!r} is not a CIDR, an address or 'unix', and is ignored")
        # Bounded, and per instance: the answer depends on the list.
        self._trusts = lru_cache(maxsize=4096)(self._look_up)

    def _look_up(self, address: str) -> bool:
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self._networks)

    def trusts(self, address: str | None) -> bool:
        """Whether `address`, in normal form, is a trusted proxy; None is a Unix domain socket."""
        return self._unix if address is None else self._trusts(address)

    def verdict(self, peer: str | None, forwarded: str | None) -> ClientAddress:
        """The client's address.

        Args:
            peer: the socket's peer as the server gives it; None or empty for a Unix domain socket.
            forwarded: the value of `X-Forwarded-For`, several headers joined by commas in their order; None if absent.
        """
        peer_ip = normal(peer) if peer else None
        if peer and peer_ip is None:  # "testclient" and the like: a name, which nobody can judge
            return ClientAddress(None, None if forwarded is None else UNTRUSTED, None)
        if forwarded is None:
            return ClientAddress(peer_ip, PEER if peer_ip else None, peer_ip)
        if len(forwarded) > _HEADER_BYTES_MAX or not self.trusts(peer_ip):
            return ClientAddress(peer_ip, UNTRUSTED, peer_ip)
        believed = peer_ip
        for hop in reversed(forwarded.rsplit(",", _HOPS_MAX)):
            address = normal(hop)
            if address is None:  # nothing left of what cannot be read can be believed
                return ClientAddress(believed, UNTRUSTED, peer_ip)
            believed = address
            if not self._trusts(address):
                break
        return ClientAddress(believed, FORWARDED, peer_ip)
