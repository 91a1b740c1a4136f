"""Which changes triggers queue, on real servers of both releases."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psycopg
import pytest

from capture.looking import Connection, Make, counts, queued, stored, stored_keys
from seedbed import Pipeline
from seedbed.embedded_postgres import binaries
from seedbed.errors import ConfigError, Fatal, SeedbedError
from services.postgres import fresh_database


def test_an_unwatched_column_queues_nothing(watched: Pipeline, table: Connection) -> None:
    table.execute("update item set stock = stock + 1")
    assert queued(table) == []
    assert counts(watched.sync(), "read", "embedded") == [0, 0]
    table.execute("update item set price = price + 1 where id <= 2")
    assert queued(table) == ['["1"]', '["2"]']
    assert counts(watched.sync(), "read", "embedded", "upserted") == [2, 0, 2]


def test_three_updates_are_one_change(watched: Pipeline, table: Connection) -> None:
    for title in "abc":
        table.execute("update item set title = %s where id = 7", [title])
    assert queued(table) == ['["7"]']
    assert counts(watched.sync(), "read", "embedded", "upserted") == [1, 1, 1]
    assert queued(table) == []


def test_inserts_deletes_and_new_keys_are_seen(watched: Pipeline, table: Connection) -> None:
    table.execute("insert into item values (101, 'new', 1, 1)")
    table.execute("delete from item where id = 1")
    table.execute("update item set id = 200 where id = 2")
    assert set(queued(table)) == {'["101"]', '["1"]', '["2"]', '["200"]'}
    assert counts(watched.sync(), "embedded", "upserted", "deleted") == [1, 2, 2]
    assert stored(table) == {f'["{n}"]' for n in [*range(3, 102), 200]}
    assert queued(table) == []


def test_a_batch_of_deletes_alone_does_not_end_the_pass(
    watched: Pipeline, table: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seedbed.sources.pg_queue._TAKEN", 5)
    table.execute("delete from item where id between 10 and 19")
    table.execute("update item set title = 'x' || id where id >= 90")
    assert counts(watched.sync(), "embedded", "deleted") == [10 + 1, 10]
    assert queued(table) == []


def test_truncation_needs_leave_and_then_empties(watched: Pipeline, table: Connection) -> None:
    table.execute("truncate item")
    table.execute("insert into item values (5, 'after', 1, 1)")
    assert watched.sync().exit_code == 5
    assert "" in queued(table), "it stands until it is done"
    assert counts(watched.sync(allow_deletes=True), "deleted") == [99]
    assert stored(table) == {'["5"]'}
    assert watched.sync().read == 1
    assert queued(table) == []


def test_deletes_past_the_brake_stay_queued(watched: Pipeline, table: Connection) -> None:
    table.execute("delete from item where id <= 50")
    assert watched.sync().exit_code == 5
    assert len(queued(table)) == 50
    assert watched.sync(allow_deletes=True).deleted == 50
    assert queued(table) == []


def test_columns_of_the_condition_and_soft_deletes_are_watched(make: Make, table: Connection) -> None:
    pipeline = make(source={"where": "stock >= 0 -- in stock", "deleted": "gone"})
    pipeline.watch()
    pipeline.sync()
    table.execute("update item set stock = -1 where id = 3")
    table.execute("update item set gone = true where id = 4")
    assert pipeline.sync().deleted == 2
    table.execute("update item set stock = 1 where id = 3")
    assert counts(pipeline.sync(), "cached", "upserted") == [1, 1]


def test_key_forms_are_those_of_the_library(url: str, make: Make, table: Connection) -> None:
    table.execute(
        'create table odd ("Te""xt" text, n numeric, u uuid, b bytea, d date, at timestamptz, plain timestamp,'
        ' yes bool, c char(4), title json, primary key ("Te""xt", n, u, b, d, at, plain, yes, c))'
    )
    pipeline = make(name="odd", source={"table": "odd"}, sink=[{"url": url, "collection": "odd_vectors"}])
    pipeline.watch()
    pipeline.sync()
    table.execute("set timezone = 'Asia/Tokyo'; set datestyle = 'German'; set bytea_output = 'escape'")
    table.execute(
        "insert into odd values (E'q\"\\\\\\n\\x01é', 1.50, gen_random_uuid(), '\\x00ff', '2024-02-03',"
        " '2024-02-03 04:05:06.789+02', '2024-02-03 04:05:06', true, 'ab', '{\"a\": 1}')"
    )
    report = pipeline.sync()
    assert counts(report, "read", "embedded", "upserted", "deleted", "failed") == [1, 1, 1, 0, 0]
    (key,) = queued(table) or stored_keys(table, "odd_vectors")
    assert table.execute("select count(*) from odd_vectors where _key = %s", [key]).fetchone() == (1,)
    table.execute("update odd set title = '{\"a\": 2}'")
    assert queued(table) == [key]
    assert pipeline.sync().embedded == 1
    table.execute("delete from odd")
    assert pipeline.sync(allow_deletes=True).deleted == 1


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("create table part (id int primary key, title text) partition by range (id)", "partitioned"),
        ("create view part as select id, title from item", "is no table"),
        ("create table part (id int primary key, title text); create table kid () inherits (part)", "inherit"),
    ],
)
def test_what_cannot_be_watched_is_refused_by_name(make: Make, table: Connection, made: str, words: str) -> None:
    table.execute(made.encode())
    with pytest.raises(SeedbedError, match=f"part.*{words}"):
        make(source={"table": "part", "key": ["id"]}, sink=[{"url": "memory:"}]).watch()


def test_a_query_cannot_be_watched(make: Make) -> None:
    with pytest.raises(ConfigError, match="query"):
        make(source={"table": None, "query": "select * from item", "key": ["id"]}).watch()


def test_nothing_runs_without_a_subscription(make: Make, table: Connection) -> None:
    pipeline = make()
    with pytest.raises(ConfigError, match="no changes are being queued") as caught:
        pipeline.sync()
    assert "seedbed watch" in (caught.value.hint or "")
    pipeline.watch()
    pipeline.sync()
    with pytest.raises(ConfigError, match="stock"):
        make(content={"text": "{title} {stock}"}).sync()
    assert pipeline.unwatch()
    assert not pipeline.unwatch()
    table.execute("update item set title = 'y'")
    assert queued(table) == []


def test_what_changed_while_nobody_watched_is_found(watched: Pipeline, table: Connection) -> None:
    watched.unwatch()
    table.execute("update item set title = 'unseen' where id = 9")
    watched.watch()
    assert counts(watched.sync(), "read", "embedded") == [100, 1]
    assert counts(watched.sync(), "read", "embedded") == [0, 0]


def test_a_dropped_column_stops_no_writer(watched: Pipeline, table: Connection) -> None:
    table.execute("alter table item rename column title to name")
    table.execute("update item set name = 'renamed' where id = 1")
    assert queued(table) == [""]


def test_the_applications_role_needs_no_right_on_the_queue(watched: Pipeline, table: Connection, url: str) -> None:
    role = "app_" + url.rpartition("test_")[2][:8].split("?")[0]
    table.execute(f"create role {role}; grant select, insert, update, delete, truncate on item to {role}".encode())
    try:
        table.execute(f"set role {role}".encode())
        table.execute("set search_path = pg_temp, public")
        table.execute("update item set title = 'theirs' where id = 1")
        table.execute("insert into item values (300, 'also theirs', 1, 1)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            table.execute("select * from seedbed_queue.change")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            table.execute("select seedbed_queue.unwatch('items')")
        table.execute("reset role; reset search_path")
        assert set(queued(table)) == {'["1"]', '["300"]'}
        assert watched.sync().embedded == 2
    finally:
        table.execute(f"reset role; drop owned by {role}; drop role {role}".encode())


def test_a_role_without_rights_is_told_so(url: str, make: Make, table: Connection) -> None:
    role = "poor_" + url.rpartition("test_")[2][:8].split("?")[0]
    table.execute(f"create role {role}; grant select on item to {role}".encode())
    try:
        pipeline = make(source={"url": f"{url}&options=-c%20role%3D{role}"}, sink=[{"url": "memory:"}])
        with pytest.raises(Fatal, match=r"rights|denied|owner"):
            pipeline.watch()
    finally:
        table.execute(f"drop owned by {role}; drop role {role}".encode())


def test_dump_and_restore_keep_the_queue(url: str, watched: Pipeline, table: Connection) -> None:
    """What stands in it, and the triggers that fill it."""
    table.execute("update item set title = 'x' where id = 1")
    release = "15" if "/15" in url else "18"
    tools = binaries() if release == "18" else Path("/usr/lib/postgresql/15/bin")
    dump = subprocess.run([tools / "pg_dump", "--dbname", url], capture_output=True, check=True)
    with fresh_database(release) as other:
        subprocess.run(
            [tools / "psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", "--dbname", other],
            input=dump.stdout,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with psycopg.connect(other, autocommit=True) as restored:
            restored.execute("update item set title = 'y' where id = 2")
            assert queued(restored) == ['["1"]', '["2"]']
