"""Points as Milvus' messages and back: columns, vectors as their raw bytes, payload as one JSON object a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pymilvus.grpc_gen import schema_pb2

from seedbed.batch import RESERVED, TIMESTAMP, is_vector, payload_of, vector_column
from seedbed.errors import RowError
from seedbed.protocols import Vectors
from seedbed.sinks.checks import check_json, key_at
from seedbed.sinks.milvus_filter import stored_name
from seedbed.sinks.protobuf import varint

DYNAMIC = "$meta"
LONGEST = 65535
_LARGEST_PAYLOAD = 65536
REQUEST_BYTES = 16 * 1024 * 1024
_REQUEST_ROWS = 8192

_TYPES = schema_pb2.DataType
# The years 1 to 9999, outside of which text no longer sorts as time does.
_FIRST, _LAST = -62_135_596_800_000_000, 253_402_300_799_999_999


def payload_json(points: pa.RecordBatch, *, embedded: bool) -> list[bytes]:
    """The payload of each point; NULLs are left out, timestamps RFC 3339 in UTC with six digits. Raises RowError
    with the key for a point that is too large, infinite numbers and years that have no four digits."""
    check_json(points, "Milvus")
    schema = payload_of(points.schema)
    columns, names = [], []
    for field in schema:
        column = points.column(field.name)
        columns.append(_timestamps_out(points, field.name, column) if field.type == TIMESTAMP else column)
        names.append(stored_name(field.name, field.type, embedded=embedded))
    if not names:
        return [b"{}"] * points.num_rows
    values = [column.to_pylist() for column in columns]
    rows = (
        orjson.dumps({name: value for name, value in zip(names, row, strict=True) if value is not None})
        for row in zip(*values, strict=True)
    )
    return [_fitting(points, row, made) for row, made in enumerate(rows)]


def check_texts(points: pa.RecordBatch) -> None:
    """Raises RowError with the key for text that is longer than Milvus takes."""
    for name, limit in (("id", 36), ("_key", LONGEST), ("_hash", LONGEST), ("_payload_hash", LONGEST)):
        lengths = pc.binary_length(points.column(name))
        if len(lengths) and pc.max(lengths).as_py() > limit:
            row = pc.index(pc.greater(lengths, limit), True).as_py()
            raise RowError(
                f"{name} has {lengths[row].as_py():,} bytes, Milvus takes {limit:,}",
                key=key_at(points, row),
                hint="give the row a shorter key in a `query`" if name == "_key" else None,
            )


def requests(points: pa.RecordBatch, payload: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Stretches of rows that fit a message, as (start, length)."""
    width = sum(field.type.list_size * 4 for field in points.schema if is_vector(field))
    # Points of one batch are alike, so the largest is no bad measure of all.
    row = width + max(map(len, payload), default=0) + 512
    step = max(1, min(_REQUEST_ROWS, REQUEST_BYTES // row))
    for start in range(0, points.num_rows, step):
        yield start, min(step, points.num_rows - start)


def fields(points: pa.RecordBatch, vectors: Sequence[Any], payload: Sequence[bytes]) -> list[Any]:
    """`fields_data` of Insert and Upsert, in the order of the collection's fields. `vectors` are of `vector_fields`."""
    reserved = (_texts(f.name, points) if f.type == pa.string() else _integers(f.name, points) for f in RESERVED)
    dynamic = schema_pb2.FieldData(type=_TYPES.JSON, field_name=DYNAMIC, is_dynamic=True)
    dynamic.scalars.json_data.data.extend(payload)
    return [_texts("id", points), *vectors, *reserved, dynamic]


def held_field(name: str) -> str:
    """The field that says whether a point has the vector of that name: Milvus' vectors cannot be NULL."""
    return f"_has_{name}"


def vector_fields(name: str, vectors: Vectors, present: npt.NDArray[np.bool_], *, half: bool) -> list[Any]:
    """The vectors of one name as a field, of a named one also whether each point has it."""
    if not name:
        return [vector_field(name, vectors, half=half)]
    if not present.all():
        vectors = vectors.copy()
        # Not zeros, which have no cosine.
        vectors[~present] = np.eye(1, vectors.shape[1], dtype=np.float32)
    held = schema_pb2.FieldData(type=_TYPES.Bool, field_name=held_field(name))
    held.scalars.bool_data.data.extend(present.tolist())
    return [vector_field(name, vectors, half=half), held]


def vector_field(name: str, vectors: Vectors, *, half: bool) -> Any:
    """The vectors as one field. A repeated float on the wire is its bytes behind a tag and a length: parsing
    these costs a tenth of handing numbers over."""
    made = schema_pb2.FieldData(field_name=vector_column(name))
    made.vectors.dim = vectors.shape[1]
    if half:
        made.type = _TYPES.Float16Vector
        made.vectors.float16_vector = vectors.astype("<f2").tobytes()
    else:
        made.type = _TYPES.FloatVector
        raw = vectors.astype("<f4", copy=False).tobytes()
        made.vectors.float_vector.ParseFromString(b"\x0a" + varint(len(raw)) + raw)
    return made


def read_fields(name: str) -> list[str]:
    """The fields that `vectors_in` needs."""
    return [vector_column(name), *([held_field(name)] if name else [])]


def vectors_in(answer: Any, name: str) -> tuple[Vectors, npt.NDArray[np.bool_]]:
    """The inverse of `vector_fields`: the vectors, and which of them are meant."""
    vectors = _numbers(field_named(answer, vector_column(name)))
    if not name:
        return vectors, np.ones(len(vectors), np.bool_)
    return vectors, np.array(field_named(answer, held_field(name)).scalars.bool_data.data, np.bool_)


def _numbers(field: Any) -> Vectors:
    dimensions = field.vectors.dim
    if field.type == _TYPES.Float16Vector:
        halves = np.frombuffer(field.vectors.float16_vector, dtype="<f2")
        return halves.astype(np.float32).reshape(-1, dimensions)
    raw = field.vectors.float_vector.SerializeToString()
    count = len(field.vectors.float_vector.data)
    return np.frombuffer(raw, dtype="<f4", count=count, offset=len(raw) - 4 * count).reshape(-1, dimensions)


def payload_columns(rows: Sequence[bytes], payload: pa.Schema, *, embedded: bool) -> list[pa.Array]:
    """The inverse of `payload_json`, a column each field of `payload`."""
    read = [orjson.loads(row) for row in rows]
    return [
        _column([row.get(name) for row in read], field.type)
        for field in payload
        for name in [stored_name(field.name, field.type, embedded=embedded)]
    ]


def field_named(answer: Any, name: str) -> Any:
    """One field of an answer's `fields_data`. The dynamic one may come without its name."""
    for field in answer.fields_data:
        if field.field_name == name or (name == DYNAMIC and field.is_dynamic):
            return field
    raise KeyError(name)


def texts_in(answer: Any, name: str) -> list[str]:
    return list(field_named(answer, name).scalars.string_data.data)


def integers_in(answer: Any, name: str) -> list[int]:
    return list(field_named(answer, name).scalars.int_data.data)


def json_in(answer: Any) -> list[bytes]:
    return list(field_named(answer, DYNAMIC).scalars.json_data.data)


def _texts(name: str, points: pa.RecordBatch) -> Any:
    made = schema_pb2.FieldData(type=_TYPES.VarChar, field_name=name)
    made.scalars.string_data.data.extend(points.column(name).to_pylist())
    return made


def _integers(name: str, points: pa.RecordBatch) -> Any:
    made = schema_pb2.FieldData(type=_TYPES.Int32, field_name=name)
    made.scalars.int_data.data.extend(points.column(name).to_pylist())
    return made


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.string()).cast(TIMESTAMP) if kind == TIMESTAMP else pa.array(values, kind)


def _timestamps_out(points: pa.RecordBatch, name: str, column: pa.Array) -> pa.Array:
    numbers = column.cast(pa.int64())
    outside = pc.fill_null(pc.or_(pc.less(numbers, _FIRST), pc.greater(numbers, _LAST)), False)
    if pc.any(outside).as_py():
        row = pc.index(outside, True).as_py()
        raise RowError(
            f"the time in {name!r} is outside the years 1 to 9999",
            key=key_at(points, row),
            hint="make it NULL in a `query`",
        )
    return pc.replace_substring(column.cast(pa.string()), " ", "T", max_replacements=1)


def _fitting(points: pa.RecordBatch, row: int, made: bytes) -> bytes:
    if len(made) > _LARGEST_PAYLOAD:
        raise RowError(
            f"the payload has {len(made):,} bytes as JSON, Milvus takes {_LARGEST_PAYLOAD:,} a point",
            key=key_at(points, row),
            hint="leave long columns out of `payload`, or cut them in a `query`",
        )
    return made
