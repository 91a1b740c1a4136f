"""The stores that the contract's suite runs over, and the points that it writes. A store joins by one line in STORES
and one case in `opened`."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pytest
from qdrant_client import QdrantClient

from seedbed.batch import TIMESTAMP, point_schema, vector_column, vectors_array
from seedbed.identity import Space, encode_key, point_id
from seedbed.protocols import CollectionSpec, Metric, Sink, Vectors
from services import milvus
from services.postgres import fresh_database
from services.qdrant_double import QdrantDouble


def needs(variable: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(variable not in os.environ, reason=f"{variable} names no server")


STORES = [
    "memory",
    "documented",
    "pgvector-15",
    "pgvector-18",
    "qdrant-edge",
    "qdrant-memory",
    "qdrant-double",
    pytest.param("qdrant-server", marks=needs("QDRANT_URL")),
    "milvus-lite",
    "milvus-2.3.5",
    pytest.param("milvus-server", marks=needs("MILVUS_URL")),
]
Open = Callable[..., Sink]

PAYLOAD = pa.schema([pa.field("title", pa.string()), pa.field("price", pa.float64())])
MANY_TYPES = pa.schema(
    [
        pa.field("text", pa.string()),
        pa.field("flag", pa.bool_()),
        pa.field("number", pa.int64()),
        pa.field("real", pa.float64()),
        pa.field("at", TIMESTAMP),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("sizes", pa.list_(pa.int64())),
        pa.field("marks", pa.list_(pa.float64())),
    ]
)


AXES = np.eye(3)


def opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty store."""
    match name.split("-"):
        case ["memory"]:
            yield f"memory:{uuid.uuid4()}"
        case ["pgvector", release]:
            with fresh_database(release) as url:
                yield url
        case ["documented"]:
            install_documented(tmp_path / "site")
            monkeypatch.syspath_prepend(str(tmp_path / "site"))
            yield f"duckdb:{tmp_path}/store"
        case ["qdrant", "edge"]:
            yield f"qdrant+embedded:{tmp_path}/qdrant"
        case ["qdrant", "memory"]:
            yield f"qdrant+memory:{uuid.uuid4()}"
        case ["qdrant", "double"]:
            double = QdrantDouble()
            yield double.url
            double.stop()
        case ["qdrant", "server"]:
            yield from qdrant_server()
        case ["milvus", "lite"]:
            yield f"milvus+embedded:{tmp_path}"
        case ["milvus", place]:
            with milvus.fresh_database(os.environ["MILVUS_URL"] if place == "server" else milvus.server()) as url:
                yield url


def install_documented(folder: Path) -> None:
    """The store of docs/stores.md, as a package of one's own that registers it."""
    page = (Path(__file__).parents[2] / "docs" / "stores.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (entry,) = re.findall(r'\[project.entry-points."seedbed.sinks"\]\n(.*?) = "(.*?)"', page)
    about = folder / "my_package-1.0.dist-info"
    for path, text in (
        (folder / "my_package" / "duckdb_sink.py", code),
        (about / "METADATA", "Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n"),
        (about / "entry_points.txt", f"[seedbed.sinks]\n{entry[0]} = {entry[1]}\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def qdrant_server() -> Iterator[str]:
    """The server of QDRANT_URL (`qdrant://host:6334`; its collection `things` is made and dropped)."""
    url = os.environ["QDRANT_URL"]
    forget_things(url)
    yield url
    forget_things(url)


def forget_things(url: str) -> None:
    where = urlsplit(url)
    client = QdrantClient(host=where.hostname, grpc_port=where.port or 6334, prefer_grpc=True)
    client.delete_collection("things__v1")
    client.close()


def spec(
    dimensions: int = 3, payload: pa.Schema = PAYLOAD, pipeline: str = "shop", metric: Metric = "cosine", **more: Any
) -> CollectionSpec:
    return CollectionSpec("things", pipeline, Space("model", "r1", dimensions), metric, payload, **more)


def points(
    vectors: Any, keys: list[str] | None = None, payload: pa.Schema = PAYLOAD, **columns: list[Any]
) -> pa.RecordBatch:
    """Points of one-column keys "0", "1", … with these payload columns; what is not given is null."""
    made = np.asarray(vectors, dtype=np.float32)
    return held_points({"": made}, keys, payload, **columns)


def held_points(
    vectors: dict[str, Any], keys: list[str] | None = None, payload: pa.Schema = PAYLOAD, **columns: list[Any]
) -> pa.RecordBatch:
    """The same of several named vectors; a row of NaN is a vector that the point does not have."""
    arrays = {name: np.asarray(rows, np.float32) for name, rows in vectors.items()}
    n, dimensions = next(iter(arrays.values())).shape
    names = [encode_key([key]) for key in keys or map(str, range(n))]
    values: dict[str, Any] = {
        "id": [point_id(name) for name in names],
        **{vector_column(name): vectors_array(made, np.isfinite(made[:, 0])) for name, made in arrays.items()},
        "_key": names,
        "_chunk": [0] * n,
        "_start": [0] * n,
        "_end": [9] * n,
        "_hash": ["h"] * n,
        "_payload_hash": ["p"] * n,
    }
    schema = point_schema(dimensions, payload, list(vectors))
    filled = []
    for field in schema:
        value = values.get(field.name, columns.get(field.name, [None] * n))
        filled.append(value if isinstance(value, pa.Array) else pa.array(value, field.type))
    return pa.RecordBatch.from_arrays(filled, schema=schema)


def everything(sink: Sink, vectors: bool = False) -> dict[str, dict[str, Any]]:
    return {row["_key"]: row for page in sink.scan(2, vectors=vectors) for row in page.to_pylist()}


def random_vectors(n: int, dimensions: int, seed: int = 0) -> Vectors:
    made = np.random.default_rng(seed).standard_normal((n, dimensions)).astype(np.float32)
    unit: Vectors = made / np.linalg.norm(made, axis=1, keepdims=True)
    return unit


def found(sink: Sink, vector: Any, k: int = 10, filter: Any = None) -> list[str]:
    return [hit.key for hit in sink.search(np.asarray(vector, np.float32), k, filter)]
