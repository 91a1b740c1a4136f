"""The vector cache in Postgres, schema `seedbed_cache`: one for workers on many machines.

Beside a ledger in Postgres it makes sure that what one machine has paid for, no other pays for again. As
cache.VectorCache in all else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from seedbed.postgres import Database, Session, mapped

_TABLES = """
create schema if not exists seedbed_cache;
create table if not exists seedbed_cache.vector (
  key bytea primary key, data bytea not null, number bigint generated always as identity);
create index if not exists vector_number on seedbed_cache.vector (number);
-- Vectors do not get smaller, and those that are compressed take long.
alter table seedbed_cache.vector alter column data set storage external;
create table if not exists seedbed_cache.medium (
  stamp bytea primary key, digest bytea not null, number bigint generated always as identity);
"""
_PUT = """
insert into seedbed_cache.vector (key, data)
select key, data from unnest(%s::bytea[], %s::bytea[]) as new (key, data)
where not exists (select from seedbed_cache.vector as old where old.key = new.key)
order by key
on conflict do nothing"""
_EVICT = """
delete from seedbed_cache.{table} where number <= (select max(number) - %s from seedbed_cache.{table})"""
_REMEMBER = """
insert into seedbed_cache.medium (stamp, digest)
select distinct on (stamp) stamp, digest from unnest(%s::bytea[], %s::bytea[]) as new (stamp, digest) order by stamp
on conflict (stamp) do update set digest = excluded.digest"""
_EACH = 64
"""Writes between looks at the size."""


class PostgresCache:
    """float32 vectors by 32-byte keys, about `max_bytes` of them; the longest stored go first. With `create=False`
    nothing is made: where no cache stands, nothing is known. Raises Transient, Fatal."""

    def __init__(self, url: str, max_bytes: int, *, create: bool) -> None:
        self._database = Database(url, setting="cache.url", prepare=self._make if create else _stands)
        self._max = max_bytes
        self._guard = threading.Lock()
        self._puts = 0

    @staticmethod
    def _make(connection: Session) -> None:
        with connection.transaction():
            # Workers that begin together: the second finds what the first has made.
            connection.execute("select pg_advisory_xact_lock(hashtext('seedbed_cache'))")
            if not _stands(connection):
                connection.execute(_TABLES.encode())

    def _run(self, work: Callable[[Session], Any]) -> Any:
        with self._guard, mapped("cache.url"):
            return work(self._database.kept())

    def get(self, keys: Sequence[bytes]) -> dict[bytes, npt.NDArray[np.float32]]:
        """The vectors that are here, each of shape (dimensions,)."""
        if not keys:
            return {}
        rows = self._found("vector", "key, data", "key", keys)
        return {key: np.frombuffer(data, dtype="<f4") for key, data in rows}

    def put(self, vectors: Mapping[bytes, npt.NDArray[np.float32]]) -> None:
        if vectors:
            data = [vector.astype("<f4", copy=False).tobytes() for vector in vectors.values()]
            size = len(data[0])

            def write(connection: Session) -> None:
                connection.execute(_PUT.encode(), [list(vectors), data], binary=True)
                if self._puts % _EACH == 0:
                    for table in ("vector", "medium"):
                        connection.execute(_EVICT.format(table=table).encode(), [max(1, self._max // (size + 64))])

            self._run(write)
            self._puts += 1

    def digests(self, stamps: Sequence[bytes]) -> dict[bytes, bytes]:
        """SHA-256 of the bytes that media were seen with, by their stamps."""
        return dict(self._found("medium", "stamp, digest", "stamp", stamps))

    def remember(self, digests: Mapping[bytes, bytes]) -> None:
        """What `digests` answers from then on."""
        if digests:
            self._run(
                lambda connection: connection.execute(_REMEMBER.encode(), [list(digests), list(digests.values())])
            )

    def _found(self, table: str, columns: str, column: str, wanted: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        query = f"select {columns} from seedbed_cache.{table} where {column} = any(%s::bytea[])".encode()

        def read(connection: Session) -> list[Any]:
            if not _stands(connection):
                return []
            with connection.cursor(binary=True) as cursor:
                return cursor.execute(query, [list(wanted)]).fetchall()

        found: list[tuple[bytes, bytes]] = self._run(read)
        return found

    def close(self) -> None:
        with self._guard:
            self._database.close()


def _stands(connection: Session) -> bool:
    found = connection.execute("select to_regclass('seedbed_cache.medium') is not null").fetchone()
    return bool(found and found[0])
