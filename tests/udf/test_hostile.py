"""`seedbed.embed` against servers that count, lie, trickle or hang."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

Connection = psycopg.Connection[Any]


FOUR = np.arange(4, dtype="<f4").tobytes()


@contextmanager
def answering(body: bytes, count: str | None = "1", dimensions: str | None = None) -> Iterator[tuple[str, list[int]]]:
    """The address of a server that gives everybody this answer, and the clients' ports of all its requests."""
    asked: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked.append(self.client_address[1])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            for name, value in (("Count", count), ("Dimensions", dimensions or str(len(body) // 4))):
                if value is not None:
                    self.send_header(f"X-Seedbed-{name}", value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", asked
        finally:
            listening.shutdown()
            thread.join()


def ask_of(db: Connection, address: str) -> None:
    db.execute("update seedbed.endpoint set address = %s", [address])


@contextmanager
def bound(db: Connection, sockets: Path) -> Iterator[socket.socket]:
    """A socket that the database is told to ask; whether it listens, and what it answers, is the test's."""
    path = sockets / f"hostile-{time.monotonic_ns()}"
    ask_of(db, f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o666)
        yield listening


def test_a_scalar_subquery_is_one_call_and_calls_share_a_connection(db: Connection) -> None:
    db.execute(
        "create table item as select n as id, format('[%s,1,1,1]', n)::vector(4) as v from generate_series(1, 300) n"
    )
    with answering(FOUR) as (address, asked):
        ask_of(db, address)
        db.execute("select id from item order by v <-> (select seedbed.embed('a')) limit 5")
        assert len(asked) == 1
        db.execute("select seedbed.embed('a' || id) from item where id <= 20")
        assert len(asked) == 21
        assert len(set(asked)) == 1


def test_short_vectors_are_stored_whole(db: Connection) -> None:
    """Below 127 bytes a row keeps a value with another header than the one in memory."""
    with answering(FOUR) as (address, _):
        ask_of(db, address)
        db.execute("create table one as select seedbed.embed('a') as v")
    assert db.execute("select v::text, v <-> '[0,1,2,3]' from one").fetchone() == ("[0,1,2,3]", 0)


@pytest.mark.parametrize(
    ("body", "count", "dimensions"),
    [
        (b"", "1", None),
        (b"abc", "1", None),
        (FOUR, "2", "2"),
        (FOUR, "1", "3"),
        (FOUR, "1", "5"),
        (FOUR, None, "4"),
        (np.full(4, np.nan, "<f4").tobytes(), "1", None),
        (np.full(4, -np.inf, "<f4").tobytes(), "1", None),
        (bytes(4 * 16001), "1", None),
    ],
)
def test_no_broken_vector_passes(db: Connection, body: bytes, count: str | None, dimensions: str | None) -> None:
    with answering(body, count, dimensions) as (address, _):
        ask_of(db, address)
        with pytest.raises(psycopg.Error, match=r"answered|no vector"):
            db.execute("select seedbed.embed('a')")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n" + bytes(1_000_000),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Flood: yes\r\n" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcdefgh",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 500 \xff\r\nContent-Length: 3\r\n\r\n\xff{]",
    ],
    ids=["a gigabyte", "chunked", "negative", "headers without end", "too much", "not HTTP", "no message"],
)
def test_no_broken_answer_is_believed_or_read_on(db: Connection, sockets: Path, answer: bytes) -> None:
    with bound(db, sockets) as listening:
        listening.listen()

        def reply() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(answer)
                connection.recv(65536)

        thread = threading.Thread(target=reply, daemon=True)
        thread.start()
        started = time.perf_counter()
        with pytest.raises(psycopg.errors.SystemError, match="embedding server"):
            db.execute("select seedbed.embed('a')")
        assert time.perf_counter() - started < 2


def test_a_parallel_plan_is_cancelled_as_well(db: Connection, sockets: Path) -> None:
    """Where no query may begin before PostgreSQL 17; and other parts of the plan stay parallel."""
    db.execute("create table wide as select n as id, n % 7 as shop from generate_series(1, 20000) n")
    db.execute("set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0")
    query = "select count(*), seedbed.embed(%s) from wide where shop = 3"
    plan = db.execute("explain (costs off) " + query, ["a"]).fetchall()
    assert any("Parallel" in line for (line,) in plan), plan
    each = "select seedbed.embed('a' || shop) from wide where shop = 3 and id < 30"
    assert any("Gather" in line for (line,) in db.execute("explain (costs off) " + each).fetchall())
    with bound(db, sockets) as listening:
        listening.listen()
        db.execute("set statement_timeout = '300ms'")
        started = time.perf_counter()
        with pytest.raises(psycopg.errors.QueryCanceled):
            db.execute(each)
        assert time.perf_counter() - started < 0.6
    db.execute("set statement_timeout = 0")
    with answering(FOUR) as (address, _):
        ask_of(db, address)
        assert len(db.execute(each).fetchall()) == 4


def test_a_session_is_cancelled_from_another(db: Connection, sockets: Path) -> None:
    with bound(db, sockets) as listening:
        listening.listen()
        asked = threading.Timer(0.3, db.cancel)
        asked.start()
        started = time.perf_counter()
        with pytest.raises(psycopg.errors.QueryCanceled):
            db.execute("select seedbed.embed('a')")
        assert time.perf_counter() - started < 0.3 + 0.3
        asked.join()


def full(listening: socket.socket) -> None:
    """Nobody accepts, and the kernel's own queue is full."""
    listening.listen(0)
    for _ in range(3):
        waiting = socket.socket(socket.AF_UNIX)
        waiting.setblocking(False)
        waiting.connect_ex(listening.getsockname())
        HELD.append(waiting)


def silent(listening: socket.socket) -> None:
    listening.listen()


def trickling(listening: socket.socket) -> None:
    """A byte now and then, so that no single wait is long."""
    listening.listen()

    def trickle() -> None:
        connection, _ = listening.accept()
        try:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
            for _ in range(150):
                connection.sendall(b"x")
                time.sleep(0.02)
        except OSError:
            pass
        connection.close()

    threading.Thread(target=trickle, daemon=True).start()


HELD: list[socket.socket] = []


@pytest.mark.parametrize("hang", [full, silent, trickling])
@pytest.mark.parametrize("length", [1, 10_000_000], ids=["short", "long"])
def test_no_wait_outlasts_the_timeout(
    db: Connection, sockets: Path, hang: Callable[[socket.socket], None], length: int
) -> None:
    with bound(db, sockets) as listening:
        hang(listening)
        # Should nothing cancel it, the server's end does.
        end = threading.Timer(3, listening.shutdown, [socket.SHUT_RDWR])
        end.start()
        db.execute("set statement_timeout = '300ms'")
        started = time.perf_counter()
        try:
            with pytest.raises(psycopg.errors.QueryCanceled):
                db.execute("select seedbed.embed(repeat('a', %s))", [length])
            assert time.perf_counter() - started < 0.6
        finally:
            end.cancel()
            while HELD:
                HELD.pop().close()
