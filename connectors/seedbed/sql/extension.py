"""Installing the Postgres extension `seedbed` from the files that this package carries (`udf/` in the sources)."""

from __future__ import annotations

import os
import runpy
from contextlib import closing
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from psycopg import Connection
from psycopg.rows import TupleRow

from seedbed.embedded_postgres import Server, enable_plpython
from seedbed.errors import ConfigError
from seedbed.postgres import EMBEDDED, Database, mapped


def sources() -> Path:
    """The folder of the extension's files: in the wheel beside this module, in a checkout `udf/`."""
    with as_file(files("seedbed.sql")) as here:
        for folder in (here / "udf", here.parents[2] / "udf"):
            if (folder / "seedbed.control").exists():
                return folder
    raise ConfigError(
        "the extension's files are not in this installation", hint="pip install --force-reinstall seedbed"
    )


def _composer() -> dict[str, Any]:
    """What puts the scripts together, which `make install` runs as well."""
    return runpy.run_path(str(sources() / "compose.py"))


def lay(folder: Path) -> None:
    """Puts the extension's files into a server's extension folder (`$(pg_config --sharedir)/extension`): what `make
    install` does, without make. Raises ConfigError where that may not be."""
    folder = folder.absolute()
    composed = _composer()["composed"](folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in composed.items():
            # Beside and renamed: a session that opens it meanwhile reads one of the two whole.
            fresh = folder / f"{name}.{os.getpid()}"
            fresh.write_text(text, encoding="utf-8")
            fresh.chmod(0o644)
            fresh.replace(folder / name)
    except OSError as error:
        raise ConfigError(
            f"the extension cannot be laid into {folder}: {error.strerror}", hint="run as the account that owns it"
        ) from error


def install_embedded(directory: Path) -> None:
    """For the embedded server in `directory`: PL/Python, and this extension beside it. Idempotent.

    Raises ConfigError where PL/Python cannot be had (no pip, no libpython3.11, no build for this platform).
    """
    enable_plpython(directory)
    server = Server(directory)
    try:
        lay(server.folder / "plpython" / "extension")
    finally:
        server.close()


def install(url: str, address: str | None = None) -> str:
    """Lays the files where that is possible from here, creates the extension or brings it up to this version, and sets
    the endpoint `default`; the version that stands then. `url` is `postgresql://…` or `pgvector+embedded:DIR`.

    Raises ConfigError that names all that is missing and how to get it.
    """
    database = Database(url)
    if url.startswith(EMBEDDED):
        install_embedded(Path(url.removeprefix(EMBEDDED)))
    with closing(database), closing(database.connect()) as connection:
        if not database.embedded:
            _prepare(connection)
        create(connection, address)
        with mapped("url"):
            found = connection.execute("select extversion from pg_extension where extname = 'seedbed'").fetchone()
    assert found is not None
    return str(found[0])


def _prepare(connection: Connection[TupleRow]) -> None:
    with mapped("url"):
        release, superuser = _one(
            connection,
            "select current_setting('server_version_num')::int / 10000, rolsuper from pg_roles"
            " where rolname = current_user",
        )
        known = {name for (name,) in connection.execute("select name from pg_available_extensions").fetchall()}
        current = _one(
            connection,
            "select exists (select from pg_available_extension_versions where name = 'seedbed' and version = %s)",
            [_composer()["VERSION"]],
        )[0]
    missing: dict[str, str] = {}
    if release < 15:
        missing[f"PostgreSQL 15 or later (it is {release})"] = "upgrade the server"
    if not superuser:
        missing["a superuser's login"] = "connect as postgres: PL/Python and vector are created by superusers only"
    if "plpython3u" not in known:
        missing["PL/Python"] = (
            f"apt-get install postgresql-plpython3-{release} (managed services have none: there, pipelines and "
            'changes = "queue" work, and the SQL functions do not)'
        )
    if "vector" not in known:
        missing["pgvector"] = f"apt-get install postgresql-{release}-pgvector, or build github.com/pgvector/pgvector"
    if superuser and not current and not _laid(connection):
        missing["this extension's files"] = f"on its machine, sudo make -C {sources()} install PG_CONFIG=…/pg_config"
    if missing:
        steps = "; ".join(f"{what}: {how}" for what, how in missing.items())
        raise ConfigError(f"the server lacks {', '.join(missing)}", setting="url", hint=steps)


def _laid(connection: Connection[TupleRow]) -> bool:
    """Whether the files could be laid from here: the server is on this machine, and its folder ours to write."""
    if not connection.info.host.startswith("/"):
        return False
    with mapped("url"):
        folder = Path(_one(connection, "select setting from pg_config where name = 'SHAREDIR'")[0]) / "extension"
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return False
    lay(folder)
    return True


def _one(connection: Connection[TupleRow], query: str, parameters: list[object] | None = None) -> TupleRow:
    found = connection.execute(query.encode(), parameters).fetchone()
    assert found is not None
    return found


def create(connection: Connection[TupleRow], address: str | None) -> None:
    """CREATE EXTENSION with what it requires, at this version, and the endpoint `default` at `address` (`unix:/path`,
    `http://h:p`), if one is given.

    Raises ConfigError or Fatal where the files are not installed or the role is no superuser.
    """
    with mapped("url"):
        connection.execute("create extension if not exists seedbed cascade")
        connection.execute("alter extension seedbed update")
        if address is not None:
            connection.execute(
                "insert into seedbed.endpoint (name, address) values ('default', %s) "
                "on conflict (name) do update set address = excluded.address",
                [address],
            )
