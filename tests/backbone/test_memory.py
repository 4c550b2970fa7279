"""Vectors in memory: kept up to a bound in bytes, the ones used last longest."""

from __future__ import annotations

import numpy as np

from fedvpa.backbone.memory import OVERHEAD, MemoryStore
from fedvpa.backbone.store import Entry

EACH = 4 * 3 + OVERHEAD


def entries(*names: str) -> dict[bytes, Entry]:
    return {n.encode(): Entry(np.full(3, i, np.float32), i) for i, n in enumerate(names)}


def test_what_is_put_is_found() -> None:
    store = MemoryStore(3, 10 * EACH)
    store.put(entries("a", "b"))
    found, damaged = store.get([b"b", b"c"])
    assert (list(found), damaged) == ([b"b"], 0)
    assert found[b"b"].value.tolist() == [1.0, 1.0, 1.0]
    assert found[b"b"].cut == 1
    assert (store.hits, store.misses, store.size) == (1, 1, 2 * EACH)


def test_the_one_unused_for_longest_gives_way() -> None:
    store = MemoryStore(3, 2 * EACH)
    store.put(entries("a", "b"))
    store.get([b"a"])
    store.put(entries("c"))
    assert (b"a" in store, b"b" in store, b"c" in store) == (True, False, True)
    store.put(entries("d", "e", "f"))
    assert len(store) == 2
    assert store.size <= store.limit


def test_it_keeps_copies_and_no_views() -> None:
    batch = np.arange(6, dtype=np.float32).reshape(2, 3)
    store = MemoryStore(3, 10 * EACH)
    store.put({b"a": Entry(batch[0], 0)})
    batch[0] = 9
    kept = store.get([b"a"])[0][b"a"].value
    assert kept.tolist() == [0.0, 1.0, 2.0]
    assert kept.base is None


def test_closing_forgets() -> None:
    store = MemoryStore(3, 10 * EACH)
    store.put(entries("a"))
    store.close()
    assert len(store) == 0
