"""Qdrant as its Python client speaks to it: a server by gRPC, or `:memory:`, the client's own model of one."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from qdrant_client import QdrantClient, grpc, models
from qdrant_client.connection import get_channel

from seedbed.batch import present_in, vector_names, vectors_of
from seedbed.errors import ConfigError, Fatal, Refused, SeedbedError
from seedbed.protocols import UNNAMED, CollectionSpec, Vectors
from seedbed.sinks import options
from seedbed.sinks.filters import Condition
from seedbed.sinks.qdrant_engine import DISTANCES, EF, KNOWN, OVERSAMPLING, Kept, Options
from seedbed.sinks.qdrant_errors import mapped
from seedbed.sinks.qdrant_filter import Words, filter_of
from seedbed.sinks.qdrant_payload import Payload, payloads
from seedbed.sinks.qdrant_wire import upserts

_WORDS = Words(
    models.Filter, models.FieldCondition, models.MatchValue, models.MatchAny, models.Range, models.DatetimeRange
)
_OLDEST = (1, 16)
"""The first that keeps metadata with a collection."""
_PORT = 6334
_CLOUD = ".cloud.qdrant.io"
"""Hosts that speak TLS alone."""
_TIMEOUT = 60
_MOST_IDS = 1000
_INDEXED_FROM = 10_000
"""kB of vectors in a segment from which Qdrant builds HNSW: its own default."""
_META = "seedbed"

_MEMORIES: dict[str, QdrantClient] = {}
_MEMORIES_LOCK = threading.Lock()


class RemoteEngine:
    """As qdrant_engine.Engine. Nothing is connected before it is needed."""

    def __init__(self, url: str, name: str, settings: Mapping[str, Any]) -> None:
        if not re.fullmatch(r"[^<>:\"/\\|?*\0\x1f]{1,200}", name):
            raise ConfigError(f"{name!r} is no name of a Qdrant collection", setting="sink.collection")
        self._name = name
        self._written: str | None = None
        self._shards: int | None = None
        self._replicas: int | None = None
        self._remote = not url.startswith("qdrant+memory:")
        if self._remote:
            self._connect(url, settings)
        else:
            options.refuse_others(settings, hint="memory has no login")
            self._where, found = options.split(url, KNOWN)
            self._options = Options.of(found)
            with _MEMORIES_LOCK:
                self._client = _MEMORIES.setdefault(self._where, QdrantClient(":memory:"))
        self._checked = not self._remote

    def _connect(self, url: str, settings: Mapping[str, Any]) -> None:
        head, found = options.split(url, {**KNOWN, "shards": (), "replicas": ()})
        options.refuse_others(settings, "api_key", "tls")
        parts = urlsplit(head)
        try:
            host, port = parts.hostname, parts.port or _PORT
        except ValueError:
            host, port = None, 0
        if not host or parts.path.strip("/") or parts.username:
            raise ConfigError(
                "the Qdrant URL cannot be read", setting="sink.url", hint="qdrant://host:6334, with api_key beside it"
            )
        tls, key = settings.get("tls"), settings.get("api_key") or None
        tls = host.endswith(_CLOUD) if tls is None else tls
        self._where = f"{host}:{port}"
        self._options = Options.of(found)
        self._shards, self._replicas = (int(found[n]) if n in found else None for n in ("shards", "replicas"))
        self._client = QdrantClient(
            host=host,
            grpc_port=port,
            prefer_grpc=True,
            https=tls,
            # As `api_key` it would be sent just so, with a warning where there is no TLS.
            headers={"api-key": key} if key else None,
            timeout=_TIMEOUT,
            check_compatibility=False,
        )
        self._channel = get_channel(host, port, tls, [("api-key", key)] if key else None)

    # --- the collection -----------------------------------------------------------------------------

    def find(self) -> tuple[str, str] | None:
        with mapped(self._where):
            self._check_version()
            target = self._target()
            if target is None:
                if self._client.collection_exists(self._name):
                    raise self._stranger(self._name)
                return None
            return target.removeprefix(f"{self._name}__"), self._meta(target)

    def _target(self) -> str | None:
        aliases = self._client.get_aliases().aliases
        return next((a.collection_name for a in aliases if a.alias_name == self._name), None)

    def _meta(self, collection: str) -> str:
        kept = self._client.get_collection(collection).config.metadata or {}
        if _META not in kept:
            raise self._stranger(collection)
        return str(kept[_META])

    def _stranger(self, collection: str) -> Refused:
        return Refused(
            f"the Qdrant collection {collection!r} was not made by Seedbed",
            setting="sink.collection",
            hint="name another collection, or drop that one",
        )

    def _check_version(self) -> None:
        if self._checked:
            return
        version = self._client.info().version
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST:
            raise Fatal(
                f"Qdrant {version} at {self._where} is too old: {'.'.join(map(str, _OLDEST))} or newer is needed",
                setting="sink.url",
                hint="upgrade the server",
            )
        self._checked = True

    def create(self, version: str, spec: CollectionSpec, meta: str) -> None:
        collection = f"{self._name}__{version}"
        with mapped(self._where):
            if not self._client.collection_exists(collection):
                self._create(collection, spec, meta)
            self._meta(collection)
            alias = models.CreateAlias(collection_name=collection, alias_name=self._name)
            self._client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])

    def _create(self, collection: str, spec: CollectionSpec, meta: str) -> None:
        made = self._options
        params = models.VectorParams(
            size=spec.space.dimensions, distance=models.Distance(DISTANCES[spec.metric]), on_disk=made.on_disk
        )
        try:
            with mapped(self._where):
                self._client.create_collection(
                    collection,
                    vectors_config=params if spec.vectors == (UNNAMED,) else dict.fromkeys(spec.vectors, params),
                    hnsw_config=models.HnswConfigDiff(m=made.m, ef_construct=made.ef_construct),
                    quantization_config=_quantization(made.quantization),
                    # A bulk load is quicker without an index beside it; `finish` lets it be built.
                    optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0) if self._remote else None,
                    metadata={_META: meta},
                    shard_number=self._shards,
                    replication_factor=self._replicas,
                )
        except SeedbedError:
            # Another run may have made it at the same moment.
            if not self._client.collection_exists(collection):
                raise

    def keep(self, version: str, meta: str) -> None:
        with mapped(self._where):
            self._client.update_collection(f"{self._name}__{version}", metadata={_META: meta})

    def finish(self, indexes: Mapping[str, str]) -> None:
        if not self._remote:
            return
        with mapped(self._where):
            info = self._client.get_collection(self._name)
            for path, kind in indexes.items():
                if path not in info.payload_schema and path.strip('"') not in info.payload_schema:
                    schema = models.PayloadSchemaType(kind)
                    self._client.create_payload_index(self._collection(), path, field_schema=schema, wait=True)
            if info.config.optimizer_config.indexing_threshold == 0:
                lifted = models.OptimizersConfigDiff(indexing_threshold=_INDEXED_FROM)
                self._client.update_collection(self._collection(), optimizers_config=lifted)

    def close(self) -> None:
        if self._remote:
            self._client.close()
            self._channel.close()

    # --- points -------------------------------------------------------------------------------------

    def upsert(self, points: pa.RecordBatch) -> None:
        with mapped(self._where):
            if self._remote:
                for request in upserts(self._collection(), points):
                    self._send(request)
            else:
                ids, kept = points.column("id").to_pylist(), payloads(points)
                made = [
                    models.PointStruct(id=identity, vector=vector, payload=payload)
                    for identity, vector, payload in zip(ids, _vectors(points), kept, strict=True)
                ]
                self._client.upsert(self._collection(), made, wait=True)

    def _send(self, request: bytes) -> None:
        call = self._channel.unary_unary(
            "/qdrant.Points/Upsert",
            request_serializer=bytes,
            response_deserializer=grpc.PointsOperationResponse.FromString,
        )
        call(request, timeout=_TIMEOUT)

    def overwrite(self, ids: Sequence[str], payloads: Sequence[Payload]) -> None:
        with mapped(self._where):
            for start in range(0, len(ids), _MOST_IDS):
                part = slice(start, start + _MOST_IDS)
                wanted = dict(zip(ids[part], payloads[part], strict=True))
                standing = self._client.retrieve(
                    self._collection(), list(wanted), with_payload=False, with_vectors=False
                )
                changes: list[Any] = [
                    models.OverwritePayloadOperation(
                        overwrite_payload=models.SetPayload(payload=wanted[str(point.id)], points=[point.id])
                    )
                    for point in standing
                ]
                if changes:
                    self._client.batch_update_points(self._collection(), changes, wait=True)

    def delete(self, ids: Sequence[str]) -> None:
        with mapped(self._where):
            for start in range(0, len(ids), _MOST_IDS):
                part = models.PointIdsList(points=list(ids[start : start + _MOST_IDS]))
                self._client.delete(self._collection(), part, wait=True)

    def count(self) -> int:
        with mapped(self._where):
            return self._client.count(self._name, exact=True).count

    def scroll(self, start: str | None, limit: int, *, vectors: bool) -> tuple[list[Kept], str | None]:
        with mapped(self._where):
            found, following = self._client.scroll(
                self._name, limit=limit, offset=start, with_payload=True, with_vectors=vectors
            )
            kept = [Kept(str(point.id), point.payload or {}, point.vector) for point in found]
            return kept, None if following is None else str(following)

    def search(self, vector: Vectors, k: int, tests: Sequence[Condition], using: str) -> list[tuple[Payload, float]]:
        with mapped(self._where):
            found = self._client.query_points(
                self._name,
                query=vector.tolist(),
                using=using or None,
                query_filter=filter_of(tests, _WORDS),
                limit=k,
                with_payload=True,
                search_params=self._search_params(k) if self._remote else None,
            )
            return [(point.payload or {}, point.score) for point in found.points]

    def _search_params(self, k: int) -> models.SearchParams:
        # One bit a dimension finds the neighbourhood; the originals decide.
        binary = self._options.quantization == "binary"
        again = models.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING) if binary else None
        return models.SearchParams(hnsw_ef=max(EF, k), quantization=again)

    def _collection(self) -> str:
        """What is written to: the version itself, since an alias may be moved meanwhile."""
        if self._written is None:
            self._written = self._target() or self._name
        return self._written


def _vectors(points: pa.RecordBatch) -> list[Any]:
    """Of each point its vector, or those that it has by name."""
    rows: list[dict[str, list[float]]] = [{} for _ in range(points.num_rows)]
    for name in vector_names(points.schema):
        for row, vector, present in zip(rows, vectors_of(points, name), present_in(points, name), strict=True):
            if present:
                row[name] = vector.tolist()
    return [row.get(UNNAMED, row) for row in rows]


def _quantization(kind: str) -> Any:
    if kind == "int8":
        return models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        )
    if kind == "binary":
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
    return None
