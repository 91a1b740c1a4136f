"""Columns that keep themselves embedded, in both releases, against a real `seedbed serve`."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import seedbed
from seedbed import Content
from udf.conftest import Serving

Connection = psycopg.Connection[Any]


def hashed(text: str) -> Any:
    return seedbed.embedder("hash:32").embed([Content.of(text)])[0]


def vectors(db: Connection, query: str) -> dict[Any, Any]:
    return {key: np.fromstring(text.strip("[]"), sep=",") for key, text in db.execute(query.encode()).fetchall()}


def work(db: Connection, arguments: str = "") -> int:
    found = db.execute(f"call seedbed.work({arguments})".encode()).fetchone()
    assert found is not None
    return int(found[0])


@pytest.fixture
def item(db: Connection) -> Connection:
    db.execute("create table item (id int primary key, title text, price int, seen int)")
    db.execute("insert into item select n, 'title ' || n, n, 0 from generate_series(1, 50) n")
    return db


@pytest.fixture
def column(item: Connection) -> Connection:
    found = item.execute("select seedbed.embed_column('item', '{title}')::text").fetchone()
    assert found == ("item_embedding",)
    assert work(item) == 50
    return item


def test_a_column_fills_and_follows(column: Connection) -> None:
    found = vectors(column, "select id, embedding::text from item_embedding")
    assert len(found) == 50
    np.testing.assert_allclose(found[7], hashed("title 7"), atol=1e-6)
    column.execute("update item set title = 'another' where id = 7; delete from item where id = 8")
    column.execute("insert into item values (100, 'fresh', 1, 1)")
    column.execute("update item set seen = seen + 1")
    assert work(column) == 3
    found = vectors(column, "select id, embedding::text from item_embedding")
    assert len(found) == 50
    np.testing.assert_allclose(found[7], hashed("another"), atol=1e-6)
    np.testing.assert_allclose(found[100], hashed("fresh"), atol=1e-6)
    assert column.execute("select count(*) from item_embedding_store").fetchone() == (50,)
    assert work(column) == 0


def test_what_is_the_same_is_not_embedded_again(column: Connection, tmp_path: Path) -> None:
    column.execute("update item set title = title || 'x'; update item set title = 'title ' || id")
    column.execute("update seedbed.endpoint set address = 'unix:/nowhere'")
    assert work(column) == 50, "their hashes say so, and nobody is asked"


def test_it_may_stand_in_the_table_itself(item: Connection) -> None:
    item.execute("select seedbed.embed_column('item', '{title} costs {price}', 'vec', inline => true)")
    assert work(item, "30, 8") == 30
    assert work(item, "1000, 8") == 20
    found = vectors(item, "select id, vec::text from item")
    np.testing.assert_allclose(found[3], hashed("title 3 costs 3"), atol=1e-6)
    assert work(item) == 0, "writing the vector is no change"
    assert item.execute("select relname from pg_class where relname = 'item_vec'").fetchone() is None
    item.execute("select seedbed.drop_column('item', 'vec')")
    assert item.execute("select count(*) from seedbed.embedded_column").fetchone() == (0,)
    item.execute("update item set title = 'free'")
    assert item.execute("select count(*) from seedbed_queue.change").fetchone() == (0,)


def test_inline_rows_that_come_again_get_their_vectors_again(item: Connection) -> None:
    item.execute("select seedbed.embed_column('item', '{title}', 'vec', inline => true)")
    assert work(item) == 50
    item.execute("delete from item where id = 1; insert into item values (1, 'title 1', 1, 0)")
    work(item)
    item.execute("create temp table copy as select id, title, price, seen from item; truncate item")
    item.execute("insert into item (id, title, price, seen) select * from copy")
    work(item)
    assert item.execute("select count(*) from item where vec is null").fetchone() == (0,)


def test_writers_and_workers_do_not_wait_for_each_other(item: Connection) -> None:
    """Not for deadlocks, and not for somebody's open transaction."""
    item.execute("select seedbed.embed_column('item', '{title}', 'vec', inline => true)")
    work(item)
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        with psycopg.connect(item.info.dsn, autocommit=True) as connection:
            turn = 0
            while not stop.is_set():
                turn += 1
                try:
                    connection.execute("update item set title = %s where id = %s", [f"{number} {turn}", turn % 50 + 1])
                except psycopg.Error as error:
                    failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        work(item)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    work(item)
    found = vectors(item, "select title, vec::text from item")
    for title, vector in found.items():
        np.testing.assert_allclose(vector, hashed(title), atol=1e-6)


def test_a_broken_column_does_not_stop_the_others(column: Connection, address: str) -> None:
    column.execute("insert into seedbed.endpoint values ('gone', %s)", [address])
    column.execute("select seedbed.embed_column('item', '{price}', 'aside', endpoint => 'gone')")
    column.execute("create table last (id int primary key, title text); insert into last values (1, 'a')")
    column.execute("select seedbed.embed_column('last', '{title}')")
    column.execute("update seedbed.endpoint set address = 'unix:/nowhere' where name = 'gone'")
    with pytest.raises(psycopg.OperationalError, match="cannot be reached"):
        work(column)
    assert column.execute("select count(*) from last_embedding").fetchone() == (1,)
    assert column.execute("show search_path").fetchone() == ('"$user", public',)


def test_names_on_the_path_are_not_taken_for_ours(column: Connection) -> None:
    """Nor a store that is no table of the owner's."""
    column.execute("create function unnest(text[]) returns setof text language sql as $$ select 1 / 0 || '' $$")
    column.execute("update item set title = 'new' where id = 1")
    assert work(column) == 1
    column.execute("create view fake as select * from item_embedding_store")
    column.execute("update seedbed.embedded_column set store = 'fake'")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="no table of its owner"):
        column.execute("select * from seedbed.search('item', 'x')")


def test_search_finds_by_the_index_and_filters(column: Connection) -> None:
    found = column.execute("select score, row from seedbed.search('item', 'title 33', 3)").fetchall()
    assert found[0][1] == {"id": 33, "title": "title 33", "price": 33, "seen": 0}
    assert found[0][0] == pytest.approx(1, abs=1e-5)
    assert len(found) == 3

    def ids(filter: str) -> list[int]:
        query = "select (row ->> 'id')::int from seedbed.search('item', 'title 33', 50, %s)"
        return sorted(n for (n,) in column.execute(query, [filter]).fetchall())

    assert ids('{"price": {"gte": 10, "lt": 13}}') == [10, 11, 12]
    assert ids('{"id": [1, 2, 99], "seen": 0}') == [1, 2]
    assert ids('{"title": "title 5"}') == [5]
    assert ids('{"title": null}') == []
    column.execute("set enable_seqscan = off")
    plan = column.execute(
        "explain (costs off) select id from item_embedding order by embedding <=> (select seedbed.embed('a')) limit 3"
    ).fetchall()
    assert any("Index Scan" in line and "embedding_store" in line for (line,) in plan), plan


@pytest.mark.parametrize(
    "filter",
    ['{"id) or (1": 1}', '{"nowhere": 1}', '{"price": {"like": "1"}}', "[1]", '{"id": "1; drop table item"}'],
)
def test_a_filter_is_never_sql(column: Connection, filter: str) -> None:
    with pytest.raises(psycopg.Error):
        column.execute("select * from seedbed.search('item', 'x', 1, %s)", [filter])
    assert column.execute("select count(*) from item").fetchone() == (50,)


def test_row_level_security_holds(column: Connection) -> None:
    column.execute("create role reader_of_item")
    try:
        column.execute(
            "grant seedbed_user to reader_of_item; grant select on item, item_embedding to reader_of_item;"
            "grant select on item_embedding_store to reader_of_item"
        )
        column.execute("alter table item enable row level security")
        column.execute("create policy low on item for select to reader_of_item using (price <= 10)")
        column.execute("set role reader_of_item")
        assert column.execute("select count(*) from item_embedding").fetchone() == (10,)
        assert column.execute("select count(*) from item_embedding_store").fetchone() == (10,)
        found = column.execute("select row ->> 'id' from seedbed.search('item', 'title 33', 50)").fetchall()
        assert {int(n) for (n,) in found} == set(range(1, 11))
        for statement in ("call seedbed.work()", "select seedbed.drop_column('item')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                column.execute(statement.encode())
    finally:
        column.execute("reset role; drop owned by reader_of_item; drop role reader_of_item")


def test_readers_of_the_table_read_the_column(item: Connection) -> None:
    item.execute("create role reads_item")
    try:
        item.execute("grant select on item to reads_item")
        item.execute("select seedbed.embed_column('item', '{title}')")
        work(item)
        item.execute("set role reads_item")
        assert item.execute("select count(*) from item_embedding").fetchone() == (50,)
    finally:
        item.execute("reset role; drop owned by reads_item; drop role reads_item")


def test_an_owner_who_is_no_superuser_does_all_of_it(db: Connection) -> None:
    db.execute("create role shopkeeper login")
    try:
        db.execute(
            "grant seedbed_admin to shopkeeper; create schema shop authorization shopkeeper; set role shopkeeper"
        )
        db.execute("create table shop.item (id bigint generated always as identity primary key, title text)")
        db.execute("select seedbed.embed_column('shop.item', '{title}')")
        db.execute("insert into shop.item (title) values ('red shoes'), ('a wool coat')")
        assert work(db) == 2
        found = db.execute(
            "select row ->> 'title' from seedbed.search('shop.item', 'shoes that are red', 1)"
        ).fetchone()
        assert found == ("red shoes",)
        db.execute("reset role")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="superuser"):
            work(db)
        db.execute("set role shopkeeper; select seedbed.drop_column('shop.item')")
    finally:
        db.execute("reset role; drop owned by shopkeeper cascade; drop role shopkeeper")


def test_a_row_that_is_refused_is_noted_and_stops_nobody(item: Connection) -> None:
    item.execute("update item set title = 'poison' where id in (5, 6); update item set title = '' where id = 7")
    item.execute("select seedbed.embed_column('item', '{title}')")
    assert work(item) == 50
    assert item.execute("select count(*) from item_embedding").fetchone() == (47,)
    noted = item.execute("select id from item_embedding_store where seedbed_error is not null order by 1").fetchall()
    assert noted == [(5,), (6,)]
    assert work(item) == 0
    item.execute("update item set title = 'cured' where id = 5")
    assert work(item) == 1
    assert item.execute("select count(*) from item_embedding").fetchone() == (48,)


def test_truncation_empties_the_column(column: Connection) -> None:
    column.execute("truncate item; insert into item values (1, 'after', 1, 1)")
    assert work(column) >= 1
    assert column.execute("select id from item_embedding_store").fetchall() == [(1,)]


def test_a_server_that_is_gone_loses_nothing(column: Connection, address: str) -> None:
    column.execute("update item set title = 'late' where id = 1")
    column.execute("update seedbed.endpoint set address = 'unix:/nowhere'")
    with pytest.raises(psycopg.OperationalError, match="cannot be reached"):
        work(column)
    found = column.execute("select lease_owner, attempts from seedbed_queue.change").fetchall()
    assert found == [(None, 0)]
    column.execute("update seedbed.endpoint set address = %s", [address])
    assert work(column) == 1


def test_another_model_is_refused_and_shown(column: Connection, sockets: Path, serve: Serving, address: str) -> None:
    path = sockets / f"other-{time.monotonic_ns()}"
    column.execute("update item set title = 'new' where id = 1")
    with serve(path, "hash:16"):
        column.execute("update seedbed.endpoint set address = %s", [f"unix:{path}"])
        for statement in ("call seedbed.work()", "select * from seedbed.search('item', 'x')"):
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="model") as caught:
                column.execute(statement.encode())
            assert "new column beside it" in (caught.value.diag.message_hint or "")
        assert column.execute("select stale from seedbed.status").fetchone() == (True,)
        column.execute("select seedbed.embed_column('item', '{title}', 'second')")
        column.execute("select seedbed.drop_column('item', 'embedding')")
        assert work(column) == 50
        assert column.execute("select vector_dims(second) from item_second limit 1").fetchone() == (16,)
        column.execute("select seedbed.drop_column('item', 'second')")
    column.execute("update seedbed.endpoint set address = %s", [address])


def test_no_transaction_is_open_while_the_model_works(
    item: Connection, sockets: Path, serve: Serving, address: str
) -> None:
    """And a change that comes meanwhile is not lost."""
    path = sockets / f"slow-{time.monotonic_ns()}"
    item.execute("select seedbed.embed_column('item', '{title}')")
    seen: list[tuple[Any, ...]] = []
    with serve(path, "hash:32?latency=0.2"), psycopg.connect(item.info.dsn, autocommit=True) as other:
        item.execute("update seedbed.endpoint set address = %s", [f"unix:{path}"])
        thread = threading.Thread(target=work, args=(item, "1000, 10"))
        thread.start()
        changed = False
        while thread.is_alive():
            seen += other.execute(
                "select backend_xid is null and backend_xmin is null, state from pg_stat_activity where pid = %s",
                [item.info.backend_pid],
            ).fetchall()
            if (
                not changed
                and other.execute("select 1 from seedbed_queue.change where lease_owner is not null").fetchone()
            ):
                other.execute("update item set title = 'meanwhile' where id = 1")
                changed = True
            time.sleep(0.02)
        thread.join()
        assert {state for _, state in seen} <= {"active", "idle"}
        free = sum(is_free for is_free, _ in seen)
        assert free / len(seen) > 0.8, "it holds back no vacuum"
        assert changed
        work(item)
        found = vectors(item, "select id, embedding::text from item_embedding where id = 1")
        np.testing.assert_allclose(found[1], hashed("meanwhile"), atol=1e-6)
    item.execute("update seedbed.endpoint set address = %s", [address])


def test_two_sessions_share_the_work(db: Connection) -> None:
    db.execute("create table many (id int primary key, title text)")
    db.execute("insert into many select n, 'title ' || n from generate_series(1, 3000) n")
    db.execute("select seedbed.embed_column('many', '{title}')")
    done: list[int] = []

    def one() -> None:
        with psycopg.connect(db.info.dsn, autocommit=True) as connection:
            done.append(work(connection, "100000, 64"))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(done) == 3000
    assert min(done) > 300
    assert db.execute("select count(*) from many_embedding").fetchone() == (3000,)
    assert work(db) == 0
    indexes = "select count(*) from pg_indexes where tablename = 'many_embedding_store' and indexdef like '%hnsw%'"
    assert db.execute(indexes).fetchone() == (1,)


def test_nobody_declares_columns_of_others(column: Connection) -> None:
    """Else the owner's next work would write where another had it write."""
    column.execute("create role meddler")
    try:
        column.execute("grant seedbed_admin to meddler; set role meddler")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            column.execute(
                "insert into seedbed.embedded_column select 'pg_class', name, content, image, endpoint, space,"
                " dimensions, half, metric, key_columns, store, visible, subscription from seedbed.embedded_column"
            )
        assert column.execute("update seedbed.embedded_column set store = 'item'").rowcount == 0
        assert column.execute("delete from seedbed.embedded_column").rowcount == 0
        for call in ("embed_column('item', '{title}', 'other')", "drop_column('item')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="owner"):
                column.execute(f"select seedbed.{call}".encode())
        assert work(column) == 0
    finally:
        column.execute("reset role; drop owned by meddler; drop role meddler")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("embed_column('item')", "neither content nor image"),
        ("embed_column('item', 'no column')", "names no column"),
        ("embed_column('item', '{title')", "brace"),
        ("embed_column('item', '{titel}')", "titel"),
        ("embed_column('bare', '{title}')", "primary key"),
        ("embed_column('item', '{title}', metric => 'chebyshev')", "metric"),
        ("embed_column('item', '{title}', endpoint => 'nowhere')", "no endpoint"),
        ("drop_column('item')", "no embedded columns"),
        ("search('item', 'x')", "no embedded columns"),
    ],
)
def test_bad_calls_say_what_to_do(item: Connection, call: str, words: str) -> None:
    item.execute("create table bare (title text)")
    with pytest.raises(psycopg.Error, match=words):
        item.execute(f"select seedbed.{call}".encode())
    assert item.execute("select count(*) from seedbed.embedded_column").fetchone() == (0,)


def test_work_within_a_transaction_is_refused(column: Connection) -> None:
    with pytest.raises(psycopg.Error, match="transaction"), column.transaction():
        column.execute("call seedbed.work()")


def test_keys_of_all_kinds(db: Connection) -> None:
    db.execute(
        'create table odd (t text, n numeric, u uuid, b bytea, d date, at timestamptz, body text, "Day of" date,'
        " primary key (t, n, u, b, d, at))"
    )
    db.execute("select seedbed.embed_column('odd', '{{{body}}} on {Day of}')")
    db.execute(
        "insert into odd values (E'q\"\\\\ü', 1.50, gen_random_uuid(), '\\x00ff', '2024-02-03', '2024-02-03 04:05+02',"
        " 'b', '2024-01-02')"
    )
    db.execute("set timezone = 'Asia/Tokyo'; set datestyle = 'German'")
    assert work(db) == 1
    (found,) = vectors(db, "select t, embedding::text from odd_embedding").values()
    np.testing.assert_allclose(found, hashed("{b} on 2024-01-02"), atol=1e-6)
    db.execute("delete from odd")
    assert work(db) == 1
    assert db.execute("select count(*) from odd_embedding_store").fetchone() == (0,)
