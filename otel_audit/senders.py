"""Who may send what: the senders of a receiver, how each proves who it is, for whom it may speak, and how much.

A token is looked up by its SHA-256. Whoever guesses tokens learns nothing from how long that takes: the time depends on
the digest, which he cannot steer without having the token. One round of SHA-256, without salt, is enough for tokens that
are random and long, as `new_token` makes them; it would not be for passwords.
"""

import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from otel_audit.errors import ConfigError

__all__ = ["TOKEN_CHARS_LEAST", "Allowance", "Bucket", "Directory", "Sender", "digest_of", "new_token"]

TOKEN_CHARS_LEAST: Final = 22
"""Characters of a token of 128 random bits, in the alphabet of base64."""
_PREFIX: Final = "oat_"  # lets scanners for leaked secrets find it
_TOKEN_BYTES: Final = 32
_REMEMBERED: Final = 4096


def new_token() -> str:
    """A bearer token of 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def digest_of(token: str) -> str:
    """The SHA-256 of a token, as 64 hexadecimal digits: what stands in a configuration."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True, slots=True)
class Sender:
    """One that may send.

    Args:
        name: how logs name it.
        token_sha256: digests of its bearer tokens, lower case; any of them will do.
        certificate: names of its client certificate (subject alternative names or common name), as globs; any will do.
            A sender that has both must show both.
        services: globs of the services for which it may speak; empty: all.
        sources: globs of the source ids for which it may speak; empty: all. A record without a source is no matter of it.
        rate_records_per_s: how many records it may send in the long run; None: no limit.
        burst_records: how many it may send at once beyond that; None: those of ten seconds.
        max_request_bytes: largest request, as sent and decompressed; None: as the receiver's.
    """

    name: str
    token_sha256: tuple[str, ...] = ()
    certificate: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    rate_records_per_s: int | None = None
    burst_records: int | None = None
    max_request_bytes: int | None = None

    @property
    def burst(self) -> int:
        """Records it may send at once."""
        return self.burst_records or 10 * (self.rate_records_per_s or 0)


class _Globs:
    """Whether texts match any of some globs; what was asked before is remembered, within bounds.

    Any thread may ask: the memory is only ever added to, and a dictionary takes that from any thread.
    """

    def __init__(self, globs: Sequence[str]) -> None:
        self._match = re.compile("|".join(map(translate, globs))).match
        self._known: dict[str, bool] = {}

    def match(self, text: str) -> bool:
        known = self._known.get(text)
        if known is None:
            known = self._match(text) is not None
            if len(self._known) < _REMEMBERED:
                self._known[text] = known
        return known


class Bucket:
    """A token bucket that may go into debt, so that a request is taken whole or not at all. Thread-safe.

    Args:
        rate_per_s: how fast it fills.
        burst: how much it holds.
        clock: monotonic seconds; tests replace it.
    """

    def __init__(self, rate_per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s, self._burst, self._clock = rate_per_s, burst, clock
        self._lock = threading.Lock()  # guards the fields below
        self._level = burst
        self._filled_s = clock()

    def wait_s(self) -> float:
        """How long until something may be taken; 0: now."""
        with self._lock:
            self._fill()
            return 0.0 if self._level > 0 else (1 - self._level) / self._rate_per_s

    def take(self, amount: float) -> None:
        """Take something out, also more than there is; a negative amount puts it back."""
        with self._lock:
            self._fill()
            self._level = min(self._burst, self._level - amount)

    def _fill(self) -> None:
        now_s = self._clock()
        self._level = min(self._burst, self._level + (now_s - self._filled_s) * self._rate_per_s)
        self._filled_s = now_s


class Allowance:
    """For whom a sender may speak."""

    def __init__(self, sender: Sender) -> None:
        self._services = _Globs(sender.services) if sender.services else None
        self._sources = _Globs(sender.sources) if sender.sources else None

    def refused(self, services: pa.Array | None, sources: pa.Array) -> pa.BooleanArray | None:
        """Which rows are not within it; None: all are.

        Args:
            services: the service of each row, absent ones count as empty texts; None: it is no matter here.
            sources: the source of each row; absent ones are within.
        """
        masks = [
            mask
            for globs, column, absent in ((self._services, services, ""), (self._sources, sources, None))
            if globs is not None and column is not None and (mask := _outside(globs, column, absent)) is not None
        ]
        if not masks:
            return None
        return masks[0] if len(masks) == 1 else pc.or_(*masks)


def _outside(globs: _Globs, column: pa.Array, absent: str | None) -> pa.BooleanArray | None:
    """Which values none of the globs match; each distinct one is looked at once. None: all match."""
    values = pc.unique(column).to_pylist()
    bad = [v for v in values if not ((absent is None and v is None) or globs.match(absent if v is None else v))]  # type: ignore[arg-type]
    if not bad:
        return None
    return pc.is_in(column, value_set=pa.array(bad, column.type))


class Directory:
    """Finds senders by what they show.

    Args:
        senders: all of them.

    Raises:
        ConfigError: two have one name or one token, or one has nothing to be known by.
    """

    def __init__(self, senders: Iterable[Sender]) -> None:
        self.senders = tuple(senders)
        self._by_digest: dict[str, Sender] = {}
        self._globs: dict[str, _Globs] = {}  # by name
        for sender in self.senders:
            self._add(sender)

    def _add(self, sender: Sender) -> None:
        if sender.name in self._globs:
            raise ConfigError("read senders", sender.name, "two senders have this name", "rename one of them")
        if not sender.token_sha256 and not sender.certificate:
            hint = "give it token_sha256 (otel-audit token makes one) or certificate"
            raise ConfigError("read senders", sender.name, "nothing says how it proves who it is", hint)
        self._globs[sender.name] = _Globs(sender.certificate)
        for digest in sender.token_sha256:
            other = self._by_digest.setdefault(digest, sender)
            if other is not sender:
                raise ConfigError("read senders", sender.name, f"{other.name} has the same token", "make another")

    def of_token(self, digest: str) -> Sender | None:
        """The sender that has the token of this digest, whether that is enough or not."""
        return self._by_digest.get(digest)

    def find(self, digest: str | None, names: Sequence[str]) -> Sender | None:
        """The sender that shows this; None: nobody's.

        Args:
            digest: of its token; None: it shows none.
            names: of its certificate; empty: it shows none.
        """
        sender = self._by_digest.get(digest) if digest is not None else None
        if sender is not None:
            return sender if not sender.certificate or self._is_named(sender, names) else None
        for other in self.senders:
            if not other.token_sha256 and self._is_named(other, names):
                return other
        return None

    def _is_named(self, sender: Sender, names: Sequence[str]) -> bool:
        return bool(sender.certificate) and any(map(self._globs[sender.name].match, names))
