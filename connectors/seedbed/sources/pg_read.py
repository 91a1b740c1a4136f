"""One read of a Postgres relation: the statement, its conditions, and its rows as chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from seedbed.errors import ConfigError
from seedbed.identity import KeyRange, key_parts
from seedbed.sources.csv_rows import Field, Parsed, parse
from seedbed.sources.paging import Chunk, encode_keys, parts_of, take
from seedbed.sources.pg_relation import Relation
from seedbed.sources.pg_session import ReadSession
from seedbed.sources.pg_types import Column
from seedbed.sources.row_spool import RowSpool

_PAGE_BYTES = 32 * 1024 * 1024
_NO_KEY = "a key column is NULL (or a date outside the years 1 to 9999)"


@dataclass(slots=True)
class Read:
    """What a read asks of a relation. `seen` is the newest watermark value met so far, as canonical UTC text."""

    session: ReadSession
    relation: Relation
    columns: Sequence[Column]
    conditions: list[sql.Composable]
    deleted: Column | None = None
    watermark: Column | None = None
    seen: str | None = None

    # --- chunks -------------------------------------------------------------------------------------

    def by_index(self, after: bytes | None, page_rows: int) -> Iterator[Chunk]:
        """One statement a page, each beginning behind the last one's last key. Ends with a page that is not full."""
        most = page_rows
        while True:
            beyond = [] if after is None else [self._compare(">", after)]
            with self.session.copy(self._select(beyond, limit=most), self.relation.setting) as rows:
                data = b"".join(rows)
            chunk = self._chunk(data)
            yield chunk
            if len(chunk.positions) < most:
                return
            after = chunk.positions[-1]
            most = max(1, min(page_rows, _PAGE_BYTES * most // len(data)))

    def spooled(self, page_rows: int, more: Sequence[sql.Composable] = ()) -> Iterator[Chunk]:
        """One ordered statement into a temporary file; the pages are read from there."""
        with closing(RowSpool(page_rows)) as spool:
            with self.session.copy(self._select(more), self.relation.setting) as rows:
                spool.fill(rows)
            for data in spool.pages():
                yield self._chunk(data)

    def nothing(self) -> Chunk:
        return self._chunk(b"")

    def by_keys(self, keys: Sequence[str], page_rows: int) -> Iterator[Chunk]:
        """The rows of canonical keys. Raises ConfigError for a key of another number of columns or another type."""
        wanted = sorted((self._position(key), key) for key in set(keys))
        for start in range(0, len(wanted), page_rows):
            yield from self.spooled(page_rows, [self._among([key for _, key in wanted[start : start + page_rows]])])

    # --- statements ---------------------------------------------------------------------------------

    def _select(self, more: Sequence[sql.Composable], limit: int | None = None) -> sql.Composable:
        conditions = [*self.conditions, *more]
        order = self.relation.order_by
        if self.deleted is not None and not self.relation.ordered:
            order = sql.SQL("{}, {}").format(order, _is_deleted(self.deleted))
        return sql.SQL("SELECT {} FROM {}{} ORDER BY {}{}").format(
            sql.SQL(", ").join(self._expressions()),
            self.relation.source,
            sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(conditions)) if conditions else sql.SQL(""),
            order,
            sql.SQL("") if limit is None else sql.SQL(" LIMIT {}").format(sql.Literal(limit)),
        )

    def _expressions(self) -> list[sql.Composable]:
        extra = [key.canonical for key in self.relation.key]
        if self.deleted is not None:
            extra.append(_is_deleted(self.deleted))
        if self.watermark is not None:
            extra.append(_watermark_text(self.watermark))
        extra += [column.expression for column in self.columns]
        # ORDER BY takes a bare name for an output column first, so no output may be called like a column.
        return [sql.SQL("{} AS {}").format(made, sql.Identifier(f"seedbed:{n}")) for n, made in enumerate(extra)]

    def _compare(self, operator: str, position: bytes) -> sql.Composable:
        key = self.relation.key
        parts = parts_of(position, [column.column.kind for column in key])
        return sql.SQL("({}) " + operator + " ({})").format(
            self.relation.order_by,
            sql.SQL(", ").join(column.literal(part) for column, part in zip(key, parts, strict=True)),
        )

    def narrow(self, within: KeyRange | None) -> None:
        """Adds the conditions of a key range."""
        if within is not None and within.after is not None:
            self.conditions.append(self._compare(">", within.after))
        if within is not None and within.upto is not None:
            self.conditions.append(self._compare("<=", within.upto))
        if within is not None and within != KeyRange() and not self.relation.ordered:
            self.conditions = self._keyless_once(self.conditions, first=within.after is None)

    def _keyless_once(self, conditions: list[sql.Composable], *, first: bool) -> list[sql.Composable]:
        """Rows without a key are in no range by their order: they are the first one's, where they are told of."""
        keyless = sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(key.column.identifier) for key in self.relation.key)
        within, rest = conditions[-1:], conditions[:-1]
        if not first:
            return [*conditions, sql.SQL("NOT ({})").format(keyless)]
        return [*rest, sql.SQL("({} OR {})").format(within[0], keyless)]

    def _among(self, keys: Sequence[str]) -> sql.Composable:
        """By equality of the columns themselves, whose order plays no part: so that an index is used."""
        parts = [list(column) for column in zip(*map(key_parts, keys), strict=True)]
        names = [sql.Identifier(f"part{number}") for number in range(len(parts))]
        sides = [column.looked_up(name) for column, name in zip(self.relation.key, names, strict=True)]
        return sql.SQL("({}) IN (SELECT {} FROM unnest({}) AS keys ({}))").format(
            sql.SQL(", ").join(side for side, _ in sides),
            sql.SQL(", ").join(part for _, part in sides),
            sql.SQL(", ").join(sql.SQL("{}::text[]").format(sql.Literal(column)) for column in parts),
            sql.SQL(", ").join(names),
        )

    def _position(self, key: str) -> bytes:
        parts = key_parts(key)
        if len(parts) != len(self.relation.key):
            raise ConfigError(
                f"the key {key} has {len(parts)} parts, but the source's key has {len(self.relation.key)}",
                setting="source.key",
                hint=f"its key columns: {', '.join(column.column.name for column in self.relation.key)}",
            )
        arrays = []
        for column, part in zip(self.relation.key, parts, strict=True):
            try:
                arrays.append(pa.array([int(part) if column.form == "int" else part]))
            except (ValueError, OverflowError) as error:
                raise ConfigError(
                    f"{part!r} is no {column.column.type_name}, as the key column {column.column.name!r} is",
                    key=key,
                    hint="write keys as `seedbed` shows them",
                ) from error
        return encode_keys(arrays)[1][0]

    # --- rows ---------------------------------------------------------------------------------------

    def _fields(self) -> list[Field]:
        fields = [Field(key.column.name, pa.int64() if key.form == "int" else pa.string()) for key in self.relation.key]
        if self.deleted is not None:
            fields.append(Field(self.deleted.name, pa.bool_()))
        if self.watermark is not None:
            fields.append(Field(self.watermark.name, pa.string()))
        return fields + [Field(column.name, column.arrow, column.decode) for column in self.columns]

    def _chunk(self, data: bytes) -> Chunk:
        parsed = parse(data, self._fields())
        width = len(self.relation.key)
        keys, rest = parsed.columns[:width], parsed.columns[width:]
        gone = rest.pop(0) if self.deleted is not None else None
        if self.watermark is not None:
            newest = pc.max(rest.pop(0)).as_py()
            self.seen = max(filter(None, (self.seen, newest)), default=None)
        rows = pa.RecordBatch.from_arrays(rest, names=[column.name for column in self.columns])
        return self._without_keyless(keys, gone, rows, parsed)

    def _without_keyless(
        self, keys: list[pa.Array], gone: pa.Array | None, rows: pa.RecordBatch, parsed: Parsed
    ) -> Chunk:
        bad, keyless = parsed.bad, list[tuple[str, str]]()
        if any(column.null_count for column in keys):
            usable = [all(parts) for parts in zip(*(column.is_valid().to_pylist() for column in keys), strict=True)]
            keyless = [
                (self._shown(keys, row), bad.get(row, f"{_NO_KEY}: {self._shown(keys, row)}"))
                for row, is_usable in enumerate(usable)
                if not is_usable
            ]
            kept = [row for row, is_usable in enumerate(usable) if is_usable]
            bad = {new: bad[old] for new, old in enumerate(kept) if old in bad}
            index = pa.array(kept, pa.int64())
            keys, rows = [column.take(index) for column in keys], take(rows, index)
            gone = None if gone is None else gone.take(index)
        names, positions = encode_keys(keys)
        return Chunk(names, positions, rows, None if gone is None else gone.to_pylist(), bad, keyless)

    def _shown(self, keys: list[pa.Array], row: int) -> str:
        return ", ".join(
            f"{column.column.name} {'NULL' if value is None else value}"
            for column, value in zip(self.relation.key, (part[row].as_py() for part in keys), strict=True)
        )


def _is_deleted(column: Column) -> sql.Composable:
    """A boolean column says so itself; of another one any value does (`deleted_at`)."""
    if column.type_name == "bool" and column.item is None:
        return sql.SQL("coalesce({}, false)").format(column.identifier)
    return sql.SQL("({} IS NOT NULL)").format(column.identifier)


def _watermark_text(column: Column) -> sql.Composable:
    moment = sql.SQL("{} AT TIME ZONE 'UTC'" if column.type_name == "timestamptz" else "{}").format(column.identifier)
    text = sql.SQL("""to_char({}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')""").format(moment)
    return sql.SQL("CASE WHEN {} BETWEEN '0001-01-01' AND '9999-12-31' THEN {} END").format(column.identifier, text)
