"""Milvus: a server, Zilliz Cloud, or the embedded milvus-lite: `milvus://…`, `milvus+embedded:DIR`.

A collection NAME is `NAME__v1` and the alias `NAME`, by which readers search; payload stands in the dynamic
field: `client.search("NAME", [vector], output_fields=["_key", "title"], filter='price < 10')`.
In the URL: `index` (milvus_index.KINDS), `vectors=float16`, `consistency` (of searches; strong), `tls=true`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from seedbed.batch import RESERVED, point_schema, present_in, vector_column, vectors_array, vectors_of
from seedbed.errors import ConfigError, MissingDependency
from seedbed.protocols import UNNAMED, CollectionSpec, Filter, Hit, Vectors
from seedbed.sinks import milvus_collections, milvus_index, milvus_pack
from seedbed.sinks.checks import check_points, check_query, not_made
from seedbed.sinks.filters import conditions
from seedbed.sinks.milvus_collections import Standing
from seedbed.sinks.milvus_filter import expression, stored_name
from seedbed.sinks.milvus_index import pairs, search_parameters
from seedbed.sinks.milvus_url import CONSISTENCY, collection_name, data_path, read_target
from seedbed.sinks.milvus_wire import Fault, ServerWire, Wire, mapped, too_large

Held = tuple[Vectors, npt.NDArray[np.bool_]]
"""Vectors of one name, and which points have one."""

_MOST_HITS = 16384
_PAGE_BYTES = 32 * 1024 * 1024
_IDS = 4096
_STRONG, _SESSION = CONSISTENCY["strong"], CONSISTENCY["session"]
_CUSTOM = 4
# Milvus' own marks for "not fresher than now and then" and "whatever there is".
_GUARANTEES = {CONSISTENCY["bounded"]: 2, CONSISTENCY["eventually"]: 1}


class MilvusSink:
    """Settings: collection, api_key, tls. All methods as in protocols.Sink; safe for several threads."""

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self._name = collection_name(settings)
        self._target = read_target(url, settings)
        self._wire: Wire | None = None
        self._known: Standing | None = None
        self._written = 0
        self._unsettled = 0
        # The embedded engine indexes nothing by itself, and a run before this one may have died before its `finish`.
        self._unfinished = self._target.folder is not None
        self._guard = threading.RLock()

    @property
    def one_process(self) -> bool:
        return self._target.folder is not None

    def ensure(self, spec: CollectionSpec) -> str:
        with self._session() as wire:
            self._known = milvus_collections.ensure(wire, self._target, self._name, spec)
            return self._known.version

    def describe(self) -> CollectionSpec | None:
        if self._wire is None and self._target.folder is not None and not data_path(self._target.folder).exists():
            # To open the folder would make it.
            return None
        with self._session() as wire:
            found = milvus_collections.read(wire, self._name)
            return found.spec if found else None

    def upsert(self, points: pa.RecordBatch) -> None:
        with self._session() as wire:
            known = self._standing(wire)
            check_points(points, known.spec, vectors=True)
            payload = self._payload(wire, points)
            for start, length in milvus_pack.requests(points, payload):
                part = points.slice(start, length)
                held = [(vectors_of(part, name), present_in(part, name)) for name in known.spec.vectors]
                self._store(wire, known, part, held, payload[start : start + length])

    def set_payload(self, points: pa.RecordBatch) -> None:
        with self._session() as wire:
            known = self._standing(wire)
            check_points(points, known.spec, vectors=False)
            payload = self._payload(wire, points)
            # Old servers have no partial upsert, and take its flag without a word: the vectors are read and written.
            step = _rows(known, 1024)
            for start in range(0, points.num_rows, step):
                self._replace_payload(wire, known, points.slice(start, step), payload[start : start + step])

    def delete(self, ids: Sequence[str]) -> None:
        with self._session() as wire:
            known = self._standing(wire)
            for start in range(0, len(ids), _IDS):
                expr = _among(ids[start : start + _IDS])
                request = milvus_pb2.DeleteRequest(collection_name=known.collection, expr=expr)
                self._wrote(wire, wire.call("Delete", request))

    def count(self) -> int:
        with self._session() as wire:
            answer = _query(wire, self._standing(wire).alias, "", ["count(*)"])
            return int(answer.fields_data[0].scalars.long_data.data[0])

    def scan(self, page_rows: int = 4096, *, vectors: bool = False) -> Iterator[pa.RecordBatch]:
        last, since, rows = "", 0, page_rows
        while True:
            with self._session() as wire:
                known = self._standing(wire)
                since = since or _now(wire)
                rows = _rows(known, rows) if vectors else min(rows, _MOST_HITS)
                rows, page = _fitting_page(wire, known, last, rows, vectors, since)
            if page.num_rows:
                last = page.column("id")[-1].as_py()
                yield page
            if page.num_rows < rows:
                return

    def search(self, vector: Vectors, k: int, filter: Filter | None = None, using: str = UNNAMED) -> list[Hit]:
        with self._session() as wire:
            known = self._standing(wire)
            query = check_query(vector, known.spec, using)
            expr = expression(conditions(filter, known.spec.payload), embedded=wire.embedded)
            if using and expr is not None:
                held = f"{milvus_pack.held_field(using)} == true"
                expr = f"{held} and {expr}" if expr else held
            if k < 1 or expr is None:
                return []
            if k > _MOST_HITS:
                raise ConfigError(f"Milvus answers with at most {_MOST_HITS:,} points, {k:,} were asked for")
            # The embedded engine walks its graph past the points that a filter or a delete leaves out and then
            # stops early with fewer than k; a server turns to brute force by itself.
            whole = wire.embedded and bool(expr)
            found = wire.call("Search", self._search_request(known, using, query, k, expr, whole)).results
            if wire.embedded and not whole and len(found.scores) < k:
                found = wire.call("Search", self._search_request(known, using, query, k, expr, True)).results
            return _hits(known, found, embedded=wire.embedded)

    def finish(self) -> None:
        with self._session() as wire:
            known = self._standing(wire)
            if self._unfinished or self._unsettled >= milvus_index.BULK:
                milvus_index.settle(wire, known.collection)
                self._unsettled, self._unfinished = 0, False

    def close(self) -> None:
        with self._guard:
            wire, self._wire, self._known = self._wire, None, None
            if wire is not None:
                wire.close()

    # --- inside -------------------------------------------------------------------------------------

    @contextmanager
    def _session(self) -> Iterator[Wire]:
        """The connection, made on first need; Milvus' errors in our tree."""
        with mapped("sink.url"):
            with self._guard:
                if self._wire is None:
                    self._wire = self._connect()
                wire = self._wire
            try:
                yield wire
            except Fault as fault:
                if fault.not_found or fault.not_loaded:
                    # Somebody released or dropped it meanwhile: the next call looks again.
                    self._known = None
                raise

    def _connect(self) -> Wire:
        target = self._target
        if target.folder is None:
            return ServerWire(target.address, token=target.token, database=target.database, tls=target.tls)
        try:
            from seedbed.sinks.milvus_lite import LiteWire
        except ModuleNotFoundError as missing:
            raise MissingDependency(
                f"milvus+embedded: needs the package {missing.name!r}, which is not installed",
                setting="sink.url",
                hint="pip install 'seedbed[embedded]'",
            ) from missing
        return LiteWire(target.folder)

    def _standing(self, wire: Wire) -> Standing:
        known = self._known
        if known is None:
            known = milvus_collections.read(wire, self._name)
            if known is None:
                raise not_made(self._name)
            milvus_collections.load(wire, known)
            self._known = known
        return known

    @staticmethod
    def _payload(wire: Wire, points: pa.RecordBatch) -> list[bytes]:
        milvus_pack.check_texts(points)
        return milvus_pack.payload_json(points, embedded=wire.embedded)

    def _store(
        self, wire: Wire, known: Standing, points: pa.RecordBatch, held: Sequence[Held], payload: Sequence[bytes]
    ) -> None:
        vectors = [
            field
            for name, (numbers, present) in zip(known.spec.vectors, held, strict=True)
            for field in milvus_pack.vector_fields(name, numbers, present, half=known.half)
        ]
        fields = milvus_pack.fields(points, vectors, payload)
        if wire.embedded:
            # Its upsert keeps dynamic fields that the new row does not name; its insert replaces the row.
            request = milvus_pb2.InsertRequest(
                collection_name=known.collection, num_rows=points.num_rows, fields_data=fields
            )
            self._wrote(wire, wire.call("Insert", request))
        else:
            self._wrote(wire, wire.call("Upsert", upsert_request(known.collection, points.num_rows, fields)))

    def _replace_payload(self, wire: Wire, known: Standing, points: pa.RecordBatch, payload: Sequence[bytes]) -> None:
        with wire.alone():
            ids = points.column("id").to_pylist()
            wanted = ["id", *_vector_fields(known)]
            answer = _query(wire, known.collection, _among(ids), wanted, limit=len(ids))
            at = {identity: row for row, identity in enumerate(milvus_pack.texts_in(answer, "id"))}
            kept = [row for row, identity in enumerate(ids) if identity in at]
            if not kept:
                return
            order = [at[ids[row]] for row in kept]
            held = [
                (numbers[order], present[order])
                for numbers, present in (milvus_pack.vectors_in(answer, name) for name in known.spec.vectors)
            ]
            self._store(wire, known, points.take(pa.array(kept)), held, [payload[row] for row in kept])

    def _wrote(self, wire: Wire, answer: Any) -> None:
        self._written = max(self._written, answer.timestamp)
        self._unsettled += max(answer.insert_cnt, answer.upsert_cnt)
        self._unfinished = wire.embedded

    def _search_request(self, known: Standing, using: str, query: Vectors, k: int, expr: str, whole: bool) -> Any:
        kinds = common_pb2.PlaceholderType
        asked = common_pb2.PlaceholderValue(
            tag="$0",
            type=kinds.Float16Vector if known.half else kinds.FloatVector,
            values=[query.astype("<f2" if known.half else "<f4").tobytes()],
        )
        level = self._target.consistency
        fresh = self._written or 1 if level == _SESSION else _GUARANTEES.get(level, 0)
        return milvus_pb2.SearchRequest(
            collection_name=known.alias,
            dsl=expr,
            dsl_type=common_pb2.DslType.BoolExprV1,
            placeholder_group=common_pb2.PlaceholderGroup(placeholders=[asked]).SerializeToString(),
            nq=1,
            output_fields=["_key", "_chunk", milvus_pack.DYNAMIC],
            search_params=search_parameters(vector_column(using), known.index, known.spec.metric, k, whole=whole),
            consistency_level=level,
            guarantee_timestamp=fresh,
        )


def upsert_request(collection: str, rows: int, fields: Sequence[Any]) -> Any:
    """Byte for byte what pymilvus sends for the same rows."""
    return milvus_pb2.UpsertRequest(collection_name=collection, num_rows=rows, fields_data=fields)


def _among(ids: Sequence[str]) -> str:
    return f"id in [{', '.join(json.dumps(identity) for identity in ids)}]"


def _rows(known: Standing, wanted: int) -> int:
    """So many rows that their vectors fit an answer."""
    width = 4 * known.spec.space.dimensions * len(known.spec.vectors)
    return max(1, min(wanted, _MOST_HITS, _PAGE_BYTES // width))


def _vector_fields(known: Standing) -> list[str]:
    return [field for name in known.spec.vectors for field in milvus_pack.read_fields(name)]


def _now(wire: Wire) -> int:
    """The store's own clock: who waits for it once sees all that was written before, on every page."""
    if wire.embedded:
        return 0
    try:
        return int(wire.call("AllocTimestamp", milvus_pb2.AllocTimestampRequest()).timestamp)
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED):
            raise
        # Each page then waits for itself.
        return 0


def _query(
    wire: Wire, name: str, expr: str, fields: Sequence[str], *, limit: int = 0, since: int = 0, ordered: bool = False
) -> Any:
    parameters = {"limit": limit} if limit else {}
    request = milvus_pb2.QueryRequest(
        collection_name=name,
        expr=expr,
        output_fields=fields,
        consistency_level=_CUSTOM if since else _STRONG,
        guarantee_timestamp=since,
        # Without it milvus-lite returns any `limit` rows of those that are meant.
        query_params=pairs({**parameters, "iterator": "True"} if ordered else parameters),
    )
    return wire.call("Query", request)


def _fitting_page(
    wire: Wire, known: Standing, last: str, rows: int, vectors: bool, since: int
) -> tuple[int, pa.RecordBatch]:
    """A page, and how many rows were asked for: fewer where the points are too large for one answer."""
    while True:
        try:
            return rows, _read_page(wire, known, last, rows, vectors, since)
        except (grpc.RpcError, Fault) as error:
            if rows == 1 or not too_large(error):
                raise
            rows = rows // 4 or 1


def _read_page(wire: Wire, known: Standing, last: str, rows: int, vectors: bool, since: int) -> pa.RecordBatch:
    wanted = ["id", *(_vector_fields(known) if vectors else []), *RESERVED.names, milvus_pack.DYNAMIC]
    answer = _query(wire, known.collection, f'id > "{last}"', wanted, limit=rows, since=since, ordered=True)
    schema = point_schema(known.spec.space.dimensions if vectors else None, known.spec.payload, known.spec.vectors)
    ids = milvus_pack.texts_in(answer, "id")
    if not ids:
        return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
    columns = [pa.array(ids, pa.string())]
    if vectors:
        columns += [vectors_array(*milvus_pack.vectors_in(answer, name)) for name in known.spec.vectors]
    for field in RESERVED:
        read = milvus_pack.texts_in if field.type == pa.string() else milvus_pack.integers_in
        columns.append(pa.array(read(answer, field.name), field.type))
    columns += milvus_pack.payload_columns(milvus_pack.json_in(answer), known.spec.payload, embedded=wire.embedded)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _hits(known: Standing, found: Any, *, embedded: bool) -> list[Hit]:
    if not found.scores:
        return []
    names = [(field.name, stored_name(field.name, field.type, embedded=embedded)) for field in known.spec.payload]
    hits = []
    for key, chunk, score, text in zip(
        milvus_pack.texts_in(found, "_key"),
        milvus_pack.integers_in(found, "_chunk"),
        found.scores,
        milvus_pack.json_in(found),
        strict=True,
    ):
        row = orjson.loads(text)
        # Milvus' L2 is the distance squared.
        value = -(max(score, 0.0) ** 0.5) if known.spec.metric == "l2" else score
        hits.append(Hit(key, chunk, value, {name: row.get(stored) for name, stored in names}))
    return hits
