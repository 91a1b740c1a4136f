"""A reading session: one connection that writes nothing, and settings under which every value has one text form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.abc import Buffer
from psycopg.rows import TupleRow

from seedbed.postgres import Database, mapped

_SETTINGS = (
    "SET default_transaction_read_only = on",
    "SET TimeZone = 'UTC'",
    "SET DateStyle = 'ISO, YMD'",
    "SET IntervalStyle = 'iso_8601'",
    "SET extra_float_digits = 1",
    "SET bytea_output = 'hex'",
    "SET standard_conforming_strings = on",
)


class ReadSession:
    """Autocommit, read-only; connects when first used, and anew after a lost connection."""

    def __init__(self, url: str, setting: str = "source.url") -> None:
        self._database = Database(url, setting=setting, prepare=self._prepare)
        self._setting = setting
        self.encoding = "UTF8"
        self.time_zone = "UTC"

    def connection(self) -> psycopg.Connection[TupleRow]:
        return self._database.kept()

    def _prepare(self, connection: psycopg.Connection[TupleRow]) -> None:
        row = connection.execute("SELECT current_setting('server_encoding'), current_setting('TimeZone')").fetchone()
        assert row is not None
        self.encoding, self.time_zone = row
        for statement in _SETTINGS:
            connection.execute(statement)

    def rows(self, statement: sql.Composable, setting: str | None = None) -> list[TupleRow]:
        connection = self.connection()
        with mapped(setting or self._setting):
            return connection.execute(as_bytes(statement)).fetchall()

    def describe(self, statement: sql.Composable, setting: str) -> list[tuple[str, int]]:
        """The names and type oids of a statement's columns."""
        connection = self.connection()
        with mapped(setting):
            cursor = connection.execute(as_bytes(statement))
        return [(column.name, column.type_code) for column in cursor.description or ()]

    @contextmanager
    def copy(self, statement: sql.Composable, setting: str) -> Iterator[Iterable[Buffer]]:
        """The rows of `statement` as CSV lines, one an item."""
        connection = self.connection()
        wrapped = as_bytes(sql.SQL("COPY ({}) TO STDOUT (FORMAT csv)").format(statement))
        with mapped(setting), self._raw(connection), connection.cursor() as cursor, cursor.copy(wrapped) as copy:
            yield copy

    @contextmanager
    def _raw(self, connection: psycopg.Connection[TupleRow]) -> Iterator[None]:
        """Of a database without an encoding, its bytes as they are: asked for UTF-8, the server checks all that it
        sends, and one bad row would stop the page."""
        if self.encoding != "SQL_ASCII":
            yield
            return
        connection.execute("SET client_encoding = 'SQL_ASCII'")
        try:
            yield
        finally:
            if not connection.closed:
                connection.execute("SET client_encoding = 'UTF8'")

    def close(self) -> None:
        self._database.close()


def as_bytes(statement: sql.Composable) -> bytes:
    # psycopg would encode as ASCII while the session is raw; the database's bytes are taken for UTF-8.
    return statement.as_string(None).encode()
