"""What is Milvus' own: its messages, its expressions, its limits and errors, the embedded engine's folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pymilvus import DataType
from pymilvus.client.prepare import Prepare
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from seedbed import batch, registry
from seedbed.batch import TIMESTAMP, vectors_of
from seedbed.errors import ConfigError, Refused, RowError, Transient
from seedbed.protocols import Metric
from seedbed.sinks import milvus as sink_module
from seedbed.sinks import milvus_index, milvus_pack
from seedbed.sinks.milvus import upsert_request
from seedbed.sinks.milvus_wire import Fault
from services import milvus
from services.milvus_sinks import client, keys, opened, points, some, spec

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


def rows_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    columns = {field.name: [row.get(field.name) for row in rows] for field in PAYLOAD}
    return points(some(len(rows)), PAYLOAD, **columns)


# --- messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "dimensions"), [(1, 3), (5, 8), (40, 16), (700, 64)])
@pytest.mark.parametrize("half", [False, True])
def test_our_message_is_byte_for_byte_the_clients(rows: int, dimensions: int, half: bool) -> None:
    vectors = some(rows, dimensions)
    payload = pa.schema([pa.field("title", pa.string()), pa.field("sizes", pa.list_(pa.int64()))])
    given = points(vectors, payload, title=[f"ü{row}" for row in range(rows)], sizes=[[LEAST, 1]] * rows)
    fields = milvus_pack.fields(
        given, [milvus_pack.vector_field("", vectors, half=half)], milvus_pack.payload_json(given, embedded=False)
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
    vectors, present = some(50, 70), np.arange(50) % 3 > 0
    answer = milvus_pb2.QueryResults(fields_data=milvus_pack.vector_fields("photo", vectors, present, half=half))
    back, held = milvus_pack.vectors_in(answer, "photo")
    assert np.array_equal(held, present)
    wanted = vectors.astype(np.float16).astype(np.float32) if half else vectors
    assert np.array_equal(back[present], wanted[present])
    assert np.linalg.norm(back[~present], axis=1).tolist() == [1.0] * 17


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
