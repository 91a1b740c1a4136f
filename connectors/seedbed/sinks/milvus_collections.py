"""What stands in Milvus for a collection: `NAME__v1`, the alias `NAME`, and its spec in the property `seedbed`.

Each step of making one can be done twice, so a crash between two of them is mended by the next `ensure`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from seedbed.batch import RESERVED, vector_column
from seedbed.errors import ConfigError, Fatal, Refused, Transient
from seedbed.protocols import UNNAMED, CollectionSpec
from seedbed.sinks import meta
from seedbed.sinks.checks import check_fit, check_spec, merged_payload
from seedbed.sinks.milvus_index import CLOUD_DEFAULT, DEFAULT, build_parameters, pairs
from seedbed.sinks.milvus_pack import LONGEST, held_field
from seedbed.sinks.milvus_url import Target
from seedbed.sinks.milvus_wire import Fault, Wire

PROPERTY = "seedbed"
_MOST_DIMENSIONS = 32768
_LOAD_SECONDS = 300.0
_STRONG = 0
_TYPES = schema_pb2.DataType


@dataclass(frozen=True, slots=True)
class Standing:
    """A collection as it stands."""

    spec: CollectionSpec
    version: str
    index: str
    half: bool

    @property
    def alias(self) -> str:
        return self.spec.name

    @property
    def collection(self) -> str:
        return f"{self.spec.name}__{self.version}"


def read(wire: Wire, name: str) -> Standing | None:
    """What the alias leads to, None where there is no such alias or no collection of ours behind it."""
    found = _describe(wire, name)
    return None if found is None or found.schema.name == name else _standing(name, found)


def ensure(wire: Wire, target: Target, name: str, spec: CollectionSpec) -> Standing:
    """Makes the collection or checks it; see protocols.Sink.ensure. Raises Refused, ConfigError."""
    check_spec(spec)
    spec = replace(spec, name=name)
    with wire.alone():
        stands = _find(wire, name)
        if stands is None:
            _create(wire, _wanted(wire, target, spec))
            # Another run may have made it at the same moment, for another pipeline.
            stands = _find(wire, name)
        if stands is None:
            raise Transient(f"the collection {name!r} vanished while it was made", setting="sink.collection")
        check_fit(stands.spec, spec)
        _check_choices(stands, target)
        stands = _extend(wire, stands, spec)
        _complete(wire, stands)
    return stands


def load(wire: Wire, standing: Standing) -> None:
    """Has the collection in memory, without which Milvus answers nothing of it. Cheap where it is."""
    name = standing.collection
    wire.call("LoadCollection", milvus_pb2.LoadCollectionRequest(collection_name=name, replica_number=1))
    until = time.monotonic() + _LOAD_SECONDS
    progress = milvus_pb2.GetLoadingProgressRequest(collection_name=name)
    while not wire.embedded and wire.call("GetLoadingProgress", progress).progress < 100:
        if time.monotonic() > until:
            raise Transient(f"Milvus has not loaded {name!r} in {_LOAD_SECONDS:.0f} s", setting="sink.url")
        time.sleep(0.05)


def _find(wire: Wire, name: str) -> Standing | None:
    """As `read`, also where the alias was not made any more. Raises Refused for what is not ours."""
    for place in (name, f"{name}__v1"):
        found = _describe(wire, place)
        if found is None:
            continue
        standing = _standing(name, found)
        if standing is None or found.schema.name == name:
            raise Refused(
                f"Milvus has a collection {found.schema.name!r} that Seedbed did not make",
                setting="sink.collection",
                hint="name another collection, or rename or drop what stands there",
            )
        return standing
    return None


def _describe(wire: Wire, name: str) -> Any | None:
    try:
        return wire.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name=name))
    except Fault as fault:
        if fault.not_found:
            return None
        raise


def _standing(name: str, found: Any) -> Standing | None:
    text = next((pair.value for pair in found.properties if pair.key == PROPERTY), None)
    if text is None:
        return None
    try:
        kept = json.loads(text)
        return Standing(meta.from_json(name, kept["spec"]), kept["version"], kept["index"], kept["half"])
    except (KeyError, TypeError, ValueError) as error:
        raise Fatal(
            f"the property {PROPERTY!r} of the collection {found.schema.name!r} cannot be read: {error}",
            setting="sink.collection",
            hint="it was made by another release of Seedbed, or changed by hand; name another collection",
        ) from error


def _kept(standing: Standing) -> list[Any]:
    kept = {
        "spec": meta.to_json(standing.spec),
        "version": standing.version,
        "index": standing.index,
        "half": standing.half,
    }
    return pairs({PROPERTY: json.dumps(kept, ensure_ascii=False)})


def _wanted(wire: Wire, target: Target, spec: CollectionSpec) -> Standing:
    index = target.index or (CLOUD_DEFAULT if target.cloud else DEFAULT)
    half = target.vectors == "float16"
    if spec.space.dimensions > _MOST_DIMENSIONS:
        raise ConfigError(
            f"Milvus holds at most {_MOST_DIMENSIONS:,} dimensions, the embedder makes {spec.space.dimensions:,}",
            setting="embedder.dimensions",
        )
    for wanted, what, oldest, reason in (
        (index == "HNSW_SQ", "index=HNSW_SQ", (2, 5), "has no such index"),
        (spec.vectors != (UNNAMED,), "a point of several named vectors", (2, 4), "has one vector a point"),
        (half, "vectors=float16", (2, 4), "takes such vectors, and then finds every one at distance 0"),
    ):
        if wanted and wire.version is not None and wire.version < oldest:
            stands, needed = (".".join(map(str, version)) for version in (wire.version, oldest))
            raise ConfigError(
                f"{what} needs Milvus {needed}: the server's {stands} {reason}",
                setting="sink.url",
                hint=f"upgrade the server, or leave out {what}",
            )
    return Standing(spec, "v1", index, half)


def _check_choices(stands: Standing, target: Target) -> None:
    vectors = "float16" if stands.half else "float32"
    for name, has, wants in (("index", stands.index, target.index), ("vectors", vectors, target.vectors)):
        if wants is not None and wants != has:
            raise Refused(
                f"collection {stands.alias!r} was made with {name}={has}, the URL says {name}={wants}",
                setting="sink.url",
                hint=f"leave {name} out of the URL, or write to a new collection",
            )


def _create(wire: Wire, wanted: Standing) -> None:
    name = wanted.collection
    schema = schema_pb2.CollectionSchema(name=name, enable_dynamic_field=True, fields=_fields(wanted))
    request = milvus_pb2.CreateCollectionRequest(
        collection_name=name,
        schema=schema.SerializeToString(),
        shards_num=1,
        consistency_level=_STRONG,
        properties=_kept(wanted),
    )
    _once(wire, "CreateCollection", request)


def _fields(wanted: Standing) -> list[Any]:
    vectors = _TYPES.Float16Vector if wanted.half else _TYPES.FloatVector
    dimensions = wanted.spec.space.dimensions
    field = schema_pb2.FieldSchema
    made = [
        field(name="id", is_primary_key=True, data_type=_TYPES.VarChar, type_params=pairs({"max_length": 36})),
    ]
    for name in wanted.spec.vectors:
        made.append(field(name=vector_column(name), data_type=vectors, type_params=pairs({"dim": dimensions})))
        if name:
            made.append(field(name=held_field(name), data_type=_TYPES.Bool))
    for kept in RESERVED:
        if kept.type == pa.string():
            made.append(field(name=kept.name, data_type=_TYPES.VarChar, type_params=pairs({"max_length": LONGEST})))
        else:
            made.append(field(name=kept.name, data_type=_TYPES.Int32))
    return made


def _extend(wire: Wire, stands: Standing, spec: CollectionSpec) -> Standing:
    """Payload needs no columns; what is known of it is kept."""
    merged = replace(spec, payload=merged_payload(stands.spec.payload, spec.payload))
    if merged == stands.spec:
        return stands
    changed = replace(stands, spec=merged)
    request = milvus_pb2.AlterCollectionRequest(collection_name=stands.collection, properties=_kept(changed))
    wire.call("AlterCollection", request)
    return changed


def _complete(wire: Wire, stands: Standing) -> None:
    """Index, memory, and last the alias: what readers find is whole."""
    for column in map(vector_column, stands.spec.vectors):
        request = milvus_pb2.CreateIndexRequest(
            collection_name=stands.collection,
            field_name=column,
            index_name=column,
            extra_params=build_parameters(stands.index, stands.spec.metric),
        )
        _once(wire, "CreateIndex", request)
    load(wire, stands)
    alias = milvus_pb2.CreateAliasRequest(collection_name=stands.collection, alias=stands.alias)
    _once(wire, "CreateAlias", alias)


def _once(wire: Wire, name: str, request: Any) -> None:
    try:
        wire.call(name, request)
    except Fault as fault:
        if not fault.already:
            raise
