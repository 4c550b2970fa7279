"""A content-addressed store on disk for what the backbone computes.

One SQLite file per identity (model, layer, pooling, ...); a row holds one vector under the sha256 of its text. SQLite's
write-ahead log makes it safe for several processes, and a batch is either written whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console

from fedvpa.backbone.files import writable
from fedvpa.errors import UserError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (json TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS vectors
  (key BLOB PRIMARY KEY, cut INTEGER NOT NULL, value BLOB NOT NULL, checksum BLOB NOT NULL);
"""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_CHUNK = 500  # keys in one SELECT, under SQLite's limit on parameters


class Entry(NamedTuple):
    """One stored vector: ``value`` (dim,) float32, and how many tokens had to be cut from its text."""

    value: np.ndarray
    cut: int


class Vectors(Protocol):
    """What keeps vectors: files (`Store`), or memory (`memory.MemoryStore`)."""

    def get(self, keys: Sequence[bytes]) -> tuple[dict[bytes, Entry], int]: ...
    def put(self, entries: Mapping[bytes, Entry]) -> None: ...
    def close(self) -> None: ...


OpenStore = Callable[[Path, Mapping[str, Any], int], Vectors]
"""Opens what keeps vectors, from a folder, an identity and the vectors' length (`Store`'s arguments)."""


def store_file(folder: Path, identity: Mapping[str, Any]) -> Path:
    """The file of an identity's vectors in a folder."""
    return folder / f"{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]}.sqlite"


class Store:
    """Vectors of one identity.

    Args:
        folder: where the file lies; created if need be.
        identity: everything that the vectors depend on besides the text; its hash names the file.
        dim: length of each vector.

    Raises:
        UserError: from every method, if the folder cannot be written, the disk is full, or another process holds
            the file for more than a minute.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], dim: int) -> None:
        self.identity = json.dumps(identity, sort_keys=True)
        self.path = store_file(folder, identity)
        self.dim = dim
        self._lock = threading.RLock()
        self._open()

    def get(self, keys: Sequence[bytes]) -> tuple[dict[bytes, Entry], int]:
        """Looks up keys; returns what is there and intact, and the number of damaged rows (to be computed again)."""
        found: dict[bytes, Entry] = {}
        damaged = 0
        with self._lock:
            for start in range(0, len(keys), _CHUNK):
                for key, cut, value, checksum in self._select(keys[start : start + _CHUNK]):
                    if self._intact(key, cut, value, checksum):
                        found[key] = Entry(np.frombuffer(value, np.float32), cut)
                    else:
                        damaged += 1
        return found, damaged

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Writes entries in one transaction."""
        rows = []
        for key, entry in entries.items():
            value = np.ascontiguousarray(entry.value, np.float32).tobytes()
            rows.append((key, entry.cut, value, _checksum(key, entry.cut, value)))
        with self._lock:
            try:
                self._write(rows)
            except sqlite3.DatabaseError as e:
                if not _is_damaged(e):
                    raise self._explain(e) from None
                self._set_aside()
                self._write(rows)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _select(self, keys: Sequence[bytes]) -> list[tuple[bytes, int, bytes, bytes]]:
        marks = ",".join("?" * len(keys))
        try:
            query = f"SELECT key, cut, value, checksum FROM vectors WHERE key IN ({marks})"
            return self._connection.execute(query, keys).fetchall()
        except sqlite3.DatabaseError as e:
            if not _is_damaged(e):
                raise self._explain(e) from None
        self._set_aside()
        return []

    def _write(self, rows: list[tuple[bytes, int, bytes, bytes]]) -> None:
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)

    def _intact(self, key: bytes, cut: Any, value: Any, checksum: Any) -> bool:
        sound = isinstance(cut, int) and isinstance(value, bytes) and len(value) == 4 * self.dim
        return sound and checksum == _checksum(key, cut, value)

    def _open(self) -> None:
        with writable(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connect()
        except sqlite3.DatabaseError as e:
            if not _is_damaged(e):
                raise self._explain(e) from None
            self._set_aside()

    def _connect(self) -> None:
        with _closed_on_error(sqlite3.connect(self.path, timeout=60, check_same_thread=False)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(_SCHEMA)
            with connection:
                connection.execute("INSERT OR IGNORE INTO identity VALUES (?)", (self.identity,))
            self._connection = connection

    def _set_aside(self) -> None:
        """Renames a damaged file, begins a new one, and says so."""
        if hasattr(self, "_connection"):
            self._connection.close()
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        with writable(self.path.parent):
            with contextlib.suppress(FileNotFoundError):  # another process was first
                self.path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        Console(stderr=True, soft_wrap=True, markup=False).print(
            f"warning: {self.path}: the cache file is damaged; it was set aside as {aside.name} and is built anew",
            highlight=False,
        )
        self._connect()

    def _explain(self, e: sqlite3.DatabaseError) -> UserError:
        if _code(e) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return UserError("another process holds the cache", "wait for it, or end it", file=self.path)
        remedy = "free some space, or set output.cache (or $FEDVPA_CACHE) to a folder that can be written"
        return UserError(f"the cache cannot be used ({e})", remedy, file=self.path)


@contextlib.contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    except sqlite3.DatabaseError:
        connection.close()
        raise


def _code(e: sqlite3.DatabaseError) -> int:
    return getattr(e, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code


def _is_damaged(e: sqlite3.DatabaseError) -> bool:
    return _code(e) in _DAMAGED


def _checksum(key: bytes, cut: int, value: bytes) -> bytes:
    return hashlib.blake2b(key + cut.to_bytes(8, "little", signed=True) + value, digest_size=8).digest()
