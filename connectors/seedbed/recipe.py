"""What a row becomes: its content rendered from the template, its payload, and the hashes of both.

The recipe's digest (the chunker and its settings) enters each row's content hash, so a changed recipe
changes just the rows whose hash differs. Prices, payload lists and names do not enter it.
"""

from __future__ import annotations

import difflib
import hashlib
import string
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from seedbed.batch import payload_column, payload_schema
from seedbed.content import Content, Text
from seedbed.errors import ConfigError
from seedbed.identity import canonical_value
from seedbed.protocols import UNNAMED

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


@dataclass(frozen=True, slots=True)
class Rendered:
    """What rows become: for each vector's name, in the recipe's order, one text a row."""

    texts: tuple[list[str], ...]
    skipped: set[int]
    """Rows that have nothing to embed."""
    refused: dict[int, str]
    """Rows that lack a content which they must have: row → reason."""

    def contents(self, rows: Sequence[int]) -> list[tuple[Content, ...]]:
        """Of these rows, one content a name; an empty one has no vector."""
        return [tuple(Content((Text(texts[row]),)) for texts in self.texts) for row in rows]


class Recipe:
    """Renders and hashes rows. `texts` are templates by the vector's name, one without a name or several named ones;
    a row without the content of one in `required` is refused.

    Raises ConfigError for columns that the source does not have, or not usably.
    """

    def __init__(
        self,
        texts: Mapping[str, str],
        source: pa.Schema,
        chunker_digest: bytes = b"",
        required: Collection[str] = (),
    ) -> None:
        self.names = tuple(sorted(texts))
        self._templates = [_template(texts[name], name, source) for name in self.names]
        self._required = required
        self._chunker = chunker_digest
        said = texts.get(UNNAMED) or orjson.dumps(texts, option=orjson.OPT_SORT_KEYS).decode()
        self.fingerprint = hashlib.sha256(b"%s\0%s" % (chunker_digest, said.encode())).hexdigest()

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for template in self._templates for name in template.columns))

    def render(self, rows: pa.RecordBatch) -> Rendered:
        texts = tuple(template.render(rows) for template in self._templates)
        empty = [{row for row, text in enumerate(found) if not text or text.isspace()} for found in texts]
        refused: dict[int, str] = {}
        for name, missing in zip(self.names, empty, strict=True):
            if missing and name in self._required:
                reason = f"its content {name!r} is empty" if name else "its content is empty"
                refused.update(dict.fromkeys(sorted(missing), reason))
        return Rendered(texts, set.intersection(*empty) - refused.keys(), refused)

    def hashes(self, rendered: Rendered) -> list[bytes]:
        """identity.content_hash of each row's content, identity.named_content_hash of several. The frames are
        written out, since every row of every run comes by here."""
        sha256, pack = hashlib.sha256, struct.Struct("<Q").pack
        if len(self.names) == 1 and self.names[0] == UNNAMED:
            head = self._chunker + b"T"
            return [sha256(head + pack(len(raw)) + raw).digest() for raw in map(str.encode, rendered.texts[0])]
        heads = [b"N" + pack(len(raw)) + raw for raw in map(str.encode, self.names)]
        hashes = []
        for row in zip(*rendered.texts, strict=True):
            digest = sha256()
            for head, text in zip(heads, row, strict=True):
                raw = text.encode()
                digest.update(head + pack(len(raw) + 9) + b"T" + pack(len(raw)) + raw)
            hashes.append(digest.digest())
        return hashes


def _template(text: str, name: str, source: pa.Schema) -> Template:
    setting = f"content.{name}.text" if name else "content.text"
    template = Template.parse(text, setting)
    for column in template.columns:
        kind = column_of(source, column, setting).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ConfigError(
                f"column {column!r} holds bytes, which are no text",
                setting=setting,
                hint="decode it in the source: query = \"select …, convert_from(column, 'UTF8') …\"",
            )
    return template


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
