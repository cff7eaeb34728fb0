"""Addresses to listen on: parse them, find what a name stands for, and say clearly why one cannot be used."""

import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable
from typing import Final

from otel_audit.errors import ConfigError

__all__ = ["bind", "is_exposed", "is_loopback", "join_address", "listen", "parse_endpoint"]

BACKLOG: Final = 1024
_ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def parse_endpoint(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[v6 address]:port`; port 0 is any free port. Raises `ConfigError`."""
    hint = "write it as 127.0.0.1:4317"
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError("parse endpoint", repr(text), "an IPv6 address needs brackets", "write it as [::1]:4317")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ConfigError("parse endpoint", repr(text), "it has no port between 0 and 65535", hint)
    if not host:
        raise ConfigError("parse endpoint", repr(text), "it has no host", f"{hint}, or 0.0.0.0 for all addresses")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The opposite of `parse_endpoint`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only processes on this machine reach `host`."""
    try:
        return _all_loopback(_addresses(host))
    except OSError:
        return False


def is_exposed(endpoint: str) -> bool:
    """Whether other machines may reach `endpoint`; not, if its host is not known now. `bind` has the last word."""
    try:
        return not _all_loopback(_addresses(parse_endpoint(endpoint)[0]))
    except OSError:
        return False


def bind(endpoint: str, bind_one: Callable[[str, int], int], if_exposed: ConfigError | None = None) -> tuple[str, int]:
    """Listen on every address that the host of `endpoint` stands for; gives host and port.

    `localhost` is 127.0.0.1 and, where the machine has it, ::1, because clients try either.

    Args:
        endpoint: `host:port`.
        bind_one: listens on one numeric address and port, gives the port; raises `OSError`.
        if_exposed: raised, before anything is listened on, if other machines reach any of these addresses; None: they
            may. A name may stand for others than when it was last asked for, so nothing else can tell.

    Raises:
        ConfigError: none of the addresses can be listened on, or one of them is taken.
    """
    host, wanted = parse_endpoint(endpoint)
    try:
        addresses = _addresses(host)
    except OSError as e:
        raise ConfigError("listen on", endpoint, f"the host is not known: {e}", "check its spelling") from e
    if if_exposed is not None and not _all_loopback(addresses):
        raise if_exposed
    port = wanted
    bound = False
    failure: OSError | None = None
    for address in addresses:
        try:
            port = bind_one(address, port)
            bound = True
        except OSError as e:
            failure = e
            if e.errno not in _ABSENT and (wanted or not bound):
                raise _taken(endpoint, e) from e
    if not bound:
        raise _taken(endpoint, failure) from failure
    return host, port


def listen(address: str, port: int) -> socket.socket:
    """A socket listening on a numeric address; raises `OSError`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and address != "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)  # only listening, not binding, finds out that another server listens
    except BaseException:
        sock.close()
        raise
    return sock


def _addresses(host: str) -> list[str]:
    """Numeric addresses of `host`, IPv4 first; raises `OSError`."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    numeric = dict.fromkeys(str(info[4][0]) for info in found)
    return sorted(numeric, key=lambda address: ":" in address)


def _all_loopback(addresses: Iterable[str]) -> bool:
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _taken(endpoint: str, error: OSError | None) -> ConfigError:
    code = error.errno if error and error.errno else 0
    if code == errno.EADDRINUSE:
        hint = "stop the other process (ss -ltnp shows which it is), or choose another port; port 0 takes a free one"
        return ConfigError("listen on", endpoint, "the port is in use by another process", hint)
    if code == errno.EACCES:
        return ConfigError("listen on", endpoint, "permission denied", "choose a port of 1024 or above")
    if code == errno.EADDRNOTAVAIL:
        return ConfigError("listen on", endpoint, "this machine has no such address", "use 127.0.0.1 or 0.0.0.0")
    return ConfigError("listen on", endpoint, os.strerror(code) if code else "no address", "check the endpoint")
