"""The SQL functions' own cost, with `hash:2048` behind `seedbed serve` on a unix socket. Medians of one run.

What is "above the server" is a call less the same bytes exchanged by a bare Python socket outside of the database.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from seedbed import Pipeline
from seedbed.postgres import Database
from seedbed.sql import extension

TIMES = 100
ROUNDS = 5
ROWS = 20_000
INDEXED = 100_000

NAIVE = """
create extension if not exists plpython3u;
create function naive(input text) returns float4[] language plpython3u as $$
    import http.client, json, socket
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect("{path}")
    connection.request("POST", "/v1/embeddings", json.dumps({{"input": input}}), {{"Content-Type": "application/json"}})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["data"][0]["embedding"]
$$
"""
WORDS = " ".join(f"word{n * 7919 % 104729:x}" for n in range(300))
"""As a real model's, the vector of so many words has no zeros that JSON could write shortly."""


@contextmanager
def serving(path: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "seedbed", "serve", "hash:2048", "--uds", str(path), "--cache", "1B"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            while exchange(path, [("ready", 1)]) is None:
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


def exchange(path: Path, asked: list[tuple[str, int]]) -> list[float] | None:
    """Seconds of each request over one bare connection; None where nobody listens."""
    with socket.socket(socket.AF_UNIX) as bare:
        try:
            bare.connect(str(path))
        except OSError:
            return None
        measured = []
        for text, count in asked:
            body = json.dumps({"input": [f"{text} {n}" for n in range(count)], "kind": "query"}).encode()
            head = (
                "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAccept: application/octet-stream\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            started = time.perf_counter()
            bare.sendall(head.encode() + body)
            received = bare.recv(1 << 20)
            end = received.find(b"\r\n\r\n")
            missing = count * 8192 - (len(received) - end - 4)
            while missing > 0:
                missing -= len(bare.recv(1 << 20))
            measured.append(time.perf_counter() - started)
    return measured


def timed(times: int, call: Callable[[int], object]) -> list[float]:
    measured = []
    for number in range(times):
        started = time.perf_counter()
        call(number)
        measured.append(time.perf_counter() - started)
    return measured


def inside(connection: psycopg.Connection[Any], statement: str, times: int = TIMES) -> list[float]:
    """Seconds of a statement run within the server, {n} a number each time: no client's round trip is counted."""
    found = connection.execute("select seconds from inside(%s, %s)", [statement, times]).fetchall()
    return [seconds for (seconds,) in found]


INSIDE = """
create function inside(statement text, times int) returns table (seconds float8) language plpgsql as $$
declare
    started timestamptz;
    got int;
begin
    for n in 1 .. times loop
        started := clock_timestamp();
        execute statement into got using n;
        seconds := extract(epoch from clock_timestamp() - started);
        return next;
    end loop;
end $$
"""


def microseconds(measured: list[float]) -> float:
    return statistics.median(measured) * 1e6


def functions(connection: psycopg.Connection[Any], path: Path) -> None:
    connection.execute(INSIDE)
    connection.execute(NAIVE.format(path=path).encode())
    many = "select array_length(seedbed.embed(array(select $1 || ' ' || n || '{k}' from generate_series(1, 64) n)), 1)"
    statements = {
        "plain": "select 1 + $1",
        "ours": "select vector_dims(seedbed.embed('ours {k} ' || $1))",
        "kept": "select vector_dims(seedbed.embed('the same' || $1 * 0))",
        "many": many,
        "long": f"select vector_dims(seedbed.embed('{WORDS} o {{k}} ' || $1))",
        "naive": f"select vector_dims(naive('{WORDS} n {{k}} ' || $1)::vector)",
        "long plain": f"select length('{WORDS} n' || $1)",
    }
    found: dict[str, list[float]] = {name: [] for name in (*statements, "bare", "bare long", "bare many")}
    # In turn, as what the machine gives changes from second to second.
    for k in range(ROUNDS):
        for name, text, count in (
            ("bare", f"b {k}", 1),
            ("bare long", f"{WORDS} b {k}", 1),
            ("bare many", f"m {k}", 64),
        ):
            found[name] += exchange(path, [(f"{text} {n}", count) for n in range(TIMES)]) or []
        for name, statement in statements.items():
            found[name] += inside(connection, statement.replace("{k}", str(k)))
    us = {name: microseconds(measured) for name, measured in found.items()}
    plain, bare, kept = us["plain"], us["bare"], us["kept"]
    ours, bare64, ours64 = us["ours"], us["bare many"], us["many"]
    long_bare = us["bare long"]
    long, naive = (us[name] - us["long plain"] - long_bare for name in ("long", "naive"))
    print("| | µs |\n|---|---|")
    print(f"| one exchange with the server, by a bare socket | {bare:.0f} |")
    print(f"| `embed(text)`, a new text each time | {ours - plain:.0f} |")
    print(f"| … above the server | {ours - plain - bare:.0f} |")
    print(f"| a text of 300 words, by a bare socket | {long_bare:.0f} |")
    print(f"| … `embed(text)`, above the server | {long:.0f} |")
    print(f"| … a plpython function with http.client and JSON lists, above it | {naive:.0f} |")
    whole = (naive + long_bare) / (long + long_bare)
    print(f"| … which is | {naive / max(long, 1):.1f} times, with the server's time {whole:.1f} times |")
    print(f"| `embed(text)` of a text asked for before | {kept - plain:.0f} |")
    print(f"| `embed(text[])` of 64, above the server, a vector | {(ours64 - bare64) / 64:.1f} |")


def searching(connection: psycopg.Connection[Any]) -> None:
    connection.execute("create table wide (id int primary key, v halfvec(2048))")
    connection.execute("set maintenance_work_mem = '2GB'; set max_parallel_maintenance_workers = 0")
    # Few distinct vectors: what is measured is the way to the index, not its building.
    connection.execute(
        "insert into wide select n, (array_fill(0::real, array[2000]) || array(select random()::real from"
        f" generate_series(1, 48) where n > 0))::vector(2048)::halfvec from generate_series(1, {INDEXED}) n"
    )
    connection.execute("create index on wide using hnsw (v halfvec_cosine_ops) with (m = 4, ef_construction = 8)")
    query = "select id from wide order by v <=> (select seedbed.embed_half('words')) limit 5"
    plan = "\n".join(
        line for (line,) in connection.execute(("explain (analyze, costs off, timing off) " + query).encode())
    )
    calls = plan.split("InitPlan", 1)[1].split("loops=", 1)[1].split(")")[0]
    shown = "an index scan" if "Index Scan using wide" in plan else "NO INDEX"
    seconds = statistics.median(timed(20, lambda n: connection.execute(query.replace("words", f"words {n}").encode())))
    print(
        f"\n`ORDER BY … (SELECT seedbed.embed_half(…)) LIMIT 5` over {INDEXED:,} rows: {shown}, {calls} call, "
        f"{seconds * 1000:.1f} ms."
    )


def working(connection: psycopg.Connection[Any], url: str, path: Path, folder: str) -> None:
    """`seedbed.work` beside a pipeline into pgvector, over the same server and rows, without an index while filling."""
    connection.execute(
        f"create table doc as select n as id, 'document number ' || n as body from generate_series(1, {ROWS}) n"
    )
    connection.execute("alter table doc add primary key (id)")
    declared: dict[str, Any] = {
        "source": {"url": url, "table": "doc"},
        "content": {"text": "{body}"},
        "embedder": {"url": "hash:2048"},
        "base": folder,
    }
    rates: dict[str, list[float]] = {"work": [], "sync": []}
    for turn in range(3):
        pipeline = Pipeline(
            name=f"doc{turn}", sink=[{"url": f"{url}?index=none", "collection": f"doc{turn}"}], **declared
        )
        started = time.perf_counter()
        assert pipeline.sync().upserted == ROWS
        rates["sync"].append(ROWS / (time.perf_counter() - started))
        connection.execute(f"drop table doc{turn}__v1 cascade".encode())
        connection.execute("select seedbed.embed_column('doc', '{body}')")
        started = time.perf_counter()
        connection.execute(f"call seedbed.work({ROWS})".encode())  # stops short of the index
        rates["work"].append(ROWS / (time.perf_counter() - started))
        assert connection.execute("select count(*) from doc_embedding").fetchone() == (ROWS,)
        connection.execute("select seedbed.drop_column('doc')")
    sync, work = (statistics.median(rates[name]) for name in ("sync", "work"))
    print(
        f"\n{ROWS:,} rows of 2,048 dimensions: `seedbed sync` with the model in its process {sync:,.0f} rows/s, "
        f"`CALL seedbed.work()` {work:,.0f} rows/s: {work / sync:.2f} of it."
    )


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="seedbed-bench-") as folder:
        Path(folder).chmod(0o755)
        url, path = f"pgvector+embedded:{folder}/pg", Path(folder) / "embed.sock"
        extension.install_embedded(Path(folder) / "pg")
        database = Database(url)
        with serving(path), database.connect() as connection:
            extension.create(connection, f"unix:{path}")
            functions(connection, path)
            working(connection, url, path, folder)
            searching(connection)
        database.close()


if __name__ == "__main__":
    main()
