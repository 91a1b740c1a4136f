"""Rows of a Postgres table or query.

A table whose key stands in a unique index is read by pages of that index, a statement each. All else (a query,
a view, keys that may be NULL or twice, a text key in a collation that is not by bytes) is read by one ordered
COPY into a temporary file. Either way no statement runs while the caller holds a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
from psycopg import sql

from seedbed.errors import ConfigError
from seedbed.identity import KeyRange
from seedbed.protocols import CanQueue, CanShard, CanTellHorizon, Page, Selection, Source
from seedbed.sources import paging
from seedbed.sources.horizon import check_column, horizon
from seedbed.sources.pg_queue import Queue, QueueFeed
from seedbed.sources.pg_read import Read
from seedbed.sources.pg_relation import Relation, condition, describe
from seedbed.sources.pg_session import ReadSession
from seedbed.sources.pg_types import Column
from seedbed.sources.settings import SourceSettings


class PostgresSource:
    """`url`: `postgresql://…` or `pgvector+embedded:DIR`. `settings`: table or query, key (default: the primary
    key), where, changes, watermark, lag, deleted.

    Nothing is connected before it is needed. Raises ConfigError for settings that do not go together and for a
    relation or column that is not there, Transient and Fatal as seedbed.postgres says.
    """

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self._settings = SourceSettings.of(settings)
        self._session = ReadSession(url)
        self._queue = Queue(url)

    @cached_property
    def _relation(self) -> Relation:
        relation = describe(self._session, self._settings)
        if self._settings.watermark is not None:
            check_column(relation.column(self._settings.watermark, "source.watermark"))
        if self._settings.deleted is not None:
            relation.column(self._settings.deleted, "source.deleted")
        return relation

    @property
    def key_columns(self) -> tuple[str, ...]:
        return tuple(key.column.name for key in self._relation.key)

    @property
    def key_kinds(self) -> tuple[str, ...]:
        return tuple(key.column.kind for key in self._relation.key)

    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(column.name, column.arrow) for column in self._relation.columns.values()])

    def pages(self, selection: Selection) -> Iterator[Page]:
        read = self._read(selection)
        chunks: Iterator[paging.Chunk]
        if selection.watermark:
            return self._changed(read, selection)
        if selection.keys is not None:
            chunks = read.by_keys(selection.keys, selection.page_rows)
        elif self._relation.ordered:
            chunks = read.by_index(None, selection.page_rows)
        else:
            chunks = read.spooled(selection.page_rows)
        complete = selection.keys is None and selection.where is None
        return paging.pages(_at_least_one(chunks, read), selection.within, complete=complete)

    def _read(self, selection: Selection) -> Read:
        relation = self._relation
        columns = [relation.column(name, "source") for name in selection.columns]
        conditions = [condition(text) for text in (self._settings.where, selection.where) if text is not None]
        read = Read(self._session, relation, columns, conditions, deleted=self._named(self._settings.deleted))
        if selection.where is not None:
            self._check(read, "where")
        read.narrow(selection.within)
        return read

    def _named(self, name: str | None) -> Column | None:
        return None if name is None else self._relation.columns[name]

    def _check(self, read: Read, setting: str) -> None:
        """Has the server read the conditions before the first page is asked for."""
        statement = sql.SQL("SELECT 1 FROM {} WHERE {} LIMIT 0")
        self._session.describe(statement.format(self._relation.source, sql.SQL(" AND ").join(read.conditions)), setting)

    # --- changes by watermark -----------------------------------------------------------------------

    def horizon(self) -> str:
        """Raises ConfigError where no watermark column is set."""
        column = self._named(self._settings.watermark)
        if column is None:
            raise _no_watermark()
        return horizon(self._session, column, self._settings.lag)

    def _changed(self, read: Read, selection: Selection) -> Iterator[Page]:
        """Rows from the stored cursor on (and those without a value, which no cursor ever passes)."""
        column = self._named(self._settings.watermark)
        if column is None:
            raise _no_watermark()
        bound = horizon(self._session, column, self._settings.lag)
        read.watermark = column
        if selection.since is not None:
            cast = sql.SQL("{}::" + column.type_name).format(sql.Literal(selection.since))
            read.conditions.append(sql.SQL("({0} >= {1} OR {0} IS NULL)").format(column.identifier, cast))
        held: Page | None = None
        chunks = _at_least_one(read.spooled(selection.page_rows), read)
        for page in paging.pages(chunks, selection.within, complete=False):
            if held is not None:
                yield held
            held = page
        if held is not None:
            held_keys = (held.keys, held.positions, held.rows, None, held.deleted, held.failed)
            newest = read.seen if read.seen is not None else selection.since
            yield Page(*held_keys, watermark=None if newest is None else min(newest, bound))

    # --- changes by queue ---------------------------------------------------------------------------

    def watch(self, pipeline: str, columns: Sequence[str]) -> None:
        self._queue.watch(pipeline, self._table(), self._watched(columns), self._settings.where)

    def unwatch(self, pipeline: str) -> bool:
        return self._queue.unwatch(pipeline)

    def feed(self, pipeline: str, columns: Sequence[str]) -> QueueFeed:
        return QueueFeed(self._queue, pipeline, self._table(), self._watched(columns), self._settings.where)

    def _table(self) -> Relation:
        if self._settings.table is None:
            raise ConfigError(
                "a query's changes cannot be queued", setting="source.query", hint="name a table, or see them by scan"
            )
        return self._relation

    def _watched(self, columns: Sequence[str]) -> list[str]:
        keys, deleted = self.key_columns, self._settings.deleted
        return sorted({*columns, *([deleted] if deleted else [])} - {*keys})

    # --- size ---------------------------------------------------------------------------------------

    def estimate(self) -> int | None:
        where = "" if self._settings.where is None else " WHERE {}"
        parts: Sequence[sql.Composable] = [condition(self._settings.where)] if self._settings.where else []
        statement = sql.SQL("EXPLAIN (FORMAT JSON) SELECT * FROM {}" + where)
        plan = self._session.rows(statement.format(self._relation.source, *parts))[0][0]
        plan = orjson.loads(plan) if isinstance(plan, (str, bytes)) else plan
        return int(plan[0]["Plan"]["Plan Rows"])

    def shards(self, n: int) -> list[KeyRange]:
        """Key ranges between rows that stand at every n-th part of the key's order; reads the keys once."""
        relation = self._relation
        bounds = [] if n < 2 else self._bounds(relation, n)
        return [KeyRange(after, upto) for after, upto in zip([None, *bounds], [*bounds, None], strict=True)]

    def _bounds(self, relation: Relation, n: int) -> list[bytes]:
        where = condition(self._settings.where) if self._settings.where else sql.SQL("true")
        names = sql.SQL(", ").join(sql.Identifier(f"k{number}") for number in range(len(relation.key)))
        keys = sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(key.canonical, sql.Identifier(f"k{number}"))
            for number, key in enumerate(relation.key)
        )
        statement = sql.SQL(
            "SELECT {} FROM (SELECT {}, row_number() OVER (ORDER BY {}) AS row, count(*) OVER () AS rows "
            "FROM {} WHERE {}) AS numbered WHERE row < rows AND row * {n} / rows <> (row - 1) * {n} / rows ORDER BY row"
        ).format(names, keys, relation.order_by, relation.source, where, n=sql.Literal(n))
        rows = [row for row in self._session.rows(statement) if None not in row]
        return sorted({paging.encode_keys([pa.array([part]) for part in row])[1][0] for row in rows})

    def close(self) -> None:
        self._queue.close()
        self._session.close()


def _no_watermark() -> ConfigError:
    return ConfigError(
        "changes by watermark are asked for, but no watermark column is set",
        setting="source.watermark",
        hint='changes = "watermark" and watermark = "updated_at"',
    )


def _at_least_one(chunks: Iterator[paging.Chunk], read: Read) -> Iterator[paging.Chunk]:
    """An empty relation still makes one page, which covers all."""
    first = next(chunks, None)
    yield first if first is not None else read.nothing()
    yield from chunks


if TYPE_CHECKING:
    _source: type[Source] = PostgresSource
    _shards: type[CanShard] = PostgresSource
    _horizon: type[CanTellHorizon] = PostgresSource
    _queue: type[CanQueue] = PostgresSource
