"""Changes captured by triggers and worked off from the queue, on real servers of both releases."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from seedbed import Pipeline
from seedbed.embedded_postgres import binaries
from seedbed.errors import ConfigError, Fatal, SeedbedError
from services.postgres import RELEASES, fresh_database

Connection = psycopg.Connection[Any]
Make = Callable[..., Pipeline]


@pytest.fixture(params=RELEASES)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with fresh_database(request.param) as made:
        yield made


@pytest.fixture
def table(url: str) -> Iterator[Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table item (id bigint primary key, title text, price int, stock int, gone boolean)")
        connection.execute("insert into item select n, 'title ' || n, n, 0 from generate_series(1, 100) n")
        yield connection


@pytest.fixture
def make(url: str, tmp_path: Path, table: Connection) -> Make:
    def build(**changes: Any) -> Pipeline:
        declared: dict[str, Any] = {
            "name": "items",
            "source": {"url": url, "table": "item", "changes": "queue", **changes.pop("source", {})},
            "content": {"text": "{title}"},
            "embedder": {"url": "hash:16"},
            "sink": [{"url": url, "collection": "item_vectors", "payload": ["price"]}],
            "base": tmp_path,
        }
        return Pipeline(**{**declared, **changes})

    return build


@pytest.fixture
def watched(make: Make) -> Pipeline:
    pipeline = make()
    pipeline.watch()
    assert pipeline.sync().embedded == 100
    return pipeline


def queued(table: Connection) -> list[str]:
    return [key for (key,) in table.execute("select key from seedbed_queue.change order by key").fetchall()]


def counts(report: Any, *names: str) -> list[int]:
    return [getattr(report, name) for name in names]


def stored(table: Connection) -> set[str]:
    return {key for (key,) in table.execute("select _key from item_vectors").fetchall()}


# --- what is queued -------------------------------------------------------------------------------------


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


def stored_keys(table: Connection, collection: str) -> list[str]:
    return [key for (key,) in table.execute(f"select _key from {collection}".encode()).fetchall()]


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


# --- how it is worked off -------------------------------------------------------------------------------


def test_a_change_during_its_own_embedding_survives(watched: Pipeline, make: Make, table: Connection, url: str) -> None:
    table.execute("update item set title = 'first' where id = 1")
    slow = make(embedder={"url": "hash:16?latency=1.5"})
    thread = threading.Thread(target=slow.sync)
    thread.start()
    while table.execute("select count(*) from seedbed_queue.change where lease_owner is not null").fetchone() != (1,):
        time.sleep(0.005)
    time.sleep(0.5)  # its row has been read by now, and is being embedded
    table.execute("update item set title = 'second' where id = 1")
    thread.join()
    assert queued(table) == ['["1"]']
    assert counts(watched.sync(), "read", "embedded") == [1, 1]
    assert queued(table) == []


def test_a_failed_row_is_tried_again(make: Make, table: Connection) -> None:
    pipeline = make(embedder={"url": "hash:16?refuse=poison"})
    pipeline.watch()
    pipeline.sync()
    table.execute("update item set title = 'poison' where id = 1")
    assert pipeline.sync().exit_code == 3
    assert queued(table) == []
    assert counts(pipeline.sync(), "read", "failed", "newly_failed") == [1, 1, 0]
    table.execute("update item set title = 'cured' where id = 1")
    assert counts(pipeline.sync(), "read", "failed", "embedded") == [1, 0, 1]
    assert pipeline.status()["failed"] == []


def test_a_sink_that_is_down_gets_its_rows_later(make: Make, table: Connection, url: str) -> None:
    both = [{"url": url, "collection": "item_vectors"}, {"name": "two", "url": url, "collection": "two"}]
    pipeline = make(sink=both)
    pipeline.watch()
    pipeline.sync()
    table.execute("update item set title = 'x' where id = 1; delete from item where id = 2")
    down = make(sink=[both[0], {**both[1], "url": "postgresql://nobody@127.0.0.1:1/none"}])
    assert down.sync().exit_code == 1
    assert len(queued(table)) == 2
    report = pipeline.sync()
    assert counts(report, "cached", "upserted", "deleted") == [1, 1, 1]
    assert queued(table) == []


PROGRAM = """
import json, sys, threading
from seedbed import Pipeline
declared = json.loads(sys.argv[1])
report = Pipeline(**declared).sync()
print(json.dumps(report.as_dict()))
"""


def declared_for_many(url: str, tmp_path: Path, latency: float = 0.02) -> dict[str, Any]:
    return {
        "name": "items",
        "source": {"url": url, "table": "item", "changes": "queue"},
        "content": {"text": "{title}"},
        "embedder": {"url": f"hash:16?latency={latency}"},
        "sink": [{"url": f"{url}&index=none", "collection": "item_vectors", "payload": ["price"]}],
        "ledger": {"url": url},
        "cache": {"url": str(tmp_path / "shared.cache")},
        "limits": {"max_delete": 1.0},
    }


def start(declared: dict[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(declared)], stdout=subprocess.PIPE, text=True)


def test_two_workers_share_the_changes_and_take_none_twice(url: str, table: Connection, tmp_path: Path) -> None:
    rows = 100_000
    declared = declared_for_many(url, tmp_path)
    pipeline = Pipeline(**declared)
    pipeline.watch()
    pipeline.sync()
    table.execute("insert into item select n, 'more ' || n, n, 0 from generate_series(1001, %s) n", [1000 + rows])
    table.execute("delete from item where id <= 10")
    workers = [start({**declared, "cache": {"url": str(tmp_path / f"{n}.cache")}}) for n in range(2)]
    reports = [json.loads(worker.communicate(timeout=300)[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert queued(table) == []
    assert sum(report["embedded"] for report in reports) == rows
    assert sum(report["deleted"] for report in reports) == 10
    assert all(report["embedded"] > rows / 10 for report in reports), "both had their share"
    assert len(stored(table)) == rows + 90


def test_a_dead_workers_rows_come_back(
    url: str, table: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = declared_for_many(url, tmp_path, latency=0.3)
    pipeline = Pipeline(**declared)
    pipeline.watch()
    pipeline.sync()
    table.execute("update item set title = 'again ' || id")
    worker = start(declared)
    while table.execute("select count(*) from seedbed_queue.change where lease_owner is not null").fetchone() != (100,):
        time.sleep(0.01)
    worker.kill()
    worker.communicate()
    assert pipeline.sync().read == 0, "they are still leased"
    table.execute("update seedbed_queue.change set lease_until = now() - interval '1 s'")
    report = pipeline.sync()
    assert report.embedded + report.cached == 100
    assert queued(table) == []
    assert table.execute("select count(*) from seedbed_ledger.run where outcome = 'died'").fetchone() == (1,)


def test_a_worker_that_lost_its_leases_writes_nothing(
    watched: Pipeline, table: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seedbed.sources.pg_queue.LEASE", 0.0)
    monkeypatch.setattr("seedbed.sources.pg_queue._RENEWED", 10.0)
    table.execute("update item set title = 'x' where id = 1")
    with pytest.raises(SeedbedError, match="leases"):
        watched.sync()


def test_an_open_transaction_holds_nobody_up(url: str, make: Make, table: Connection) -> None:
    """A change that a writer holds is skipped: workers wait for none, and no other writer for them."""
    pipeline = make(embedder={"url": "hash:16?latency=1"})
    pipeline.watch()
    pipeline.sync()
    table.execute("update item set title = 'x' || id where id < 20")
    thread = threading.Thread(target=pipeline.sync)
    thread.start()
    while table.execute("select count(*) from seedbed_queue.change where lease_owner is not null").fetchone() != (19,):
        time.sleep(0.005)
    with psycopg.connect(url) as slow:
        slow.execute("update item set title = 'held' where id = 9")
        thread.join(20)
        assert not thread.is_alive()
        table.execute("set lock_timeout = '2s'; update item set title = 'free' where id = 1")
    assert queued(table) == ['["1"]', '["9"]']
    table.execute("update seedbed_queue.change set lease_until = now() - interval '1 s'")
    assert pipeline.sync().embedded == 2


def test_serializable_writers_of_other_rows_do_not_collide(watched: Pipeline, url: str, table: Connection) -> None:
    with psycopg.connect(url) as one, psycopg.connect(url) as two:
        for connection, row in ((one, 1), (two, 2)):
            connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            connection.execute("update item set title = 'x' where id = %s", [row])
        one.commit()
        two.commit()
    assert queued(table) == ['["1"]', '["2"]']


def test_functions_of_others_are_not_run(watched: Pipeline, table: Connection, make: Make) -> None:
    table.execute("create role stranger")
    try:
        table.execute("grant create, usage on schema seedbed_queue to stranger")
        table.execute("alter function seedbed_queue.unwatch(text) owner to stranger")
        with pytest.raises(SeedbedError, match="belongs to a role"):
            watched.watch()
        with pytest.raises(SeedbedError, match="belongs to a role"):
            watched.sync()
    finally:
        table.execute("drop owned by stranger cascade; drop role stranger")


def test_no_transaction_of_ours_waits(url: str, make: Make, table: Connection) -> None:
    pipeline = make(embedder={"url": "hash:16?latency=0.2"}, ledger={"url": url})
    pipeline.watch()
    pipeline.sync()
    table.execute("update item set title = 'x' || id")
    seen: list[tuple[Any, ...]] = []
    done = threading.Event()

    def sample() -> None:
        with psycopg.connect(url, autocommit=True) as looking:
            while not done.wait(0.02):
                seen.extend(
                    looking.execute(
                        "select query, clock_timestamp() - state_change from pg_stat_activity"
                        " where state like 'idle in%' and datname = current_database()"
                        " and clock_timestamp() - state_change > interval '100 ms'"
                    ).fetchall()
                )

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        assert pipeline.sync().embedded == 100
    finally:
        done.set()
        thread.join()
    assert seen == []


# --- following ------------------------------------------------------------------------------------------


def test_follow_is_woken_and_shows_its_lag(
    watched: Pipeline, table: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seedbed.follow.POLL", 60.0)
    passes: list[Any] = []
    stop = threading.Event()
    thread = threading.Thread(target=lambda: watched.follow(each=passes.append, stop=stop))
    thread.start()
    try:
        wait_for(lambda: len(passes) == 1)
        time.sleep(0.5)
        for number, title in enumerate(("a", "b"), 2):
            began = time.monotonic()
            table.execute("update item set title = %s where id = 1", [title])
            wait_for(partial(reached, passes, number))
            assert time.monotonic() - began < 5
        assert passes[-1].as_dict()["embedded"] == 1
        assert passes[-1].as_dict()["waiting"] == 0
    finally:
        stop.set()
        thread.join()
    assert passes[-1].lag == 0


def test_follow_goes_on_after_trouble(watched: Pipeline, table: Connection, url: str) -> None:
    passes: list[Any] = []
    troubles: list[SeedbedError] = []
    stop = threading.Event()
    thread = threading.Thread(target=lambda: watched.follow(each=passes.append, troubled=troubles.append, stop=stop))
    thread.start()
    try:
        wait_for(lambda: len(passes) == 1)
        table.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'seedbed' and datname = current_database()"
        )
        table.execute("update item set title = 'z' where id = 1")
        wait_for(lambda: sum(done.report.embedded for done in passes) == 1, seconds=30)
    finally:
        stop.set()
        thread.join()


def test_following_a_scan_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="queue"):
        make(source={"changes": "scan"}).follow()


def reached(passes: list[Any], wanted: int) -> bool:
    return len(passes) == wanted


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_status_warns_of_a_queue_that_nobody_drains(watched: Pipeline, table: Connection) -> None:
    table.execute("update item set title = 'x' where id <= 3")
    assert watched.status()["queue"]["changes"] == 3
    assert watched.status()["notes"] == []
    table.execute("update seedbed_queue.change set enqueued_at = now() - interval '5 hours'")
    assert "nobody works them off" in watched.status()["notes"][0]
    table.execute("update seedbed_queue.change set attempts = 5 where key = '[\"1\"]'")
    assert watched.status()["queue"]["stuck"] == 1
    assert counts(watched.sync(), "read") == [2]
    assert counts(watched.sync(full=True), "read") == [100]
    assert queued(table) == []


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
