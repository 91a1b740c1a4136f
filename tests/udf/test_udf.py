"""`seedbed.embed` in real servers: Debian's 15 and the embedded 18 with PL/Python, against `seedbed serve`."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import seedbed
from seedbed import Content
from seedbed.errors import SeedbedError
from seedbed.sql import extension
from services.postgres import fresh_database

Connection = psycopg.Connection[Any]
Serving = Callable[[Path, str], AbstractContextManager[subprocess.Popen[bytes]]]


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
        "select seedbed._embed('default', 'unix:/tmp/x', null, 'a', 'query')",
        "select seedbed._embed_all('default', 'unix:/tmp/x', null, '{a}', 'query')",
        "select seedbed.embed_column('pg_class', '{relname}')",
        "call seedbed.work()",
        "select * from seedbed.status",
        "insert into seedbed.endpoint values ('mine', 'http://127.0.0.1:1')",
        "select * from seedbed.endpoint",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute(statement)
    db.execute("reset role")
    db.execute("drop owned by plain")
    db.execute("drop role plain")


def test_functions_are_labelled_as_they_behave(db: Connection) -> None:
    labels = db.execute(
        "select provolatile, proparallel, proisstrict, proconfig from pg_proc"
        " where oid = 'seedbed.embed(text, text)'::regprocedure"
    ).fetchone()
    assert labels == ("s", "r", True, ["search_path=pg_catalog, pg_temp"])


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
        ("embed('poison')", psycopg.DataError, "refuses"),
        ("embed('')", psycopg.errors.InvalidParameterValue, "empty"),
        ("embed('a', 'both')", psycopg.errors.InvalidParameterValue, "both"),
    ],
)
def test_refusals_say_why(db: Connection, call: str, error: type[psycopg.Error], words: str) -> None:
    with pytest.raises(error, match=words):
        db.execute(f"select seedbed.{call}")


def test_a_server_that_restarts_is_found_again(db: Connection, sockets: Path, serve: Serving) -> None:
    path = sockets / f"again-{time.monotonic_ns()}"
    db.execute("update seedbed.endpoint set address = %s", [f"unix:{path}"])
    with pytest.raises(psycopg.OperationalError, match="cannot be reached") as caught:
        db.execute("select seedbed.embed('a')")
    assert "seedbed serve" in (caught.value.diag.message_hint or "")
    for _ in range(2):  # the second time over the kept connection, which is dead
        with serve(path, "hash:32"):
            assert vector(db, "seedbed.embed('a')").shape == (32,)


def test_a_model_that_is_being_loaded_is_told_so(db: Connection, sockets: Path) -> None:
    path = sockets / f"loading-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "seedbed", "serve", "hash:32?latency=30", "--uds", str(path)]
    db.execute("update seedbed.endpoint set address = %s", [f"unix:{path}"])
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                with pytest.raises(psycopg.OperationalError) as caught:
                    db.execute("select seedbed.embed('a')")
                if caught.value.sqlstate != "08006":
                    break
                time.sleep(0.05)
            assert caught.value.sqlstate == "57P03"
        finally:
            process.terminate()


def test_a_schema_of_somebody_else_is_no_place_for_it(installed: Callable[[str], None], address: str) -> None:
    installed("18")
    with fresh_database("18") as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop role if exists squatter")
        connection.execute("create role squatter")
        connection.execute("create schema seedbed authorization squatter")
        with pytest.raises(SeedbedError, match="no superuser"):
            extension.create(connection, address)
        connection.execute("drop schema seedbed")
        connection.execute("drop role squatter")
        extension.create(connection, address)


def test_files_are_laid_wherever_a_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "here" $$ naïve \U0001f331'
    extension.lay(folder)
    extension.lay(folder)
    names = {"seedbed.control", "seedbed--0.2.0.sql", "seedbed--0.1.0--0.2.0.sql"}
    assert {file.name for file in folder.iterdir()} == {
        *names,
        "seedbed--0.2.0.py",
        "seedbed--0.2.0-exchange.py",
        "seedbed--0.2.0-columns.py",
    }
    script = (folder / "seedbed--0.2.0.sql").read_text("utf-8")
    opened = script.split("with open(")[1].split(", encoding=")[0]
    assert ast.literal_eval(opened) == str(folder / "seedbed--0.2.0.py")
    assert "$" not in opened
