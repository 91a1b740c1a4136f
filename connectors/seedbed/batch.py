"""Arrow helpers: the batches that travel between the roles.

Points: `id: string` (uuid), `vector: fixed_size_list<float32>[d]` or one `vector_NAME` for each named vector (NULL
where a point has none of it), the reserved fields, then payload.
Payload has few types, the same in every store: string, bool, int64, double, timestamp[us, UTC] and
lists of string, int64 or double. Decimals, dates, UUIDs and JSON become strings, NaN becomes null,
bytes are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from seedbed.errors import ConfigError
from seedbed.identity import point_id
from seedbed.protocols import UNNAMED, Vectors

RESERVED = pa.schema(
    [
        pa.field("_key", pa.string(), nullable=False),
        pa.field("_chunk", pa.int32(), nullable=False),
        pa.field("_start", pa.int32(), nullable=False),
        pa.field("_end", pa.int32(), nullable=False),
        pa.field("_hash", pa.string(), nullable=False),
        pa.field("_payload_hash", pa.string(), nullable=False),
    ]
)
TIMESTAMP = pa.timestamp("us", tz="UTC")
_TEXTY = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_decimal,
    pa.types.is_date,
    pa.types.is_time,
    pa.types.is_null,
)


def vector_column(name: str) -> str:
    """The column of a vector by its name."""
    return f"vector_{name}" if name else "vector"


def point_schema(dimensions: int | None, payload: pa.Schema, vectors: Sequence[str] = (UNNAMED,)) -> pa.Schema:
    """The schema of a batch for `Sink.upsert`; with None, for `Sink.set_payload` (no vector)."""
    head = [pa.field("id", pa.string(), nullable=False)]
    if dimensions is not None:
        kind = pa.list_(pa.float32(), dimensions)
        head += [pa.field(vector_column(name), kind, nullable=name != UNNAMED) for name in vectors]
    return pa.schema([*head, *RESERVED, *payload])


def points(keys: Sequence[str], vectors: Vectors, payload: Mapping[str, Any] | None = None) -> pa.RecordBatch:
    """A batch for `Sink.upsert` from canonical keys (identity.canonical_key), vectors of shape (n, dimensions) and
    payload columns: one point a row, whose hashes are empty, for stores that no pipeline keeps in step."""
    fields = pa.RecordBatch.from_pydict(dict(payload or {}))
    schema = payload_schema(fields.schema, fields.schema.names)
    count = len(keys)
    numbers, nothing = pa.array([0] * count, pa.int32()), pa.array([""] * count, pa.string())
    return pa.RecordBatch.from_arrays(
        [
            pa.array([point_id(key) for key in keys], pa.string()),
            vectors_array(vectors),
            pa.array(keys, pa.string()),
            *(numbers, numbers, numbers),
            *(nothing, nothing),
            *(payload_column(fields.column(field.name), field.type) for field in schema),
        ],
        schema=point_schema(vectors.shape[1], schema),
    )


def payload_of(schema: pa.Schema) -> pa.Schema:
    """The payload fields of a batch of points."""
    return pa.schema([f for f in schema if f.name != "id" and not is_vector(f) and f.name not in RESERVED.names])


def is_vector(field: pa.Field) -> bool:
    """Whether a column of points holds vectors: no payload is of such a type."""
    return bool(pa.types.is_fixed_size_list(field.type))


def vector_names(schema: pa.Schema) -> list[str]:
    """The vectors' names of a batch of points."""
    return [field.name.removeprefix("vector").removeprefix("_") for field in schema if is_vector(field)]


def vectors_array(vectors: Vectors, present: npt.NDArray[np.bool_] | None = None) -> pa.FixedSizeListArray:
    """float32 (n, d) as one Arrow column, without a copy where it is contiguous; NULL where not `present`."""
    flat = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
    absent = None if present is None or present.all() else pa.array(~present)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.shape[1], mask=absent)


def vectors_of(batch: pa.RecordBatch, name: str = UNNAMED) -> Vectors:
    """A vector's column as float32 (n, d), zeros where it is NULL. `flatten`, not `values`: on a slice the latter
    ignores the offset."""
    array = batch.column(vector_column(name))
    size = array.type.list_size
    flat: Vectors = numbers_of(array.flatten())
    if not array.null_count:
        return flat.reshape(len(array), size)
    whole = np.zeros((len(array), size), np.float32)
    whole[present_in(batch, name)] = flat.reshape(-1, size)
    return whole


def present_in(batch: pa.RecordBatch, name: str = UNNAMED) -> npt.NDArray[np.bool_]:
    """Which points have a vector of that name: shape (n,)."""
    valid = batch.column(vector_column(name)).is_valid()
    found: npt.NDArray[np.bool_] = valid.to_numpy(zero_copy_only=False)
    return found


_NUMBERS: dict[Any, np.dtype[Any]] = {pa.int64(): np.dtype(np.int64), pa.float32(): np.dtype(np.float32)}


def numbers_of(array: pa.Array) -> npt.NDArray[Any]:
    """A column of int64 or float32 without nulls, not copied; `to_numpy` would import pandas (0.2 s) where it is."""
    dtype = _NUMBERS[array.type]
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.zeros(0, dtype)
    return np.frombuffer(buffer, dtype, len(array), array.offset * dtype.itemsize)


def payload_type(name: str, source: pa.DataType) -> pa.DataType:
    """The canonical payload type of a source column. Raises ConfigError for bytes and nested types."""
    types = pa.types
    if types.is_boolean(source):
        return pa.bool_()
    if types.is_integer(source):
        return pa.int64()
    if types.is_floating(source):
        return pa.float64()
    if types.is_timestamp(source):
        return TIMESTAMP
    if types.is_list(source) or types.is_large_list(source):
        item = payload_type(name, source.value_type)
        if item in (pa.string(), pa.int64(), pa.float64()):
            return pa.list_(item)
    elif types.is_dictionary(source):
        return payload_type(name, source.value_type)
    elif any(is_texty(source) for is_texty in _TEXTY):
        return pa.string()
    raise ConfigError(
        f"column {name!r} of type {source} cannot be payload",
        setting="payload",
        hint="leave it out, or cast it to text, a number, a boolean or a timestamp in the source",
    )


def payload_schema(source: pa.Schema, names: list[str]) -> pa.Schema:
    """Canonical payload fields of the named source columns. Raises ConfigError for reserved and unknown names."""
    fields = []
    for name in names:
        if name.startswith("_") or name in ("id", "vector"):
            raise ConfigError(
                f"{name!r} cannot be payload: the name is reserved",
                setting="payload",
                hint="every point carries its row's key as `_key`; rename other columns in a `query`",
            )
        fields.append(pa.field(name, payload_type(name, source.field(name).type)))
    return pa.schema(fields)


def payload_column(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """A source column as its canonical payload type; NaN becomes null."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    if wanted == TIMESTAMP and array.type.tz is None:
        return pc.assume_timezone(array.cast(pa.timestamp("us")), "UTC")
    return array if array.type == wanted else array.cast(wanted)
