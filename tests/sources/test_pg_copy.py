from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from seedbed.sources.pg_copy import copy_rows

MANY = b"COPY (SELECT g, repeat('x', 1000) FROM generate_series(1, 50000) AS g) TO STDOUT (FORMAT csv)"


@pytest.fixture
def connection(pg_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(pg_url, autocommit=True) as made:
        yield made


def test_rows_come_whole_and_the_connection_goes_on(connection: psycopg.Connection[Any]) -> None:
    rows = [bytes(row) for row in copy_rows(connection, MANY)]
    assert rows == [f"{number},{'x' * 1000}\n".encode() for number in range(1, 50001)]
    assert connection.execute("SELECT 1").fetchone() == (1,)
    assert list(copy_rows(connection, b"COPY (SELECT WHERE false) TO STDOUT")) == []


def test_an_error_before_or_amid_the_rows_is_the_servers(connection: psycopg.Connection[Any], pg_url: str) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        list(copy_rows(connection, b"COPY nowhere TO STDOUT"))
    with psycopg.connect(pg_url, autocommit=True) as other, pytest.raises(psycopg.errors.DivisionByZero):
        list(copy_rows(other, b"COPY (SELECT 1 / (20000 - g) FROM generate_series(1, 50000) AS g) TO STDOUT"))


def test_a_lost_connection_says_so(connection: psycopg.Connection[Any]) -> None:
    rows = copy_rows(connection, MANY)
    next(rows)
    with socket.socket(fileno=connection.pgconn.socket) as line:
        line.shutdown(socket.SHUT_RDWR)
        line.detach()
    with pytest.raises(psycopg.OperationalError):
        list(rows)
    assert connection.closed


def test_a_connection_left_in_the_middle_is_closed(connection: psycopg.Connection[Any]) -> None:
    rows = copy_rows(connection, MANY)
    next(rows)
    rows.close()
    assert connection.closed
