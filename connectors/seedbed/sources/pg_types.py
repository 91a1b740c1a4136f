"""How a Postgres column is read: as which SQL, into which Arrow type, and with which key form and order.

Rows travel as COPY's CSV, so each expression is a value's text form under the session settings of pg_session.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from psycopg import sql

from seedbed.errors import ConfigError

Decode = Literal["plain", "hex", "list"]
KeyForm = Literal["int", "text", "text_cast", "raw", "bytes", "date", "timestamp", "timestamptz"]

_UTC = pa.timestamp("us", tz="UTC")
_ARROW = {
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "oid": pa.int64(),
    # Postgres writes the shortest text that reads back the same, so a float4's 0.1 stays 0.1 as a double.
    "float4": pa.float64(),
    "float8": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": _UTC,
    "bytea": pa.binary(),
}
_ITEMS = {"int2": pa.int64(), "int4": pa.int64(), "int8": pa.int64(), "float4": pa.float64(), "float8": pa.float64()}
_KEY_FORMS: dict[str, KeyForm] = {
    "int2": "int",
    "int4": "int",
    "int8": "int",
    "text": "text",
    "varchar": "text",
    "name": "text_cast",
    "bpchar": "text_cast",
    "citext": "text_cast",
    "numeric": "text_cast",
    "uuid": "raw",
    "bool": "raw",
    "bytea": "bytes",
    "date": "date",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
}
INDEXABLE: frozenset[KeyForm] = frozenset(("int", "text", "raw", "bytes"))
"""Key forms whose index order is the positions' order for every value (of text: in a bytewise collation)."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a relation. `type_name` is pg_type.typname, of an array its element's in `item`.

    `bytewise`: its own collation already orders by bytes.
    """

    name: str
    type_name: str
    item: str | None = None
    enum: bool = False
    bytewise: bool = False

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.name)

    @property
    def arrow(self) -> pa.DataType:
        if self.item is not None:
            return pa.list_(_ITEMS.get(self.item, pa.string()))
        return _ARROW.get(self.type_name, pa.string())

    @property
    def decode(self) -> Decode:
        if self.item is not None:
            return "list"
        return "hex" if self.type_name == "bytea" else "plain"

    @property
    def expression(self) -> sql.Composable:
        if self.item is not None:
            return sql.SQL("array_to_json({}::text[])::text").format(self.identifier)
        match self.type_name:
            case "bytea":
                return sql.SQL("encode({}, 'hex')").format(self.identifier)
            case "json":
                # One fixed form; jsonb alone refuses an escaped NUL, and that row must not stop the others.
                return sql.SQL(
                    "CASE WHEN strpos({0}::text, '\\u0000') > 0 THEN {0}::text ELSE {0}::jsonb::text END"
                ).format(self.identifier)
            case "bpchar":
                return sql.SQL("{}::text").format(self.identifier)
            case _:
                return self.identifier

    @property
    def key_form(self) -> KeyForm:
        """Raises ConfigError for types that have no fixed text form."""
        form = "text_cast" if self.enum else _KEY_FORMS.get(self.type_name) if self.item is None else None
        if form is None:
            raise ConfigError(
                f"the key column {self.name!r} is of type {self.type_name}, which has no fixed text form",
                setting="source.key",
                hint="name a key of integer, text, uuid, date, timestamp, decimal or bytes columns, "
                "or cast it in a query",
            )
        return form

    @property
    def kind(self) -> str:
        return "int" if self.key_form == "int" else "text"


_TO_CHAR = """'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""


class KeyColumn:
    """A key column's SQL: its canonical text, the expression that orders it as positions, and literals of that."""

    def __init__(self, column: Column, *, encoding: str) -> None:
        self.column = column
        self.form = column.key_form
        # Bytes order as code points in UTF-8 and Latin-1 (and SQL_ASCII is taken for UTF-8); in others not.
        self._unchecked = encoding == "SQL_ASCII"
        self._reencode = self.form in ("text", "text_cast") and encoding not in ("UTF8", "LATIN1", "SQL_ASCII")

    @property
    def canonical(self) -> sql.Composable:
        name = self.column.identifier
        match self.form:
            case "int" | "text":
                return name
            case "bytes":
                return sql.SQL("encode({}, 'hex')").format(name)
            case "date":
                return _in_range(name, sql.SQL("{}::text").format(name))
            case "timestamp":
                return _in_range(name, sql.SQL("to_char({}, " + _TO_CHAR + ")").format(name))
            case "timestamptz":
                return _in_range(name, sql.SQL("to_char({} AT TIME ZONE 'UTC', " + _TO_CHAR + ")").format(name))
            case _:
                return sql.SQL("{}::text").format(name)

    @property
    def order(self) -> sql.Composable:
        name = self.column.identifier
        if self._reencode:
            return sql.SQL("convert_to({}::text, 'UTF8')").format(name)
        match self.form:
            case "text":
                return name if self.column.bytewise else sql.SQL('{} COLLATE "C"').format(name)
            case "text_cast":
                return sql.SQL('({}::text COLLATE "C")').format(name)
            case _:
                return name

    @property
    def indexable(self) -> bool:
        """Whether an index of the column gives the positions' order, and each of its keys has a position."""
        if self.form == "text" and (self._reencode or self._unchecked or not self.column.bytewise):
            return False
        return self.form in INDEXABLE

    def looked_up(self, part: sql.Composable) -> tuple[sql.Composable, sql.Composable]:
        """The column and a canonical part (an expression of text) as what to compare, both in the column's own type
        where an index may help."""
        name, kind = self.column.identifier, self.column.type_name
        match self.form:
            case "int":
                return name, sql.SQL("{}::int8").format(part)
            case "text":
                return name, part
            case "text_cast" if kind not in ("numeric", "bpchar", "name"):
                return sql.SQL("{}::text").format(name), part
            case "bytes":
                return name, sql.SQL("decode({}, 'hex')").format(part)
            case _:
                return name, sql.SQL("{}::" + kind).format(part)

    def literal(self, part: str) -> sql.Composable:
        """A canonical part as a value to compare with `order`."""
        text = sql.Literal(part)
        if self._reencode:
            return sql.SQL("convert_to({}, 'UTF8')").format(text)
        match self.form:
            case "int":
                return sql.SQL("({})").format(sql.SQL(str(int(part))))
            case "text" | "text_cast":
                return text
            case "bytes":
                return sql.SQL("decode({}, 'hex')").format(text)
            case "raw":
                return sql.SQL("{}::" + self.column.type_name).format(text)
            case form:
                return sql.SQL("{}::" + form).format(text)


def _in_range(name: sql.Composable, text: sql.Composable) -> sql.Composable:
    # Years before 1 and after 9999, and infinity, have no canonical form: NULL marks the row.
    return sql.SQL("CASE WHEN {} BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999' THEN {} END").format(name, text)
