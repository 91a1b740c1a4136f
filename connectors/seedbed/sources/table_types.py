"""How a column of a file is read: as which SQL of DuckDB, and which Arrow type comes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from seedbed.errors import ConfigError

_UTC = pa.timestamp("us", tz="UTC")
_ARROW = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "UTINYINT": pa.uint8(),
    "USMALLINT": pa.uint16(),
    "UINTEGER": pa.uint32(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "DATE": pa.date32(),
    "BLOB": pa.binary(),
}
_INTEGERS = frozenset(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"))
_TEXT_KEYS = ("VARCHAR", "UUID", "DATE", "BOOLEAN", "UBIGINT", "HUGEINT")
_KEPT_LISTS = frozenset((*_INTEGERS, "VARCHAR", "FLOAT", "DOUBLE", "BOOLEAN"))


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True, slots=True)
class FileColumn:
    """A column and its DuckDB type, as DESCRIBE writes it."""

    name: str
    type_name: str

    @property
    def arrow(self) -> pa.DataType:
        """Decimals, UUIDs, times and 64-bit unsigned numbers are text; so is what is nested deeper than a list."""
        item = self._item
        if item is not None:
            return pa.list_(_ARROW.get(item, pa.string()))
        if self.type_name.startswith("TIMESTAMP"):
            return _UTC if self._zoned else pa.timestamp("us")
        return _ARROW.get(self.type_name, pa.string())

    @property
    def _zoned(self) -> bool:
        return self.type_name.endswith("ZONE") or self.type_name.startswith("TIMESTAMPTZ")

    @property
    def _item(self) -> str | None:
        found = re.fullmatch(r"(\w+(?: WITH TIME ZONE)?)\[\d*\]", self.type_name)
        return found[1] if found and found[1] in _KEPT_LISTS else None

    @property
    def expression(self) -> str:
        name = quoted(self.name)
        if self._item is not None:
            return f"{name}::{self._item}[]"
        if self.type_name.startswith("TIMESTAMP"):
            return f"{name}::{'TIMESTAMPTZ' if self._zoned else 'TIMESTAMP'}"
        if self.type_name in _ARROW or self.type_name == "VARCHAR":
            return name
        if self.type_name.startswith(("STRUCT", "MAP")) or self.type_name.endswith("]"):
            return f"to_json({name})::VARCHAR"
        return f"{name}::VARCHAR"

    @property
    def kind(self) -> str:
        """Raises ConfigError for a type that has no fixed text form."""
        if self.type_name in _INTEGERS:
            return "int"
        named = self.type_name.startswith(("TIMESTAMP", "DECIMAL", "ENUM"))
        if self.type_name in (*_TEXT_KEYS, "BLOB") or named:
            return "text"
        raise ConfigError(
            f"the key column {self.name!r} is of type {self.type_name}, which has no fixed text form",
            setting="source.key",
            hint="name a key of integer, text, uuid, date, timestamp, decimal or bytes columns",
        )

    @property
    def canonical(self) -> str:
        """The key's canonical text (of an integer the number itself), which also gives the order."""
        name = quoted(self.name)
        if self.kind == "int":
            return f"{name}::BIGINT"
        if self.type_name == "BLOB":
            return f"lower(hex({name}))"
        if self.type_name.startswith("TIMESTAMP"):
            utc = f"timezone('UTC', {self.expression})" if self._zoned else self.expression
            return _in_range(utc, f"strftime({utc}, '%Y-%m-%dT%H:%M:%S.%fZ')")
        if self.type_name == "DATE":
            return _in_range(name, f"{name}::VARCHAR")
        return f"{name}::VARCHAR"


def _in_range(name: str, text: str) -> str:
    return f"CASE WHEN year({name}) BETWEEN 1 AND 9999 THEN {text} END"
