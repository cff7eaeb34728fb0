"""Identities of stored records, read back to tell a retry from a hash that happens to be the same."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from otel_audit.dedupe import KEY_COLUMNS, Keys, keys_of
from otel_audit.journal import JournalTail, journals
from otel_audit.lake import Lake, Segment

__all__ = ["StoredKeys"]

_KEPT: Final = 3


class StoredKeys:
    """Reads the identities of records by number; the committer thread's own.

    The last few journals and segments read stay at hand (10 MiB each at 262,144 records), for retries come in bunches;
    `forget` lets them go.
    """

    def __init__(self, directory: Path, log: str) -> None:
        self._directory = directory
        self._log = log
        self._lake = Lake(directory / "lake")
        self._tails: OrderedDict[Path, tuple[JournalTail, list[Keys]]] = OrderedDict()
        self._segments: OrderedDict[str, list[Keys]] = OrderedDict()

    def __call__(self, first_seq: int, last_seq: int) -> Iterator[Keys]:
        """Identities of records `first_seq` to `last_seq` at least, in pieces of shape (n, 40).

        Journals come first: one that is sealed meanwhile is then in the lake, whichever way the two went.
        """
        for tail in journals(self._directory / "journal"):
            if tail.first_seq <= last_seq:
                with contextlib.suppress(FileNotFoundError):
                    yield from self._journal(tail, last_seq)
        self._lake.sealed_seq(self._log)
        for segment in self._lake.segments():
            if segment.first_seq <= last_seq and segment.last_seq >= first_seq:
                yield from self._segment(segment)

    def forget(self) -> None:
        """Let what was read go."""
        self._tails.clear()
        self._segments.clear()

    def _segment(self, segment: Segment) -> list[Keys]:
        if segment.path not in self._segments:
            self._segments[segment.path] = [keys_of(b) for b in self._lake.read(segment, KEY_COLUMNS)]
            while len(self._segments) > _KEPT:
                self._segments.popitem(last=False)
        return self._segments[segment.path]

    def _journal(self, found: JournalTail, last_seq: int) -> list[Keys]:
        tail, keys = self._tails.setdefault(found.path, (found, []))
        tail.refresh(last_seq)
        keys += [keys_of(b) for b in tail.batches]
        tail.batches.clear()
        while len(self._tails) > _KEPT:
            self._tails.popitem(last=False)
        return keys
