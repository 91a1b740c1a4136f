"""The indexes of a collection: HNSW over the vectors, and one over `_key`; built after the bulk load."""

from __future__ import annotations

from psycopg import errors, sql

from seedbed.batch import vector_column
from seedbed.protocols import CollectionSpec, Metric
from seedbed.sinks.pgvector_tables import Connection, Place
from seedbed.sinks.pgvector_wire import vector_type

OPERATORS: dict[Metric, str] = {"cosine": "<=>", "dot": "<#>", "l2": "<->"}
_CLASSES: dict[Metric, str] = {"cosine": "cosine_ops", "dot": "ip_ops", "l2": "l2_ops"}
_MOST_DIMENSIONS = 4000
_FIXED_PARALLEL = (0, 8, 2)
_MOST_BUILD_MEGABYTES = 1024


def build(connection: Connection, place: Place, spec: CollectionSpec, version: str, *, ann: bool) -> None:
    """Builds what is missing; ANALYZE where something was. Readers go on meanwhile, writers wait."""
    table = place.table_name(version)
    standing = _standing(connection, place, table)
    wanted = spec.vectors if ann and spec.space.dimensions <= _MOST_DIMENSIONS else ()
    vectors = [name for name in wanted if vector_column(name) not in standing]
    if "_key" not in standing:
        query = sql.SQL("create index if not exists {} on {} (_key)")
        _unhurried(connection, query.format(sql.Identifier(f"{table}_key_idx"), place.table(version)))
    for name in vectors:
        _build_ann(connection, place, spec, version, name)
    if vectors or "_key" not in standing:
        _unhurried(connection, sql.SQL("analyze {}").format(place.table(version)))


def _unhurried(connection: Connection, statement: sql.Composed) -> None:
    """Without the limit that writes have."""
    with connection.transaction():
        connection.execute("set local statement_timeout = 0")
        connection.execute(statement)


def _build_ann(connection: Connection, place: Place, spec: CollectionSpec, version: str, vector: str) -> None:
    # CVE-2026-3172: parallel builds of pgvector before 0.8.2 may write past a buffer.
    parallel = place.extension_version >= _FIXED_PARALLEL
    try:
        _create_ann(connection, place, spec, version, vector, parallel=parallel)
    except errors.DiskFull:
        if not parallel:
            raise
        # A parallel build shares its graph through /dev/shm, which is 64 MB in a container by default.
        _create_ann(connection, place, spec, version, vector, parallel=False)


def _create_ann(
    connection: Connection, place: Place, spec: CollectionSpec, version: str, vector: str, *, parallel: bool
) -> None:
    kind = vector_type(spec.space.dimensions)
    query = sql.SQL("create index if not exists {} on {} using hnsw ({} {})").format(
        sql.Identifier(place.index_name(version, vector)),
        place.table(version),
        sql.Identifier(vector_column(vector)),
        place.type(f"{kind}_{_CLASSES[spec.metric]}"),
    )
    with connection.transaction():
        connection.execute("set local statement_timeout = 0")
        if not parallel:
            connection.execute("set local max_parallel_maintenance_workers = 0")
        _grant_memory(connection, place, spec, version)
        connection.execute(query)


def _grant_memory(connection: Connection, place: Place, spec: CollectionSpec, version: str) -> None:
    """A build whose graph outgrows maintenance_work_mem goes on row by row on disk, several times slower."""
    counted = connection.execute(sql.SQL("select count(*) from {}").format(place.table(version))).fetchone()
    now = connection.execute(
        "select setting::int8 / 1024 from pg_settings where name = 'maintenance_work_mem'"
    ).fetchone()
    # A node holds its vector and, with m = 16, about 600 bytes of neighbours.
    width = spec.space.dimensions * (2 if vector_type(spec.space.dimensions) == "halfvec" else 4) + 600
    wanted = min(_MOST_BUILD_MEGABYTES, 16 + (counted[0] if counted else 0) * width * 5 // 4 // 2**20)
    if now is not None and wanted > now[0]:
        connection.execute("select set_config('maintenance_work_mem', %s, true)", [f"{wanted}MB"])


def _standing(connection: Connection, place: Place, table: str) -> set[str]:
    """The columns that an index leads with, be it ours or a user's own."""
    rows = connection.execute(
        "select a.attname from pg_index x join pg_class t on t.oid = x.indrelid"
        " join pg_namespace n on n.oid = t.relnamespace"
        " join pg_attribute a on a.attrelid = t.oid and a.attnum = x.indkey[0]"
        " where n.nspname = %s and t.relname = %s and x.indisvalid",
        [place.schema, table],
    ).fetchall()
    return {name for (name,) in rows}
