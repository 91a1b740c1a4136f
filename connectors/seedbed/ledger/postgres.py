"""The ledger in Postgres, schema `seedbed_ledger`: for many workers, and beside the data."""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import msgspec
from psycopg import Connection, OperationalError
from psycopg.rows import TupleRow

from seedbed.embedders.account import Change, Keeper, S, T
from seedbed.errors import AlreadyRunning
from seedbed.ledger.base import ON_TARGET, SCHEMA_VERSION, TABLES, UNKNOWN, Destination, Entry, Ledger, Standing
from seedbed.postgres import Database, mapped


class PostgresLedger(Ledger):
    """One connection in autocommit; locks are advisory ones of its session, so they die with it."""

    _unknown = f"'\\x{UNKNOWN.hex()}'::bytea"
    _clock = "extract(epoch from clock_timestamp())::float8"
    shared = True

    def __init__(self, url: str) -> None:
        super().__init__()
        self._locked: tuple[int, bool] | None = None
        self._url = url
        self._database = Database(url, setting="ledger.url")
        self._connection: Connection[TupleRow] = self._database.connect()

    def prepare(self, *, create: bool) -> bool:
        """Whether the schema stands (now, with `create`). Raises Refused for one of a newer version."""
        found = self._found()
        if found is None and not create:
            return False
        self._check_version(found or 0)
        if found != SCHEMA_VERSION and create:
            self._create()
        self._version = SCHEMA_VERSION if create else found or 0
        self._query("set search_path = seedbed_ledger, pg_catalog")
        return True

    def _found(self) -> int | None:
        """The version that stands, None where nothing does. Not by to_regclass, which within a transaction remembers
        that there was nothing before its lock was granted."""
        named = "n.nspname = 'seedbed_ledger' and c.relname = 'ledger_version'"
        if not self._query(f"select 1 from pg_class c join pg_namespace n on n.oid = c.relnamespace where {named}"):
            return None
        return int(self._query("select version from seedbed_ledger.ledger_version")[0][0])

    def _create(self) -> None:
        with self._transaction():
            self._query("select pg_advisory_xact_lock(hashtext('seedbed_ledger'))")
            words = {
                "p": "seedbed_ledger.",
                "serial": "serial primary key",
                "bytes": "bytea",
                "rowless": "",
                "real": "float8",
                "unknown": self._unknown,
            }
            if self._found() is None:
                self._query("create schema if not exists seedbed_ledger")
                for statement in TABLES.format(**words).split(";"):
                    self._query(statement)
                self._query("insert into seedbed_ledger.ledger_version values (1)")
            self._upgrade(words, words["p"])

    def keeper(self) -> Keeper:
        return PostgresKeeper(self._url)

    def _query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._guard, mapped("ledger.url"), self._connection.cursor(binary=True) as cursor:
            # The shared SQL marks parameters as SQLite does and holds no other question mark.
            cursor.execute(sql.replace("?", "%s").encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def _standing(self, destination_id: int, condition: str, parameters: list[object]) -> Standing:
        """The stretch as five long values in place of thousands of short ones: a tenth of the time of rows."""
        parts = ("int4send(length(position))", "position", "content", "payload", "int4send(points)")
        joined = ", ".join(f"coalesce(string_agg({part}, ''::bytea order by position), '')" for part in parts)
        lengths, positions, content, payload, points = self._query(
            f"select {joined} from target where destination_id = ? and {condition}", [destination_id, *parameters]
        )[0]
        return Standing(_split(positions, _integers(lengths)), _cut(content), _cut(payload), _integers(points))

    def _put_targets(self, destination: Destination, run_id: int, entries: Sequence[Entry], update: str) -> None:
        """Hashes go as two long values and are cut in the server: half the time of arrays of them."""
        if not entries:
            return
        positions, keys, content, payload, points = map(list, zip(*entries, strict=True))
        self._query(
            "insert into target (destination_id, run_id, position, key, content, payload, points) "
            "select ?, ?, position, key, substring(?::bytea from 32 * number::int - 31 for 32), "
            "substring(?::bytea from 32 * number::int - 31 for 32), points "
            "from unnest(?::bytea[], ?::text[], ?::int4[]) with ordinality as s (position, key, points, number) "
            f"{ON_TARGET} {update}",
            [destination.id, run_id, b"".join(content), b"".join(payload), positions, keys, points],
        )

    def _many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        with self._transaction(), self._connection.cursor() as cursor:
            cursor.executemany(sql.replace("?", "%s").encode(), rows)

    def _among(self, column: str, values: Sequence[bytes]) -> tuple[str, list[object]]:
        return f"{column} = any(?::bytea[])", [list(values)]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guard, mapped("ledger.url"), self._connection.transaction():
            yield

    def lock(self, pipeline: str, *, shared: bool = False) -> None:
        number = _number(f"seedbed run {pipeline}")
        if not self._query(f"select pg_try_advisory_lock{'_shared' if shared else ''}(?)", [number])[0][0]:
            raise AlreadyRunning(
                f"pipeline {pipeline!r} is being run by {self.running(pipeline)}",
                setting="ledger.url",
                hint="wait for it to end; a run that died holds nothing",
            )
        self._locked = (number, shared)

    def unlock(self, *, run: bool = True) -> None:
        if self._locked is not None:
            (number, shared), self._locked = self._locked, None
            self._query(f"select pg_advisory_unlock{'_shared' if shared else ''}(?)", [number])
        if run and self._run:
            number, self._run = self._run, 0
            self._query("select pg_advisory_unlock(?)", [_number(f"seedbed run number {number}")])

    def _claim(self, run_id: int) -> None:
        super()._claim(run_id)
        self._query("select pg_advisory_lock(?)", [_number(f"seedbed run number {run_id}")])

    def _lives(self, run_id: int) -> bool:
        """Asked by a shared lock, so that two who ask do not take each other for the run."""
        number = _number(f"seedbed run number {run_id}")
        if not self._query("select pg_try_advisory_lock_shared(?)", [number])[0][0]:
            return True
        self._query("select pg_advisory_unlock_shared(?)", [number])
        return False

    def close(self) -> None:
        try:
            self._connection.close()
        except OperationalError:
            return
        finally:
            self._database.close()


class PostgresKeeper:
    """As account.Keeper: a row a state, locked while it is changed, by the database's own clock. Its own connection,
    so that no run's transaction makes others wait."""

    shared = True

    def __init__(self, url: str) -> None:
        self._database = Database(url, setting="ledger.url")
        self._guard = threading.Lock()

    def update(self, name: str, kind: type[S], change: Change[S, T]) -> T:
        with self._guard, mapped("ledger.url"):
            connection = self._database.kept()
            with connection.transaction():
                return self._changed(connection, name, kind, change)

    @staticmethod
    def _changed(connection: Connection[TupleRow], name: str, kind: type[S], change: Change[S, T]) -> T:
        connection.execute("insert into seedbed_ledger.shared_state values (%s, '') on conflict do nothing", [name])
        found = connection.execute(
            "select state, extract(epoch from clock_timestamp())::float8 from seedbed_ledger.shared_state"
            " where name = %s for update",
            [name],
        ).fetchone()
        assert found is not None
        state, answer = change(msgspec.json.decode(found[0], type=kind) if found[0] else None, found[1])
        connection.execute(
            "update seedbed_ledger.shared_state set state = %s where name = %s",
            [msgspec.json.encode(state).decode(), name],
        )
        return answer

    def close(self) -> None:
        with self._guard:
            self._database.close()


def _number(name: str) -> int:
    """Of an advisory lock."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def _integers(data: bytes) -> list[int]:
    return list(struct.unpack(f">{len(data) // 4}i", data))


def _cut(data: bytes, width: int = 32) -> list[bytes]:
    return [data[start : start + width] for start in range(0, len(data), width)]


def _split(data: bytes, lengths: list[int]) -> list[bytes]:
    if len(set(lengths)) == 1:
        return _cut(data, lengths[0])
    ends = list(accumulate(lengths))
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
