"""Installing the Postgres extension `seedbed` from the files that this package carries (`udf/` in the sources)."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path

from psycopg import Connection
from psycopg.rows import TupleRow

from seedbed.embedded_postgres import Server, enable_plpython
from seedbed.errors import ConfigError
from seedbed.postgres import mapped

_FILES = ("seedbed.control", "seedbed--0.1.0.sql.in", "seedbed_udf.py")


def sources() -> Path:
    """The folder of the extension's files: in the wheel beside this module, in a checkout `udf/`."""
    with as_file(files("seedbed.sql")) as here:
        for folder in (here / "udf", here.parents[2] / "udf"):
            if (folder / _FILES[0]).exists():
                return folder
    raise ConfigError(
        "the extension's files are not in this installation", hint="pip install --force-reinstall seedbed"
    )


def lay(folder: Path) -> None:
    """Puts the extension's files into a server's extension folder (`$(pg_config --sharedir)/extension`), the path of
    its Python file filled in: what `make install` does, without make. Raises ConfigError where that may not be."""
    origin, folder = sources(), folder.absolute()
    # Python reads the path from inside of a body quoted by dollars.
    path = ascii(str(folder / "seedbed_udf.py")).replace("$", "\\x24")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            target = folder / name.removesuffix(".in")
            text = (origin / name).read_text(encoding="utf-8")
            # Beside and renamed: a session that opens it meanwhile reads one of the two whole.
            fresh = folder / f"{target.name}.{os.getpid()}"
            fresh.write_text(text.replace('"@UDF@"', path), encoding="utf-8")
            fresh.chmod(0o644)
            fresh.replace(target)
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
    """CREATE EXTENSION with what it requires, and the endpoint `default` at `address` (`unix:/path`, `http://h:p`).

    Raises ConfigError or Fatal where the files are not installed or the role is no superuser.
    """
    with mapped("url"):
        connection.execute("create extension if not exists seedbed cascade")
        connection.execute(
            "insert into seedbed.endpoint values ('default', %s) "
            "on conflict (name) do update set address = excluded.address",
            [address],
        )
