"""Texts of rows from a template: `"{title}\\n{description}"`."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from seedbed.errors import ConfigError
from seedbed.identity import canonical_value


@dataclass(frozen=True, slots=True)
class Template:
    """`"{title}\\n{description}"`: columns in braces, `{{` is a brace, NULL renders as nothing."""

    parts: tuple[tuple[str, str | None], ...]
    """Pairs of a literal and the column that follows it."""

    @classmethod
    def parse(cls, text: str, setting: str) -> Template:
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(
                f"{text!r}: {error}", setting=setting, hint="a brace itself is written {{ or }}"
            ) from None
        for _, name, spec, conversion in parsed:
            if name is not None and (not name or spec or conversion):
                raise ConfigError(
                    f"{text!r}: braces hold a column's name and nothing else",
                    setting=setting,
                    hint="a brace itself is written {{ or }}",
                )
        return cls(tuple((literal, name) for literal, name, _, _ in parsed))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for _, name in self.parts if name is not None))

    def render(self, rows: pa.RecordBatch) -> list[str]:
        pieces: list[Sequence[str]] = []
        for literal, name in self.parts:
            if literal:
                pieces.append([literal] * len(rows))
            if name is not None:
                pieces.append(as_text(rows.column(name)))
        return ["".join(row) for row in zip(*pieces, strict=True)] if pieces else [""] * len(rows)


def as_text(column: pa.Array) -> list[str]:
    """Each value in its one fixed form: numbers plain, timestamps RFC 3339 UTC, lists as JSON, NULL as ''."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = pc.cast(column, pa.string())
    values: list[Any] = column.to_pylist()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return ["" if value is None else value for value in values]
    if pa.types.is_nested(column.type):
        return ["" if value is None else orjson.dumps(value).decode() for value in values]
    return ["" if value is None else canonical_value(value) for value in values]
