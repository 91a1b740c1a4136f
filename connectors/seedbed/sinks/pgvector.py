"""pgvector on a Postgres server, or on the embedded one: `postgresql://…`, `pgvector+embedded:DIR`.

A collection NAME is the table `NAME__v1` and the view `NAME`, by which readers search:
`SELECT _key, title FROM "NAME" ORDER BY vector <=> $1 LIMIT 10`. Named vectors are columns `vector_NAME`.
`?index=none` in the URL builds no HNSW.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from psycopg import sql

from seedbed.errors import ConfigError
from seedbed.postgres import Database, mapped
from seedbed.protocols import UNNAMED, WRITE_SECONDS, CollectionSpec, Filter, Hit, Vectors
from seedbed.sinks import pgvector_index, pgvector_tables
from seedbed.sinks.checks import check_points, check_query, not_made
from seedbed.sinks.filters import conditions
from seedbed.sinks.options import collection_of, refuse_others
from seedbed.sinks.payload import readable
from seedbed.sinks.pgvector_read import nearest, read_page, score, where_clause
from seedbed.sinks.pgvector_tables import Connection, Place, Standing
from seedbed.sinks.pgvector_wire import Raw, RawDumper, oids, uuid_array, vector_type
from seedbed.sinks.pgvector_write import ROW_FAULTS, blame, check_texts, store


def _prepare(connection: Connection) -> None:
    connection.adapters.register_dumper(Raw, RawDumper)
    # What is set already (by the role, the database or the URL's options) stays.
    bound = "select set_config('statement_timeout', %s, false) where current_setting('statement_timeout') = '0'"
    connection.execute(bound, [f"{WRITE_SECONDS:.0f}s"])


class PgvectorSink:
    """Settings: collection (NAME or SCHEMA.NAME). All methods as in protocols.Sink; safe for several threads."""

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self._name = collection_of(settings)
        refuse_others(
            settings, hint="a Postgres URL says so itself: postgresql://user:${PASSWORD}@host/db?sslmode=require"
        )
        pgvector_tables.split_name(self._name)
        url, self._ann = _read_url(url)
        self._database = Database(url, setting="sink.url", prepare=_prepare)
        self._known: Standing | None = None
        self._guard = threading.RLock()

    def ensure(self, spec: CollectionSpec) -> str:
        with self._session() as connection:
            place = self._place(connection, create=True)
            assert place is not None
            spec, version = pgvector_tables.ensure(connection, place, spec)
            self._known = self._stand(connection, place, spec, version)
        return version

    def describe(self) -> CollectionSpec | None:
        with self._session() as connection:
            place = self._place(connection, create=False)
            found = place and pgvector_tables.read_spec(connection, place)
            return found[0] if found else None

    def upsert(self, points: pa.RecordBatch) -> None:
        self._write(points, vectors=True)

    def set_payload(self, points: pa.RecordBatch) -> None:
        self._write(points, vectors=False)

    def delete(self, ids: Sequence[str]) -> None:
        with self._session() as connection:
            query = sql.SQL("delete from {} where id = any(%b::uuid[])")
            known = self._standing(connection)
            if ids:
                connection.execute(query.format(known.table), [uuid_array(pa.array(ids, pa.string()))])

    def count(self) -> int:
        with self._session() as connection:
            query = sql.SQL("select count(*) from {}").format(self._standing(connection).place.view)
            row = connection.execute(query).fetchone()
            return int(row[0]) if row else 0

    def scan(self, page_rows: int = 4096, *, vectors: bool = False) -> Iterator[pa.RecordBatch]:
        last: str | None = None
        while True:
            with self._session() as connection:
                page = read_page(connection, self._standing(connection), last, page_rows, vectors)
            if page.num_rows:
                last = page.column("id")[-1].as_py()
                yield page
            if page.num_rows < page_rows:
                return

    def search(self, vector: Vectors, k: int, filter: Filter | None = None, using: str = UNNAMED) -> list[Hit]:
        with self._session() as connection:
            known = self._standing(connection)
            query = check_query(vector, known.spec, using)
            where, parameters = where_clause(conditions(filter, known.spec.payload))
            if k < 1:
                return []
            rows = nearest(connection, known, using, query, k, where, parameters)
        names = known.spec.payload.names
        return [
            Hit(row[0], row[1], score(known.spec, row[2]), dict(zip(names, map(readable, row[3:]), strict=True)))
            for row in rows
        ]

    def finish(self) -> None:
        with self._session() as connection:
            known = self._standing(connection)
            pgvector_index.build(connection, known.place, known.spec, known.version, ann=self._ann)

    def close(self) -> None:
        with self._guard:
            self._database.close()

    # --- inside -------------------------------------------------------------------------------------

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        """The connection, made again where it was lost; psycopg's errors in our tree."""
        with self._guard:
            connection = self._database.kept()
            with mapped("sink.url"):
                yield connection

    def _place(self, connection: Connection, *, create: bool) -> Place | None:
        return pgvector_tables.find_place(connection, self._name, create=create)

    def _standing(self, connection: Connection) -> Standing:
        if self._known is None:
            place = self._place(connection, create=False)
            found = pgvector_tables.read_spec(connection, place) if place else None
            if place is None or found is None:
                raise not_made(self._name)
            self._known = self._stand(connection, place, *found)
        return self._known

    @staticmethod
    def _stand(connection: Connection, place: Place, spec: CollectionSpec, version: str) -> Standing:
        kind = vector_type(spec.space.dimensions)
        return Standing(place, spec, version, kind, oids(connection, place.extension))

    def _write(self, points: pa.RecordBatch, *, vectors: bool) -> None:
        with self._session() as connection:
            known = self._standing(connection)
            check_points(points, known.spec, vectors=vectors)
            check_texts(points)
            if not points.num_rows:
                return
            try:
                store(connection, known, points, vectors=vectors)
            except ROW_FAULTS as error:
                raise blame(connection, known, points, error, vectors=vectors) from error


def _read_url(url: str) -> tuple[str, bool]:
    """The URL without our own options, and whether HNSW is wanted."""
    head, mark, query = url.partition("?")
    options = query.split("&") if mark else []
    ours = [option for option in options if option.startswith("index=")]
    if ours and ours[-1] not in ("index=none", "index=hnsw"):
        raise ConfigError(f"{ours[-1]!r} is no kind of index", setting="sink.url", hint="index=hnsw or index=none")
    rest = "&".join(option for option in options if option not in ours)
    return (f"{head}?{rest}" if rest else head), not ours or ours[-1] == "index=hnsw"
