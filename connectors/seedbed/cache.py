"""The content-addressed vector cache: an embedding once paid for is not paid for again.

Keyed by identity.cache_key, so a vector is found for the same content in the same space whichever row or
pipeline asks. One SQLite file (or a table, for many machines: cache_postgres); losing it costs money, never
correctness, so commits need not be synced.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from seedbed.errors import ConfigError, Fatal

_OLDEST = "delete from {table} where number in (select number from {table} order by number limit 1024)"
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str, setting: str) -> int:
    """`"2GB"` in bytes (decimal units). Raises ConfigError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B)\s*", text, re.IGNORECASE)
    if not found:
        raise ConfigError(f"{text!r} is no size", setting=setting, hint='write it as "500MB" or "2GB"')
    return int(float(found[1]) * _UNITS[found[2].upper()])


class Cache(Protocol):
    """float32 vectors by 32-byte keys, and digests of media by stamps. Safe for several threads."""

    def get(self, keys: Sequence[bytes]) -> dict[bytes, npt.NDArray[np.float32]]:
        """The vectors that are here, each of shape (dimensions,)."""
        ...

    def put(self, vectors: Mapping[bytes, npt.NDArray[np.float32]]) -> None: ...

    def digests(self, stamps: Sequence[bytes]) -> dict[bytes, bytes]:
        """SHA-256 of the bytes that media were seen with, by their stamps."""
        ...

    def remember(self, digests: Mapping[bytes, bytes]) -> None:
        """What `digests` answers from then on."""
        ...

    def close(self) -> None: ...


def open_cache(url: str, max_size: str, *, create: bool = True) -> Cache | None:
    """A file's path, or `postgresql://…` (also `pgvector+embedded:DIR`). None for a file that is not there, with
    `create=False`. Raises ConfigError for a folder that is not there or what is no size."""
    most = parse_size(max_size, "cache.max_size")
    if url.startswith(("postgresql:", "postgres:", "pgvector+embedded:")):
        from seedbed.cache_postgres import PostgresCache

        return PostgresCache(url, most, create=create)
    path = Path(url)
    if not create and not path.exists():
        return None
    if not path.parent.is_dir():
        raise ConfigError(
            f"the cache's folder {path.parent} does not exist", setting="cache.url", hint="create the folder"
        )
    return VectorCache(path, most)


class VectorCache:
    """float32 vectors by 32-byte keys, at most `max_bytes` of them; the longest stored go first."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max = max_bytes
        self._guard = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            # Few vectors fit the default of 4 kB, and one of 2,048 dimensions would spill over.
            self._db.execute("pragma page_size = 16384")
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = off")
            # rowid order is the order of storing; a separate index keeps the big rows out of the key's tree.
            self._db.execute(
                "create table if not exists vector (number integer primary key, key blob not null unique, data blob)"
            )
            self._db.execute(
                "create table if not exists medium"
                " (number integer primary key, stamp blob not null unique, digest blob)"
            )
            self._db.create_function("from_hex", 1, bytes.fromhex, deterministic=True)
        except sqlite3.DatabaseError as error:
            raise Fatal(
                f"the vector cache {path}: {error}",
                setting="cache.url",
                hint="make the folder writable; a damaged file may be removed, its vectors are embedded again",
            ) from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, npt.NDArray[np.float32]]:
        """The vectors that are here, each of shape (dimensions,)."""
        if not keys:
            return {}
        asked = json.dumps([key.hex() for key in keys])
        with self._guard:
            rows = self._db.execute(
                "select key, data from vector where key in (select from_hex(value) from json_each(?))", [asked]
            ).fetchall()
        return {key: np.frombuffer(data, dtype="<f4") for key, data in rows}

    def put(self, vectors: Mapping[bytes, npt.NDArray[np.float32]]) -> None:
        """A full disk is no error: the vectors are used, only not kept."""
        rows = [(key, vector.astype("<f4", copy=False).tobytes()) for key, vector in vectors.items()]
        with self._guard:
            try:
                self._db.execute("begin immediate")
                self._db.executemany("insert or ignore into vector (key, data) values (?, ?)", rows)
                self._evict()
                self._db.execute("commit")
            except sqlite3.OperationalError as error:
                if self._db.in_transaction:
                    self._db.execute("rollback")
                if error.sqlite_errorname != "SQLITE_FULL":
                    raise Fatal(f"the vector cache {self._path}: {error}", setting="cache.url") from error

    def digests(self, stamps: Sequence[bytes]) -> dict[bytes, bytes]:
        """SHA-256 of the bytes that media were seen with, by their stamps."""
        asked = json.dumps([stamp.hex() for stamp in stamps])
        with self._guard:
            rows = self._db.execute(
                "select stamp, digest from medium where stamp in (select from_hex(value) from json_each(?))", [asked]
            )
            return dict(rows.fetchall())

    def remember(self, digests: Mapping[bytes, bytes]) -> None:
        """What `digests` answers from then on. A full disk is no error here either."""
        with self._guard, suppress(sqlite3.OperationalError):
            self._db.executemany("insert or replace into medium (stamp, digest) values (?, ?)", list(digests.items()))

    def _evict(self) -> None:
        while self._used() > self._max:
            dropped = [self._db.execute(_OLDEST.format(table=table)).rowcount for table in ("vector", "medium")]
            if not any(dropped):
                return

    def _used(self) -> int:
        pages, free, size = (
            self._db.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def close(self) -> None:
        self._db.close()
