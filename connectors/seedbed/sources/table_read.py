"""One read of files: sorted into a Parquet spool, taken from there in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seedbed.errors import ConfigError
from seedbed.identity import KeyRange, key_parts
from seedbed.protocols import Selection
from seedbed.sources.paging import Chunk, encode_keys, parts_of, take
from seedbed.sources.settings import SourceSettings
from seedbed.sources.table_engine import Engine, scan
from seedbed.sources.table_files import Files
from seedbed.sources.table_types import FileColumn, literal, quoted

_REJECTS = """
SELECT DISTINCT s.file_path, e.line, first(e.error_message) OVER (PARTITION BY s.file_path, e.line)
FROM reject_errors e JOIN reject_scans s USING (scan_id, file_id) ORDER BY ALL"""


class TableRead:
    """A selection of the files' rows. Raises ConfigError for keys that do not fit and conditions that do not parse."""

    def __init__(
        self,
        engine: Engine,
        files: Files,
        columns: Mapping[str, FileColumn],
        settings: SourceSettings,
        selection: Selection,
    ) -> None:
        self._engine = engine
        self.files = files
        self._columns = columns
        self._key = [columns[name] for name in settings.key]
        self._kinds = [column.kind for column in self._key]
        self._deleted = None if settings.deleted is None else columns[settings.deleted]
        self._settings = settings
        self._selection = selection

    def sort_into(self, spool: Path) -> list[tuple[str, str]]:
        """Writes the rows in key order; returns (where, why) of lines that could not be read."""
        connection = self._engine.connection
        if self.files.format == "csv":
            connection.execute("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")
        if self._selection.keys is not None:
            self._offer(self._selection.keys)
        statement = (
            f"SELECT {', '.join(self._expressions())} FROM {scan(self.files, self._columns)} AS source"
            f"{self._where()} ORDER BY {', '.join(self._order())}"
        )
        self._engine.rows(
            f"COPY ({statement}) TO {literal(str(spool))} (FORMAT parquet, COMPRESSION lz4, ROW_GROUP_SIZE 16384)",
            "source.where" if self._settings.where or self._selection.where else "source.url",
        )
        if self.files.format != "csv":
            return []
        return [
            (f"{path} line {line}", f"{path} line {line} cannot be read: {reason.splitlines()[0]}")
            for path, line, reason in self._engine.rows(_REJECTS)
        ]

    def chunks(self, spool: Path) -> Iterator[Chunk]:
        """At least one, an empty one where there are no rows."""
        count = 0
        with pq.ParquetFile(spool) as file:
            for batch in file.iter_batches(self._selection.page_rows):
                count += 1
                yield self._chunk(batch)
            if not count:
                yield self._chunk(_empty(file))

    # --- the statement ------------------------------------------------------------------------------

    def _expressions(self) -> list[str]:
        made = [f"{column.canonical} AS _k{number}" for number, column in enumerate(self._key)]
        if self._deleted is not None:
            made.append(f"{self._is_deleted(self._deleted)} AS _gone")
        names = dict.fromkeys(self._selection.columns)
        return made + [f"{self._columns[name].expression} AS _c{number}" for number, name in enumerate(names)]

    def _order(self) -> list[str]:
        made = [f"_k{number} NULLS LAST" for number in range(len(self._key))]
        return [*made, "_gone"] if self._deleted is not None else made

    @staticmethod
    def _is_deleted(column: FileColumn) -> str:
        name = quoted(column.name)
        return f"coalesce({name}, false)" if column.type_name == "BOOLEAN" else f"({name} IS NOT NULL)"

    def _where(self) -> str:
        conditions = [f"(\n{text}\n)" for text in (self._settings.where, self._selection.where) if text is not None]
        within = self._selection.within or KeyRange()
        if within.after is not None:
            conditions.append(self._compare(">", within.after))
        if within.upto is not None:
            conditions.append(self._compare("<=", within.upto))
        if self._selection.keys is not None:
            columns = ", ".join(column.canonical for column in self._key)
            conditions.append(f"({columns}) IN (SELECT * FROM seedbed_keys)")
        return f" WHERE {' AND '.join(conditions)}" if conditions else ""

    def _compare(self, operator: str, position: bytes) -> str:
        values = [
            f"{part}::BIGINT" if kind == "int" else literal(part)
            for part, kind in zip(parts_of(position, self._kinds), self._kinds, strict=True)
        ]
        return _lexicographic([column.canonical for column in self._key], operator, values)

    def _offer(self, wanted: Sequence[str]) -> None:
        """The wanted keys as a table to look them up in."""
        rows = [key_parts(key) for key in wanted]
        for key, parts in zip(wanted, rows, strict=True):
            if len(parts) != len(self._key):
                raise ConfigError(
                    f"the key {key} has {len(parts)} parts, but the source's key has {len(self._key)}",
                    setting="source.key",
                    hint=f"its key columns: {', '.join(self._settings.key)}",
                )
        arrays = []
        for number, kind in enumerate(self._kinds):
            texts = pa.array([row[number] for row in rows], pa.string())
            try:
                arrays.append(texts.cast(pa.int64()) if kind == "int" else texts)
            except pa.ArrowInvalid as error:
                name = self._key[number].name
                raise ConfigError(
                    f"a key is no integer, as the key column {name!r} is: {error}", setting="source.key"
                ) from error
        table = pa.Table.from_arrays(arrays, names=[f"k{number}" for number in range(len(arrays))])
        self._engine.connection.register("seedbed_keys", table)

    # --- rows ---------------------------------------------------------------------------------------

    def _chunk(self, batch: pa.RecordBatch) -> Chunk:
        width = len(self._key)
        keys, rest = batch.columns[:width], batch.columns[width:]
        gone = rest.pop(0) if self._deleted is not None else None
        names = list(dict.fromkeys(self._selection.columns))
        wanted = [self._columns[name].arrow for name in names]
        arrays = [
            column if column.type == kind else column.cast(kind) for column, kind in zip(rest, wanted, strict=True)
        ]
        rows = pa.RecordBatch.from_arrays(arrays, names=names)
        keyless: list[tuple[str, str]] = []
        if any(column.null_count for column in keys):
            usable = [None not in parts for parts in zip(*(column.to_pylist() for column in keys), strict=True)]
            keyless = [self._keyless(keys, row) for row, is_usable in enumerate(usable) if not is_usable]
            index = pa.array([row for row, is_usable in enumerate(usable) if is_usable], pa.int64())
            keys = [column.take(index) for column in keys]
            rows = take(rows, index)
            gone = None if gone is None else gone.take(index)
        keys_, positions = encode_keys(keys)
        return Chunk(keys_, positions, rows, None if gone is None else gone.to_pylist(), {}, keyless)

    def _keyless(self, keys: list[pa.Array], row: int) -> tuple[str, str]:
        shown = ", ".join(
            f"{column.name} {'NULL' if value is None else value}"
            for column, value in zip(self._key, (part[row].as_py() for part in keys), strict=True)
        )
        return shown, f"a key column is NULL: {shown}"


def _lexicographic(names: Sequence[str], operator: str, values: Sequence[str]) -> str:
    """`(a, b) > (x, y)` spelt out: DuckDB 2.0 joins two comparisons of rows to a BETWEEN that it then refuses."""
    name, value = names[0], values[0]
    if len(names) == 1:
        return f"({name} {operator} {value})"
    rest = _lexicographic(names[1:], operator, values[1:])
    return f"({name} {operator[0]} {value} OR ({name} = {value} AND {rest}))"


def _empty(file: pq.ParquetFile) -> pa.RecordBatch:
    schema = file.schema_arrow
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
