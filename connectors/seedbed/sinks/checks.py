"""What every sink asks of a collection and of a batch before a store sees it, in the same words."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seedbed.batch import RESERVED, is_vector, payload_of, present_in, vector_column, vectors_of
from seedbed.errors import ConfigError, Refused, RowError
from seedbed.protocols import UNNAMED, CollectionSpec, Vectors
from seedbed.sinks.payload import TYPES, type_name

_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


def not_made(name: str) -> ConfigError:
    """The error for a collection that is used before it was made."""
    return ConfigError(
        f"there is no collection {name!r} of ours",
        setting="sink.collection",
        hint="check its name; the first `seedbed sync` makes it",
    )


def check_fit(stands: CollectionSpec, wanted: CollectionSpec) -> None:
    """Raises Refused where `wanted` is another pipeline, space, metric, other vectors or payload types, naming both
    sides."""
    name = stands.name
    if stands.pipeline != wanted.pipeline:
        raise Refused(
            f"collection {name!r} belongs to the pipeline {stands.pipeline!r}, not to {wanted.pipeline!r}",
            setting="sink.collection",
            hint="give each pipeline a collection of its own",
        )
    if stands.space != wanted.space:
        raise Refused(
            f"collection {name!r} holds vectors of another space: it holds {stands.space},"
            f" the pipeline makes {wanted.space}",
            setting="embedder",
            hint="keep the old embedder, or write to a new collection: vectors of two spaces cannot be compared",
        )
    if stands.metric != wanted.metric:
        raise Refused(
            f"collection {name!r} was made for the metric {stands.metric!r}, the pipeline says {wanted.metric!r}",
            setting="sink.metric",
            hint="keep the metric, or write to a new collection",
        )
    if set(stands.vectors) != set(wanted.vectors):
        raise Refused(
            f"collection {name!r} was made for {_vectors(stands)}, the pipeline makes {_vectors(wanted)}",
            setting="content",
            hint="keep the contents' names, or write to a new collection",
        )
    for field in wanted.payload:
        at = stands.payload.get_field_index(field.name)
        old = stands.payload.field(at).type if at >= 0 else field.type
        if old != field.type:
            raise Refused(
                f"the payload field {field.name!r} of collection {name!r} is {type_name(old)},"
                f" the pipeline now has {type_name(field.type)}",
                setting="sink.payload",
                hint="cast the column to the old type in a `query`, or give it another name",
            )


def _vectors(spec: CollectionSpec) -> str:
    return "one vector without a name" if spec.vectors == (UNNAMED,) else f"the vectors {', '.join(spec.vectors)}"


def check_spec(spec: CollectionSpec) -> None:
    """Raises ConfigError for a payload type that is not one of the canonical ones, or a name that a vector has."""
    columns = set(map(vector_column, spec.vectors))
    for field in spec.payload:
        if field.name in columns:
            raise ConfigError(
                f"{field.name!r} cannot be payload: it is the column of a vector",
                setting="sink.payload",
                hint="rename the column in a `query`, or the content",
            )
        if field.type not in TYPES.values():
            raise ConfigError(
                f"the payload field {field.name!r} is of type {field.type}",
                setting="sink.payload",
                hint=f"payload types are {', '.join(TYPES)}",
            )


def merged_payload(stands: pa.Schema, wanted: pa.Schema) -> pa.Schema:
    """What stands there and then what is new."""
    return pa.schema([*stands, *(field for field in wanted if field.name not in stands.names)])


def check_points(points: pa.RecordBatch, spec: CollectionSpec, *, vectors: bool) -> None:
    """Raises ConfigError where the batch's columns or dimensions do not fit the collection, RowError with
    the key for a NULL in a reserved field, a point that comes twice, or a vector that cannot be compared."""
    held = list(map(vector_column, spec.vectors)) if vectors else []
    wanted = ["id", *held, *RESERVED.names]
    names = points.schema.names
    missing = [name for name in wanted if name not in names]
    if missing or {field.name for field in points.schema if is_vector(field)} - set(held):
        raise ConfigError(f"a batch of points needs the columns {wanted}, it has {names}")
    for field in payload_of(points.schema):
        at = spec.payload.get_field_index(field.name)
        if at < 0 or spec.payload.field(at).type != field.type:
            known = ", ".join(f"{f.name} {type_name(f.type)}" for f in spec.payload) or "none"
            raise ConfigError(
                f"collection {spec.name!r} has no payload field {field.name} {type_name(field.type)}; it has: {known}",
                setting="sink.payload",
                hint="`ensure` the collection with the new payload first",
            )
    for name in ("id", *RESERVED.names):
        if points.column(name).null_count:
            row = pc.index(points.column(name).is_null(), True).as_py()
            raise RowError(f"a point without {name}", key=key_at(points, row))
    _check_ids(points)
    if vectors:
        _check_vectors(points, spec)


def check_json(points: pa.RecordBatch, store: str) -> None:
    """Raises RowError with the key for a payload number that JSON cannot say: infinity."""
    for field in payload_of(points.schema):
        column = points.column(field.name)
        if field.type == pa.float64():
            rows, finite = None, pc.is_finite(column)
        elif field.type == pa.list_(pa.float64()):
            rows, finite = pc.list_parent_indices(column), pc.is_finite(pc.list_flatten(column))
        else:
            continue
        wrong = pc.index(finite, False).as_py()
        if wrong >= 0:
            raise RowError(
                f"{field.name!r} holds a number that is not finite",
                key=key_at(points, wrong if rows is None else rows[wrong].as_py()),
                hint=f"{store} keeps payload as JSON, which has none: make it NULL in a `query`",
            )


def key_at(points: pa.RecordBatch, row: int) -> str | None:
    """The key of a row of a batch."""
    key: str | None = points.column("_key")[row].as_py()
    return key


def check_query(vector: Vectors, spec: CollectionSpec, using: str = UNNAMED) -> Vectors:
    """The query as float32 of shape (dimensions,). Raises ConfigError where it does not fit the collection, or the
    collection has no vector `using`."""
    if using not in spec.vectors:
        raise ConfigError(
            f"collection {spec.name!r} has {_vectors(spec)}" + (f", not {using!r}" if using else ""),
            setting="--vector",
            hint="name none" if spec.vectors == (UNNAMED,) else "name one of them",
        )
    query: Vectors = np.ascontiguousarray(vector, dtype=np.float32).reshape(-1)
    if len(query) != spec.space.dimensions:
        raise ConfigError(
            f"the query has {len(query)} dimensions, collection {spec.name!r} has {spec.space.dimensions}",
            setting="embedder",
            hint=f"embed the query with {spec.space}",
        )
    reason = _fault(query[None, :], spec.metric)
    if reason is not None:
        raise ConfigError(f"the query vector {reason[1]}")
    return query


def _check_ids(points: pa.RecordBatch) -> None:
    identities = points.column("id")
    wrong = pc.index(pc.match_substring_regex(identities, _UUID), False).as_py()
    if wrong >= 0:
        raise RowError(f"an id of a point is no UUID: {identities[wrong].as_py()!r}", key=key_at(points, wrong))
    if pc.count_distinct(identities).as_py() == len(identities):
        return
    seen: set[str] = set()
    for row, identity in enumerate(identities.to_pylist()):
        if identity in seen:
            raise RowError(f"the point {identity} comes twice in one batch", key=key_at(points, row))
        seen.add(identity)


def _check_vectors(points: pa.RecordBatch, spec: CollectionSpec) -> None:
    some = np.zeros(points.num_rows, np.bool_)
    for name in spec.vectors:
        _check_vector(points, name, spec)
        some |= present_in(points, name)
    if not some.all():
        raise RowError("a point without a vector", key=key_at(points, int(some.argmin())))


def _check_vector(points: pa.RecordBatch, name: str, spec: CollectionSpec) -> None:
    kind = points.schema.field(vector_column(name)).type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise ConfigError(f"vectors must be fixed_size_list<float32>, they are {kind}")
    if kind.list_size != spec.space.dimensions:
        raise ConfigError(
            f"the vectors have {kind.list_size} dimensions, collection {spec.name!r} has {spec.space.dimensions}",
            setting="embedder.dimensions",
            hint="use the embedder that the collection was made with, or a new collection",
        )
    present = np.flatnonzero(present_in(points, name))
    vectors = vectors_of(points, name)
    fault = _fault(vectors if len(present) == len(vectors) else vectors[present], spec.metric)
    if fault is not None:
        row, reason = int(present[fault[0]]), fault[1]
        words = f"the vector {name!r}" if name else "the vector"
        raise RowError(f"{words} {reason}", key=key_at(points, row), hint="see what the embedder answers for it")


def _fault(vectors: Vectors, metric: str) -> tuple[int, str] | None:
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    bad = ~np.isfinite(squares)
    if bad.any():
        return int(bad.argmax()), "holds NaN, infinity or numbers too large to compare"
    if metric == "cosine" and not squares.all():
        return int((squares == 0).argmax()), "is of length zero, which has no cosine"
    return None
