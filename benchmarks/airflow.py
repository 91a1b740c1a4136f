"""Airflow's side: parsing fifty pipelines, what a shard costs by itself, and four shards against one on two processors.

Usage: airflow.py. Each figure is a median; processes are fresh ones.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from psycopg import Connection
from sync import fill

from seedbed import Pipeline
from seedbed.postgres import Database
from seedbed.sharing import Shard

PIPELINES = 50
TIMES = 5
ROWS = 40_000
FILE = """
name = "p{number}"
source = {{ url = "${{NOT_SET}}", table = "t{number}" }}
content.text = "{{title}}"
embedder.url = "local:minilm"
sink = [{{ url = "${{NOT_SET}}" }}]
airflow = {{ schedule = "@daily", tags = ["shop"], deadline = "2h", pool = "embedding" }}
"""
PARSE = """
import sys, time
begun = time.perf_counter()
import airflow.sdk
from airflow.sdk import DAG, BaseOperator, dag, task
base = time.perf_counter()
before = set(sys.modules)
import runpy
made = runpy.run_path(sys.argv[1])
done = time.perf_counter()
opened = {"psycopg", "torch", "pymilvus", "qdrant_client", "aiohttp", "sqlite3"} & (set(sys.modules) - before)
print(len([name for name in made if name.startswith("seedbed_p")]), base - begun, done - base, sorted(opened))
"""


def parse() -> None:
    """With secrets that are not set: reading one would fail."""
    dags = str(Path(__file__).parents[1] / "dags" / "seedbed_sync.py")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(PIPELINES):
            (Path(folder) / f"p{number}.toml").write_text(FILE.format(number=number), encoding="utf-8")
        env = {**os.environ, "SEEDBED_PIPELINES": folder, "AIRFLOW_HOME": f"{folder}/airflow"}
        measured, before = [], []
        for _ in range(TIMES):
            done = subprocess.run(
                [sys.executable, "-c", PARSE, dags], env=env, capture_output=True, text=True, check=True
            )
            count, base, ours, opened = done.stdout.splitlines()[-1].split(" ", 3)
            assert (int(count), opened) == (PIPELINES, "[]"), done.stdout
            measured.append(float(ours))
            before.append(float(base))
    print(f"Parsing `dags/seedbed_sync.py` with {PIPELINES} pipelines: {statistics.median(measured):.2f} s beyond")
    print(f"Airflow's own import ({statistics.median(before):.2f} s); no secret read, no connection opened.\n")


# --- shards -----------------------------------------------------------------------------------------


def declared(folder: str, embedder: str) -> dict[str, Any]:
    url = f"pgvector+embedded:{folder}/pg"
    return {
        "name": "shards",
        "source": {"url": url, "table": "documents"},
        "content": {"text": "{body}"},
        "embedder": {"url": embedder},
        "sink": [{"url": f"{url}?index=none", "collection": "vectors"}],
        "ledger": {"url": url},
        "cache": {"max_size": "1MB"},
        "base": folder,
    }


def work(told: dict[str, Any], shard: dict[str, Any]) -> float:
    begun = time.perf_counter()
    Pipeline(**told).run_shard(Shard.from_dict(shard))
    return time.perf_counter() - begun


def run(told: dict[str, Any], shards: int, pool: ProcessPoolExecutor, label: str, **options: Any) -> float:
    """Seconds of a whole run, its shards by the pool's two processes."""
    begun = time.perf_counter()
    pipeline = Pipeline(**told)
    pieces = pipeline.begin_run(label=label, shards=shards, **options)
    list(pool.map(work, [told] * len(pieces), [piece.as_dict() for piece in pieces]))
    pipeline.finish_run(pieces[0])
    return time.perf_counter() - begun


def shards(folder: str, pool: ProcessPoolExecutor) -> None:
    told = declared(folder, "hash:384")
    Pipeline(**told).sync()
    for warm in range(2):
        run(told, 2, pool, f"warm {warm}")
    counts = (1, 8, 64)
    found: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(TIMES):
        for count in counts:
            found[count].append(run(told, count, pool, f"nothing {turn} {count}"))
    seconds = {count: statistics.median(values) for count, values in found.items()}
    print(f"A run of two processes over {ROWS:,} rows, nothing changed:\n\n| shards | s |\n|---|---|")
    for count in counts:
        print(f"| {count} | {seconds[count]:.2f} |")
    each = (seconds[64] - seconds[8]) / 56 * 2
    print(f"\nA shard by itself: {each * 1000:.0f} ms of a process's time (opening, leasing, closing).\n")


def four_against_one(folder: str, pool: ProcessPoolExecutor, connection: Connection) -> None:
    print("| all rows new, by two processes | one shard, s | four, s | times as fast |\n|---|---|---|---|")
    for embedder, rows in (("hash:384", ROWS), ("local:minilm", ROWS // 40)):
        told = declared(folder, embedder) | {"name": f"four {rows}".replace(" ", "_")}
        told["source"] |= {"where": f"id <= {rows}"}
        told["sink"][0] |= {"collection": told["name"]}
        found: dict[int, list[float]] = {1: [], 4: []}
        for turn in range(-1, 3):  # the first of each warms up
            for count in (1, 4):
                connection.execute("update documents set body = body || %s where id <= %s", [f" {turn} {count}", rows])
                seconds = run(told, count, pool, f"{embedder} {turn} {count}")
                found[count] += [seconds] if turn >= 0 else []
        one, four = (statistics.median(found[count]) for count in (1, 4))
        print(f"| `{embedder}`, {rows:,} rows | {one:.2f} | {four:.2f} | {one / four:.2f} |")


def main() -> None:
    parse()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"pgvector+embedded:{folder}/pg")
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool, database.connect() as connection:
            fill(connection, ROWS)
            shards(folder, pool)
            four_against_one(folder, pool, connection)
        database.close()


if __name__ == "__main__":
    main()
