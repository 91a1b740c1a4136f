"""Rows of Parquet, CSV or JSONL files, sorted by key out of core by DuckDB.

A read sorts what it needs into a temporary Parquet file and takes its pages from there. Keys of CSV and JSONL are
text, whatever they look like: `007` stays `007`, and a key does not change its order with the first letter in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from seedbed.errors import ConfigError, Transient
from seedbed.protocols import Page, Selection, Source
from seedbed.sources import paging
from seedbed.sources.settings import SourceSettings, unknown
from seedbed.sources.table_engine import Engine
from seedbed.sources.table_files import Files, find
from seedbed.sources.table_read import TableRead
from seedbed.sources.table_types import FileColumn


class TableSource:
    """`url`: a path, a glob or an fsspec URL of .parquet, .csv, .tsv, .jsonl or .ndjson files (text also .gz).
    `settings`: key (required), where (a condition of DuckDB's SQL), deleted.

    Raises ConfigError for a file or column that is not there and for content that cannot be parsed (naming file
    and line), Transient where a file changes while it is read. Of a CSV, lines that cannot be read are failed rows;
    with any such line no row counts as gone, since nobody knows whose line it is.
    """

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        self._url = url
        self._settings = SourceSettings.of(settings)
        _check(self._settings)
        self._engine = Engine()

    @cached_property
    def _files(self) -> Files:
        return find(self._url, self._engine.connection)

    @cached_property
    def _columns(self) -> dict[str, FileColumn]:
        columns = self._engine.describe(self._files)
        for name in self._settings.key:
            if name not in columns:
                raise unknown("column", name, columns, "source.key")
            if self._files.format != "parquet":
                columns[name] = FileColumn(name, "VARCHAR")
        if self._settings.deleted is not None and self._settings.deleted not in columns:
            raise unknown("column", self._settings.deleted, columns, "source.deleted")
        return columns

    @property
    def key_columns(self) -> tuple[str, ...]:
        return self._settings.key

    @property
    def key_kinds(self) -> tuple[str, ...]:
        return tuple(self._columns[name].kind for name in self._settings.key)

    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(column.name, column.arrow) for column in self._columns.values()])

    def pages(self, selection: Selection) -> Iterator[Page]:
        if selection.watermark:
            raise ConfigError(
                "a file is always read whole", setting="source.changes", hint='leave `changes` out, or set it to "scan"'
            )
        for name in selection.columns:
            if name not in self._columns:
                raise unknown("column", name, self._columns, "source")
        files = find(self._url, self._engine.connection)
        read = TableRead(self._engine, files, self._columns, self._settings, selection)
        return self._pages(read, selection)

    def _pages(self, read: TableRead, selection: Selection) -> Iterator[Page]:
        with tempfile.TemporaryDirectory(prefix="seedbed-") as folder:
            spool = Path(folder) / "rows.parquet"
            rejected = read.sort_into(spool)
            if find(self._url, self._engine.connection).stamp != read.files.stamp:
                raise Transient(
                    f"{self._url} changed while it was read", setting="source.url", hint="run again when it is whole"
                )
            complete = selection.keys is None and selection.where is None and not rejected
            chunks = _first_with(read.chunks(spool), rejected)
            yield from paging.pages(chunks, selection.within, complete=complete)

    def estimate(self) -> int | None:
        """The rows of Parquet files, which say so themselves; None for text."""
        files = self._files
        if files.format != "parquet" or "://" in files.paths[0]:
            return None
        return sum(int(pq.read_metadata(path).num_rows) for path in files.paths)

    def close(self) -> None:
        self._engine.close()


def _check(settings: SourceSettings) -> None:
    for name in ("table", "query", "watermark"):
        if getattr(settings, name) is not None:
            raise ConfigError(
                f"`{name}` is for databases, and this source is a file",
                setting=f"source.{name}",
                hint="a file is always read whole; `where` narrows it",
            )
    if not settings.key:
        raise ConfigError("a file's key columns must be named", setting="source.key", hint='key = ["id"]')


def _first_with(chunks: Iterator[paging.Chunk], rejected: list[tuple[str, str]]) -> Iterator[paging.Chunk]:
    for chunk in chunks:
        chunk.keyless = [*rejected, *chunk.keyless]
        rejected = []
        yield chunk


if TYPE_CHECKING:
    _source: type[Source] = TableSource
