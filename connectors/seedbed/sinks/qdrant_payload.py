"""A point's payload as Qdrant keeps it: JSON, NULL left out, timestamps RFC 3339 in UTC with microseconds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seedbed.batch import RESERVED, TIMESTAMP, is_vector, point_schema, vector_column, vectors_array
from seedbed.protocols import CollectionSpec

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
Payload = dict[str, Any]


def stored_name(name: str) -> str:
    """The payload key of a field. A path to a key cannot say a quotation mark, so such a name is written with %22."""
    return name.replace("%22", "%2522").replace('"', "%22")


def path(name: str) -> str:
    """The JSON path of a field, for filters and indexes."""
    key = stored_name(name)
    return key if _PLAIN.fullmatch(key) else f'"{key}"'


def columns(points: pa.RecordBatch) -> dict[str, list[Any]]:
    """Reserved fields and payload by stored name, as JSON takes the values; None is NULL."""
    return {
        stored_name(field.name): _plain(points.column(field.name)).to_pylist()
        for field in points.schema
        if field.name != "id" and not is_vector(field)
    }


def _plain(column: pa.Array) -> pa.Array:
    return pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ") if column.type == TIMESTAMP else column


def payloads(points: pa.RecordBatch) -> list[Payload]:
    named = columns(points)
    names = tuple(named)
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in zip(*named.values(), strict=True)
    ]


def batch_of(
    spec: CollectionSpec, ids: Sequence[str], kept: Sequence[Mapping[str, Any]], vectors: Sequence[Any] | None
) -> pa.RecordBatch:
    """The inverse, as `Sink.scan` gives it."""
    schema = point_schema(None if vectors is None else spec.space.dimensions, spec.payload, spec.vectors)
    names = {vector_column(name): name for name in spec.vectors}
    arrays = []
    for field in schema:
        if field.name == "id":
            arrays.append(pa.array(ids, pa.string()))
        elif field.name in names:
            assert vectors is not None
            arrays.append(_vectors(vectors, names[field.name], spec.space.dimensions))
        else:
            name = stored_name(field.name)
            arrays.append(_typed([row.get(name) for row in kept], field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _vectors(kept: Sequence[Any], name: str, dimensions: int) -> pa.Array:
    found = [vector.get(name) if name else vector for vector in kept]
    present = np.array([vector is not None for vector in found], np.bool_)
    made = np.zeros((len(found), dimensions), np.float32)
    if present.any():
        made[present] = [vector for vector in found if vector is not None]
    return vectors_array(made, present)


def _typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.string()).cast(kind) if kind == TIMESTAMP else pa.array(values, kind)


def shown(spec: CollectionSpec, kept: Mapping[str, Any]) -> dict[str, object]:
    """The payload of a hit."""
    found: dict[str, object] = {}
    for field in spec.payload:
        value = kept.get(stored_name(field.name))
        # JSON has one kind of number.
        found[field.name] = float(value) if field.type == pa.float64() and value is not None else value
    return found


INDEXED: dict[pa.DataType, str] = {
    pa.string(): "keyword",
    pa.int64(): "integer",
    pa.float64(): "float",
    pa.bool_(): "bool",
    TIMESTAMP: "datetime",
}


def indexes(spec: CollectionSpec) -> dict[str, str]:
    """What may be filtered by, as path → kind of payload index."""
    wanted = {path(RESERVED.field("_key").name): "keyword"}
    for field in spec.payload:
        item = field.type.value_type if pa.types.is_list(field.type) else field.type
        wanted[path(field.name)] = INDEXED[item]
    return wanted
