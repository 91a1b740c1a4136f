"""The extension's life: installed, upgraded, dumped and restored, and what it says when it cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from seedbed.embedded_postgres import binaries
from seedbed.errors import SeedbedError
from seedbed.sql import extension
from services.postgres import RELEASES, fresh_database, server
from udf.conftest import one_at_a_time

Connection = psycopg.Connection[Any]
HERE = Path(__file__).parent
SCRIPTS = sorted((HERE / "sql").glob("*.sql"))


def tools(release: str) -> Path:
    return binaries() if release == "18" else Path("/usr/lib/postgresql/15/bin")


def folder_of(release: str) -> Path:
    if release == "18":
        return server("18").folder / "plpython" / "extension"
    return Path("/usr/share/postgresql/15/extension")


@pytest.mark.parametrize("release", RELEASES)
def test_the_first_form_is_brought_up_to_date(installed: Callable[[str], None], address: str, release: str) -> None:
    installed(release)
    first = folder_of(release) / "seedbed--0.1.0.sql"
    with one_at_a_time(f"first-{release}"), fresh_database(release) as url:
        shutil.copy(HERE / "seedbed--0.1.0.sql.in", first)
        try:
            with psycopg.connect(url, autocommit=True) as db:
                db.execute("create extension seedbed version '0.1.0' cascade")
                db.execute("insert into seedbed.endpoint values ('default', %s)", [address])
                db.execute("create view asked as select seedbed.embed('a') as v")
                db.execute("alter extension seedbed update")
                assert db.execute("select vector_dims(v) from asked").fetchone() == (32,)
                upgraded = contents(db)
        finally:
            first.unlink()
    with fresh_database(release) as url, psycopg.connect(url, autocommit=True) as db:
        extension.create(db, address)
        assert contents(db) == upgraded, "as a fresh one"


def contents(db: Connection) -> list[tuple[Any, ...]]:
    """All that belongs to the extension, with its rights and labels."""
    found = db.execute(
        "select pg_describe_object(classid, objid, objsubid), p.prosrc, p.proparallel, p.provolatile, p.prosecdef,"
        " array(select unnest(p.proacl)::text order by 1)"
        " from pg_depend d left join pg_proc p on d.classid = 'pg_proc'::regclass and p.oid = d.objid"
        " where refclassid = 'pg_extension'::regclass and deptype = 'e'"
        " and refobjid = (select oid from pg_extension where extname = 'seedbed') order by 1"
    ).fetchall()
    assert len(found) > 40
    return found


@pytest.mark.parametrize("release", RELEASES)
def test_a_dump_holds_endpoints_columns_and_the_queue(
    installed: Callable[[str], None], address: str, release: str
) -> None:
    installed(release)
    with fresh_database(release) as url, psycopg.connect(url, autocommit=True) as db:
        extension.create(db, address)
        db.execute("create table item (id int primary key, title text)")
        db.execute("insert into item select n, 'title ' || n from generate_series(1, 20) n")
        db.execute("select seedbed.embed_column('item', '{title}')")
        db.execute("call seedbed.work()")
        db.execute("update item set title = 'waiting' where id = 1")
        dump = subprocess.run([tools(release) / "pg_dump", "--dbname", url], capture_output=True, check=True).stdout
    with fresh_database(release) as other:
        command = [str(tools(release) / "psql"), "-q", "-X", "-v", "ON_ERROR_STOP=1", "--dbname", other]
        subprocess.run(command, input=dump, check=True, stdout=subprocess.DEVNULL)
        with psycopg.connect(other, autocommit=True) as restored:
            assert restored.execute("select waiting from seedbed.status").fetchone() == (1,)
            restored.execute("update item set title = 'more' where id = 2")
            assert restored.execute("call seedbed.work()").fetchone() == (2,)
            assert restored.execute("select count(*) from item_embedding").fetchone() == (20,)
            found = restored.execute("select row ->> 'id' from seedbed.search('item', 'more', 1)").fetchone()
            assert found == ("2",)


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "seedbed", "install-extension", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("release", RELEASES)
def test_the_command_installs_it(installed: Callable[[str], None], address: str, release: str) -> None:
    installed(release)
    with fresh_database(release) as url:
        for _ in range(2):
            done = run_cli(url, "--endpoint", address, "--json")
            assert json.loads(done.stdout) == {"version": "0.2.0", "endpoint": address}, done.stderr
        with psycopg.connect(url) as db:
            assert db.execute("select vector_dims(seedbed.embed('a'))").fetchone() == (32,)


def test_the_command_says_what_is_missing(installed: Callable[[str], None]) -> None:
    installed("15")
    with fresh_database("15") as url:
        with psycopg.connect(url, autocommit=True) as db:
            db.execute("drop role if exists plain_login")
            db.execute("create role plain_login login")
        try:
            done = run_cli(url.replace("postgres@", "plain_login@"))
            assert done.returncode == 2
            assert "a superuser's login" in done.stderr
        finally:
            with psycopg.connect(url, autocommit=True) as db:
                db.execute("drop role plain_login")


def test_files_are_laid_where_the_folder_is_ours(
    installed: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a version that the server does not have yet."""
    installed("15")
    composer = extension._composer()
    monkeypatch.setattr(extension, "_composer", lambda: {**composer, "VERSION": "0.2.1"})
    with one_at_a_time("install"), fresh_database("15") as url:
        assert extension.install(url) == "0.2.0"
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(SeedbedError, match="this extension's files") as caught:
            extension.install(url)
        assert "make -C" in (caught.value.hint or "")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SeedbedError, match="cannot be laid"):
        extension.lay(tmp_path / "file" / "extension")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("release", RELEASES)
def test_sql_answers_as_expected(installed: Callable[[str], None], address: str, release: str, script: Path) -> None:
    """As pg_regress does: what psql shows of a script, word for word."""
    installed(release)
    with fresh_database(release) as url:
        with psycopg.connect(url, autocommit=True) as db:
            extension.create(db, address)
        command = ["/usr/lib/postgresql/15/bin/psql", "-X", "-q", "-a", "--dbname", url, "-f", str(script)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        shown = "".join(
            line.removeprefix(f"psql:{script}:").partition(": ")[2] if line.startswith("psql:") else line
            for line in (done.stdout + done.stderr).splitlines(keepends=True)
        )
    expected = script.parent / "expected" / f"{script.stem}.out"
    if os.environ.get("SEEDBED_EXPECT"):
        expected.parent.mkdir(exist_ok=True)
        expected.write_text(shown, encoding="utf-8")
    assert shown == expected.read_text(encoding="utf-8")
