"""Crashes at the very instants that matter: between the ledger's intent, the store's write and the ledger's commit,
with the source changing before the next run. What the dead run wrote must not stay, nor what it removed be missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from seedbed import Pipeline

# Dies when a method is called for the given time, before or after it has done its work.
PROGRAM = """
import importlib, os, signal, sys
from seedbed import Pipeline
module, name, method, when, declared = sys.argv[1:]
cls = getattr(importlib.import_module(module), name)
real = getattr(cls, method)
def dying(self, *arguments, **keywords):
    if when == "after":
        real(self, *arguments, **keywords)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(cls, method, dying)
Pipeline(**eval(declared)).sync(allow_deletes=True)
"""
SINK = ("seedbed.sinks.pgvector", "PgvectorSink")
LEDGER = ("seedbed.ledger.base", "Ledger")


class Bench:
    def __init__(self, url: str, folder: Path, ledger: str) -> None:
        self.declared: dict[str, Any] = {
            "name": "crash",
            "source": {"url": url, "table": "item"},
            "content": {"text": "{body}"},
            "chunk": {"tokens": 4},
            "embedder": {"url": "hash:8"},
            "sink": [{"url": url, "collection": "vectors"}],
            "ledger": {"url": url if ledger == "postgres" else "sqlite:./l"},
            "base": str(folder),
        }
        self.pipeline = Pipeline(**self.declared)
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute("create table item (id int primary key, body text)")
        self.connection.execute("insert into item select n, 'row number ' || n from generate_series(1, 20) n")
        self.pipeline.sync()

    def die(self, where: tuple[str, str], method: str, when: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *where, method, when, repr(self.declared)], capture_output=True, check=False
        )
        assert done.returncode == -9, done.stderr.decode()

    def chunks(self) -> dict[str, int]:
        self.pipeline.sync(allow_deletes=True)
        rows = self.connection.execute("select _key, count(*) from vectors group by _key").fetchall()
        assert self.connection.execute("select count(*) from item").fetchone() == (len(rows),)
        return dict(rows)


@pytest.fixture(params=["sqlite", "postgres"])
def bench(request: pytest.FixtureRequest, pg_url: str, tmp_path: Path) -> Bench:
    return Bench(pg_url, tmp_path, request.param)


WRITES = [
    (SINK, "upsert", "before"),
    (SINK, "upsert", "after"),
    (LEDGER, "commit", "before"),
    (LEDGER, "commit", "after"),
]


@pytest.mark.parametrize(("where", "method", "when"), WRITES)
def test_a_row_that_came_and_went_around_a_crash_is_gone(
    bench: Bench, where: tuple[str, str], method: str, when: str
) -> None:
    bench.connection.execute("insert into item values (100, 'a row that will not stay')")
    bench.die(where, method, when)
    bench.connection.execute("delete from item where id = 100")
    assert '["100"]' not in bench.chunks()


@pytest.mark.parametrize(("where", "method", "when"), WRITES)
def test_chunks_of_a_dead_run_do_not_stay(bench: Bench, where: tuple[str, str], method: str, when: str) -> None:
    bench.connection.execute("update item set body = repeat('long ', 40) where id = 1")
    bench.die(where, method, when)
    bench.connection.execute("update item set body = 'short' where id = 1")
    assert bench.chunks()['["1"]'] == 1


@pytest.mark.parametrize(
    ("where", "method", "when"), [(SINK, "delete", "before"), (SINK, "delete", "after"), (LEDGER, "forget", "before")]
)
def test_a_row_that_went_and_came_around_a_crash_is_there(
    bench: Bench, where: tuple[str, str], method: str, when: str
) -> None:
    bench.connection.execute("delete from item where id = 7")
    bench.die(where, method, when)
    bench.connection.execute("insert into item values (7, 'row number 7')")
    assert bench.chunks()['["7"]'] == 1
