"""Reading points: the nearest to a vector, and all of them page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg import sql

from seedbed.batch import is_vector, point_schema, vector_column, vectors_array
from seedbed.protocols import CollectionSpec, Vectors
from seedbed.sinks.filters import Condition
from seedbed.sinks.pgvector_index import OPERATORS
from seedbed.sinks.pgvector_tables import Connection, Standing, quoted
from seedbed.sinks.pgvector_wire import operand, operand_array, vector_value, vectors_from

_RANGE = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_ITERATIVE = (0, 8)


def where_clause(tests: Sequence[Condition]) -> tuple[sql.Composable, list[object]]:
    parts: list[sql.Composable] = []
    parameters: list[object] = []
    for test in tests:
        column = quoted(test.field)
        if test.operator == "in":
            assert isinstance(test.operand, list)
            value, kind = operand_array(test.operand, test.kind)
            form = f"{{}} && %s::{kind}" if test.of_list else f"{{}} = any(%s::{kind})"
        else:
            value, kind = operand(test.operand, test.kind)
            form = f"{{}} {_RANGE[test.operator]} %s::{kind}"
        parts.append(sql.SQL(form).format(column))
        parameters.append(value)
    if not parts:
        return sql.SQL(""), parameters
    return sql.SQL(" where {}").format(sql.SQL(" and ").join(parts)), parameters


def nearest(
    connection: Connection,
    known: Standing,
    using: str,
    query: Vectors,
    k: int,
    where: sql.Composable,
    parameters: list[object],
) -> list[tuple[Any, ...]]:
    column = quoted(vector_column(using))
    distance = sql.SQL("{} {} %b").format(column, known.place.operator(OPERATORS[known.spec.metric]))
    if using:
        word = sql.SQL("and") if parameters else sql.SQL("where")
        where = sql.SQL("{} {} {} is not null").format(where, word, column)
    statement = sql.SQL("select {}, {} as distance{} from {}{} order by distance limit {}").format(
        sql.SQL(", ").join(map(quoted, ("_key", "_chunk"))),
        distance,
        sql.SQL("").join(sql.SQL(", {}").format(quoted(name)) for name in known.spec.payload.names),
        known.place.view,
        where,
        sql.Literal(k),
    )
    values = [vector_value(query, known.kind, known.oids), *parameters]
    with connection.transaction():
        connection.execute("select set_config('hnsw.ef_search', %s, true)", [str(min(1000, max(100, k)))])
        if known.place.extension_version >= _ITERATIVE:
            connection.execute("set local hnsw.iterative_scan = strict_order")
        rows = connection.execute(statement, values).fetchall()
        if len(rows) < k:
            # The index gave up early (many dead or filtered rows), or there are no more: only a scan can tell.
            connection.execute("set local enable_indexscan = off")
            connection.execute("set local enable_seqscan = on")
            rows = connection.execute(statement, values).fetchall()
    return rows


def score(spec: CollectionSpec, distance: float) -> float:
    return 1.0 - distance if spec.metric == "cosine" else 0.0 - distance


def read_page(
    connection: Connection, known: Standing, last: str | None, page_rows: int, vectors: bool
) -> pa.RecordBatch:
    dimensions = known.spec.space.dimensions
    schema = point_schema(dimensions if vectors else None, known.spec.payload, known.spec.vectors)
    columns = [sql.SQL("id::text") if name == "id" else sql.Identifier(name) for name in schema.names]
    statement = sql.SQL("select {} from {}{} order by {}.id limit {}").format(
        sql.SQL(", ").join(columns),
        known.place.view,
        sql.SQL("") if last is None else sql.SQL(" where id > {}::uuid").format(sql.Literal(last)),
        known.place.view,
        sql.Literal(page_rows),
    )
    with connection.cursor(binary=True) as cursor:
        rows = cursor.execute(statement).fetchall()
    arrays = []
    for field, values in zip(schema, zip(*rows, strict=True) if rows else [()] * len(schema), strict=True):
        if is_vector(field):
            # pgvector's types have no loader here, so their values arrive as the bytes that they are on the wire.
            present = np.array([value is not None for value in values], np.bool_)
            made = np.zeros((len(values), dimensions), np.float32)
            made[present] = vectors_from([value for value in values if value is not None], known.kind, dimensions)
            arrays.append(vectors_array(made, present))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
