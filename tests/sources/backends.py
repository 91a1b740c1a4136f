"""The same rows in each kind of source, so that one suite asks the same of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from psycopg import sql

from seedbed import registry
from seedbed.protocols import Page, Selection, Source
from services.postgres import fresh_database

BACKENDS = ("table", "query", "parquet", "csv", "jsonl")
_SQL_TYPES = {
    pa.int64(): "bigint",
    pa.int32(): "integer",
    pa.string(): "text",
    pa.bool_(): "boolean",
    pa.float64(): "double precision",
    pa.date32(): "date",
    pa.timestamp("us", tz="UTC"): "timestamptz",
    pa.list_(pa.string()): "text[]",
}


class World:
    """Makes sources of one kind; `url` is of a database for the kinds that need one."""

    def __init__(self, kind: str, folder: Path, url: str | None) -> None:
        self.kind = kind
        self._folder = folder
        self._url = url
        self._open: list[Source] = []

    def source(self, rows: pa.Table, key: list[str], *, unique: bool = True, **settings: Any) -> Source:
        """A source that holds `rows`; a table has the key as its primary key if `unique`."""
        make: Callable[[pa.Table, list[str], bool, dict[str, Any]], Source] = {
            "table": self._table,
            "query": self._query,
        }.get(self.kind, self._file)
        made = make(rows, key, unique, {**settings, "key": key})
        self._open.append(made)
        return made

    def close(self) -> None:
        for source in self._open:
            source.close()

    def _table(self, rows: pa.Table, key: list[str], unique: bool, settings: dict[str, Any]) -> Source:
        assert self._url is not None
        with psycopg.connect(self._url, autocommit=True) as connection:
            fill(connection, rows, key if unique else [])
        return registry.source(self._url, table="rows", **settings)

    def _query(self, rows: pa.Table, key: list[str], unique: bool, settings: dict[str, Any]) -> Source:
        self._table(rows, key, unique, settings).close()
        assert self._url is not None
        return registry.source(self._url, query="SELECT * FROM rows -- all;", **settings)

    def _file(self, rows: pa.Table, key: list[str], unique: bool, settings: dict[str, Any]) -> Source:
        path = self._folder / f"rows.{self.kind}"
        match self.kind:
            case "parquet":
                pq.write_table(rows, path)
            case "csv":
                pyarrow.csv.write_csv(rows, path)
            case _:
                path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows.to_pylist()))
        return registry.source(str(path), **settings)


def fill(connection: psycopg.Connection[Any], rows: pa.Table, primary: list[str]) -> None:
    columns = [
        sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(_SQL_TYPES[field.type])) for field in rows.schema
    ]
    if primary:
        columns.append(sql.SQL("PRIMARY KEY ({})").format(sql.SQL(", ").join(map(sql.Identifier, primary))))
    connection.execute("DROP TABLE IF EXISTS rows")
    connection.execute(sql.SQL("CREATE TABLE rows ({})").format(sql.SQL(", ").join(columns)))
    with connection.cursor() as cursor, cursor.copy("COPY rows FROM STDIN") as copy:
        for row in rows.to_pylist():
            copy.write_row(tuple(row.values()))


@contextmanager
def world(kind: str, folder: Path) -> Iterator[World]:
    if kind in ("table", "query"):
        with fresh_database("18") as url:
            made = World(kind, folder, url)
            yield made
            made.close()
        return
    made = World(kind, folder, None)
    yield made
    made.close()


def read(source: Source, *columns: str, page_rows: int = 4096, **selection: Any) -> list[Page]:
    return list(source.pages(Selection(columns=columns, page_rows=page_rows, **selection)))


def keys_of(pages: list[Page]) -> list[str]:
    return [key for page in pages for key in page.keys]


def column_of(pages: list[Page], name: str) -> list[Any]:
    return [value for page in pages for value in page.rows.column(name).to_pylist()]
