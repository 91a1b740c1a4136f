"""One contract for all sinks, over the stores of services/stores.py."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seedbed import registry
from seedbed.batch import point_schema, vectors_of
from seedbed.errors import ConfigError, Refused, RowError
from seedbed.identity import encode_key, key_parts, point_id
from seedbed.protocols import CollectionSpec, Metric, Sink
from services.stores import (
    AXES,
    MANY_TYPES,
    PAYLOAD,
    Open,
    everything,
    found,
    points,
    random_vectors,
    spec,
)


def test_a_collection_is_made_once_and_then_checked(open_sink: Open) -> None:
    first, second = open_sink(), open_sink()
    assert first.describe() is None
    wanted = spec(info={"query": "find: {text}"})
    assert first.ensure(wanted) == "v1"
    assert second.describe() == wanted
    assert second.ensure(wanted) == "v1"
    assert second.count() == 0
    assert list(second.scan()) == []
    assert second.search(np.ones(3, np.float32), 5) == []


def test_a_sink_without_a_collection_says_so(store: str, open_sink: Open) -> None:
    with pytest.raises(ConfigError, match="collection"):
        registry.sink(store)
    uses: list[Callable[[Sink], object]] = [
        lambda sink: sink.count(),
        lambda sink: sink.finish(),
        lambda sink: sink.upsert(points(AXES)),
        lambda sink: sink.delete([point_id("x")]),
        lambda sink: list(sink.scan()),
        lambda sink: found(sink, [1, 0, 0]),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match="no collection 'absent'"):
            use(open_sink("absent"))


def test_writing_twice_is_writing_once(sink: Sink) -> None:
    batch = points(AXES, title=["a", "b", "c"], price=[1.0, 2.0, None])
    sink.upsert(batch)
    before = everything(sink, vectors=True)
    sink.upsert(batch)
    assert everything(sink, vectors=True) == before
    assert sink.count() == 3
    assert before['["2"]']["price"] is None
    assert before['["1"]']["vector"] == [0.0, 1.0, 0.0]
    assert before['["0"]']["id"] == point_id('["0"]')


def test_a_point_is_replaced_whole(sink: Sink) -> None:
    sink.upsert(points(AXES, title=["a", "b", "c"]))
    sink.upsert(points([[0, 0, 1], [1, 1, 0]], ["0", "new"], title=[None, "n"]))
    rows = everything(sink, vectors=True)
    assert rows['["0"]']["vector"] == [0.0, 0.0, 1.0]
    assert rows['["0"]']["title"] is None
    assert rows['["1"]']["title"] == "b"
    assert len(rows) == 4


def test_set_payload_keeps_vectors_and_makes_no_points(sink: Sink) -> None:
    sink.upsert(points(AXES, title=["a", "b", "c"]))
    fresh = points(AXES * -1, ["0", "1", "absent"], title=["x", "y", "z"]).drop_columns(["vector"])
    sink.set_payload(fresh)
    rows = everything(sink, vectors=True)
    assert [rows[key]["title"] for key in sorted(rows)] == ["x", "y", "c"]
    assert rows['["0"]']["vector"] == [1.0, 0.0, 0.0]


def test_delete_takes_only_what_is_named(sink: Sink) -> None:
    sink.upsert(points(AXES))
    sink.delete([point_id('["1"]'), point_id("never there")])
    sink.delete([])
    assert sorted(everything(sink)) == ['["0"]', '["2"]']
    assert found(sink, [0, 1, 0.1], 1) == ['["2"]']


@pytest.mark.parametrize(
    ("metric", "scores"),
    [("cosine", [1.0, 0.8, 0.0]), ("dot", [1.6, 2.0, 0.0]), ("l2", [-1.0, -(2.6**0.5), -(5.0**0.5)])],
)
def test_scores_are_higher_for_the_nearer(open_sink: Open, metric: Metric, scores: list[float]) -> None:
    sink = open_sink()
    sink.ensure(spec(metric=metric))
    sink.upsert(points([[0.8, 0, 0], [1, 0.75, 0], [0, 0, 1]]))
    hits = {hit.key: hit.score for hit in sink.search(np.array([2, 0, 0], np.float32), 3)}
    want = dict(zip(('["0"]', '["1"]', '["2"]'), scores, strict=True))
    if metric == "l2":
        want['["0"]'], want['["1"]'] = -1.2, -((1 + 0.75**2) ** 0.5)
    assert hits == pytest.approx({**want, '["2"]': -(5**0.5) if metric == "l2" else 0.0}, abs=1e-5)
    assert list(hits.values()) == sorted(hits.values(), reverse=True)


def test_every_payload_type_comes_back(open_sink: Open) -> None:
    moment = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
    row = {
        "text": "quotes \" ' \\ and ünïcödé 漢字 🙂",
        "flag": True,
        "number": -(2**63),
        "real": 1e-300,
        "at": moment,
        "tags": ["a", "", "x,y}", None],
        "sizes": [2**63 - 1, -1],
        "marks": [0.1, -2.5],
    }
    empty: dict[str, Any] = {**dict.fromkeys(row), "tags": [], "sizes": [], "marks": []}
    sink = open_sink()
    sink.ensure(spec(payload=MANY_TYPES))
    cases = [row, dict.fromkeys(row), empty]
    sink.upsert(points(AXES, None, MANY_TYPES, **{name: [case[name] for case in cases] for name in row}))
    rows = everything(sink)
    for key, case in zip(('["0"]', '["1"]', '["2"]'), cases, strict=True):
        assert {name: rows[key][name] for name in case} == case
    hit = sink.search(np.array([1, 0, 0], np.float32), 1)[0]
    assert hit.payload == {**row, "at": "2024-02-29T23:59:59.123456Z"}


@pytest.mark.parametrize(("field", "value"), [("real", float("inf")), ("marks", [1.0, None, float("-inf")])])
def test_infinity_comes_back_or_is_refused_with_its_key(open_sink: Open, field: str, value: Any) -> None:
    sink = open_sink()
    sink.ensure(spec(payload=MANY_TYPES))
    batch = points(AXES, None, MANY_TYPES, **{field: [None, value, None]})
    refused: RowError | None = None
    try:
        sink.upsert(batch)
    except RowError as error:
        refused = error
    assert everything(sink)['["1"]'][field] == value if refused is None else refused.key == '["1"]'
    assert sink.count() == (3 if refused is None else 0)


@pytest.mark.parametrize(
    ("filter", "keys"),
    [
        ({}, "012"),
        ({"text": "b"}, "1"),
        ({"text": ["a", "b", "zzz"]}, "01"),
        ({"text": []}, ""),
        ({"number": 2}, "1"),
        ({"number": "2"}, "1"),
        ({"number": 2.5}, ""),
        ({"number": [1, 2.0]}, "01"),
        ({"number": {"gte": 1.5}}, "12"),
        ({"number": {"gt": 1, "lt": 3}}, "1"),
        ({"real": {"lte": 2}}, "01"),
        ({"flag": True}, "0"),
        ({"flag": "false"}, "1"),
        ({"at": {"gte": "2024-01-02T00:00:00Z"}}, "12"),
        ({"at": {"lt": "2024-01-02T01:00:00+02:00"}}, "0"),
        ({"at": datetime(2024, 1, 2, tzinfo=UTC)}, "1"),
        ({"tags": "red"}, "01"),
        ({"tags": ["blue", "green"]}, "12"),
        ({"sizes": 3}, "2"),
        ({"_key": '["2"]'}, "2"),
        ({"tags": "red", "number": {"gt": 1}}, "1"),
    ],
)
def test_filters(open_sink: Open, filter: dict[str, Any], keys: str) -> None:
    sink = open_sink()
    sink.ensure(spec(payload=MANY_TYPES))
    days = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    columns: dict[str, list[Any]] = {
        "text": ["a", "b", "c"],
        "flag": [True, False, None],
        "number": [1, 2, 3],
        "real": [1.0, 2.0, 2.5],
        "at": days,
        "tags": [["red"], ["red", "blue"], ["green"]],
        "sizes": [[1], None, [2, 3]],
    }
    sink.upsert(points(AXES, payload=MANY_TYPES, **columns))
    assert sorted(found(sink, [1, 1, 1], 9, filter)) == [encode_key([key]) for key in keys]


@pytest.mark.parametrize(
    ("filter", "words"),
    [
        ({"colour": 1}, "known: _key, title, price"),
        ({"price": {"above": 1}}, "gt, gte, lt, lte"),
        ({"price": "cheap"}, "'cheap' is no double"),
        ({"title": {"gt": "a"}}, "ranges are for numbers"),
        ({"title": None}, "None is no string"),
    ],
)
def test_bad_filters_are_named(sink: Sink, filter: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sink.search(np.ones(3, np.float32), 1, filter)


def test_a_new_payload_column_joins_and_an_old_one_stays(open_sink: Open) -> None:
    first = open_sink()
    first.ensure(spec())
    first.upsert(points(AXES, title=["a", "b", "c"]))
    wider = pa.schema([PAYLOAD.field("title"), pa.field('50% off, "Größe"', pa.int64())])
    second = open_sink()
    second.ensure(spec(payload=wider))
    second.upsert(points([[1, 1, 1]], ["9"], payload=wider, title=["n"], **{wider.names[1]: [7]}))
    rows = everything(second)
    assert rows['["9"]'][wider.names[1]] == 7
    assert rows['["9"]']["price"] is None
    assert rows['["0"]'][wider.names[1]] is None
    assert found(second, [1, 0, 0], 5, {wider.names[1]: 7}) == ['["9"]']
    described = second.describe()
    assert described is not None
    assert described.payload.names == ["title", "price", wider.names[1]]


def test_payload_that_the_collection_does_not_have_is_named(sink: Sink) -> None:
    other = pa.schema([pa.field("colour", pa.string())])
    with pytest.raises(ConfigError, match="no payload field colour string; it has: title string, price double"):
        sink.upsert(points(AXES, payload=other))
    with pytest.raises(Refused, match=r"'price'.* is double.* now has int64"):
        sink.ensure(spec(payload=pa.schema([pa.field("price", pa.int64())])))


def test_scan_goes_in_id_order_by_pages(sink: Sink) -> None:
    sink.upsert(points(random_vectors(25, 3), title=[f"t{number}" for number in range(25)]))
    pages = list(sink.scan(10))
    ids = [identity for page in pages for identity in page.column("id").to_pylist()]
    assert [page.num_rows for page in pages] == [10, 10, 5]
    assert ids == sorted(ids)
    assert len(set(ids)) == 25
    assert pages[0].schema == point_schema(None, PAYLOAD)
    assert next(sink.scan(10, vectors=True)).schema == point_schema(3, PAYLOAD)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (spec(pipeline="blog"), "belongs to the pipeline 'shop', not to 'blog'"),
        (spec(dimensions=4), "model@r1 3-d.*, the pipeline makes model@r1 4-d"),
        (spec(metric="dot"), "metric 'cosine', the pipeline says 'dot'"),
    ],
)
def test_what_does_not_fit_is_refused_naming_both_sides(sink: Sink, other: CollectionSpec, words: str) -> None:
    with pytest.raises(Refused, match=words):
        sink.ensure(other)


def test_2048_dimensions(open_sink: Open) -> None:
    sink = open_sink()
    sink.ensure(spec(dimensions=2048))
    vectors = random_vectors(50, 2048)
    sink.upsert(points(vectors))
    sink.finish()
    assert found(sink, vectors[7], 1) == ['["7"]']
    page = next(sink.scan(50, vectors=True))
    order = [int(key_parts(key)[0]) for key in page.column("_key").to_pylist()]
    # Half precision, which a store may use above 2,000 dimensions, keeps 11 bits.
    assert np.abs(vectors_of(page) - vectors[order]).max() < 2**-11 * np.abs(vectors).max()


@pytest.mark.parametrize("key", ["ключ", "鍵 🙂", 'a"b\\c', "x\ny", "'; drop table things; --", "%s", ""])
def test_any_key_is_kept(sink: Sink, key: str) -> None:
    sink.upsert(points([[1, 0, 0]], [key], title=[key]))
    assert everything(sink)[encode_key([key])]["title"] == key
    assert found(sink, [1, 0, 0], 1, {"_key": encode_key([key]), "title": key}) == [encode_key([key])]


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(sink: Sink, rows: int) -> None:
    batch = points(AXES[:1], title=["t"]).slice(0, rows)
    sink.upsert(batch)
    sink.set_payload(batch.drop_columns(["vector"]))
    assert sink.count() == rows


def test_slices_of_big_batches(sink: Sink) -> None:
    """The vectors of a slice are its own, not the first of the whole."""
    vectors = random_vectors(3000, 3)
    whole = points(vectors, title=[f"t{number}" for number in range(3000)])
    for start in range(0, 3000, 1000):
        sink.upsert(whole.slice(start, 1000))
    assert sink.count() == 3000
    pages = list(sink.scan(vectors=True))
    order = [int(key_parts(key)[0]) for page in pages for key in page.column("_key").to_pylist()]
    # A store may bring vectors to unit length once more.
    assert np.abs(np.concatenate([vectors_of(page) for page in pages]) - vectors[order]).max() < 1e-6


@pytest.mark.parametrize("bad", [[np.nan, 0, 0], [np.inf, 0, 0], [0, 0, 0]])
def test_a_vector_that_cannot_be_compared_is_refused_and_nothing_written(sink: Sink, bad: list[float]) -> None:
    with pytest.raises(RowError) as refused:
        sink.upsert(points([[1, 0, 0], bad, [0, 1, 0]], ["a", "bad", "c"]))
    assert refused.value.key == '["bad"]'
    assert sink.count() == 0
    with pytest.raises(ConfigError):
        sink.search(np.array(bad, np.float32), 1)


def test_other_dimensions_are_refused_naming_both_sides(sink: Sink) -> None:
    with pytest.raises(ConfigError, match=r"4 dimensions.* has 3"):
        sink.upsert(points([[1, 0, 0, 0]]))
    with pytest.raises(ConfigError, match=r"4 dimensions.* has 3"):
        sink.search(np.ones(4, np.float32), 1)


def test_a_point_twice_in_a_batch_is_refused(sink: Sink) -> None:
    with pytest.raises(RowError, match="comes twice") as refused:
        sink.upsert(points(AXES, ["a", "b", "a"]))
    assert refused.value.key == '["a"]'
    assert sink.count() == 0


def test_an_id_that_is_no_uuid_is_refused(sink: Sink) -> None:
    batch = points(AXES)
    wrong = batch.set_column(0, batch.schema.field(0), pa.array([batch.column(0)[0].as_py(), "17", "x"]))
    with pytest.raises(RowError, match=r"no UUID: '17'") as refused:
        sink.upsert(wrong)
    assert refused.value.key == '["1"]'
    assert sink.count() == 0


def test_finish_is_idempotent_and_searches_agree_with_before(sink: Sink) -> None:
    vectors = random_vectors(300, 3)
    sink.upsert(points(vectors, price=[float(number) for number in range(300)]))
    exact = found(sink, vectors[5], 10)
    sink.finish()
    sink.finish()
    assert found(sink, vectors[5], 10) == exact
    assert len(found(sink, vectors[5], 10, {"price": {"gte": 290}})) == 10
    assert len(found(sink, vectors[5], 400)) == 300
    assert found(sink, vectors[5], 0) == []
