"""What is Milvus' own: its messages, its expressions, its limits and errors, the embedded engine's folder."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from pymilvus import DataType, MilvusClient
from pymilvus.client.prepare import Prepare
from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc

from seedbed import batch, registry
from seedbed.batch import TIMESTAMP, vectors_of
from seedbed.errors import ConfigError, Fatal, MissingDependency, Refused, RowError, SeedbedError, Transient
from seedbed.identity import Space
from seedbed.protocols import CollectionSpec, Metric, Sink, Vectors
from seedbed.sinks import milvus as sink_module
from seedbed.sinks import milvus_index, milvus_pack
from seedbed.sinks.milvus import MilvusSink, upsert_request
from seedbed.sinks.milvus_index import REFUSED
from seedbed.sinks.milvus_url import read_target
from seedbed.sinks.milvus_wire import Fault
from services import milvus

STORES = ["lite", "server"]
ODD = 'a/b~c "Größe"\n{%}'
PAYLOAD = pa.schema(
    [
        pa.field("text", pa.string()),
        pa.field("flag", pa.bool_()),
        pa.field("number", pa.int64()),
        pa.field("real", pa.float64()),
        pa.field("at", TIMESTAMP),
        pa.field("sizes", pa.list_(pa.int64())),
        pa.field("标题", pa.string()),
        pa.field(ODD, pa.int64()),
        pa.field(ODD + "s", pa.list_(pa.string())),
        pa.field("in", pa.list_(pa.float64())),
    ]
)
LEAST, MOST = -(2**63), 2**63 - 1
ROWS: list[dict[str, Any]] = [
    {"text": "q \" ' \\ \n\t 漢字🙂 \x01", "number": LEAST, "real": 1e-300, "sizes": [LEAST, 3], "in": [0.1, 2.0]},
    {"text": "", "number": MOST, "real": -0.5, "sizes": [MOST], ODD: LEAST, ODD + "s": ['"', "\\"], "标题": "书"},
    {"text": "%s", "number": 2**53 + 1, "flag": False, ODD: 7, ODD + "s": [None, "b"], "in": [1e300]},
    {"number": 2**53, "real": 5e18, "at": datetime(1, 1, 1, tzinfo=UTC), "flag": True},
    {"number": 0, "real": 2.0, "at": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "sizes": []},
]
FILTERS: list[dict[str, Any]] = [
    {"text": ROWS[0]["text"]},
    {"text": ["", "%s"]},
    {"number": LEAST},
    {"number": [LEAST, MOST]},
    {"number": {"gt": LEAST}},
    {"number": {"gte": LEAST}},
    {"number": {"lte": LEAST}},
    {"number": {"lt": LEAST}},
    {"number": {"gte": MOST}},
    {"number": {"gt": 2**53}},
    {"number": {"gte": 2**53 + 0.0}},
    {"number": {"lt": -0.5}},
    {"number": {"lt": 1e19}},
    {"number": {"gt": 1e19}},
    {"number": {"lt": -1e19}},
    {"number": [2.5, 0]},
    {"number": list(range(-2000, 2000))},
    {"real": 2},
    {"real": [1e-300, -0.5]},
    {"real": {"gte": -0.5, "lt": 5e18}},
    {"at": {"lt": "1970-01-01T00:00:00Z"}},
    {"at": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)},
    {"sizes": LEAST},
    {"sizes": [3, MOST]},
    {"sizes": 2.5},
    {"in": [2, 7]},
    {"in": 1e300},
    {"标题": "书"},
    {ODD: 7},
    {ODD: {"lt": 7}},
    {ODD + "s": '"'},
    {ODD + "s": ["\\", "b"]},
    {"flag": [True, False], "number": {"gt": 2**53}},
    {"_key": ["1", "no such", 'a"b\\']},
]


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store."""
    if request.param == "lite":
        yield f"milvus+embedded:{tmp_path}"
    else:
        with milvus.fresh_database(milvus.server()) as made:
            yield made


@pytest.fixture
def lite(tmp_path: Path) -> str:
    return f"milvus+embedded:{tmp_path}"


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


def rows_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    columns = {field.name: [row.get(field.name) for row in rows] for field in PAYLOAD}
    return points(some(len(rows)), PAYLOAD, **columns)


def keys(sink: Sink, vector: Any, k: int = 10, filter: Any = None) -> list[str]:
    return [hit.key for hit in sink.search(np.asarray(vector, np.float32), k, filter)]


# --- messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "dimensions"), [(1, 3), (5, 8), (40, 16), (700, 64)])
@pytest.mark.parametrize("half", [False, True])
def test_our_message_is_byte_for_byte_the_clients(rows: int, dimensions: int, half: bool) -> None:
    vectors = some(rows, dimensions)
    payload = pa.schema([pa.field("title", pa.string()), pa.field("sizes", pa.list_(pa.int64()))])
    given = points(vectors, payload, title=[f"ü{row}" for row in range(rows)], sizes=[[LEAST, 1]] * rows)
    fields = milvus_pack.fields(
        given, milvus_pack.vector_field(vectors, half=half), milvus_pack.payload_json(given, embedded=False)
    )
    ours = upsert_request("things__v1", rows, fields)
    kind = DataType.FLOAT16_VECTOR if half else DataType.FLOAT_VECTOR
    described: list[dict[str, Any]] = [
        {"name": "id", "type": DataType.VARCHAR, "params": {"max_length": 36}, "is_primary": True},
        {"name": "vector", "type": kind, "params": {"dim": dimensions}},
    ]
    for name in ("_key", "_chunk", "_start", "_end", "_hash", "_payload_hash"):
        text = name in ("_key", "_hash", "_payload_hash")
        kind = DataType.VARCHAR if text else DataType.INT32
        described.append({"name": name, "type": kind, "params": {"max_length": 65535} if text else {}})
    entities = given.to_pylist()
    for number, entity in enumerate(entities):
        entity["vector"] = vectors[number].astype(np.float16) if half else vectors[number].tolist()
    theirs = Prepare.row_upsert_param("things__v1", entities, "", described, enable_dynamic=True)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


@pytest.mark.parametrize("half", [False, True])
def test_vectors_come_back_from_their_message(half: bool) -> None:
    vectors = some(50, 70)
    back = milvus_pack.vectors_in(milvus_pack.vector_field(vectors, half=half))
    assert np.array_equal(back, vectors.astype(np.float16).astype(np.float32) if half else vectors)


def test_big_batches_go_in_several_messages(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_pack, "REQUEST_BYTES", 100_000)
    vectors = some(1500)
    payload = pa.schema([pa.field("title", pa.string())])
    with opened(url) as sink:
        sink.ensure(spec(payload=payload))
        sink.upsert(points(vectors, payload, title=[f"a{row}" for row in range(1500)]))
        fresh = points(vectors * 0 + 1, payload, title=[f"b{row}" for row in range(1500)])
        sink.set_payload(fresh.drop_columns(["vector"]))
        pages = list(sink.scan(400, vectors=True))
    read = pa.Table.from_batches(pages)
    order = [int(key) for key in read.column("_key").to_pylist()]
    assert sorted(order) == list(range(1500))
    assert np.array_equal(np.concatenate([vectors_of(page) for page in pages]), vectors[order])
    assert read.column("title").to_pylist() == [f"b{row}" for row in order]


@pytest.mark.parametrize("words", ["query results exceed the limit size", "trying to send message larger than max"])
def test_a_scan_takes_smaller_pages_where_points_are_large(
    lite: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = sink_module._read_page

    def limited(wire: Any, known: Any, last: str, rows: int, *rest: Any) -> pa.RecordBatch:
        if rows > 100:
            raise Fault("Query", common_pb2.Status(code=65535, reason=words))
        return read(wire, known, last, rows, *rest)

    with opened(lite) as sink:
        sink.ensure(spec())
        sink.upsert(points(some(150)))
        monkeypatch.setattr(sink_module, "_read_page", limited)
        assert [page.num_rows for page in sink.scan(300)] == [75, 75]


# --- the same answers -------------------------------------------------------------------------------


def test_filters_and_values_at_the_edges_are_those_of_memory(url: str) -> None:
    given, vectors = rows_of(ROWS), some(len(ROWS))
    reference = registry.sink(f"memory:{url}", collection="things")
    with opened(url) as sink:
        for store in (reference, sink):
            store.ensure(spec(payload=PAYLOAD))
            store.upsert(given)
        for filter in FILTERS:
            expected = keys(reference, vectors[0], 10, filter)
            assert sorted(keys(sink, vectors[0], 10, filter)) == sorted(expected), filter
        everything = [row for page in sink.scan() for row in page.to_pylist()]
        assert everything == [row for page in reference.scan() for row in page.to_pylist()]
        ours, theirs = ({h.key: h.payload for h in s.search(vectors[0], 10)} for s in (sink, reference))
        assert ours == theirs


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_an_index_keeps_scores(lite: str, metric: Metric) -> None:
    vectors = some(500)
    with opened(lite) as sink:
        sink.ensure(spec(metric=metric))
        sink.upsert(points(vectors))
        before = sink.search(vectors[3], 5)
        sink.finish()
        after = sink.search(vectors[3], 5)
    assert [hit.key for hit in after] == [hit.key for hit in before]
    assert [hit.score for hit in after] == pytest.approx([hit.score for hit in before], abs=1e-5)


def test_a_server_indexes_a_bulk_load_and_leaves_little_writes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_index, "BULK", 1500)
    vectors = some(1600)
    request = milvus_pb2.DescribeIndexRequest(collection_name="things__v1", field_name="vector")
    with milvus.fresh_database(milvus.server()) as made, opened(made) as sink, milvus.connected(made) as wire:
        sink.ensure(spec())
        for start, rows, indexed in ((0, 1400, 0), (1400, 200, 1600)):
            sink.upsert(points(vectors).slice(start, rows))
            sink.finish()
            assert wire.call("DescribeIndex", request).index_descriptions[0].indexed_rows == indexed
        assert keys(sink, vectors[9], 1) == ["9"]
        assert sink.count() == 1600


def test_what_was_deleted_does_not_shorten_answers(lite: str) -> None:
    vectors = some(400)
    given = points(vectors)
    with opened(lite) as sink:
        sink.ensure(spec())
        sink.upsert(given)
        sink.finish()
        near = np.argsort(-(vectors @ vectors[0] / np.linalg.norm(vectors, axis=1)))
        sink.delete(given.column("id").take(pa.array(near[:390])).to_pylist())
        assert len(keys(sink, vectors[0], 10)) == 10


@pytest.mark.parametrize("kind", ["FLAT", "hnsw", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8"])
def test_each_index_finds(lite: str, kind: str) -> None:
    vectors = some(600, 16)
    with opened(f"{lite}?index={kind}") as sink:
        sink.ensure(spec(16))
        sink.upsert(points(vectors))
        sink.finish()
        assert keys(sink, vectors[7], 1) == ["7"]
        assert len(keys(sink, vectors[7], 600)) == 600


def test_each_consistency_is_understood() -> None:
    with milvus.fresh_database(milvus.server()) as made:
        for size, level in enumerate(["strong", "session", "Bounded", "eventually"], 1):
            with opened(f"{made}?consistency={level}") as sink:
                sink.ensure(spec())
                sink.upsert(points(some(size)))
                # The last two promise nothing of what was just written.
                assert len(keys(sink, some(1)[0], 9)) in ([size] if size < 3 else range(size + 1))


# --- collections ------------------------------------------------------------------------------------


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


def test_readers_search_by_the_alias_with_milvus_own_client(url: str) -> None:
    payload = pa.schema([pa.field("title", pa.string()), pa.field("price", pa.float64())])
    with opened(url) as sink:
        sink.ensure(spec(payload=payload))
        sink.upsert(points(np.eye(3, dtype=np.float32), payload, title=["a", "b", "c"], price=[1.0, 20.0, 3.0]))
        sink.finish()
    with client(url) as reader:
        reader.load_collection("things")
        hits = reader.search(
            "things",
            [[0.1, 1.0, 0.2]],
            limit=2,
            filter="price < 10",
            output_fields=["_key", "title"],
            consistency_level="Strong",
        )
    assert [dict(hit["entity"]) for hit in hits[0]] == [{"_key": "2", "title": "c"}, {"_key": "0", "title": "a"}]


@pytest.mark.parametrize("name", ["things", "things__v1"])
def test_a_collection_of_somebody_else_is_refused(url: str, name: str) -> None:
    with client(url) as other:
        other.create_collection(name, dimension=3)
    with opened(url) as sink:
        assert sink.describe() is None
        with pytest.raises(Refused, match=f"'{name}' that Seedbed did not make"):
            sink.ensure(spec())


@pytest.mark.parametrize("left", ["CreateIndex", "LoadCollection", "CreateAlias"])
def test_what_a_crash_left_half_made_is_completed(lite: str, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(lite) as sink, sink._session() as wire:
        call: Callable[..., Any] = type(wire).call

        def dies(self: Any, name: str, *rest: Any) -> Any:
            if name == left:
                raise KeyboardInterrupt
            return call(self, name, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(type(wire), "call", dies)
            with pytest.raises(KeyboardInterrupt):
                sink.ensure(spec())
        with pytest.raises(ConfigError, match="no collection 'things' of ours"):
            sink.count()
        assert sink.ensure(spec()) == "v1"
        sink.upsert(points(some(3)))
        assert sink.count() == 3


def test_a_collection_that_somebody_released_is_loaded_again(url: str) -> None:
    with opened(url) as sink:
        sink.ensure(spec())
        sink.upsert(points(some(3)))
        with sink._session() as wire:
            wire.call("ReleaseCollection", milvus_pb2.ReleaseCollectionRequest(collection_name="things__v1"))
        with pytest.raises(Transient, match="load"):
            keys(sink, some(1)[0])
        assert len(keys(sink, some(1)[0])) == 3


def test_a_collection_that_somebody_dropped_is_said(lite: str) -> None:
    with opened(lite) as sink:
        sink.ensure(spec())
        with sink._session() as wire:
            wire.call("DropAlias", milvus_pb2.DropAliasRequest(alias="things"))
            wire.call("DropCollection", milvus_pb2.DropCollectionRequest(collection_name="things__v1"))
        with pytest.raises(ConfigError, match="somebody dropped it"):
            sink.upsert(points(some(3)))
        assert sink.ensure(spec()) == "v1"


def test_payload_of_points_that_are_not_there_makes_none(url: str) -> None:
    with opened(url) as sink:
        sink.ensure(spec())
        sink.set_payload(points(some(3)).drop_columns(["vector"]))
        assert sink.count() == 0


@pytest.mark.skipif("MILVUS_URL" not in os.environ, reason="MILVUS_URL names no Milvus of 2.4 or newer")
def test_vectors_of_half_precision() -> None:
    vectors = some(300, 16)
    with (
        milvus.fresh_database(os.environ["MILVUS_URL"]) as made,
        opened(f"{made}{'&' if '?' in made else '?'}vectors=float16") as sink,
    ):
        sink.ensure(spec(16))
        sink.upsert(points(vectors))
        assert keys(sink, vectors[7], 1) == ["7"]
        page = next(sink.scan(300, vectors=True))
        order = [int(key) for key in page.column("_key").to_pylist()]
        assert np.abs(vectors_of(page) - vectors[order]).max() < 2**-10 * np.abs(vectors).max()


def test_another_index_than_the_collection_has_is_refused(lite: str) -> None:
    with opened(f"{lite}?index=FLAT") as sink:
        sink.ensure(spec())
    with opened(lite) as sink:
        assert sink.ensure(spec()) == "v1"
    with opened(f"{lite}?index=HNSW") as sink, pytest.raises(Refused, match="with index=FLAT, the URL says index=HNSW"):
        sink.ensure(spec())


@pytest.mark.parametrize(
    ("option", "words"),
    [("index=HNSW_SQ", "index=HNSW_SQ needs Milvus 2.5: the server's 2.3"), ("vectors=float16", "needs Milvus 2.4")],
)
def test_what_the_server_is_too_old_for_is_refused(option: str, words: str) -> None:
    with (
        milvus.fresh_database(milvus.server()) as made,
        opened(f"{made}?{option}") as sink,
        pytest.raises(ConfigError, match=words),
    ):
        sink.ensure(spec())


# --- rows that Milvus does not take -----------------------------------------------------------------

WIDE = pa.schema([pa.field("title", pa.string()), pa.field("price", pa.float64()), pa.field("at", TIMESTAMP)])
MARKS = pa.schema([pa.field("marks", pa.list_(pa.float64()))])


@pytest.mark.parametrize(
    ("payload", "columns", "words"),
    [
        (WIDE, {"title": ["a", "x" * 70_000, "c"]}, "70,012 bytes as JSON, Milvus takes 65,536"),
        (WIDE, {"price": [1.0, float("inf"), None]}, "'price' holds a number that is not finite"),
        (MARKS, {"marks": [[1.0, 2.0], [0.0, float("-inf")], None]}, "'marks' holds a number that is not finite"),
        (WIDE, {"at": [None, -62_135_596_800_000_001, 0]}, "'at' is outside the years 1 to 9999"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_nothing_written(
    lite: str, payload: pa.Schema, columns: dict[str, list[Any]], words: str
) -> None:
    with opened(lite) as sink:
        sink.ensure(spec(payload=payload))
        given = points(some(3), payload, **columns)
        for write in (sink.upsert, lambda rows: sink.set_payload(rows.drop_columns(["vector"]))):
            with pytest.raises(RowError, match=words) as refused:
                write(given)
            assert refused.value.key == "1"
        assert sink.count() == 0


def test_the_longest_key_is_taken_and_a_longer_one_named(url: str) -> None:
    with opened(url) as sink:
        sink.ensure(spec())
        sink.upsert(batch.points(["é" * 32_767 + "x"], some(1)))
        assert sink.count() == 1
        with pytest.raises(RowError, match="_key has 65,536 bytes, Milvus takes 65,535") as refused:
            sink.upsert(batch.points(["short", "é" * 32_768], some(2)))
        assert (refused.value.key or "").startswith("éé")
        assert sink.count() == 1


# --- URLs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "settings", "words"),
    [
        ("milvus://h?indx=FLAT", {}, "'indx' is no option.*\n.*known: index, vectors, consistency, tls"),
        ("milvus://h?index=DISKANN", {}, f"index=DISKANN cannot be used: {REFUSED['DISKANN']}"),
        ("milvus://h?index=FAISS", {}, "index=FAISS cannot be used .*\n.*one of HNSW, FLAT"),
        ("milvus://h?vectors=int8", {}, "vectors=int8"),
        ("milvus://h?consistency=weak", {}, "one of strong, session, bounded, eventually"),
        ("milvus://h?tls=maybe", {}, "true or false, not 'maybe'"),
        ("milvus://", {}, "cannot be read"),
        ("milvus://u:s3cret@h:port", {}, "cannot be read"),
        ("milvus://h/a/b", {}, "cannot be read"),
        ("milvus://u:s3cret@h", {"api_key": "k3y"}, "a user and the sink an api_key"),
        ("milvus+embedded:./d", {"api_key": "k3y"}, "api_key is for servers"),
        ("milvus+embedded:./d?tls=true", {}, "tls is for servers"),
        ("milvus+embedded:./d?vectors=float16", {}, "no float16"),
        ("milvus+embedded:./d?index=AUTOINDEX", {}, "index=AUTOINDEX is a server's own choice"),
        ("milvus://h", {"collection": "50% off"}, "'50% off' cannot be a collection of Milvus"),
        ("milvus://h", {"collection": "1st"}, "no digit first"),
        ("milvus://h", {"collection": "x" * 250}, "longer than 248"),
    ],
)
def test_what_cannot_be_used_is_said_at_once(given: str, settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        registry.sink(given, **{"collection": "things", **settings})
    assert "s3cret" not in str(refused.value)
    assert "k3y" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "settings", "address", "token", "tls"),
    [
        ("milvus://h", {}, "h:19530", "", False),
        ("milvus://u:a%40b@h:1/db?tls=true", {}, "h:1", "u:a@b", True),
        ("milvus://h", {"tls": True, "api_key": "k"}, "h:19530", "k", True),
        ("milvus://in01.vectordb.zillizcloud.com", {"api_key": "k"}, "in01.vectordb.zillizcloud.com:443", "k", True),
        ("milvus://[::1]:7", {}, "[::1]:7", "", False),
    ],
)
def test_where_a_url_leads(given: str, settings: dict[str, Any], address: str, token: str, tls: bool) -> None:
    target = read_target(given, settings)
    assert (target.address, target.token, target.tls) == (address, token, tls)


# --- errors -----------------------------------------------------------------------------------------


class _Server(milvus_pb2_grpc.MilvusServiceServicer):  # type: ignore[misc]
    """Knows its version, and no other call."""

    def __init__(self, version: str) -> None:
        self.version = version

    def GetVersion(self, request: Any, context: Any) -> Any:
        return milvus_pb2.GetVersionResponse(version=self.version)


@contextmanager
def serving(servicer: Any, port: int = 0) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def failure(url: str, **settings: Any) -> SeedbedError:
    started = time.monotonic()
    with opened(url, **settings) as sink, pytest.raises(SeedbedError) as failed:
        sink.describe()
    assert time.monotonic() - started < 15
    assert failed.value.setting in ("sink.url", "sink.collection")
    assert failed.value.hint
    return failed.value


def test_a_wrong_password_or_key_is_fatal() -> None:
    place = milvus.server().partition("@")[2]
    for tried in (
        failure(f"milvus://root:wrong@{place}"),
        failure(f"milvus://{place}"),
        failure(f"milvus://{place}", api_key="no such key"),
    ):
        assert isinstance(tried, Fatal)
        assert "wrong password or API key" in tried.message


def test_who_cannot_be_reached_is_told_apart() -> None:
    url = milvus.server()
    gone = failure("milvus://127.0.0.1:1")
    assert isinstance(gone, Transient)
    assert "cannot be reached" in gone.message
    secured = failure(f"{url}?tls=true")
    assert isinstance(secured, Fatal)
    assert "no TLS connection" in secured.message
    absent = failure(f"{url}/nowhere")
    assert isinstance(absent, ConfigError)
    assert "database not found" in absent.message


def test_an_old_server_is_refused_naming_both_versions() -> None:
    with serving(_Server("v2.2.16")) as port:
        old = failure(f"milvus://127.0.0.1:{port}")
    assert isinstance(old, ConfigError)
    assert "Milvus 2.2.16: 2.3 or newer" in old.message


def test_what_is_no_milvus_is_said() -> None:
    with serving(milvus_pb2_grpc.MilvusServiceServicer()) as port:
        other = failure(f"milvus://127.0.0.1:{port}")
    assert isinstance(other, ConfigError)
    assert "no Milvus server" in other.message
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        plain = failure(f"milvus://127.0.0.1:{web.server_port}")
        web.shutdown()
        thread.join()
    assert isinstance(plain, ConfigError)
    assert "no Milvus server" in plain.message


def test_a_lost_connection_is_transient_and_comes_back(tmp_path: Path) -> None:
    from milvus_lite import MilvusLite
    from milvus_lite.adapter.grpc.servicer import MilvusServicer

    class Versioned(MilvusServicer):  # type: ignore[misc]
        def GetVersion(self, request: Any, context: Any) -> Any:
            return milvus_pb2.GetVersionResponse(version="2.6.0")

    engine = MilvusLite(str(tmp_path))
    with serving(Versioned(engine)) as port:
        sink = registry.sink(f"milvus://127.0.0.1:{port}", collection="things")
        sink.ensure(spec())
        sink.upsert(points(some(3)))
    with pytest.raises(Transient, match="cannot be reached"):
        sink.upsert(points(some(3)))
    with serving(Versioned(engine), port):
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                sink.upsert(points(some(4)))
                break
            except Transient:
                time.sleep(0.2)
        assert sink.count() == 4
        # This server gives no timestamps, so each page is read with strong consistency of its own.
        assert [page.num_rows for page in sink.scan(3)] == [3, 1]
    sink.close()
    engine.close()


# --- the embedded folder ----------------------------------------------------------------------------

WRITER = """
import os, signal, sys
import numpy as np
from seedbed import batch, registry
from seedbed.identity import Space
from seedbed.protocols import CollectionSpec
import pyarrow as pa
sink = registry.sink(sys.argv[1], collection="things")
sink.ensure(CollectionSpec("things", "shop", Space("m", "1", 3), "cosine", pa.schema([])))
sink.upsert(batch.points(["a", "b"], np.eye(2, 3, dtype=np.float32)))
print("written", flush=True)
sys.stdin.read()
"""


@contextmanager
def writing(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has written and keeps the folder open."""
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_has_open_names_it(lite: str) -> None:
    with writing(lite) as process:
        busy = failure(lite)
    assert isinstance(busy, Transient)
    assert f"is open in process {process.pid}" in busy.message


def test_what_was_written_outlives_a_killed_process(lite: str) -> None:
    with writing(lite) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with opened(lite) as sink:
            assert sink.count() == 2
            assert sink.ensure(spec()) == "v1"
            sink.finish()
            assert keys(sink, [1, 0, 0], 1) == ["a"]


def test_sinks_of_one_folder_share_it_until_the_last_closes(lite: str) -> None:
    with opened(lite) as first:
        with opened(lite) as second:
            second.ensure(spec())
            second.upsert(points(some(3)))
        assert first.count() == 3
        first.close()
        assert first.count() == 3
    with writing(lite):
        pass


def test_threads_write_and_search_one_folder(lite: str) -> None:
    vectors = some(800)
    given = points(vectors)
    with opened(lite) as sink, futures.ThreadPoolExecutor(4) as pool:
        sink.ensure(spec())
        writes = [pool.submit(sink.upsert, given.slice(start, 100)) for start in range(0, 800, 100)]
        settled = pool.submit(sink.finish)
        searches = [pool.submit(keys, sink, vector, 1) for vector in vectors[:50]]
        started: list[futures.Future[Any]] = [*writes, settled, *searches]
        assert [done.exception() for done in started] == [None] * len(started)
        assert sink.count() == 800


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        opened(f"milvus+embedded:{tmp_path}/file") as sink,
        pytest.raises(ConfigError, match="cannot be used") as refused,
    ):
        sink.ensure(spec())
    assert refused.value.hint


def test_a_missing_engine_is_named(lite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "seedbed.sinks.milvus_lite", raising=False)
    monkeypatch.setitem(sys.modules, "milvus_lite", None)
    with opened(lite) as sink, pytest.raises(MissingDependency, match="needs the package 'milvus_lite'"):
        sink.ensure(spec())


def test_to_describe_a_folder_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with opened(f"milvus+embedded:{tmp_path}/new") as sink:
        assert sink.describe() is None
    assert not list(tmp_path.iterdir())


def test_a_client_in_this_process_is_told_of_too(lite: str) -> None:
    with opened(lite) as sink:
        sink.ensure(spec())
    with client(lite):
        assert "this process by other means" in failure(lite).message
