"""The default ledger: one SQLite file beside the pipeline, and a lock file that dies with its holder."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from seedbed.errors import AlreadyRunning, ConfigError, Fatal, Transient
from seedbed.ledger.base import TABLES, UNKNOWN, Ledger


class SqliteLedger(Ledger):
    """`path` None: in memory, for reading where nothing stands yet."""

    _unknown = f"x'{UNKNOWN.hex()}'"
    _clock = "(julianday('now') - 2440587.5) * 86400.0"
    shared = False

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self._path = path
        self._lock: FileLock | None = None
        if path is not None and not path.parent.is_dir():
            raise ConfigError(
                f"the ledger's folder {path.parent} does not exist", setting="ledger.url", hint="create the folder"
            )
        with self._mapped():
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=30, isolation_level=None, check_same_thread=False
            )
            # WAL with FULL: a commit is durable before a store's write relies on it.
            self._connection.execute("pragma journal_mode = wal")
            self._connection.execute("pragma synchronous = full")
            self._connection.create_function("from_hex", 1, bytes.fromhex, deterministic=True)
            self._create()

    def _create(self) -> None:
        with self._transaction():
            words = {"p": "", "serial": "integer primary key", "bytes": "blob", "rowless": " without rowid"}
            words |= {"real": "real", "unknown": self._unknown}
            if not self._query("select 1 from sqlite_master where name = 'ledger_version'"):
                for statement in TABLES.format(**words).split(";"):
                    self._query(statement)
                self._query("insert into ledger_version values (1)")
            self._upgrade(words)

    def _query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._guard, self._mapped():
            return self._connection.execute(sql, parameters).fetchall()

    def _many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        with self._transaction(), self._mapped():
            self._connection.executemany(sql, rows)

    def _among(self, column: str, values: Sequence[bytes]) -> tuple[str, list[object]]:
        # As JSON, since a list of marks is bounded by SQLITE_MAX_VARIABLE_NUMBER.
        return f"{column} in (select from_hex(value) from json_each(?))", [json.dumps([v.hex() for v in values])]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guard, self._mapped():
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("begin immediate")
            try:
                yield
            except BaseException:
                self._connection.execute("rollback")
                raise
            self._connection.execute("commit")

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "")
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise Transient(f"the ledger {self._path} is busy: {error}", setting="ledger.url") from error
            hints = {
                "SQLITE_FULL": "the disk is full: free some room and run again; nothing was marked done that is not",
                "SQLITE_NOTADB": "this file is no ledger: name another, or remove it and run `seedbed adopt`",
                "SQLITE_CORRUPT": "the file is damaged: remove it and run `seedbed adopt`",
                "SQLITE_READONLY": "make the file and its folder writable",
                "SQLITE_CANTOPEN": "make the folder writable",
            }
            hint = next((text for start, text in hints.items() if name.startswith(start)), None)
            raise Fatal(f"the ledger {self._path}: {error}", setting="ledger.url", hint=hint) from error

    def lock(self, pipeline: str, *, shared: bool = False) -> None:
        """A file is one process's: `shared` makes no difference."""
        if self._path is None:
            return
        self._lock = FileLock(f"{self._path}.{pipeline}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            self._lock = None
            raise AlreadyRunning(
                f"pipeline {pipeline!r} is being run by {self.running(pipeline)}",
                setting="ledger.url",
                hint="wait for it to end (a run that died holds nothing); several workers of one queue need "
                "a ledger in Postgres",
            ) from None

    def unlock(self, *, run: bool = True) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def close(self) -> None:
        self._connection.close()
        self.unlock()
