import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from otel_audit import dedupe
from otel_audit.dedupe import Keys, Memory, keys_of
from tests.support import batch


def keys(count: int, seed: int) -> Keys:
    return np.random.default_rng(seed).integers(0, 256, (count, 40), np.uint8)


class Store:
    """Stands for the log: what was added, by number."""

    def __init__(self) -> None:
        self.pieces: list[Keys] = []
        self.reads = 0

    def __call__(self, first_seq: int, last_seq: int) -> Iterator[Keys]:
        self.reads += 1
        start = 1
        for piece in self.pieces:
            if start <= last_seq and start + len(piece) > first_seq:
                yield piece
            start += len(piece)


def remember(memory: Memory, store: Store, piece: Keys, now_us: int = 0) -> None:
    store.pieces.append(piece)
    memory.add(piece, 1 + sum(len(p) for p in store.pieces[:-1]), now_us)


def test_new_identities_are_new_and_old_ones_are_duplicates_at_every_age() -> None:
    store = Store()
    memory = Memory(10**12, 2_000_000, store)
    for seed in range(150):
        piece = keys(5_000, seed)
        assert memory.duplicates(piece) is None
        remember(memory, store, piece)
    assert len(memory) == 750_000
    for seed in (0, 60, 120, 149):  # in a run, in another, in the sorted array, as it came
        mixed = np.concatenate([keys(5_000, seed)[:700], keys(300, 1_000 + seed)])
        found = memory.duplicates(mixed)
        assert found is not None
        assert found.tolist() == [True] * 700 + [False] * 300


def test_the_same_identity_twice_in_one_group_is_a_duplicate_once() -> None:
    piece = keys(10, 1)
    found = Memory(1, 1000, Store()).duplicates(np.concatenate([piece, piece[:3]]))
    assert found is not None
    assert found.tolist() == [False] * 10 + [True] * 3


def test_a_hash_collision_never_costs_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    memory = Memory(10**12, 1_000_000, store)
    real = memory._hash
    monkeypatch.setattr(memory, "_hash", lambda k: real(k) & np.uint64(0xFFF0_0000_0000_0000))  # 12 bits
    for seed in range(60):
        piece = keys(5_000, seed)
        assert memory.duplicates(piece) is None
        remember(memory, store, piece)
    assert store.reads > 0
    found = memory.duplicates(keys(5_000, 3))
    assert found is not None
    assert found.all()


def test_only_ids_time_and_duration_together_make_a_duplicate() -> None:
    one = batch(3, 1)
    memory = Memory(10**12, 1000, Store())
    memory.add(keys_of(one), 1, 0)
    for column in ("time", "duration_ns"):
        other = keys_of(one).copy()
        other[:, 24 if column == "time" else 32] ^= 1
        assert memory.duplicates(other) is None
    assert memory.duplicates(keys_of(one)) is not None


def test_identities_are_forgotten_after_the_window_but_never_within_it() -> None:
    store = Store()
    memory = Memory(1_000, 10_000_000, store)
    for seed in range(70):
        remember(memory, store, keys(8_192, seed), now_us=seed * 100)
    found = memory.duplicates(np.concatenate([keys(8_192, seed)[:1] for seed in range(60, 70)]))
    assert found is not None
    assert found.all()
    assert memory.oldest_seq is not None
    for seed in range(70, 140):
        remember(memory, store, keys(8_192, seed), now_us=seed * 100)
    assert memory.oldest_seq > 1
    assert memory.duplicates(keys(8_192, 0)) is None


def test_at_most_so_many_are_remembered_and_never_fewer() -> None:
    store = Store()
    memory = Memory(10**15, 1_000_000, store)
    for seed in range(250):
        memory.add(keys(8_192, seed), 1 + seed * 8_192, 0)
    assert 1_000_000 <= len(memory) <= 1_000_000 + 2 * dedupe._RUN


def test_ten_million_identities_take_less_than_64_mib() -> None:
    code = """
import resource
import numpy as np
from otel_audit.dedupe import Memory
rng = np.random.default_rng(1)
memory = Memory(10**15, 10_000_000, lambda first, last: [])
def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
memory.add(rng.integers(0, 256, (8_192, 40), np.uint8), 1, 0)
before = peak_kib()
for i in range(1, 1_250):
    memory.add(rng.integers(0, 256, (8_192, 40), np.uint8), 1 + i * 8_192, 0)
assert len(memory) >= 10_000_000
print(peak_kib() - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) < 64 << 10


def test_keys_are_the_same_from_span_columns_and_from_parquet_types() -> None:
    import pyarrow as pa

    made = batch(5, 3)
    plain = pa.Table.from_batches([made])
    plain = plain.set_column(plain.column_names.index("trace_id"), "trace_id", plain["trace_id"].cast(pa.binary()))
    assert (keys_of(made) == keys_of(plain)).all()
    assert (keys_of(made.slice(2, 2)) == keys_of(made)[2:4]).all()
