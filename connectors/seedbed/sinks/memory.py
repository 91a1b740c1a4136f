"""`memory:` and `memory:NAME`: the public double, a whole sink in this process's memory.

Every sink of one URL and collection sees the same points, so what a pipeline wrote can be searched by a
second sink. Exact search; nothing outlives the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seedbed.batch import point_schema, present_in, vector_column, vectors_of
from seedbed.protocols import UNNAMED, CollectionSpec, Filter, Hit, Vectors
from seedbed.sinks.checks import check_fit, check_points, check_query, check_spec, merged_payload, not_made
from seedbed.sinks.filters import Condition, conditions
from seedbed.sinks.options import collection_of, refuse_others
from seedbed.sinks.payload import readable


@dataclass
class _Collection:
    spec: CollectionSpec | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    vectors: dict[str, dict[str, Vectors]] = field(default_factory=dict)
    """By point id, by the vector's name."""
    lock: threading.RLock = field(default_factory=threading.RLock)


_STORE: dict[tuple[str, str], _Collection] = {}
_STORE_LOCK = threading.Lock()


class MemorySink:
    """Settings: collection. Safe for several threads. All methods as in protocols.Sink."""

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self._name = collection_of(settings)
        refuse_others(settings, hint="memory has no login")
        with _STORE_LOCK:
            self._collection = _STORE.setdefault((url, self._name), _Collection())
        self.one_process = True

    def ensure(self, spec: CollectionSpec) -> str:
        check_spec(spec)
        collection = self._collection
        with collection.lock:
            if collection.spec is not None:
                check_fit(collection.spec, spec)
                spec = replace(spec, payload=merged_payload(collection.spec.payload, spec.payload))
            collection.spec = spec
        return "v1"

    def describe(self) -> CollectionSpec | None:
        return self._collection.spec

    def upsert(self, points: pa.RecordBatch) -> None:
        spec = self._spec()
        check_points(points, spec, vectors=True)
        held = {name: (vectors_of(points, name).copy(), present_in(points, name)) for name in spec.vectors}
        rows = points.drop_columns(["id", *map(vector_column, spec.vectors)]).to_pylist()
        with self._collection.lock:
            for number, (identity, row) in enumerate(zip(points.column("id").to_pylist(), rows, strict=True)):
                self._collection.rows[identity] = row
                self._collection.vectors[identity] = {
                    name: vectors[number] for name, (vectors, present) in held.items() if present[number]
                }

    def set_payload(self, points: pa.RecordBatch) -> None:
        check_points(points, self._spec(), vectors=False)
        rows = points.drop_columns(["id"]).to_pylist()
        with self._collection.lock:
            for identity, row in zip(points.column("id").to_pylist(), rows, strict=True):
                if identity in self._collection.rows:
                    self._collection.rows[identity] = row

    def delete(self, ids: Sequence[str]) -> None:
        self._spec()
        with self._collection.lock:
            for identity in ids:
                self._collection.rows.pop(identity, None)
                self._collection.vectors.pop(identity, None)

    def count(self) -> int:
        self._spec()
        return len(self._collection.rows)

    def scan(self, page_rows: int = 4096, *, vectors: bool = False) -> Iterator[pa.RecordBatch]:
        spec = self._spec()
        schema = point_schema(spec.space.dimensions if vectors else None, spec.payload, spec.vectors)
        names = {vector_column(name): name for name in spec.vectors}
        with self._collection.lock:
            ids = sorted(self._collection.rows)
        for start in range(0, len(ids), page_rows):
            with self._collection.lock:
                page = [name for name in ids[start : start + page_rows] if name in self._collection.rows]
                rows = [{"id": name, **self._collection.rows[name]} for name in page]
                columns = [
                    pa.array([self._collection.vectors[name].get(names[f.name]) for name in page], f.type)
                    if f.name in names
                    else pa.array([row.get(f.name) for row in rows], f.type)
                    for f in schema
                ]
            if page:
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def search(self, vector: Vectors, k: int, filter: Filter | None = None, using: str = UNNAMED) -> list[Hit]:
        spec = self._spec()
        query = check_query(vector, spec, using)
        wanted = conditions(filter, spec.payload)
        with self._collection.lock:
            vectors = self._collection.vectors
            ids = [
                name
                for name, row in self._collection.rows.items()
                if using in vectors[name] and all(_meets(row, test) for test in wanted)
            ]
            if not ids or k < 1:
                return []
            stored = np.stack([vectors[name][using] for name in ids])
            rows = [self._collection.rows[name] for name in ids]
        scores = _scores(stored, query, spec.metric)
        best = np.lexsort((np.array(ids), -scores))[:k]
        names = spec.payload.names
        return [
            Hit(
                key=rows[at]["_key"],
                chunk=rows[at]["_chunk"],
                score=float(scores[at]),
                payload={name: readable(rows[at].get(name)) for name in names},
            )
            for at in best.tolist()
        ]

    def finish(self) -> None:
        """Nothing waits."""
        self._spec()

    def close(self) -> None:
        """What was written stays until the process ends."""

    def _spec(self) -> CollectionSpec:
        spec = self._collection.spec
        if spec is None:
            raise not_made(self._name)
        return spec


def _scores(stored: Vectors, query: Vectors, metric: str) -> npt.NDArray[np.floating[Any]]:
    if metric == "l2":
        distances: npt.NDArray[np.floating[Any]] = np.linalg.norm(stored - query, axis=1)
        return -distances
    products: Vectors = stored @ query
    if metric == "cosine":
        lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(query)
        cosines: npt.NDArray[np.floating[Any]] = products / lengths
        return cosines
    return products


def _meets(row: Mapping[str, Any], test: Condition) -> bool:
    value: Any = row.get(test.field)
    bound: Any = test.operand
    if value is None:
        return False
    match test.operator:
        case "in":
            return any(item in bound for item in value) if test.of_list else value in bound
        case "gt":
            return bool(value > bound)
        case "gte":
            return bool(value >= bound)
        case "lt":
            return bool(value < bound)
        case _:
            return bool(value <= bound)
