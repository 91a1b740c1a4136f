"""Qdrant: `qdrant://host:6334` (gRPC), `qdrant+embedded:DIR` (its engine in a folder), `qdrant+memory:` (for tests).

A collection NAME is `NAME__v1` and the alias `NAME` (in a folder: a pointer file), by which readers search. Point ids
are UUIDs, the row's own key is the payload field `_key`. Options of the URL: `m`, `ef_construct`, `on_disk`,
`quantization`; of a server also `shards`, `replicas`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from seedbed.protocols import UNNAMED, CollectionSpec, Filter, Hit, Vectors
from seedbed.sinks import meta, options
from seedbed.sinks.checks import (
    check_fit,
    check_json,
    check_points,
    check_query,
    check_spec,
    merged_payload,
    not_made,
)
from seedbed.sinks.filters import Condition, conditions
from seedbed.sinks.qdrant_engine import KNOWN, Engine, Options
from seedbed.sinks.qdrant_payload import batch_of, indexes, payloads, shown

FIRST = "v1"


class QdrantSink:
    """Settings: collection; for a server api_key, tls. All methods as in protocols.Sink; safe for several threads."""

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self._name = options.collection_of(settings)
        self._engine = _engine(url, self._name, settings)
        self._known: tuple[str, CollectionSpec] | None = None
        self._guard = threading.RLock()
        self.one_process = not url.lower().startswith("qdrant:")

    def ensure(self, spec: CollectionSpec) -> str:
        check_spec(spec)
        wanted = replace(spec, name=self._name)
        with self._guard:
            found = self._engine.find()
            if found is None:
                self._engine.create(FIRST, wanted, meta.to_json(wanted))
                # Where two make it at once, one of them has made it.
                found = self._engine.find()
                if found is None:
                    raise not_made(self._name)
            version, stands = found[0], meta.from_json(self._name, found[1])
            check_fit(stands, wanted)
            merged = replace(wanted, payload=merged_payload(stands.payload, wanted.payload))
            if merged != stands:
                self._engine.keep(version, meta.to_json(merged))
            self._known = (version, merged)
        return version

    def describe(self) -> CollectionSpec | None:
        with self._guard:
            found = self._engine.find()
            return None if found is None else meta.from_json(self._name, found[1])

    def upsert(self, points: pa.RecordBatch) -> None:
        with self._guard:
            check_points(points, self._spec(), vectors=True)
            check_json(points, "Qdrant")
            if points.num_rows:
                self._engine.upsert(points)

    def set_payload(self, points: pa.RecordBatch) -> None:
        with self._guard:
            check_points(points, self._spec(), vectors=False)
            check_json(points, "Qdrant")
            if points.num_rows:
                self._engine.overwrite(points.column("id").to_pylist(), payloads(points))

    def delete(self, ids: Sequence[str]) -> None:
        with self._guard:
            self._spec()
            if ids:
                self._engine.delete(ids)

    def count(self) -> int:
        with self._guard:
            self._spec()
            return self._engine.count()

    def scan(self, page_rows: int = 4096, *, vectors: bool = False) -> Iterator[pa.RecordBatch]:
        start: str | None = None
        while True:
            with self._guard:
                spec = self._spec()
                found, start = self._engine.scroll(start, page_rows, vectors=vectors)
            if found:
                ids, kept = [point.id for point in found], [point.payload for point in found]
                yield batch_of(spec, ids, kept, [point.vector for point in found] if vectors else None)
            if start is None:
                return

    def search(self, vector: Vectors, k: int, filter: Filter | None = None, using: str = UNNAMED) -> list[Hit]:
        with self._guard:
            spec = self._spec()
            query, tests = check_query(vector, spec, using), conditions(filter, spec.payload)
            if k < 1 or any(map(_impossible, tests)):
                return []
            found = self._engine.search(query, k, tests, using)
        sign = -1.0 if spec.metric == "l2" else 1.0
        return [Hit(kept["_key"], kept["_chunk"], sign * score, shown(spec, kept)) for kept, score in found]

    def finish(self) -> None:
        with self._guard:
            self._engine.finish(indexes(self._spec()))

    def close(self) -> None:
        with self._guard:
            self._engine.close()

    def _spec(self) -> CollectionSpec:
        if self._known is None:
            found = self._engine.find()
            if found is None:
                raise not_made(self._name)
            self._known = (found[0], meta.from_json(self._name, found[1]))
        return self._known[1]


def _impossible(test: Condition) -> bool:
    return test.operator == "in" and not test.operand


def _engine(url: str, name: str, settings: Mapping[str, Any]) -> Engine:
    # Each needs a package of its own.
    if url.startswith("qdrant+embedded:"):
        from seedbed.sinks.qdrant_edge import EdgeEngine

        options.refuse_others(settings, hint="a folder has no login")
        folder, found = options.split(url.removeprefix("qdrant+embedded:"), KNOWN)
        return EdgeEngine(folder, name, Options.of(found))
    from seedbed.sinks.qdrant_remote import RemoteEngine

    return RemoteEngine(url, name, settings)
