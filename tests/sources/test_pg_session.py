"""COPY out of Postgres: whole rows, and errors of our tree."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from psycopg import sql

from seedbed.errors import ConfigError, Fatal, Transient
from seedbed.sources.pg_session import ReadSession

MANY = "SELECT g, repeat('x', 1000) FROM generate_series(1, 50000) AS g"


@pytest.fixture
def session(pg_url: str) -> Iterator[ReadSession]:
    made = ReadSession(pg_url)
    yield made
    made.close()


def copied(session: ReadSession, statement: str) -> list[bytes]:
    with session.copy(sql.SQL(statement), "source.query") as rows:
        return [bytes(row) for row in rows]


def cut(line: int) -> None:
    with socket.socket(fileno=line) as held:
        held.shutdown(socket.SHUT_RDWR)
        held.detach()


def test_rows_come_whole_and_the_session_goes_on(session: ReadSession) -> None:
    assert copied(session, MANY) == [f"{number},{'x' * 1000}\n".encode() for number in range(1, 50001)]
    assert copied(session, "SELECT 1 WHERE false") == []
    assert session.rows(sql.SQL("SELECT 1")) == [(1,)]


def test_an_error_before_or_amid_the_rows_is_the_servers(session: ReadSession) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        copied(session, "SELECT * FROM nowhere")
    with pytest.raises(Fatal, match="division by zero"):
        copied(session, "SELECT 1 / (20000 - g) FROM generate_series(1, 50000) AS g")
    assert copied(session, "SELECT 1") == [b"1\n"]


def test_a_lost_connection_is_transient_and_made_anew(session: ReadSession) -> None:
    def read_and_lose() -> None:
        with session.copy(sql.SQL(MANY), "source.query") as rows:
            for number, _ in enumerate(rows):
                if number == 0:
                    cut(session.connection().pgconn.socket)

    with pytest.raises(Transient):
        read_and_lose()
    assert copied(session, "SELECT 1") == [b"1\n"]


def test_a_copy_left_in_the_middle_does_not_spoil_the_next(session: ReadSession) -> None:
    def read_and_fail() -> None:
        with session.copy(sql.SQL(MANY), "source.query") as rows:
            next(iter(rows))
            raise KeyError

    with pytest.raises(KeyError):
        read_and_fail()
    assert copied(session, "SELECT 1") == [b"1\n"]
