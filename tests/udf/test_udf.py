"""`seedbed.embed` in real servers: Debian's 15 and the embedded 18 with PL/Python, against `seedbed serve`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import seedbed
from seedbed import Content
from seedbed.sql import extension
from services.postgres import RELEASES, server

UDF = Path(__file__).parents[2] / "udf"
Connection = psycopg.Connection[Any]

pytestmark = pytest.mark.xdist_group("udf")


def install(release: str) -> None:
    if release == "18":
        extension.install_embedded(server("18").folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(UDF, Path(folder) / "udf")
        config = f"PG_CONFIG=/usr/lib/postgresql/{release}/bin/pg_config"
        subprocess.run(["make", "-s", "-C", f"{folder}/udf", "install", config], check=True, capture_output=True)


@pytest.fixture(scope="module")
def sockets() -> Iterator[Path]:
    """A folder that the servers' account may enter."""
    folder = Path(tempfile.mkdtemp(dir=os.environ["SEEDBED_TEST_RUN"]))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def serving(path: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "seedbed", "serve", url, "--uds", str(path)], stderr=subprocess.DEVNULL
    )
    try:
        while True:
            assert process.poll() is None
            with socket.socket(socket.AF_UNIX) as trial:
                if path.exists() and trial.connect_ex(str(path)) == 0:
                    break
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def address(sockets: Path) -> Iterator[str]:
    with serving(sockets / "embed", "hash:32?refuse=poison"):
        time.sleep(0.3)
        yield f"unix:{sockets / 'embed'}"


@pytest.fixture(params=RELEASES)
def db(request: pytest.FixtureRequest, address: str) -> Iterator[Connection]:
    from services.postgres import fresh_database

    install(request.param)
    with fresh_database(request.param) as url, psycopg.connect(url, autocommit=True) as connection:
        extension.create(connection, address)
        yield connection


def vector(connection: Connection, expression: str) -> Any:
    found = connection.execute(f"select ({expression})::text").fetchone()
    assert found is not None
    return np.fromstring(found[0].strip("[]"), sep=",")


def hashed(text: str) -> Any:
    return seedbed.embedder("hash:32").embed([Content.of(text)])[0]


def test_it_gives_the_servers_vector(db: Connection) -> None:
    np.testing.assert_allclose(vector(db, "seedbed.embed('naïve ☃')"), hashed("naïve ☃"), atol=1e-6)
    np.testing.assert_allclose(vector(db, "seedbed.embed('a', 'document')"), hashed("a"), atol=1e-6)
    assert db.execute("select seedbed.embed(null) is null").fetchone() == (True,)
    dims = db.execute("select public.vector_dims(seedbed.embed('a'))").fetchone()
    assert dims == (32,)


def test_one_line_searches_by_the_index_with_one_call(db: Connection) -> None:
    db.execute("create table item (id int primary key, v vector(32))")
    db.execute("insert into item select n, seedbed.embed('item ' || n) from generate_series(1, 300) n")
    db.execute("create index on item using hnsw (v vector_cosine_ops)")
    query = "select id from item order by v <=> (select seedbed.embed('item 77')) limit 1"
    assert db.execute(query).fetchone() == (77,)
    db.execute("set enable_seqscan = off")
    plan = "\n".join(row[0] for row in db.execute("explain (analyze, costs off) " + query))
    assert "Index Scan" in plan
    assert "loops=1" in plan


def test_a_role_needs_the_right_and_nothing_more(db: Connection) -> None:
    db.execute("drop role if exists plain")
    db.execute("create role plain")
    db.execute("set role plain")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute("select seedbed.embed('a')")
    db.execute("reset role")
    db.execute("grant seedbed_user to plain")
    db.execute("set role plain")
    assert vector(db, "seedbed.embed('a')").shape == (32,)
    for statement in (
        "select seedbed._as_vector('\\x', '\\x')",
        "select seedbed._embed('unix:/tmp/x', 'd', 'a', 'query')",
        "insert into seedbed.endpoint values ('mine', 'http://127.0.0.1:1')",
        "select * from seedbed.endpoint",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute(statement)
    db.execute("reset role")
    db.execute("drop owned by plain")
    db.execute("drop role plain")


def test_a_setting_names_an_endpoint_and_never_an_address(db: Connection, address: str) -> None:
    db.execute("set seedbed.endpoint = 'unix:/tmp/elsewhere'")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="there is no endpoint") as caught:
        db.execute("select seedbed.embed('a')")
    assert "INSERT INTO seedbed.endpoint" in (caught.value.diag.message_hint or "")
    with pytest.raises(psycopg.errors.CheckViolation):
        db.execute("insert into seedbed.endpoint values ('bad', 'file:///etc/passwd')")
    db.execute("insert into seedbed.endpoint values ('other', %s)", [address])
    db.execute("set seedbed.endpoint = 'other'")
    assert vector(db, "seedbed.embed('a')").shape == (32,)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ("embed('poison')", psycopg.DataError, "poison"),
        ("embed('')", psycopg.errors.InvalidParameterValue, "empty"),
        ("embed('a', 'both')", psycopg.errors.InvalidParameterValue, "both"),
    ],
)
def test_refusals_say_why(db: Connection, call: str, error: type[psycopg.Error], words: str) -> None:
    with pytest.raises(error, match=words):
        db.execute(f"select seedbed.{call}")


def test_a_server_that_restarts_is_found_again(db: Connection, sockets: Path) -> None:
    path = sockets / f"again-{time.monotonic_ns()}"
    db.execute("update seedbed.endpoint set address = %s", [f"unix:{path}"])
    with pytest.raises(psycopg.OperationalError, match="cannot be reached"):
        db.execute("select seedbed.embed('a')")
    for _ in range(2):
        with serving(path, "hash:32"):
            for _ in range(100):
                try:
                    assert vector(db, "seedbed.embed('a')").shape == (32,)
                    break
                except psycopg.OperationalError:  # still loading
                    time.sleep(0.05)
            else:
                pytest.fail("the server did not answer")


@contextmanager
def hostile(path: Path, answer: bytes | None) -> Iterator[None]:
    """Takes every request and answers these bytes as its vector; None: never answers."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o666)
        listening.listen()
        done = threading.Event()

        def serve() -> None:
            listening.settimeout(0.1)
            held = []
            while not done.is_set():
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    continue
                held.append(connection)
                connection.recv(65536)
                if answer is not None:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
            for connection in held:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [b"", b"abc", np.full(4, np.nan, "<f4").tobytes(), np.full(4, np.inf, "<f4").tobytes(), bytes(4 * 16001)],
    ids=["empty", "short", "nan", "infinite", "long"],
)
def test_no_broken_vector_passes(db: Connection, sockets: Path, answer: bytes) -> None:
    path = sockets / f"hostile-{time.monotonic_ns()}"
    db.execute("update seedbed.endpoint set address = %s", [f"unix:{path}"])
    with hostile(path, answer), pytest.raises(psycopg.Error, match="answered"):
        db.execute("select seedbed.embed('a')")


def test_a_hung_server_does_not_outlast_the_timeout(db: Connection, sockets: Path) -> None:
    path = sockets / f"hung-{time.monotonic_ns()}"
    db.execute("update seedbed.endpoint set address = %s", [f"unix:{path}"])
    db.execute("set statement_timeout = '300ms'")
    with hostile(path, None):
        started = time.perf_counter()
        with pytest.raises(psycopg.errors.QueryCanceled):
            db.execute("select seedbed.embed('a')")
        assert time.perf_counter() - started < 0.8
