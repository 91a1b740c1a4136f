"""The embedded server: shared by processes, stopped by the last, and none the worse for a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from seedbed.embedded_postgres import Server, enable_plpython
from seedbed.embedded_process import account_of, reachable_copy, reaches
from seedbed.errors import ConfigError
from seedbed.postgres import Database

USER = """
import sys
from seedbed.postgres import Database
database = Database("pgvector+embedded:" + sys.argv[1])
with database.connect() as connection:
    print(connection.execute("select pg_postmaster_start_time()::text").fetchone()[0], flush=True)
    sys.stdin.read(1)
"""


def user(folder: Path) -> subprocess.Popen[str]:
    """A process that uses the folder until its stdin ends; it prints when its server began."""
    words = [sys.executable, "-c", USER, str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def began(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def leave(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)
    assert process.returncode == 0


def running(folder: Path) -> bool:
    return (folder / "data" / "postmaster.pid").exists()


def test_starters_at_once_share_one_server_and_the_last_to_leave_stops_it(server_folder: Path) -> None:
    folder = server_folder / "shared"
    first, second, third = user(folder), user(folder), user(folder)
    times = {began(first), began(second), began(third)}
    assert len(times) == 1
    assert "" not in times
    leave(second)
    leave(first)
    assert running(folder)
    leave(third)
    assert not running(folder)


def test_a_killed_user_leaves_a_server_that_the_next_one_uses_and_stops(server_folder: Path) -> None:
    folder = server_folder / "killed"
    victim = user(folder)
    start = began(victim)
    victim.kill()
    victim.communicate()
    assert running(folder)
    heir = user(folder)
    assert began(heir) == start
    leave(heir)
    assert not running(folder)


def test_a_killed_server_is_started_again_with_what_it_had(server_folder: Path) -> None:
    database = Database(f"pgvector+embedded:{server_folder / 'crash'}")
    with database.connect() as connection:
        connection.execute("create table kept as select 1 as one")
    os.kill(int((server_folder / "crash" / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    again = Database(f"pgvector+embedded:{server_folder / 'crash'}")
    with again.connect() as connection:
        assert connection.execute("select one from kept").fetchone() == (1,)
    again.close()
    assert running(server_folder / "crash")
    database.close()
    database.close()
    assert not running(server_folder / "crash")


def test_a_killed_initdb_is_done_again(server_folder: Path) -> None:
    folder = server_folder / "half"
    half = folder / "data.new"
    half.mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "seedbed-postgres").touch()
    (half / "PG_VERSION").write_text("18\n")
    server = Server(folder)
    server.close()
    assert not half.exists()


def test_a_long_path_with_odd_characters(server_folder: Path) -> None:
    server = Server(server_folder / ("a, 'long' \"path\" " * 8))
    with psycopg.connect(server.conninfo) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("",)
        assert connection.execute("select lower('ÄÉ')").fetchone() == ("äé",)
    server.close()


def test_a_forked_child_does_not_stop_its_parents_server(server_folder: Path) -> None:
    server = Server(server_folder / "forked")
    child = os.fork()
    if child == 0:
        server.close()
        os._exit(0)
    os.waitpid(child, 0)
    psycopg.connect(server.conninfo).close()
    server.close()


def test_a_folder_of_something_else_is_left_alone(server_folder: Path) -> None:
    (server_folder / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds something else \(thesis.tex\)"):
        Server(server_folder)
    assert [entry.name for entry in server_folder.iterdir()] == ["thesis.tex"]


def test_a_folder_of_another_release_is_named(server_folder: Path) -> None:
    Server(server_folder / "old").close()
    (server_folder / "old" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigError, match="made by PostgreSQL 17, the installed server is 18"):
        Server(server_folder / "old")


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another account")


@as_root
def test_a_folder_that_the_servers_account_cannot_enter_points_to_one_that_it_can(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for _ in range(2):  # the second time, the folder was removed in between: nothing old may come back
        server = Server(tmp_path / "deep")
        with psycopg.connect(server.conninfo, autocommit=True) as connection:
            connection.execute("create table once (n int)")
        assert (tmp_path / "deep" / "server").resolve() == server.folder
        server.close()
        again = Server(tmp_path / "deep")
        with psycopg.connect(again.conninfo) as connection:
            connection.execute("select from once")
        again.close()
        shutil.rmtree(tmp_path / "deep")
    shutil.rmtree(server.folder)


@as_root
def test_programs_that_the_servers_account_cannot_enter_are_copied(tmp_path: Path) -> None:
    account = account_of(tmp_path / "none", "url")
    assert account is not None
    programs = tmp_path / "wheel" / "pginstall" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / "wheel.libs").mkdir()
    (programs / "postgres").write_text("#!/bin/sh\n")
    (programs / "postgres").chmod(0o755)
    tmp_path.chmod(0o700)
    copied = reachable_copy(account, programs)
    assert copied != programs
    assert reaches(account, copied / "postgres")
    assert reaches(account, copied.parents[2] / "wheel.libs")
    assert reachable_copy(account, programs) == copied
    shutil.rmtree(copied.parents[2])


def test_plpython_runs_after_it_was_enabled(server_folder: Path) -> None:
    database = Database(f"pgvector+embedded:{server_folder / 'python'}")
    with database.connect() as connection:
        enable_plpython(server_folder / "python")
        enable_plpython(server_folder / "python")
    with database.connect() as connection:
        connection.execute("create extension plpython3u")
        connection.execute("create function six() returns int language plpython3u as 'return 2 * 3'")
        assert connection.execute("select six()").fetchone() == (6,)
    database.close()
