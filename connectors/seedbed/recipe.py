"""What a row becomes: its content rendered from the template, its payload, and the hashes of both.

The recipe's digest (the chunker and its settings) enters each row's content hash, so a changed recipe
changes just the rows whose hash differs. Prices, payload lists and names do not enter it.
"""

from __future__ import annotations

import difflib
import hashlib
import string
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from seedbed.batch import payload_column, payload_schema
from seedbed.errors import ConfigError
from seedbed.identity import canonical_value

TEXT_FIELD = pa.field("_text", pa.string())
"""Where `store_text` keeps the chunk's text."""


# --- templates --------------------------------------------------------------------------------------


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


# --- the recipe -------------------------------------------------------------------------------------


class Recipe:
    """Renders and hashes rows. Raises ConfigError for columns that the source does not have, or not usably."""

    def __init__(self, text: str, source: pa.Schema, chunker_digest: bytes = b"") -> None:
        self._template = Template.parse(text, "content.text")
        for name in self._template.columns:
            field = column_of(source, name, "content.text")
            if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
                raise ConfigError(
                    f"column {name!r} holds bytes, which are no text",
                    setting="content.text",
                    hint="decode it in the source: query = \"select …, convert_from(column, 'UTF8') …\"",
                )
        self._chunker = chunker_digest
        self.fingerprint = hashlib.sha256(b"%s\0%s" % (chunker_digest, text.encode())).hexdigest()

    @property
    def columns(self) -> list[str]:
        return self._template.columns

    def texts(self, rows: pa.RecordBatch) -> list[str]:
        return self._template.render(rows)

    def hashes(self, texts: Sequence[str]) -> list[bytes]:
        """identity.content_hash of `Content.of(text)` each; the frame is written out, since every row of every
        run comes by here."""
        head, sha256, pack = self._chunker + b"T", hashlib.sha256, struct.Struct("<Q").pack
        return [sha256(head + pack(len(raw)) + raw).digest() for raw in map(str.encode, texts)]


class PayloadRecipe:
    """One sink's payload: which columns, their canonical types, and the hash of each row's values."""

    def __init__(self, names: list[str], source: pa.Schema, *, store_text: bool) -> None:
        for name in names:
            column_of(source, name, "sink.payload")
        plain = payload_schema(source, names)
        self._plain = plain
        self.schema = plain.append(TEXT_FIELD) if store_text else plain
        self.store_text = store_text
        self._base = hashlib.sha256(orjson.dumps([(f.name, str(f.type)) for f in self.schema]))

    def columns(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """The payload columns of the rows (without `_text`), in their canonical types."""
        return [payload_column(rows.column(field.name), field.type) for field in self._plain]

    def hashes(self, rows: pa.RecordBatch) -> list[bytes]:
        values: list[list[Any]] = [column.to_pylist() for column in self.columns(rows)]
        if not values:
            return [self._base.digest()] * len(rows)
        hashes = []
        for row in zip(*values, strict=True):
            digest = self._base.copy()
            digest.update(orjson.dumps(row))
            hashes.append(digest.digest())
        return hashes


def column_of(source: pa.Schema, name: str, setting: str) -> pa.Field:
    """The source's column of that name. Raises ConfigError with the nearest known one."""
    if name in source.names:
        return source.field(name)
    near = difflib.get_close_matches(name, source.names, n=1)
    raise ConfigError(
        f"the source has no column {name!r}",
        setting=setting,
        hint=f"did you mean {near[0]!r}?" if near else f"its columns: {', '.join(source.names)}",
    )
