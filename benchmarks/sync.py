"""`sync` against the floor: cold, no-op and 1 % edited, interleaved in one warm process. Usage: sync.py [ROWS]"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import floor
import psycopg
from psycopg.conninfo import conninfo_to_dict

import seedbed
from seedbed import Pipeline
from seedbed.postgres import Database

RUNS = 5
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards box in bright daylight".split()  # noqa: SIM905


def fill(connection: psycopg.Connection, rows: int) -> None:
    """Rows of about 300 characters, each its own."""
    connection.execute("drop table if exists documents")
    connection.execute("create table documents (id bigint primary key, body text not null)")
    with connection.cursor() as cursor, cursor.copy("copy documents from stdin") as copy:
        for number in range(rows):
            words = [WORDS[(number * 7 + step * (number % 11 + 1)) % len(WORDS)] for step in range(56)]
            copy.write_row((number, f"{number} {' '.join(words)}"))
    connection.execute("vacuum analyze documents")


def plain_url(database: Database) -> str:
    """The embedded server as any other, so that starting and sharing it is not measured."""
    known = conninfo_to_dict(database.conninfo)
    rest = {name: str(known.get(name, "")) for name in ("host", "user", "port")}
    return f"postgresql:///{known['dbname']}?{urlencode(rest)}"


def sync(pipeline: Pipeline) -> int:
    return pipeline.sync().embedded


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="seedbed-bench-") as folder:
        Path(folder).chmod(0o755)
        database = Database(f"pgvector+embedded:{folder}/pg")
        connection = database.connect()
        try:
            measure(connection, plain_url(database), rows, Path(folder))
        finally:
            connection.close()
            database.close()


def measure(connection: psycopg.Connection, url: str, rows: int, folder: Path) -> None:
    embedder = seedbed.embedder("hash:384")
    fill(connection, rows)
    times: dict[str, list[float]] = {}
    for run in range(RUNS):
        floor.prepare(connection, 384)
        connection.execute('drop schema if exists seedbed_ledger cascade; drop view if exists "bench"')
        connection.execute("drop table if exists bench__v1, seedbed_collection")
        pipeline = Pipeline(
            name="bench",
            source={"url": url, "table": "documents"},
            content={"text": "{body}"},
            embedder={"url": "hash:384"},
            sink=[{"url": f"{url}&index=none", "collection": "bench"}],
            ledger={"url": url},
            cache={"url": f"./cache{run}"},
            base=folder,
        )
        for name, change in (("cold", None), ("no-op", None), ("1 % edited", edit)):
            if change:
                change(connection, rows, run)
            expected = {"cold": rows, "no-op": 0, "1 % edited": rows // 100}[name]
            for who, call in (
                ("floor", partial(floor.run, connection, embedder, "documents")),
                ("seedbed", partial(sync, pipeline)),
            ):
                started = time.perf_counter()
                assert call() == expected
                times.setdefault(f"{name} {who}", []).append(time.perf_counter() - started)
    report(times, rows)


def edit(connection: psycopg.Connection, rows: int, run: int) -> None:
    connection.execute("update documents set body = body || %s where id %% 100 = 0", [f" edit {run}"])


def report(times: dict[str, list[float]], rows: int) -> None:
    print(f"{rows:,} rows of ~300 characters, hash:384, {platform.machine()}, median of {RUNS}\n")
    print("| | floor s | seedbed s | floor rows/s | seedbed rows/s | floor / seedbed |")
    print("|---|---|---|---|---|---|")
    for name in ("cold", "no-op", "1 % edited"):
        low, ours = times[f"{name} floor"], times[f"{name} seedbed"]
        ratio = statistics.median(a / b for a, b in zip(low, ours, strict=True))
        f, s = statistics.median(low), statistics.median(ours)
        print(f"| {name} | {f:.2f} | {s:.2f} | {rows / f:,.0f} | {rows / s:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
