"""Writing a batch of points: one statement out of binary arrays, and the row to blame where it fails."""

from __future__ import annotations

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import errors, sql

from seedbed.batch import RESERVED, vector_column
from seedbed.errors import RowError
from seedbed.sinks.checks import key_at
from seedbed.sinks.pgvector_tables import Connection, Standing, quoted
from seedbed.sinks.pgvector_wire import Raw, payload_array, uuid_array, vector_array

ROW_FAULTS = (psycopg.DataError, psycopg.IntegrityError, errors.ProgramLimitExceeded)


def store(connection: Connection, known: Standing, points: pa.RecordBatch, *, vectors: bool) -> None:
    """One statement: atomic, and durable once it returns. Rows that would not change are not written."""
    held = list(map(vector_column, known.spec.vectors)) if vectors else []
    names = ["id", *held, *RESERVED.names, *known.spec.payload.names]
    parameters: list[Raw] = []
    made: list[sql.Composable] = []
    for number, name in enumerate(names):
        place = f"c{number}"
        raw, value = _column(points, known, name)
        parameters.append(raw)
        made.append(sql.SQL(value.replace("{0}", f"s.{place}")))
    columns = sql.SQL(", ").join(map(quoted, names))
    rows = sql.SQL("select {} from unnest({}) as s({})").format(
        sql.SQL(", ").join(made),
        sql.SQL(", ").join([sql.SQL("%b")] * len(names)),
        sql.SQL(", ").join(quoted(f"c{number}") for number in range(len(names))),
    )
    changed = [name for name in names if name != "id"]
    plain = [name for name in changed if name not in held]
    # The extension may be outside the search_path, where a comparison of whole rows would look for it.
    other = sql.SQL(" or ").join(
        sql.SQL("coalesce(t.{0} {1} excluded.{0}, (t.{0} is null) <> (excluded.{0} is null))").format(
            quoted(name), known.place.operator("<>")
        )
        for name in held
    )
    words = {
        "table": known.table,
        "columns": columns,
        "rows": rows,
        "changed": sql.SQL(", ").join(map(quoted, changed)),
        "new": sql.SQL(", ").join(quoted("n", name) for name in changed),
        "excluded": sql.SQL(", ").join(quoted("excluded", name) for name in changed),
        "old_plain": sql.SQL(", ").join(quoted("t", name) for name in plain),
        "new_plain": sql.SQL(", ").join(quoted("n", name) for name in plain),
        "excluded_plain": sql.SQL(", ").join(quoted("excluded", name) for name in plain),
        "other": other,
    }
    connection.execute(sql.SQL(_UPSERT if vectors else _UPDATE).format(**words), parameters)


_UPSERT = (
    "insert into {table} as t ({columns}) {rows} on conflict (id) do update set ({changed}) = row({excluded})"
    " where row({old_plain}) is distinct from row({excluded_plain}) or {other}"
)
_UPDATE = (
    "update {table} as t set ({changed}) = row({new}) from ({rows}) as n({columns})"
    " where t.id = n.id and row({old_plain}) is distinct from row({new_plain})"
)


def _column(points: pa.RecordBatch, known: Standing, name: str) -> tuple[Raw, str]:
    if name == "id":
        return uuid_array(points.column("id")), "{0}"
    vector = {vector_column(vector): vector for vector in known.spec.vectors}.get(name)
    if vector is not None:
        return vector_array(points, vector, known.kind, known.oids), "{0}"
    if name in points.schema.names:
        return payload_array(points.column(name))
    # A payload field that the pipeline no longer sends.
    return payload_array(pa.nulls(points.num_rows, known.spec.payload.field(name).type))


def check_texts(points: pa.RecordBatch) -> None:
    for name in points.schema.names:
        column = points.column(name)
        if pa.types.is_string(column.type):
            bad = pc.match_substring(column, "\0")
        elif pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
            rows = pc.list_parent_indices(column).filter(pc.match_substring(pc.list_flatten(column), "\0"))
            bad = pc.is_in(pa.array(range(len(column)), rows.type), rows)
        else:
            continue
        row = pc.index(bad, True).as_py()
        if row >= 0:
            key = key_at(points, row)
            hint = "remove it in the source, or with replace() in a `query`"
            raise RowError(f"{name} holds a NUL character, which Postgres cannot store", key=key, hint=hint)


def blame(
    connection: Connection, known: Standing, points: pa.RecordBatch, error: psycopg.Error, *, vectors: bool
) -> RowError:
    """Finds the row that the store refuses by halving; nothing of it stays."""
    while points.num_rows > 1:
        half = points.slice(0, points.num_rows // 2)
        try:
            with connection.transaction(force_rollback=True):
                store(connection, known, half, vectors=vectors)
        except ROW_FAULTS as found:
            points, error = half, found
        else:
            points = points.slice(half.num_rows)
    return RowError(f"Postgres refuses the row: {error.diag.message_primary or error}", key=key_at(points, 0))
