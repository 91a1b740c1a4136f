"""Runs over real Postgres tables and stores: what is embedded, written, removed, refused, recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from seedbed import Pipeline
from seedbed.errors import AlreadyRunning, ConfigError, Refused, Transient
from seedbed.ledger import open_ledger
from seedbed.retry import Patience
from services.qdrant_double import QdrantDouble

NOW = Patience(attempts=1)
Make = Callable[..., Pipeline]


@pytest.fixture
def table(pg_url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(pg_url, autocommit=True)
    connection.execute("create table item (id bigint primary key, title text, price numeric(8,2), shop text)")
    connection.execute(
        "insert into item select n, 'title number ' || n, n / 4.0, 'shop' || n % 3 from generate_series(1, 100) n"
    )
    return connection


@pytest.fixture
def make(pg_url: str, tmp_path: Path, table: psycopg.Connection[Any]) -> Make:
    def build(**changes: Any) -> Pipeline:
        declared: dict[str, Any] = {
            "name": "items",
            "source": {"url": pg_url, "table": "item"},
            "content": {"text": "{title}"},
            "embedder": {"url": "hash:32"},
            "sink": [{"url": pg_url, "collection": "item_vectors", "payload": ["title", "price"]}],
            "base": tmp_path,
        }
        return Pipeline(**{**declared, **changes})

    return build


def counts(report: Any, *names: str) -> list[int]:
    return [getattr(report, name) for name in names]


def stored(table: psycopg.Connection[Any], columns: str = "_key, title") -> dict[str, Any]:
    return dict(table.execute(f"select {columns} from item_vectors").fetchall())


def test_only_what_changed_is_embedded_and_what_is_gone_goes(make: Make, table: psycopg.Connection[Any]) -> None:
    pipeline = make()
    assert counts(pipeline.sync(), "read", "embedded", "upserted", "deleted") == [100, 100, 100, 0]
    assert counts(pipeline.sync(), "read", "embedded", "cached", "upserted", "deleted") == [100, 0, 0, 0, 0]
    table.execute("update item set title = 'new ' || id where id <= 3")
    table.execute("update item set shop = 'elsewhere'")
    table.execute("delete from item where id between 50 and 53")
    table.execute("insert into item values (1000, 'fresh', 1, 's')")
    planned = pipeline.plan()
    assert counts(planned, "new", "changed", "payload_changed", "unchanged", "deleted", "tokens") == [1, 3, 0, 93, 4, 7]
    assert counts(pipeline.sync(), "embedded", "upserted", "deleted") == [4, 4, 4]
    found = stored(table)
    assert len(found) == 97
    assert found['["3"]'] == "new 3"
    assert '["50"]' not in found


def test_a_text_once_embedded_comes_from_the_cache(make: Make, table: psycopg.Connection[Any]) -> None:
    make().sync()
    table.execute("update item set title = 'x' where id = 1")
    make().sync()
    table.execute("update item set title = 'title number 1' where id = 1")
    assert counts(make().sync(), "embedded", "cached", "upserted") == [0, 1, 1]


def test_changed_payload_embeds_nothing(make: Make, table: psycopg.Connection[Any], pg_url: str) -> None:
    make().sync()
    table.execute("update item set price = 0.5 where id = 7")
    assert counts(make().sync(), "embedded", "cached", "upserted") == [0, 0, 1]
    assert stored(table, "_key, price::text")['["7"]'] == "0.50"
    more = [{"url": pg_url, "collection": "item_vectors", "payload": ["title", "price", "shop"]}]
    assert counts(make(sink=more).sync(), "embedded", "cached", "upserted") == [0, 0, 100]
    assert stored(table, "_key, shop")['["7"]'] == "shop1"


def test_refused_rows_keep_their_old_vectors_and_are_tried_again(make: Make, table: psycopg.Connection[Any]) -> None:
    pipeline = make(embedder={"url": "hash:32?refuse=poison&nan=nanny"})
    pipeline.sync()
    before = stored(table, "_key, vector::text")
    table.execute("update item set title = case id when 1 then 'poison' else 'nanny' end where id <= 2")
    table.execute("update item set title = 'fine' where id = 3")
    report = pipeline.sync()
    assert counts(report, "embedded", "failed", "newly_failed", "exit_code") == [1, 2, 2, 3]
    after = stored(table, "_key, vector::text")
    assert (after['["1"]'], after['["2"]']) == (before['["1"]'], before['["2"]'])
    assert after['["3"]'] != before['["3"]']
    assert counts(pipeline.sync(), "failed", "newly_failed", "exit_code") == [2, 0, 0]
    assert [row["key"] for row in pipeline.status()["failed"]] == ["1", "2"]
    table.execute("update item set title = 'well again ' || id where id <= 2")
    assert counts(pipeline.sync(), "embedded", "failed") == [2, 0]
    assert pipeline.status()["failed"] == []


def test_empty_contents_are_skipped_and_their_points_go(make: Make, table: psycopg.Connection[Any]) -> None:
    make().sync()
    table.execute("update item set title = case id when 1 then null else ' ' end where id <= 2")
    assert counts(make().sync(), "skipped", "deleted", "failed") == [2, 2, 0]
    assert counts(make().sync(), "skipped", "deleted", "failed") == [2, 0, 0]
    assert len(stored(table)) == 98
    report = make(content={"text": "{title}", "empty": "fail"}).sync(allow_reembed=True)
    assert counts(report, "skipped", "failed", "exit_code") == [0, 2, 3]


def test_a_brake_withholds_deletes(make: Make, table: psycopg.Connection[Any]) -> None:
    make().sync()
    table.execute("delete from item where id <= 30")
    table.execute("update item set title = 'still written' where id = 31")
    report = make().sync()
    assert counts(report, "embedded", "deleted", "exit_code") == [1, 0, 5]
    assert "30 of 100" in str(report.refused)
    assert len(stored(table)) == 100
    assert counts(make().sync(allow_deletes=True), "deleted", "exit_code") == [30, 0]
    assert len(stored(table)) == 70


def test_a_brake_asks_before_a_changed_recipe_is_paid_for(make: Make) -> None:
    make().sync()
    changed = make(content={"text": "{title}!"})
    with pytest.raises(Refused, match="100 of 100"):
        changed.sync()
    assert counts(changed.sync(allow_reembed=True), "embedded") == [100]
    assert counts(changed.sync(), "embedded") == [0]


def test_a_narrowed_run_never_deletes(make: Make, table: psycopg.Connection[Any]) -> None:
    make().sync()
    table.execute("delete from item where id <= 5")
    table.execute("update item set title = 'new ' || id where id between 6 and 9")
    assert counts(make().sync(keys=['["6"]', '["1"]']), "read", "embedded", "deleted") == [1, 1, 0]
    assert counts(make().sync(where="id = 7"), "read", "embedded", "deleted") == [1, 1, 0]
    assert counts(make().sync(limit=1), "upserted", "deleted") == [1, 0]
    assert counts(make().sync(), "upserted", "deleted") == [1, 5]


def test_the_text_of_each_chunk_is_kept_where_it_is_asked_for(
    make: Make, table: psycopg.Connection[Any], pg_url: str
) -> None:
    table.execute("update item set title = 'one two three four five six' where id = 1")
    make(chunk={"tokens": 3}).sync()
    kept = [{"url": pg_url, "collection": "item_vectors", "payload": ["title", "price"], "store_text": True}]
    pipeline = make(chunk={"tokens": 3}, sink=kept)
    assert counts(pipeline.sync(), "embedded", "upserted") == [0, 100]
    text_of_one = "select _chunk, _text from item_vectors where _key = '[\"1\"]' order by _chunk"
    assert table.execute(text_of_one).fetchall() == [(0, "one two three"), (1, "four five six")]
    table.execute("update item set price = 9 where id = 1")
    assert counts(pipeline.sync(), "embedded", "upserted") == [0, 1]
    assert table.execute(text_of_one).fetchall() == [(0, "one two three"), (1, "four five six")]


def test_chunks_of_a_row_are_replaced_as_one(make: Make, table: psycopg.Connection[Any]) -> None:
    pipeline = make(chunk={"tokens": 5, "overlap": 1})
    table.execute("update item set title = repeat('word ', 40) where id = 1")
    pipeline.sync()
    many = table.execute("""select count(*) from item_vectors where _key = '["1"]'""").fetchone()
    assert many is not None
    assert many[0] >= 8
    table.execute("update item set title = repeat('other ', 9) where id = 1")
    assert counts(pipeline.sync(), "embedded", "upserted") == [1, 1]
    few = table.execute("""select count(*), max(_chunk) from item_vectors where _key = '["1"]'""").fetchone()
    assert few is not None
    assert 1 < few[0] < many[0]
    assert few[1] == few[0] - 1
    hits = pipeline.search("other other", k=3)
    assert hits[0]["id"] == "1"
    assert len({hit["id"] for hit in hits}) == 3


def test_a_lost_ledger_is_adopted_without_embedding(make: Make, tmp_path: Path, table: psycopg.Connection[Any]) -> None:
    pipeline = make(chunk={"tokens": 2})
    pipeline.sync()
    for file in tmp_path.glob("items.*"):
        file.unlink()
    with pytest.raises(Refused) as caught:
        pipeline.sync()
    assert "adopt" in (caught.value.hint or "")
    assert pipeline.adopt() == {"postgresql": 100}
    table.execute("update item set title = 'new' where id = 1")
    assert counts(pipeline.sync(), "embedded", "cached", "upserted", "deleted") == [1, 0, 1, 0]


def test_a_dropped_collection_is_refilled_from_the_cache(make: Make, table: psycopg.Connection[Any]) -> None:
    make().sync()
    table.execute("truncate item_vectors__v1")
    assert counts(make().sync(), "embedded", "cached", "upserted") == [0, 100, 100]


def test_another_space_is_refused(make: Make) -> None:
    make().sync()
    with pytest.raises(Refused, match="hash-32") as caught:
        make(embedder={"url": "hash:64"}).sync()
    assert "hash-64" in str(caught.value)
    with pytest.raises(Refused, match="hash-32"):
        make(embedder={"url": "hash:64"}).plan()
    with pytest.raises(Refused, match="hash-32"):
        make(embedder={"url": "hash:64"}).search("words")


def test_two_runs_at_once(make: Make, tmp_path: Path) -> None:
    pipeline = make()
    ledger = open_ledger(f"sqlite:{tmp_path}/items.ledger")
    ledger.lock("items")
    ledger.begin(ledger.register("items"), "process 7 on host")
    with pytest.raises(AlreadyRunning, match="process 7"):
        pipeline.sync()
    ledger.close()
    assert pipeline.sync().upserted == 100


def test_one_sink_down_does_not_stop_the_others(make: Make, pg_url: str, table: psycopg.Connection[Any]) -> None:
    good = {"url": pg_url, "collection": "item_vectors", "payload": ["title"]}
    down = {"name": "down", "url": "postgresql://127.0.0.1:9/none", "collection": "c"}
    report = make(sink=[good, down]).sync(patience=NOW)
    assert counts(report, "embedded", "upserted", "exit_code") == [100, 100, 1]
    assert report.sinks["down"].error is not None
    told = make(sink=[good, down]).status()["sinks"]
    assert [told["postgresql"][name] for name in ("rows", "behind", "upserted", "error")] == [100, 0, 100, None]
    assert told["postgresql"]["in_step"] is not None
    assert told["postgresql"]["seconds"] > 0
    assert told["down"]["in_step"] is None
    assert "cannot be reached" in told["down"]["error"]
    back = {"name": "down", "url": pg_url, "collection": "other_vectors"}
    again = make(sink=[good, back]).sync()
    assert counts(again, "embedded", "cached", "upserted", "exit_code") == [0, 100, 100, 0]
    assert make(sink=[good, back]).status()["sinks"]["down"]["in_step"] is not None
    with pytest.raises(Transient):
        make(sink=[down]).sync(patience=NOW)


def test_stores_of_all_kinds_are_written_from_one_embedding(
    make: Make, table: psycopg.Connection[Any], pg_url: str, tmp_path: Path
) -> None:
    payload = ["title", "price"]
    double = QdrantDouble(key="s3cret")
    sinks = [
        {"url": pg_url, "collection": "item_vectors", "payload": payload},
        {"name": "served", "url": double.url, "api_key": "s3cret", "tls": False, "payload": payload},
        {"name": "folder", "url": "qdrant+embedded:./stores", "payload": payload},
    ]
    pipeline = make(sink=sinks)
    try:
        assert counts(pipeline.sync(), "embedded", "upserted", "exit_code") == [100, 100, 0]
        table.execute("update item set title = 'other words' where id = 7")
        table.execute("update item set price = 3 where id = 8")
        table.execute("delete from item where id = 9")
        double.upserts_until_death = 0
        report = pipeline.sync(patience=NOW)
        assert counts(report, "embedded", "upserted", "deleted", "exit_code") == [1, 2, 1, 1]
        assert report.sinks["served"].behind == 3
        assert pipeline.status()["sinks"]["served"]["behind"] == 3
        double.upserts_until_death = None
        # What is in doubt is written whole, from the cache.
        assert counts(pipeline.sync(), "embedded", "cached", "upserted", "deleted", "exit_code") == [0, 2, 2, 1, 0]
        for sink in ("postgresql", "served", "folder"):
            hits = pipeline.search("other words", k=100, sink=sink)
            assert (len(hits), hits[0]["id"]) == (99, "7")
            assert {"title": "title number 8", "price": "3.00"} in [hit["payload"] for hit in hits]
    finally:
        double.stop()


def test_transient_errors_are_tried_again(make: Make) -> None:
    flaky = {"url": "hash:32?fail=number 7&failures=2"}
    assert make(embedder=flaky).sync(patience=Patience(3, 0.01, 0.02)).embedded == 100
    with pytest.raises(Transient):
        make(name="other", embedder=flaky, sink=[{"url": "memory:"}]).sync(patience=NOW)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": {"url": "postgresql://127.0.0.1:9/none", "table": "item"}}, "reach"),
        ({"content": {"text": "{titel}"}}, "titel"),
    ],
)
def test_bad_declarations_are_named(make: Make, change: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, Transient), match=words):
        make(**change).sync(patience=NOW)


def test_a_plan_writes_nothing(make: Make, tmp_path: Path, table: psycopg.Connection[Any]) -> None:
    assert make().plan().new == 100
    assert list(tmp_path.iterdir()) == []
    relations = table.execute("select count(*) from pg_class where relname like 'item_%vectors%'").fetchone()
    assert relations == (0,)


def test_tenants_and_filters(make: Make, pg_url: str) -> None:
    pipeline = make(source={"url": pg_url, "table": "item", "tenant": "shop"})
    pipeline.sync()
    hits = pipeline.search("title number 5", k=50, tenant="shop2")
    assert len(hits) == 33
    assert {hit["payload"]["shop"] for hit in hits} == {"shop2"}
    with pytest.raises(ConfigError, match="tenants"):
        make().search("x", tenant="shop2")
