"""The indexes of a collection: HNSW over the vectors, and one over `_key`; built after the bulk load."""

from __future__ import annotations

from psycopg import errors, sql

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
    missing = {f"{table}_key_idx"} | ({f"{table}_vector_idx"} if ann else set())
    if spec.space.dimensions > _MOST_DIMENSIONS:
        missing.discard(f"{table}_vector_idx")
    missing -= _standing(connection, place, table)
    if f"{table}_key_idx" in missing:
        query = sql.SQL("create index if not exists {} on {} (_key)")
        connection.execute(query.format(sql.Identifier(f"{table}_key_idx"), place.table(version)))
    if f"{table}_vector_idx" in missing:
        _build_ann(connection, place, spec, version)
    if missing:
        connection.execute(sql.SQL("analyze {}").format(place.table(version)))


def _build_ann(connection: Connection, place: Place, spec: CollectionSpec, version: str) -> None:
    # CVE-2026-3172: parallel builds of pgvector before 0.8.2 may write past a buffer.
    parallel = place.extension_version >= _FIXED_PARALLEL
    try:
        _create_ann(connection, place, spec, version, parallel=parallel)
    except errors.DiskFull:
        if not parallel:
            raise
        # A parallel build shares its graph through /dev/shm, which is 64 MB in a container by default.
        _create_ann(connection, place, spec, version, parallel=False)


def _create_ann(connection: Connection, place: Place, spec: CollectionSpec, version: str, *, parallel: bool) -> None:
    kind = vector_type(spec.space.dimensions)
    query = sql.SQL("create index if not exists {} on {} using hnsw (vector {})").format(
        sql.Identifier(f"{place.table_name(version)}_vector_idx"),
        place.table(version),
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
    """The indexes of ours that stand, and ours by name where a user's own HNSW index does its work."""
    rows = connection.execute(
        "select i.relname, m.amname from pg_index x join pg_class i on i.oid = x.indexrelid"
        " join pg_class t on t.oid = x.indrelid join pg_namespace n on n.oid = t.relnamespace"
        " join pg_am m on m.oid = i.relam where n.nspname = %s and t.relname = %s and x.indisvalid",
        [place.schema, table],
    ).fetchall()
    return {f"{table}_vector_idx" if method in ("hnsw", "ivfflat") else name for name, method in rows}
