"""What only Qdrant has: its wire, its folder, its server's refusals."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import RestToGrpc
from qdrant_edge import EdgeShard

from seedbed import registry
from seedbed.batch import TIMESTAMP, point_schema, points, vectors_array
from seedbed.errors import ConfigError, Fatal, Refused, Transient
from seedbed.identity import Space, encode_key
from seedbed.protocols import CollectionSpec, Sink, Vectors
from seedbed.sinks.qdrant_payload import payloads
from seedbed.sinks.qdrant_wire import upserts
from services.qdrant_double import QdrantDouble

MOMENT = datetime(2024, 2, 29, 23, 59, 59, 123456, UTC)
PAYLOAD = pa.schema([pa.field("title", pa.string()), pa.field('5" disk', pa.int64())])


def spec(dimensions: int = 3, payload: pa.Schema = PAYLOAD) -> CollectionSpec:
    return CollectionSpec("things", "shop", Space("model", "r1", dimensions), "cosine", payload)


def random_vectors(rows: int, dimensions: int) -> Vectors:
    return np.random.default_rng(0).standard_normal((rows, dimensions), np.float32)


def batch(rows: int, dimensions: int = 3, **payload: Any) -> pa.RecordBatch:
    vectors = random_vectors(rows, dimensions)
    return points([encode_key([str(row)]) for row in range(rows)], vectors, payload)


@pytest.fixture
def double() -> Iterator[QdrantDouble]:
    made = QdrantDouble()
    yield made
    made.stop()


@pytest.fixture
def opened() -> Iterator[list[Sink]]:
    sinks: list[Sink] = []
    yield sinks
    for sink in sinks:
        sink.close()


def open_sink(opened: list[Sink], url: str, collection: str = "things", **settings: Any) -> Sink:
    opened.append(registry.sink(url, collection=collection, **settings))
    return opened[-1]


# --- the wire ---------------------------------------------------------------------------------------


def test_an_upsert_is_the_clients_own_message() -> None:
    made = batch(
        300,
        dimensions=5,
        text=["", "x", "ü漢🙂" * 5000] * 100,
        number=pa.array([None, -1, 2**63 - 1] * 100, pa.int64()),
        real=[0.5, None, -1e-300] * 100,
        flag=[True, False, None] * 100,
        at=pa.array([MOMENT, None, MOMENT] * 100, TIMESTAMP),
        tags=pa.array([["a", None], [], None] * 100, pa.list_(pa.string())),
        sizes=pa.array([[1, -(2**63)], None, [128]] * 100, pa.list_(pa.int64())),
    )
    ours = [grpc.UpsertPoints.FromString(request) for request in upserts("things", made)]
    vectors = np.asarray(made.column("vector").to_pylist(), np.float32).tolist()
    theirs = [
        RestToGrpc.convert_point_struct(models.PointStruct(id=identity, vector=vector, payload=payload))
        for identity, vector, payload in zip(made.column("id").to_pylist(), vectors, payloads(made), strict=True)
    ]
    assert [point for request in ours for point in request.points] == theirs
    assert ours[0] == grpc.UpsertPoints(collection_name="things", wait=True, points=theirs)


def test_named_vectors_are_the_clients_own_message() -> None:
    vectors, present = random_vectors(3, 5), np.array([True, False, True])
    plain = batch(3, dimensions=5, number=[1, 2, 3])
    schema = point_schema(5, pa.schema([pa.field("number", pa.int64())]), ("photo", "title"))
    columns = [plain.column("id"), vectors_array(vectors, present), *plain.columns[1:]]
    made = pa.RecordBatch.from_arrays(columns, schema=schema)
    ours = grpc.UpsertPoints.FromString(next(upserts("things", made)))
    both = zip(made.column("vector_photo").to_pylist(), made.column("vector_title").to_pylist(), strict=True)
    named = [{"photo": photo, "title": title} if photo else {"title": title} for photo, title in both]
    theirs = [
        RestToGrpc.convert_point_struct(models.PointStruct(id=identity, vector=vector, payload=payload))
        for identity, vector, payload in zip(made.column("id").to_pylist(), named, payloads(made), strict=True)
    ]
    assert list(ours.points) == theirs


def test_a_big_batch_goes_in_messages_that_a_server_takes() -> None:
    requests = list(upserts("things", batch(5000, dimensions=2048)))
    assert len(requests) == 3
    assert max(map(len, requests)) < 17 * 1024 * 1024
    assert sum(len(grpc.UpsertPoints.FromString(request).points) for request in requests) == 5000


# --- a server ---------------------------------------------------------------------------------------


def test_the_index_waits_for_the_bulk_load(double: QdrantDouble, opened: list[Sink]) -> None:
    sink = open_sink(opened, double.url)
    sink.ensure(spec())
    assert double.indexing == {"things__v1": 0}
    five: dict[str, Any] = {'5" disk': [1, 2, 3, 4, 5]}
    sink.upsert(batch(5, title=list("abcde"), **five))
    sink.finish()
    assert double.indexing == {"things__v1": 10_000}
    assert sorted(double.indexes["things__v1"]) == ['"5%22 disk"', "_key", "title"]
    before = double.requests
    sink.finish()
    assert double.requests == before + 1
    assert [hit.key for hit in sink.search(np.ones(3, np.float32), 5, {'5" disk': 3})] == [encode_key(["2"])]


def test_a_server_that_dies_and_returns_takes_the_batch_again(double: QdrantDouble, opened: list[Sink]) -> None:
    sink = open_sink(opened, double.url)
    sink.ensure(spec(dimensions=2048, payload=pa.schema([])))
    double.upserts_until_death = 1
    with pytest.raises(Transient, match="Socket closed"):
        sink.upsert(batch(5000, dimensions=2048))
    double.stop()
    with pytest.raises(Transient, match="cannot be reached"):
        sink.count()
    double.upserts_until_death = None
    double.start()
    sink.upsert(batch(5000, dimensions=2048))
    assert sink.count() == 5000


def test_a_wrong_key_is_named(opened: list[Sink]) -> None:
    double = QdrantDouble(key="s3cret")
    try:
        for wrong in ({}, {"api_key": "other"}):
            with pytest.raises(Fatal, match="refuses the API key") as refused:
                open_sink(opened, double.url, **wrong).ensure(spec())
            assert "other" not in str(refused.value)
            assert refused.value.setting == "sink.api_key"
        assert open_sink(opened, double.url, api_key="s3cret").ensure(spec()) == "v1"
    finally:
        double.stop()


def test_a_server_that_takes_no_writes_is_named(opened: list[Sink]) -> None:
    double = QdrantDouble(read_only=True)
    try:
        with pytest.raises(Fatal, match=r"does not allow this.*Write access"):
            open_sink(opened, double.url).ensure(spec())
    finally:
        double.stop()


def test_a_server_too_old_is_named(opened: list[Sink]) -> None:
    double = QdrantDouble(version="1.12.4")
    try:
        with pytest.raises(Fatal, match=r"Qdrant 1\.12\.4 .* 1\.16 or newer"):
            open_sink(opened, double.url).ensure(spec())
    finally:
        double.stop()


def test_tls_to_a_plain_port_is_named(double: QdrantDouble, opened: list[Sink]) -> None:
    with pytest.raises(Fatal, match="no TLS") as refused:
        open_sink(opened, double.url, tls=True).ensure(spec())
    assert refused.value.setting == "sink.tls"


def test_the_rest_port_is_named(opened: list[Sink]) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="6334"):
            open_sink(opened, f"qdrant://127.0.0.1:{server.server_port}").ensure(spec())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_collections_that_are_not_ours_are_refused(double: QdrantDouble, opened: list[Sink]) -> None:
    vectors = models.VectorParams(size=3, distance=models.Distance.COSINE)
    for name in ("plain", "made__v1", "target"):
        double.model.create_collection(name, vectors_config=vectors)
    alias = models.CreateAlias(collection_name="target", alias_name="pointed")
    double.model.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    double.indexing |= dict.fromkeys(("plain", "made__v1", "target"), 0)
    for collection in ("plain", "made", "pointed"):
        with pytest.raises(Refused, match="was not made by Seedbed"):
            open_sink(opened, double.url, collection).ensure(spec())


def test_a_collection_without_its_alias_gets_it_again(double: QdrantDouble, opened: list[Sink]) -> None:
    open_sink(opened, double.url).ensure(spec())
    drop = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="things"))
    double.model.update_collection_aliases([drop])
    assert open_sink(opened, double.url).ensure(spec()) == "v1"
    assert double.model.get_aliases().aliases[0].collection_name == "things__v1"


# --- URLs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "settings", "words"),
    [
        ("qdrant://host:6334?fast=yes", {}, "'fast' is no option.*known: m, ef_construct"),
        ("qdrant://host:6334?m=none", {}, "m=none cannot be.*whole number"),
        ("qdrant://host:6334?quantization=4bit", {}, "one of none, int8, binary"),
        ("qdrant://host:port", {}, "cannot be read"),
        ("qdrant://", {}, "cannot be read"),
        ("qdrant://user@host", {}, "cannot be read"),
        ("qdrant+memory:", {"api_key": "k"}, "takes no api_key.*memory has no login"),
        ("qdrant+embedded:./x", {"tls": True}, "takes no tls.*a folder has no login"),
        ("qdrant+embedded:./x?shards=2", {}, "'shards' is no option"),
        ("qdrant://host", {"collection": "a/b"}, "no name of a Qdrant collection"),
    ],
)
def test_what_cannot_be_is_named(url: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        registry.sink(url, **{"collection": "things", **settings})
    assert re.search(words, str(refused.value), re.DOTALL)


# --- a folder ---------------------------------------------------------------------------------------

_HOLD = """
import sys, numpy as np
from seedbed import registry
from seedbed.batch import points
sink = registry.sink(sys.argv[1], collection="things")
if len(sys.argv) > 2:
    for start in range(0, 10**9, 500):
        keys = [f'["{n}"]' for n in range(start, start + 500)]
        sink.upsert(points(keys, np.random.default_rng(start).random((500, 64), np.float32)))
        print(start + 500, flush=True)
sink.count()
print("open", flush=True)
sys.stdin.read()
"""


def other_process(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _HOLD, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_folder_that_another_process_holds_says_who(tmp_path: Path, opened: list[Sink]) -> None:
    url = f"qdrant+embedded:{tmp_path}"
    first = registry.sink(url, collection="things")
    first.ensure(spec())
    first.close()
    with other_process(url) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(Transient, match=f"is open in process {holder.pid} on"):
            open_sink(opened, url).count()
        holder.communicate()
    assert open_sink(opened, url).count() == 0


def test_what_was_written_before_a_kill_stands(tmp_path: Path, opened: list[Sink]) -> None:
    url = f"qdrant+embedded:{tmp_path}"
    first = registry.sink(url, collection="things")
    first.ensure(spec(dimensions=64, payload=pa.schema([])))
    first.close()
    with other_process(url, "write") as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(4)]
        os.kill(writer.pid, signal.SIGKILL)
    sink = open_sink(opened, url)
    assert sink.count() >= said[-1]
    assert sum(len(page) for page in sink.scan(vectors=True)) == sink.count()


def test_a_version_left_half_made_is_made_anew(tmp_path: Path, opened: list[Sink]) -> None:
    half = tmp_path / "things" / "v1.new" / "points"
    half.mkdir(parents=True)
    (half / "edge_config.json").write_text("{")
    sink = open_sink(opened, f"qdrant+embedded:{tmp_path}")
    assert sink.describe() is None
    assert sink.ensure(spec()) == "v1"
    assert sink.count() == 0
    assert not half.exists()


def test_a_lost_pointer_is_written_again_and_the_points_stay(tmp_path: Path, opened: list[Sink]) -> None:
    first = registry.sink(f"qdrant+embedded:{tmp_path}", collection="things")
    first.ensure(spec(payload=pa.schema([])))
    first.upsert(batch(5))
    first.close()
    (tmp_path / "things" / "current").unlink()
    sink = open_sink(opened, f"qdrant+embedded:{tmp_path}")
    assert sink.describe() is None
    assert sink.ensure(spec(payload=pa.schema([]))) == "v1"
    assert sink.count() == 5


def test_a_folder_of_something_else_is_refused(tmp_path: Path, opened: list[Sink]) -> None:
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "photo.jpg").write_bytes(b"")
    with pytest.raises(Refused, match="did not make"):
        open_sink(opened, f"qdrant+embedded:{tmp_path}").ensure(spec())


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ("quantization=int8", {"quantization_config": {"scalar": {"type": "int8", "memory": "pinned"}}}),
        ("quantization=binary", {"quantization_config": {"binary": {"memory": "pinned"}}}),
        ("on_disk=true", {"vectors": {"": {"size": 64, "distance": "Cosine", "memory": "cold"}}}),
        (
            "m=8&ef_construct=50",
            {"hnsw_config": {"m": 8, "ef_construct": 50, "full_scan_threshold": 10000, "max_indexing_threads": 0}},
        ),
    ],
)
def test_vectors_are_kept_as_the_url_says(
    tmp_path: Path, opened: list[Sink], options: str, kept: dict[str, Any]
) -> None:
    sink = open_sink(opened, f"qdrant+embedded:{tmp_path}?{options}", "Dinge/ä")
    sink.ensure(spec(dimensions=64, payload=pa.schema([])))
    sink.upsert(batch(200, dimensions=64))
    sink.finish()
    assert sink.search(random_vectors(200, 64)[17], 1)[0].key == encode_key(["17"])
    found = json.loads((next(tmp_path.iterdir()) / "v1" / "points" / "edge_config.json").read_text())
    assert {name: found[name] for name in kept} == kept


def test_an_index_is_built_once_there_are_enough(tmp_path: Path, opened: list[Sink]) -> None:
    sink = registry.sink(f"qdrant+embedded:{tmp_path}", collection="things")
    sink.ensure(spec(dimensions=1024, payload=pa.schema([])))
    sink.upsert(batch(4000, dimensions=1024))
    sink.close()
    assert indexed(tmp_path) == 0
    sink = open_sink(opened, f"qdrant+embedded:{tmp_path}")
    sink.finish()
    sink.close()
    assert indexed(tmp_path) == 4000


def indexed(folder: Path) -> int:
    shard = EdgeShard.load(str(folder / "things" / "v1" / "points"))
    found = shard.info().indexed_vectors_count
    shard.close()
    return int(found)
