"""What stands in Postgres for a collection: the table `NAME__v1`, the view `NAME`, a row in `seedbed_collection`.

All of one collection's DDL is one transaction under an advisory lock, so two runs that make the same
collection make it once, and a crash leaves all of it or nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import psycopg
import pyarrow as pa
from psycopg import errors, sql
from psycopg.rows import TupleRow

from seedbed.batch import RESERVED, vector_column
from seedbed.errors import ConfigError, Fatal, Refused
from seedbed.identity import Space
from seedbed.protocols import CollectionSpec
from seedbed.sinks.checks import check_fit, check_spec, merged_payload
from seedbed.sinks.payload import payload_from_json, payload_to_json
from seedbed.sinks.pgvector_wire import sql_type, vector_type

Connection = psycopg.Connection[TupleRow]
META = "seedbed_collection"

_OLDEST = (0, 7)
_LONGEST_NAME = 63 - len("__v9999_vector_idx")
_SYSTEM = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a collection stands: schema and name, the schema of the extension, its version."""

    schema: str
    name: str
    extension: str
    extension_version: tuple[int, ...]

    @property
    def view(self) -> sql.Composable:
        return sql.Identifier(self.schema, self.name)

    @property
    def meta(self) -> sql.Composable:
        return sql.Identifier(self.schema, META)

    def table(self, version: str) -> sql.Composable:
        return sql.Identifier(self.schema, self.table_name(version))

    def table_name(self, version: str) -> str:
        return f"{self.name}__{version}"

    def index_name(self, version: str, vector: str) -> str:
        """The name of the index over one of the vectors."""
        return f"{self.table_name(version)}_{vector_column(vector)}_idx"

    def type(self, name: str) -> sql.Composable:
        return sql.Identifier(self.extension, name)

    def operator(self, symbol: str) -> sql.Composable:
        return sql.SQL(f"operator({{}}.{symbol})").format(sql.Identifier(self.extension))


class Standing(NamedTuple):
    """A collection as it stands, and what its columns are called on the wire."""

    place: Place
    spec: CollectionSpec
    version: str
    kind: str
    oids: dict[str, int]

    @property
    def table(self) -> sql.Composable:
        return self.place.table(self.version)


def extension(connection: Connection, *, create: bool) -> tuple[str, tuple[int, ...]] | None:
    """Schema and version of pgvector, made where it is not; None where it is not and `create` is False."""
    query = (
        "select n.nspname, e.extversion from pg_extension e join pg_namespace n on n.oid = e.extnamespace"
        " where e.extname = 'vector'"
    )
    row = connection.execute(query).fetchone()
    if row is None and not create:
        return None
    if row is None:
        _create_extension(connection)
        row = connection.execute(query).fetchone()
    if row is None:
        raise Fatal("the extension pgvector vanished while it was made", setting="sink.url")
    version = tuple(int(part) for part in row[1].split(".") if part.isdigit())
    if version < _OLDEST:
        raise Fatal(
            f"pgvector {row[1]} is too old: 0.7 or newer is needed",
            setting="sink.url",
            hint="upgrade the server's pgvector package, then ALTER EXTENSION vector UPDATE",
        )
    return row[0], version


def _create_extension(connection: Connection) -> None:
    try:
        connection.execute("create extension if not exists vector")
    except (errors.UndefinedFile, errors.FeatureNotSupported) as error:
        raise Fatal(
            "the Postgres server has no pgvector",
            setting="sink.url",
            hint="install it on the server (Debian: postgresql-NN-pgvector; source: github.com/pgvector/pgvector)",
        ) from error
    except errors.InsufficientPrivilege as error:
        raise Fatal(
            "pgvector is not yet enabled in this database, and this user may not enable it",
            setting="sink.url",
            hint="have a superuser run there: CREATE EXTENSION vector",
        ) from error
    except errors.UniqueViolation:
        # Another session made it at the same moment.
        return


def quoted(*names: str) -> sql.Composable:
    """Identifiers for a statement with parameters, in which a lone percent sign would start one."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))


def split_name(collection: str) -> tuple[str | None, str]:
    """(schema or None, name) of `NAME` or `SCHEMA.NAME`. Raises ConfigError for a name that cannot be one."""
    schema, dot, name = collection.rpartition(".")
    if not name or (dot and not schema) or set(schema + name) & set(".%\0"):
        raise ConfigError(
            f"{collection!r} is no collection name", setting="sink.collection", hint="NAME or SCHEMA.NAME"
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"the collection name {name!r} is longer than {_LONGEST_NAME} bytes", setting="sink.collection"
        )
    return schema or None, name


def find_place(connection: Connection, collection: str, *, create: bool) -> Place | None:
    """Where a collection is or would be; None without the extension and `create`. Raises ConfigError for a
    schema that is not there."""
    schema, name = split_name(collection)
    found = extension(connection, create=create)
    if found is None:
        return None
    row = connection.execute(
        "select n.nspname from pg_namespace n where n.nspname = coalesce(%s, current_schema())", [schema]
    ).fetchone()
    if row is None:
        raise ConfigError(
            f"the schema {schema!r} does not exist" if schema else "the user's search_path names no schema that exists",
            setting="sink.collection",
            hint=f"CREATE SCHEMA {schema}" if schema else "name one: SCHEMA.NAME",
        )
    return Place(row[0], name, *found)


def read_spec(connection: Connection, place: Place) -> tuple[CollectionSpec, str] | None:
    """The spec and version of a collection of ours, None where there is none."""
    if _kind(connection, place.schema, META) is None:
        return None
    query = sql.SQL("select pipeline, version, space, metric, payload, info, vectors from {} where name = %s")
    row = connection.execute(query.format(place.meta), [place.name]).fetchone()
    if row is None or _kind(connection, place.schema, place.table_name(row[1])) is None:
        return None
    pipeline, version, space, metric, payload, info, vectors = row
    spec = CollectionSpec(
        place.name,
        pipeline,
        Space.from_json(space),
        metric,
        payload_from_json(payload),
        json.loads(info),
        tuple(json.loads(vectors)),
    )
    return spec, version


def ensure(connection: Connection, place: Place, spec: CollectionSpec) -> tuple[CollectionSpec, str]:
    """Makes the collection or checks it; see protocols.Sink.ensure. Raises Refused, ConfigError."""
    _check_names(spec.payload)
    check_spec(spec)
    spec = replace(spec, name=place.name)
    with connection.transaction():
        connection.execute("set local lock_timeout = '10s'")
        connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"seedbed:{place.schema}"])
        standing = read_spec(connection, place)
        if standing is None:
            _check_index_names(place, spec)
            _refuse_strangers(connection, place)
            _create(connection, place, spec, "v1")
            return spec, "v1"
        stands, version = standing
        check_fit(stands, spec)
        return _extend(connection, place, stands, spec, version), version


def _extend(
    connection: Connection, place: Place, stands: CollectionSpec, spec: CollectionSpec, version: str
) -> CollectionSpec:
    merged = replace(spec, payload=merged_payload(stands.payload, spec.payload))
    fresh = [field for field in merged.payload if field.name not in stands.payload.names]
    for field in fresh:
        connection.execute(
            sql.SQL("alter table {} add column {}").format(place.table(version), _column(field.name, field.type))
        )
    kind = _kind(connection, place.schema, place.name)
    if kind not in ("v", None):
        raise _stranger(place, kind)
    if fresh or kind is None:
        # New columns come last, so this keeps the view itself, its grants and what depends on it.
        _create_view(connection, place, merged, version)
    if merged != stands:
        _write_spec(connection, place, merged, version)
    return merged


def _create(connection: Connection, place: Place, spec: CollectionSpec, version: str) -> None:
    kind = vector_type(spec.space.dimensions)
    if spec.space.dimensions > 16000:
        raise ConfigError(
            f"pgvector holds at most 16,000 dimensions, the embedder makes {spec.space.dimensions}",
            setting="embedder.dimensions",
        )
    columns = [
        sql.SQL("id uuid primary key"),
        *(
            sql.SQL("{} {}({}){}").format(
                sql.Identifier(vector_column(name)),
                place.type(kind),
                sql.Literal(spec.space.dimensions),
                sql.SQL("" if name else " not null"),
            )
            for name in spec.vectors
        ),
        *(sql.SQL("{} not null").format(_column(field.name, field.type)) for field in RESERVED),
        *(_column(field.name, field.type) for field in spec.payload),
    ]
    connection.execute(sql.SQL("create table {} ({})").format(place.table(version), sql.SQL(", ").join(columns)))
    _create_view(connection, place, spec, version)
    connection.execute(
        sql.SQL(
            "create table if not exists {} (name text primary key, pipeline text not null, version text not null,"
            " space text not null, metric text not null, payload text not null, info text not null,"
            " vectors text not null)"
        ).format(place.meta)
    )
    _write_spec(connection, place, spec, version)


def _create_view(connection: Connection, place: Place, spec: CollectionSpec, version: str) -> None:
    names = ["id", *map(vector_column, spec.vectors), *RESERVED.names, *spec.payload.names]
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    query = sql.SQL("create or replace view {} as select {} from {}")
    connection.execute(query.format(place.view, columns, place.table(version)))


def _write_spec(connection: Connection, place: Place, spec: CollectionSpec, version: str) -> None:
    values = [place.name, spec.pipeline, version, spec.space.to_json(), spec.metric]
    values += [payload_to_json(spec.payload), json.dumps(dict(spec.info), ensure_ascii=False)]
    values += [json.dumps(spec.vectors)]
    connection.execute(
        sql.SQL(
            "insert into {} (name, pipeline, version, space, metric, payload, info, vectors)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s)"
            " on conflict (name) do update set (pipeline, version, space, metric, payload, info, vectors) ="
            " (excluded.pipeline, excluded.version, excluded.space, excluded.metric, excluded.payload, excluded.info,"
            " excluded.vectors)"
        ).format(place.meta),
        values,
    )


def _column(name: str, kind: pa.DataType) -> sql.Composable:
    return sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(sql_type(kind)))


def _check_names(payload: pa.Schema) -> None:
    for name in payload.names:
        if len(name.encode()) > 63 or name.lower() in _SYSTEM:
            raise ConfigError(
                f"Postgres cannot have a column {name!r}: "
                + ("the name is its own" if name.lower() in _SYSTEM else "the name is longer than 63 bytes"),
                setting="sink.payload",
                hint="rename the column in a `query`",
            )


def _check_index_names(place: Place, spec: CollectionSpec) -> None:
    for name in spec.vectors:
        if len(place.index_name("v9999", name).encode()) > 63:
            raise ConfigError(
                f"the collection name {place.name!r} and the vector's name {name!r} together are too long for an index",
                setting="sink.collection",
                hint="Postgres takes names of 63 bytes: shorten one of them",
            )


def _refuse_strangers(connection: Connection, place: Place) -> None:
    for name in (place.name, place.table_name("v1")):
        kind = _kind(connection, place.schema, name)
        if kind is not None:
            raise _stranger(replace(place, name=name), kind)


def _stranger(place: Place, kind: Any) -> Refused:
    what = {"r": "a table", "p": "a table", "v": "a view", "m": "a materialized view"}.get(kind, "something else")
    return Refused(
        f'"{place.schema}"."{place.name}" is {what} that Seedbed did not make',
        setting="sink.collection",
        hint="name another collection, or rename or drop what stands there",
    )


def _kind(connection: Connection, schema: str, name: str) -> str | None:
    row = connection.execute(
        "select c.relkind::text from pg_class c join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = %s",
        [schema, name],
    ).fetchone()
    return None if row is None else str(row[0])
