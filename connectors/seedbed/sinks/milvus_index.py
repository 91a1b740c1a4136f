"""The vector indexes that Milvus builds for us, and how each is searched."""

from __future__ import annotations

import json
import time
from typing import Any

from pymilvus.grpc_gen import common_pb2, milvus_pb2

from seedbed.errors import Fatal
from seedbed.protocols import Metric
from seedbed.sinks.milvus_wire import Fault, Wire

METRICS: dict[Metric, str] = {"cosine": "COSINE", "dot": "IP", "l2": "L2"}
DEFAULT, CLOUD_DEFAULT = "HNSW", "AUTOINDEX"

_LISTS = 128
_BUILD: dict[str, dict[str, object]] = {
    "HNSW": {"M": 16, "efConstruction": 200},
    "FLAT": {},
    "IVF_FLAT": {"nlist": _LISTS},
    "IVF_SQ8": {"nlist": _LISTS},
    "HNSW_SQ": {"M": 16, "efConstruction": 200, "sq_type": "SQ8"},
    "AUTOINDEX": {},
}
KINDS = tuple(_BUILD)

_FAKED = "milvus-lite accepts it and builds nothing, so a pipeline tried there would behave otherwise on a server"
REFUSED = {
    "DISKANN": _FAKED,
    "SCANN": _FAKED,
    "IVF_PQ": _FAKED,
    "IVF_RABITQ": _FAKED,
    "HNSW_PQ": "its codebook is trained on the first rows alone, which a growing table leaves behind",
    "HNSW_PRQ": "its codebook is trained on the first rows alone, which a growing table leaves behind",
    "BIN_FLAT": "it is for binary vectors, embedders make floats",
    "BIN_IVF_FLAT": "it is for binary vectors, embedders make floats",
    "SPARSE_INVERTED_INDEX": "it is for sparse vectors, embedders make dense ones",
}

_BREADTH = 128
_PROBES = 32
_WHOLE = 100_000
"""No segment of milvus-lite has more rows."""
BULK = 8192
"""Rows written to a server before `finish` seals them: fewer are searched as they are, and to seal after every small
run would leave many small segments. A server seals by itself what lies still."""
_FLUSH_SECONDS = 120.0
_INDEX_SECONDS = 600.0


def pairs(values: dict[str, Any]) -> list[Any]:
    """A mapping as Milvus' messages have it."""
    return [common_pb2.KeyValuePair(key=key, value=str(value)) for key, value in values.items()]


def build_parameters(kind: str, metric: Metric) -> list[Any]:
    """`extra_params` of CreateIndex."""
    return pairs({"index_type": kind, "metric_type": METRICS[metric], "params": json.dumps(_BUILD[kind])})


def search_parameters(field: str, kind: str, metric: Metric, k: int, *, whole: bool = False) -> list[Any]:
    """`search_params` of Search over a vector field: enough breadth that k answers are k good ones; with `whole`,
    every point's."""
    params: dict[str, int] = {}
    if kind.startswith("HNSW"):
        params = {"ef": _WHOLE if whole else max(k, _BREADTH)}
    elif kind.startswith("IVF"):
        params = {"nprobe": _LISTS if whole else _PROBES}
    return pairs(
        {
            "anns_field": field,
            "topk": k,
            "metric_type": METRICS[metric],
            "params": json.dumps(params),
            "round_decimal": -1,
        }
    )


def settle(wire: Wire, collection: str) -> None:
    """Seals what was written and waits until it is indexed. A sealed segment of few rows gets no index."""
    if wire.embedded:
        with wire.alone():
            # The engine indexes what it loads, and only that.
            _flush(wire, collection)
            wire.call("ReleaseCollection", milvus_pb2.ReleaseCollectionRequest(collection_name=collection))
            wire.call("LoadCollection", milvus_pb2.LoadCollectionRequest(collection_name=collection), _INDEX_SECONDS)
    elif _flush(wire, collection):
        _wait_for_index(wire, collection)


def _flush(wire: Wire, collection: str) -> bool:
    try:
        answer = wire.call("Flush", milvus_pb2.FlushRequest(collection_names=[collection]), _FLUSH_SECONDS)
    except Fault as fault:
        if fault.limited:
            # Newer servers take one flush in ten seconds. They seal by themselves, and nothing is lost meanwhile.
            return False
        raise
    segments = answer.coll_segIDs[collection].data
    until = time.monotonic() + _FLUSH_SECONDS
    while not wire.embedded and time.monotonic() < until:
        state = wire.call(
            "GetFlushState",
            milvus_pb2.GetFlushStateRequest(
                segmentIDs=segments, collection_name=collection, flush_ts=answer.coll_flush_ts[collection]
            ),
        )
        if state.flushed:
            break
        time.sleep(0.1)
    return True


def _wait_for_index(wire: Wire, collection: str) -> None:
    until = time.monotonic() + _INDEX_SECONDS
    request = milvus_pb2.DescribeIndexRequest(collection_name=collection)
    while time.monotonic() < until:
        indexes = wire.call("DescribeIndex", request).index_descriptions
        for index in indexes:
            if index.state == common_pb2.IndexState.Failed:
                raise Fatal(f"Milvus could not build the index: {index.index_state_fail_reason}", setting="sink.url")
        if all(index.indexed_rows >= index.total_rows and not index.pending_index_rows for index in indexes):
            return
        time.sleep(0.2)
