"""Capture by a queue: what a run costs by the number of changes and not of rows, and what a writer pays.

Usage: capture.py [ROWS …] (default 100,000 and 1,000,000). Ratios are of medians within one run.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import psycopg
from sync import fill

from seedbed import Pipeline
from seedbed.postgres import Database

CHANGES = 1000
TIMES = 7
INSERTED = 100_000
PAIRS = 9
SHAPES = {
    "250 bytes, primary key": (20, ""),
    "1 kB, primary key, 2 indexes": (90, "create index on {0} (price); create index on {0} (title)"),
    "2 kB, primary key, 2 indexes": (170, "create index on {0} (price); create index on {0} (title)"),
}
"""Rows: how often the words are repeated in the body, and indexes."""


def pipeline(folder: str) -> Pipeline:
    url = f"pgvector+embedded:{folder}/pg"
    return Pipeline(
        name="queue",
        source={"url": url, "table": "documents", "changes": "queue"},
        content={"text": "{body}"},
        embedder={"url": "hash:8"},
        sink=[{"url": f"{url}?index=none"}],
        cache={"max_size": "1MB"},
        base=folder,
    )


def runs(rows: int) -> list[float]:
    """Seconds of runs over CHANGES changed rows of `rows`."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"pgvector+embedded:{folder}/pg")
        with database.connect() as connection:
            fill(connection, rows)
            made = pipeline(folder)
            made.watch()
            assert made.sync().embedded
            connection.execute("vacuum analyze")
            measured = []
            for turn in range(TIMES):
                connection.execute(
                    "update documents set body = body || %s where id in (select (random() * %s)::int from"
                    " generate_series(1, %s))",
                    [f" {turn}", rows - 1, CHANGES],
                )
                started = time.perf_counter()
                report = made.sync()
                measured.append(time.perf_counter() - started)
                assert CHANGES * 0.9 < report.read <= CHANGES, report
        database.close()
    return measured


def inserting(words: int, indexes: str) -> tuple[float, float]:
    """Median seconds of one INSERT of INSERTED rows with synchronous_commit = on: without a queue, and with one."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"pgvector+embedded:{folder}/pg")
        with database.connect() as connection:
            connection.execute("set synchronous_commit = on")
            connection.execute("create table plain (id bigint primary key, title text, price numeric, body text)")
            connection.execute("create table watched (like plain including all)")
            for table in ("plain", "watched"):
                connection.execute(indexes.format(table).encode())
            source = {"url": f"pgvector+embedded:{folder}/pg", "table": "watched", "changes": "queue"}
            content = {"text": "{title} {body}"}
            sink = [{"url": "memory:"}]
            made = Pipeline(
                name="inserted", source=source, content=content, embedder={"url": "hash:8"}, sink=sink, base=folder
            )
            made.watch()
            pairs = [(timed(connection, "plain", words), timed(connection, "watched", words)) for _ in range(PAIRS)]
        database.close()
    return statistics.median(plain for plain, _ in pairs), statistics.median(watched for _, watched in pairs)


def timed(connection: psycopg.Connection[Any], table: str, words: int) -> float:
    connection.execute(f"truncate {table}".encode())
    if table == "watched":
        connection.execute("truncate seedbed_queue.change")
    connection.execute("checkpoint")
    statement = (
        "insert into {} select n, 'title ' || n, n / 100.0, repeat('some words ', {}) from generate_series(1, {}) n"
    )
    return taken(lambda: connection.execute(statement.format(table, words, INSERTED).encode()))


def taken(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or [100_000, 1_000_000]
    medians = [statistics.median(runs(rows)) for rows in sizes]
    print(
        f"A run over {CHANGES:,} changes (median of {TIMES}):\n\n| rows of the table | seconds | ratio |\n|---|---|---|"
    )
    for rows, median in zip(sizes, medians, strict=True):
        print(f"| {rows:,} | {median:.3f} | {median / medians[0]:.2f} |")
    print(f"\nOne INSERT of {INSERTED:,} rows, synchronous_commit = on (median of {PAIRS}, in turn):\n")
    print("| rows of | not watched, s | watched, s | slower by |\n|---|---|---|---|")
    for shape, (words, indexes) in SHAPES.items():
        plain, watched = inserting(words, indexes)
        print(f"| {shape} | {plain:.3f} | {watched:.3f} | {watched / plain - 1:.0%} |")


if __name__ == "__main__":
    main()
