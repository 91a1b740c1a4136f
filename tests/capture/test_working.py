"""How queued changes are worked off: leases, workers, writers, sinks that are down."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from capture.looking import Connection, Make, counts, queued, stored
from seedbed import Pipeline
from seedbed.errors import SeedbedError


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
