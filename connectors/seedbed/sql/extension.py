"""Installing the Postgres extension `seedbed` from the files that this package carries (`udf/` in the sources)."""

from __future__ import annotations

import os
import runpy
from importlib.resources import as_file, files
from pathlib import Path

from psycopg import Connection
from psycopg.rows import TupleRow

from seedbed.embedded_postgres import Server, enable_plpython
from seedbed.errors import ConfigError
from seedbed.postgres import mapped


def sources() -> Path:
    """The folder of the extension's files: in the wheel beside this module, in a checkout `udf/`."""
    with as_file(files("seedbed.sql")) as here:
        for folder in (here / "udf", here.parents[2] / "udf"):
            if (folder / "seedbed.control").exists():
                return folder
    raise ConfigError(
        "the extension's files are not in this installation", hint="pip install --force-reinstall seedbed"
    )


def lay(folder: Path) -> None:
    """Puts the extension's files into a server's extension folder (`$(pg_config --sharedir)/extension`): what `make
    install` does, without make. Raises ConfigError where that may not be."""
    folder = folder.absolute()
    composed = runpy.run_path(str(sources() / "compose.py"))["composed"](folder)
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


def create(connection: Connection[TupleRow], address: str) -> None:
    """CREATE EXTENSION with what it requires, at this version, and the endpoint `default` at `address` (`unix:/path`,
    `http://h:p`).

    Raises ConfigError or Fatal where the files are not installed or the role is no superuser.
    """
    with mapped("url"):
        connection.execute("create extension if not exists seedbed cascade")
        connection.execute("alter extension seedbed update")
        connection.execute(
            "insert into seedbed.endpoint (name, address) values ('default', %s) "
            "on conflict (name) do update set address = excluded.address",
            [address],
        )
