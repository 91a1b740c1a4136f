"""Sinks over Milvus for the tests: opened, filled and asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pymilvus import MilvusClient

from seedbed import batch, registry
from seedbed.identity import Space
from seedbed.protocols import CollectionSpec, Metric, Sink, Vectors
from seedbed.sinks.milvus import MilvusSink
from seedbed.sinks.milvus_url import read_target


@contextmanager
def opened(url: str, **settings: Any) -> Iterator[MilvusSink]:
    sink = registry.sink(url, **{"collection": "things", **settings})
    assert isinstance(sink, MilvusSink)
    try:
        yield sink
    finally:
        sink.close()


def spec(dimensions: int = 3, payload: pa.Schema | None = None, metric: Metric = "cosine") -> CollectionSpec:
    return CollectionSpec("things", "shop", Space("m", "1", dimensions), metric, payload or pa.schema([]))


def some(n: int, dimensions: int = 3) -> Vectors:
    return np.random.default_rng(0).standard_normal((n, dimensions)).astype(np.float32)


def points(vectors: Vectors, payload: pa.Schema | None = None, **columns: list[Any]) -> pa.RecordBatch:
    """Points of the keys "0", "1", …"""
    arrays = {f.name: pa.array(columns.get(f.name, [None] * len(vectors)), f.type) for f in payload or []}
    return batch.points([str(number) for number in range(len(vectors))], vectors, arrays)


def keys(sink: Sink, vector: Any, k: int = 10, filter: Any = None) -> list[str]:
    return [hit.key for hit in sink.search(np.asarray(vector, np.float32), k, filter)]


@contextmanager
def client(url: str) -> Iterator[MilvusClient]:
    """Milvus' own client of the same store, for which the embedded one must be closed."""
    target = read_target(url, {})
    if target.folder is None:
        made = MilvusClient(f"http://{target.address}", token=target.token, db_name=target.database)
        yield made
        made.close()
        return
    from milvus_lite.server_manager import server_manager_instance

    path = str(Path(target.folder) / "milvus.db")
    yield MilvusClient(path)
    server_manager_instance.release_server(path)
