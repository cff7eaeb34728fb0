"""How long something took, counted into buckets: cheap enough to be measured always."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

__all__ = ["BOUNDS_S", "Durations", "Spread"]

BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets, inclusive, in seconds; one more bucket takes what is longer."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Durations so far.

    Args:
        counts: how many fell into each bucket, one more than `BOUNDS_S` has.
        sum_s: of all of them.
    """

    counts: tuple[int, ...]
    sum_s: float

    @property
    def count(self) -> int:
        """How many."""
        return sum(self.counts)


class Durations:
    """A histogram; one thread adds, any thread reads.

    Half a microsecond each, against the three of the SDK's own histogram, so that it need not be switched off.
    """

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_ns = 0

    def add(self, took_ns: int) -> None:
        """Count one duration, in nanoseconds."""
        self._counts[bisect_left(BOUNDS_S, took_ns / 1e9)] += 1
        self._sum_ns += took_ns

    def read(self) -> Spread:
        """The counts now."""
        return Spread(tuple(self._counts), self._sum_ns / 1e9)
