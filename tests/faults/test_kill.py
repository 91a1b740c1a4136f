"""A run killed at any instant is repaired by running again: store = source.

Rounds of random edits and a `sync` that is killed after a random time; then one that may end. The seeds are
fixed; the instants are not, which is the point. SEEDBED_KILLS asks for more than the tests' eight.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import seedbed
from seedbed import Content, Pipeline
from seedbed.identity import encode_key, point_id

KILLS = int(os.environ.get("SEEDBED_KILLS", "8"))
ROWS = 3000
WORDS = "alder birch cedar elm fir hazel larch maple oak pine rowan spruce willow yew".split()  # noqa: SIM905

PROGRAM = """
import sys
import seedbed.sync
from seedbed.declaration import declare
from seedbed import Pipeline
pipeline = Pipeline(**eval(sys.argv[1]))
print("go", flush=True)
print(pipeline.sync(allow_deletes=True, allow_reembed=True).as_dict(), flush=True)
"""


def text(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.choice([3, 8, 30])))


def edit(connection: psycopg.Connection[Any], chance: random.Random) -> None:
    """Updates, deletes and inserts of a tenth of the rows; some keys go and come back."""
    ids = [chance.randrange(ROWS * 2) for _ in range(ROWS // 10)]
    with connection.transaction(), connection.cursor() as cursor:
        for number in ids:
            if chance.random() < 0.4:
                cursor.execute("delete from item where id = %s", [number])
            else:
                cursor.execute(
                    "insert into item values (%s, %s, %s) on conflict (id) "
                    "do update set body = excluded.body, price = excluded.price",
                    [number, text(chance), chance.randrange(100)],
                )


def killed(declared: dict[str, Any], after: float) -> bool:
    """Whether the run was still going when it was killed."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, repr(declared)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "go\n"
        time.sleep(after)
        alive = run.poll() is None
        if alive:
            os.kill(run.pid, signal.SIGKILL)
    return alive


def assert_in_step(connection: psycopg.Connection[Any], pipeline: Pipeline) -> None:
    """In each store, every chunk of every row stands with its vector and payload, and nothing else does."""
    embedder = seedbed.embedder("hash:16")
    with pipeline.open() as session:
        chunker = session.chunker
        assert chunker is not None
        wanted = {
            point_id(encode_key([str(number)]), chunk): (price, body[start:end])
            for number, body, price in connection.execute("select id, body, price from item").fetchall()
            for chunk, (start, end) in enumerate(chunker.spans(body))
        }
        vectors = embedder.embed([Content.of(piece) for _, piece in wanted.values()])
        for config in session.declaration.sink:
            found = {
                point["id"]: point
                for page in session.open_sink(config).scan(vectors=True)
                for point in page.select(["id", "price", "vector"]).to_pylist()
            }
            assert found.keys() == wanted.keys(), config.name
            assert [found[id]["price"] for id in wanted] == [price for price, _ in wanted.values()]
            np.testing.assert_allclose([found[id]["vector"] for id in wanted], vectors, atol=1e-6)


@pytest.mark.parametrize(
    ("ledger", "stores", "kills", "latest"),
    [
        ("sqlite", ["pgvector"], KILLS * 3 // 8, 0.5),
        ("postgres", ["pgvector"], KILLS * 3 // 8, 0.5),
        ("sqlite", ["pgvector", "qdrant", "milvus"], KILLS - 2 * (KILLS * 3 // 8), 3.0),
    ],
    ids=["sqlite", "postgres", "three stores"],
)
def test_a_killed_run_is_repaired_by_running_again(
    ledger: str, stores: list[str], kills: int, latest: float, pg_url: str, tmp_path: Path
) -> None:
    chance = random.Random(f"kill {ledger} {stores}")
    urls = {"pgvector": pg_url, "qdrant": "qdrant+embedded:./qdrant", "milvus": "milvus+embedded:./milvus"}
    declared: dict[str, Any] = {
        "name": "killed",
        "source": {"url": pg_url, "table": "item"},
        "content": {"text": "{body}"},
        "chunk": {"tokens": 10, "overlap": 2},
        "embedder": {"url": "hash:16"},
        "sink": [{"name": name, "url": urls[name], "collection": "killed", "payload": ["price"]} for name in stores],
        "ledger": {"url": pg_url if ledger == "postgres" else "sqlite:./l"},
        "base": str(tmp_path),
    }
    pipeline = Pipeline(**declared)
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute("create table item (id bigint primary key, body text not null, price int)")
        with connection.cursor() as cursor, cursor.copy("copy item from stdin") as copy:
            for number in range(ROWS):
                copy.write_row((number, text(chance), number % 100))
        hits = 0
        for round_ in range(kills):
            hits += killed(declared, after=chance.uniform(0.02, max(1.2, latest) if round_ == 0 else latest))
            edit(connection, chance)
        report = pipeline.sync(allow_deletes=True)
        assert report.exit_code == 0
        assert_in_step(connection, pipeline)
        again = pipeline.sync()
        assert (again.upserted, again.deleted) == (0, 0)
    print(f"{ledger} ledger, {stores}: {hits} of {kills} runs were killed while they ran; store = source")  # noqa: T201
    assert hits > 0, "every run ended before its kill: the instants prove nothing"
