"""DuckDB within bounds, its errors in our tree."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import duckdb

from seedbed.errors import ConfigError, Fatal
from seedbed.sources.table_files import Files
from seedbed.sources.table_types import FileColumn, literal

# Three million rows of 350 bytes sort within it; at 300 MB DuckDB 2.0 gave up on one million.
_MEMORY = "512MB"
_INFERRED_TEXT = ("DATE", "TIME", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "UUID", "JSON", "NULL")


class Engine:
    """One in-memory DuckDB with a memory limit; what does not fit goes to a temporary folder."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="seedbed-")

    @cached_property
    def connection(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect(
            ":memory:",
            config={
                "memory_limit": _MEMORY,
                "temp_directory": self._folder.name,
                "threads": 2,
                "preserve_insertion_order": False,
                "TimeZone": "UTC",
                "autoinstall_known_extensions": False,
            },
        )

    def rows(self, statement: str, setting: str = "source.url") -> list[tuple[Any, ...]]:
        with _mapped(setting):
            return self.connection.execute(statement).fetchall()

    def describe(self, files: Files) -> dict[str, FileColumn]:
        """All columns; of text files the types are those that every value of the files fits."""
        statement = f"DESCRIBE SELECT * FROM {scan(files)}"
        columns = {name: FileColumn(name, type_name) for name, type_name, *_ in self.rows(statement)}
        if files.format != "json":
            return columns
        # JSON has no dates: what is a string there stays the string it is.
        return {
            column.name: FileColumn(column.name, "VARCHAR") if column.type_name in _INFERRED_TEXT else column
            for column in columns.values()
        }

    def close(self) -> None:
        if "connection" in self.__dict__:
            self.connection.close()
        self._folder.cleanup()


def scan(files: Files, columns: Mapping[str, FileColumn] | None = None) -> str:
    """The table function that reads the files; with `columns`, without looking for their types again."""
    paths = f"[{', '.join(literal(path) for path in files.paths)}]"
    typed = ""
    if columns is not None:
        pairs = ", ".join(f"{literal(c.name)}: {literal(c.type_name)}" for c in columns.values())
        typed = f", columns = {{{pairs}}}"
    match files.format:
        case "parquet":
            return f"read_parquet({paths}, union_by_name = true)"
        case "csv":
            found = typed + ", store_rejects = true, rejects_limit = 0" if columns is not None else ", sample_size = -1"
            return (
                f"read_csv({paths}, header = true, delim = {literal(files.separator)}, quote = '\"', escape = '\"', "
                f"auto_detect = {'false' if columns is not None else 'true'}, ignore_errors = true{found})"
            )
        case "json":
            found = typed or ", sample_size = -1, maximum_sample_files = 1000000, union_by_name = true"
            return f"read_json({paths}, format = 'newline_delimited'{found})"


@contextmanager
def _mapped(setting: str) -> Iterator[None]:
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.FatalException, duckdb.InternalException) as error:
        raise Fatal(
            f"DuckDB: {first_line(error)}", setting=setting, hint="free memory or temporary disk space"
        ) from error
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        hint = "mend that line, or leave it out of the file" if " line " in first_line(error) else None
        raise ConfigError(first_line(error), setting="source.url", hint=hint) from error
    except duckdb.Error as error:
        raise ConfigError(first_line(error), setting=setting) from error


def first_line(error: duckdb.Error) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
