"""Vectors in memory only, with a bound in bytes: a service leaves nothing of its callers' texts on the disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedvpa.backbone.store import Entry, Store, store_file

OVERHEAD = 256
"""Bytes of an entry besides its vector: the key, the objects, its place in the order."""


LIMIT = 256 * 2**20
"""Bytes of the vectors that an `Overlay` keeps."""


class MemoryStore:
    """`store.Store` without a file: the vectors used last are kept, up to a number of bytes.

    Args:
        dim: length of each vector; limit: bytes.
    """

    def __init__(self, dim: int, limit: int) -> None:
        self.dim, self.limit, self.hits, self.misses = dim, limit, 0, 0
        self._each = 4 * dim + OVERHEAD
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes in use."""
        return len(self._entries) * self._each

    def get(self, keys: Sequence[bytes]) -> tuple[dict[bytes, Entry], int]:
        """What is there of the keys; nothing here is ever damaged."""
        found = {}
        with self._lock:
            for key in keys:
                if (entry := self._entries.get(key)) is not None:
                    found[key] = entry
                    self._entries.move_to_end(key)
            self.hits += len(found)
            self.misses += len(keys) - len(found)
        return found, 0

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Keeps entries; those unused for longest give way."""
        with self._lock:
            for key, entry in entries.items():
                self._entries[key] = Entry(np.array(entry.value, np.float32), entry.cut)  # no view of a whole batch
                self._entries.move_to_end(key)
            while self._entries and self.size > self.limit:
                self._entries.popitem(last=False)

    def close(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()


class Overlay:
    """Reads what a `Store` has, where there is one, and keeps new vectors in memory: the disk does not fill.

    Args:
        folder, identity, dim: as for `Store`.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], dim: int) -> None:
        self._file = Store(folder, identity, dim) if store_file(folder, identity).is_file() else None
        self._kept = MemoryStore(dim, LIMIT)

    def get(self, keys: Sequence[bytes]) -> tuple[dict[bytes, Entry], int]:
        """What is there of the keys, and the number of damaged rows."""
        found, _ = self._kept.get(keys)
        if self._file is None:
            return found, 0
        stored, damaged = self._file.get([key for key in keys if key not in found])
        return {**found, **stored}, damaged

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Keeps entries in memory."""
        self._kept.put(entries)

    def close(self) -> None:
        """Closes the file, and forgets what is in memory."""
        self._kept.close()
        if self._file is not None:
            self._file.close()
