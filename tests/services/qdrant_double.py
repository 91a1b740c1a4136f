"""A double of a Qdrant server: its gRPC services over the Python client's in-memory model of it.

It proves what goes over the wire (requests, keys, errors), not what Qdrant does: the tests run against a real server
where QDRANT_URL names one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc as rpc
from qdrant_client import QdrantClient, grpc, models
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

_WRITES = {"Create", "Update", "Delete", "UpdateAliases", "Upsert", "UpdateBatch", "CreateFieldIndex"}


class QdrantDouble:
    """Listens on a free port of 127.0.0.1, or on `port`, until `stop`. `key` is asked for where it is set."""

    def __init__(self, port: int = 0, key: str = "", version: str = "1.17.0", read_only: bool = False) -> None:
        self.model = QdrantClient(":memory:")
        self.indexing: dict[str, int] = {}
        self.indexes: dict[str, dict[str, grpc.PayloadSchemaInfo]] = {}
        self.upserts_until_death: int | None = None
        self.requests = 0
        self._key, self._version, self._read_only = key, version, read_only
        self.port = port
        self.start()

    @property
    def url(self) -> str:
        return f"qdrant://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = [("grpc.max_receive_message_length", 64 * 1024 * 1024), ("grpc.so_reuseport", 0)]
        self._server = rpc.server(ThreadPoolExecutor(4), options=options)
        for service, handlers in _SERVICES.items():
            methods = {name: self._handler(name, *handler) for name, handler in handlers.items()}
            self._server.add_generic_rpc_handlers((rpc.method_handlers_generic_handler(service, methods),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def _handler(self, name: str, request_type: Any, answer: Callable[[QdrantDouble, Any], Any]) -> Any:
        def handle(request: Any, context: rpc.ServicerContext) -> Any:
            self._admit(name, context)
            try:
                return answer(self, request)
            except (ValueError, KeyError) as error:
                context.abort(rpc.StatusCode.NOT_FOUND, str(error))

        return rpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=request_type.FromString, response_serializer=lambda m: m.SerializeToString()
        )

    def _admit(self, name: str, context: rpc.ServicerContext) -> None:
        self.requests += 1
        if self._key and dict(context.invocation_metadata()).get("api-key") != self._key:
            context.abort(rpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")
        if self._read_only and name in _WRITES:
            context.abort(rpc.StatusCode.PERMISSION_DENIED, "Forbidden: Write access to collection is required")
        if name == "Upsert" and self.upserts_until_death is not None:
            self.upserts_until_death -= 1
            if self.upserts_until_death < 0:
                context.abort(rpc.StatusCode.UNAVAILABLE, "Socket closed")

    # --- collections --------------------------------------------------------------------------------

    def create(self, request: Any) -> Any:
        self.model.create_collection(
            request.collection_name,
            vectors_config=GrpcToRest.convert_vectors_config(request.vectors_config),
            metadata=GrpcToRest.convert_payload(request.metadata),
        )
        self.indexing[request.collection_name] = request.optimizers_config.indexing_threshold
        return grpc.CollectionOperationResponse(result=True)

    def change(self, request: Any) -> Any:
        if request.metadata:
            metadata = GrpcToRest.convert_payload(request.metadata)
            self.model.update_collection(request.collection_name, metadata=metadata)
        if request.optimizers_config.HasField("indexing_threshold"):
            self.indexing[request.collection_name] = request.optimizers_config.indexing_threshold
        return grpc.CollectionOperationResponse(result=True)

    def describe(self, request: Any) -> Any:
        name = self._real(request.collection_name)
        info = RestToGrpc.convert_collection_info(self.model.get_collection(name))
        info.config.optimizer_config.indexing_threshold = self.indexing[name]
        for field, schema in self.indexes.get(name, {}).items():
            info.payload_schema[field].CopyFrom(schema)
        return grpc.GetCollectionInfoResponse(result=info)

    def exists(self, request: Any) -> Any:
        found = self.model.collection_exists(request.collection_name)
        return grpc.CollectionExistsResponse(result=grpc.CollectionExists(exists=found))

    def aliases(self, request: Any) -> Any:
        found = self.model.get_aliases().aliases
        return grpc.ListAliasesResponse(aliases=[RestToGrpc.convert_alias_description(a) for a in found])

    def change_aliases(self, request: Any) -> Any:
        self.model.update_collection_aliases([GrpcToRest.convert_alias_operations(a) for a in request.actions])
        return grpc.CollectionOperationResponse(result=True)

    def index(self, request: Any) -> Any:
        schema = grpc.PayloadSchemaInfo(data_type=request.field_type + 1)
        self.indexes.setdefault(self._real(request.collection_name), {})[request.field_name] = schema
        return _updated()

    def _real(self, name: str) -> str:
        aliases = {a.alias_name: a.collection_name for a in self.model.get_aliases().aliases}
        return aliases.get(name, name)

    # --- points -------------------------------------------------------------------------------------

    def upsert(self, request: Any) -> Any:
        points = [GrpcToRest.convert_point_struct(point) for point in request.points]
        self.model.upsert(request.collection_name, points)
        return _updated()

    def delete(self, request: Any) -> Any:
        self.model.delete(request.collection_name, GrpcToRest.convert_points_selector(request.points))
        return _updated()

    def batch(self, request: Any) -> Any:
        changes: Any = [GrpcToRest.convert_points_update_operation(change) for change in request.operations]
        self.model.batch_update_points(request.collection_name, changes)
        return grpc.UpdateBatchResponse(result=[_updated().result for _ in changes])

    def get(self, request: Any) -> Any:
        ids: Any = [GrpcToRest.convert_point_id(point) for point in request.ids]
        found = self.model.retrieve(request.collection_name, ids, with_payload=True, with_vectors=False)
        return grpc.GetResponse(result=[RestToGrpc.convert_record(point) for point in found])

    def count(self, request: Any) -> Any:
        return grpc.CountResponse(result=grpc.CountResult(count=self.model.count(request.collection_name).count))

    def scroll(self, request: Any) -> Any:
        found, following = self.model.scroll(
            request.collection_name,
            limit=request.limit,
            offset=GrpcToRest.convert_point_id(request.offset) if request.HasField("offset") else None,
            with_vectors=request.with_vectors.enable,
        )
        rest = None if following is None else RestToGrpc.convert_extended_point_id(following)
        return grpc.ScrollResponse(result=[RestToGrpc.convert_record(p) for p in found], next_page_offset=rest)

    def query(self, request: Any) -> Any:
        found = self.model.query_points(
            request.collection_name,
            query=GrpcToRest.convert_query(request.query),
            using=request.using or None,
            query_filter=GrpcToRest.convert_filter(request.filter) if request.HasField("filter") else None,
            limit=request.limit,
            with_payload=True,
        )
        return grpc.QueryResponse(result=[RestToGrpc.convert_scored_point(point) for point in found.points])

    def health(self, request: Any) -> Any:
        return grpc.HealthCheckReply(title="qdrant double", version=self._version)


def _updated() -> Any:
    done = RestToGrpc.convert_update_result(models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED))
    return grpc.PointsOperationResponse(result=done)


_SERVICES: dict[str, dict[str, tuple[Any, Callable[[QdrantDouble, Any], Any]]]] = {
    "qdrant.Qdrant": {"HealthCheck": (grpc.HealthCheckRequest, QdrantDouble.health)},
    "qdrant.Collections": {
        "Create": (grpc.CreateCollection, QdrantDouble.create),
        "Update": (grpc.UpdateCollection, QdrantDouble.change),
        "Get": (grpc.GetCollectionInfoRequest, QdrantDouble.describe),
        "CollectionExists": (grpc.CollectionExistsRequest, QdrantDouble.exists),
        "ListAliases": (grpc.ListAliasesRequest, QdrantDouble.aliases),
        "UpdateAliases": (grpc.ChangeAliases, QdrantDouble.change_aliases),
    },
    "qdrant.Points": {
        "Upsert": (grpc.UpsertPoints, QdrantDouble.upsert),
        "Delete": (grpc.DeletePoints, QdrantDouble.delete),
        "UpdateBatch": (grpc.UpdateBatchPoints, QdrantDouble.batch),
        "CreateFieldIndex": (grpc.CreateFieldIndexCollection, QdrantDouble.index),
        "Get": (grpc.GetPoints, QdrantDouble.get),
        "Count": (grpc.CountPoints, QdrantDouble.count),
        "Scroll": (grpc.ScrollPoints, QdrantDouble.scroll),
        "Query": (grpc.QueryPoints, QdrantDouble.query),
    },
}
