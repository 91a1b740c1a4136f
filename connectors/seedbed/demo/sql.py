"""The demo's parts in SQL: the extension in the embedded server, and a `seedbed serve` for as long as it takes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from psycopg import Connection
from psycopg.rows import TupleRow

from seedbed.errors import ConfigError, Fatal
from seedbed.postgres import Database, mapped
from seedbed.retry import Patience
from seedbed.sql import extension

PHOTOS = (
    "SELECT seedbed.embed_column('photos', image => 'picture')",
    "CALL seedbed.work()",
    "SELECT title FROM photos_embedding ORDER BY embedding <=> (SELECT seedbed.embed('a cat')) LIMIT 1",
)


def words(folder: Path, database: Database, query: str, say: Callable[[str], None]) -> None:
    """One line that searches a pipeline's vectors."""
    line = f"SELECT module, name FROM function_vectors ORDER BY vector <=> (SELECT seedbed.embed('{query}')) LIMIT 3"
    _run(folder, database, "local:minilm", [line], "gzip", say)


def pictures(folder: Path, database: Database, say: Callable[[str], None]) -> None:
    """Three lines: a column of a table's photos that keeps itself embedded, found by words."""
    with database.connect() as connection:
        if connection.execute("select to_regclass('photos_embedding') is not null").fetchone() == (True,):
            connection.execute("select seedbed.drop_column('photos')")
    _run(folder, database, "conse:minilm", PHOTOS, "Chelsea", say)


def _run(
    folder: Path, database: Database, served: str, lines: Sequence[str], expected: str, say: Callable[[str], None]
) -> None:
    try:
        extension.install_embedded(folder / "postgres")
    except ConfigError as error:
        say(f"\n(SQL is left out: {error})")
        return
    with _serving(served) as address, database.connect() as connection:
        extension.create(connection, address)
        say(f"\n$ seedbed serve {served} --uds {address.removeprefix('unix:')} &")
        for line in lines:
            say(f"postgres=# {line};")
            rows = Patience(attempts=240, first=0.25, most=0.5).run(partial(_ask, connection, line))
            for row in rows:
                say(" | ".join(map(str, row)))
    if rows[0][0] != expected:
        raise Fatal(f"the demo expected to find {expected}, and found {rows}")


def _ask(connection: Connection[TupleRow], query: str) -> list[TupleRow]:
    """Raises Transient while the embedding server loads its model."""
    with mapped("demo"):
        return connection.execute(query.encode()).fetchall()


@contextmanager
def _serving(served: str) -> Iterator[str]:
    """The address of an embedding server; its socket is where the database's account can reach it."""
    with tempfile.TemporaryDirectory(prefix="seedbed-") as folder:
        Path(folder).chmod(0o755)
        path = f"{folder}/embed.sock"
        command = [sys.executable, "-m", "seedbed", "serve", served, "--uds", path]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
            try:
                yield f"unix:{path}"
            finally:
                server.terminate()
