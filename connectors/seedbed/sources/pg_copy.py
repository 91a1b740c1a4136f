"""COPY out of Postgres, a row an item, by psycopg's own libpq calls.

`cursor.copy` takes every row through a generator of its own: measured on 10,000 rows of 300 characters, 18 ms of
the read's 28. These are the same calls (https://www.postgresql.org/docs/current/libpq-copy.html) without it.
"""

from __future__ import annotations

import selectors
from collections.abc import Generator

import psycopg
from psycopg import pq
from psycopg.abc import Buffer
from psycopg.rows import TupleRow


def copy_rows(connection: psycopg.Connection[TupleRow], statement: bytes) -> Generator[Buffer, None, None]:
    """The rows of a `COPY … TO STDOUT`. A connection left before the last row, or after an error, is closed.

    Raises psycopg's errors.
    """
    pgconn, ended = connection.pgconn, False
    with selectors.DefaultSelector() as sockets:
        sockets.register(pgconn.socket, selectors.EVENT_READ)

        def receive() -> None:
            sockets.select()
            pgconn.consume_input()

        def result() -> pq.abc.PGresult | None:
            while pgconn.is_busy():
                receive()
            return pgconn.get_result()

        def expect(status: pq.ExecStatus) -> None:
            found = result()
            if found is None:
                raise psycopg.OperationalError("the connection was lost in the middle of a COPY")
            if found.status != status:
                raise psycopg.errors.error_from_result(found, encoding=connection.info.encoding)

        try:
            pgconn.send_query(statement)
            # A server reads a statement whole before it answers: there is nothing to read while this is sent.
            while pgconn.flush():
                sockets.modify(pgconn.socket, selectors.EVENT_WRITE)
                sockets.select()
            sockets.modify(pgconn.socket, selectors.EVENT_READ)
            expect(pq.ExecStatus.COPY_OUT)
            while (row := pgconn.get_copy_data(1))[0] >= 0:
                if row[0]:
                    yield row[1]
                else:
                    receive()
            expect(pq.ExecStatus.COMMAND_OK)
            ended = result() is None
        finally:
            if not ended:
                connection.close()
