"""A bounded cache that keeps what is used, at the price of a dictionary look-up.

It has two generations: when the young one is full it becomes the old one, and what is found in the old one moves back. So
a flood of values that are seen once (forged keys, say) pushes out nothing that is in use.
"""

from typing import Generic, TypeVar

__all__ = ["Cache"]

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Safe from any thread: each step is one atomic operation on a dictionary, and two threads that race do work twice.

    Args:
        entries_max: how many entries it holds at most.
    """

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, entries_max: int) -> None:
        self._half = max(entries_max // 2, 1)
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """What was put under `key`, or None."""
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        """Remember `value`, which must not be None."""
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __repr__(self) -> str:
        return f"Cache({self._young!r}, {self._old!r})"
