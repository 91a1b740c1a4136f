"""What a row becomes: its contents rendered from what the pipeline declares, its payload, and the hashes of both.

The recipe's digest (the chunker and its settings) enters each row's content hash, so a changed recipe
changes just the rows whose hash differs. Prices, payload lists and names do not enter it.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from seedbed.batch import payload_column, payload_schema
from seedbed.content import Content
from seedbed.declaration import ContentConfig
from seedbed.errors import ConfigError, RowError
from seedbed.identity import content_hash, named_content_hash
from seedbed.protocols import UNNAMED
from seedbed.rendering import Ingredient, MediaColumn, Rendering, Stamps, render
from seedbed.template import Template

TEXT_FIELD = pa.field("_text", pa.string())
"""Where `store_text` keeps the chunk's text."""
MODALITY_FIELD = pa.field("_modality", pa.string())
"""Of what kinds a point was made (`image`, `image+text`), where a pipeline has pictures or video."""


def no_media(places: Sequence[str]) -> dict[str, bytes | RowError]:
    """Stamps of a recipe that may read nothing."""
    return {place: RowError(f"{place!r} is not read here") for place in places}


@dataclass(frozen=True, slots=True)
class Rendered:
    """What rows become: for each vector's name, in the recipe's order, a content a row."""

    named: tuple[Rendering, ...]
    skipped: set[int]
    """Rows that have nothing to embed."""
    refused: dict[int, str]
    """Rows that lack a content or part which they must have, or whose media cannot be had: row → reason."""

    def contents(self, rows: Sequence[int]) -> list[tuple[Content, ...]]:
        """Of these rows, one content a name; an empty one has no vector."""
        return [tuple(rendering.content(row) for rendering in self.named) for row in rows]


class Recipe:
    """Renders and hashes rows. `contents` say what each named vector is made from, or the one without a name.

    Raises ConfigError for columns that the source does not have, or not usably.
    """

    def __init__(
        self,
        contents: Mapping[str, ContentConfig],
        source: pa.Schema,
        chunker_digest: bytes = b"",
        stamps: Stamps = no_media,
    ) -> None:
        self.names = tuple(sorted(contents))
        self._contents = [contents[name] for name in self.names]
        self._ingredients = [_ingredients(contents[name], name, source) for name in self.names]
        self._stamps = stamps
        self._chunker = chunker_digest
        said = {name: _said(config) for name, config in contents.items()}
        only = said.get(UNNAMED)
        words = only if isinstance(only, str) else orjson.dumps(said, option=orjson.OPT_SORT_KEYS).decode()
        self.fingerprint = hashlib.sha256(b"%s\0%s" % (chunker_digest, words.encode())).hexdigest()

    @property
    def columns(self) -> list[str]:
        named = (ingredient for ingredients in self._ingredients for ingredient in ingredients)
        each = (one.columns if isinstance(one, Template) else [one.name] for one in named)
        return list(dict.fromkeys(name for names in each for name in names))

    @property
    def media(self) -> list[MediaColumn]:
        return [one for found in self._ingredients for one in found if isinstance(one, MediaColumn)]

    @property
    def missing_fails(self) -> tuple[bool, ...]:
        """By the vector's name: whether a row that lacks a part is refused."""
        return tuple(config.missing_part == "fail" for config in self._contents)

    def render(self, rows: pa.RecordBatch) -> Rendered:
        named = tuple(
            render(rows, ingredients, missing_fails=fails, stamps=self._stamps)
            for ingredients, fails in zip(self._ingredients, self.missing_fails, strict=True)
        )
        refused: dict[int, str] = {}
        empty = [rendering.empty() for rendering in named]
        for name, config, rendering, missing in zip(self.names, self._contents, named, empty, strict=True):
            refused.update(rendering.refused)
            if missing and config.empty == "fail":
                reason = f"its content {name!r} is empty" if name else "its content is empty"
                refused.update(dict.fromkeys(sorted(missing), reason))
        return Rendered(named, set.intersection(*empty) - refused.keys(), refused)

    def hashes(self, rendered: Rendered) -> list[bytes]:
        """identity.content_hash of each row's content, identity.named_content_hash of several."""
        canonical = [rendering.canonical() for rendering in rendered.named]
        if self.names == (UNNAMED,):
            return [content_hash(self._chunker, content) for content in canonical[0]]
        return [named_content_hash(dict(zip(self.names, row, strict=True))) for row in zip(*canonical, strict=True)]


def _said(config: ContentConfig) -> Any:
    """The parts as they are declared; of text alone just its template, which is what fingerprints have always been."""
    if config.parts == ("text",):
        return config.text
    return [[kind, getattr(config, kind)] for kind in config.parts]


def _ingredients(config: ContentConfig, name: str, source: pa.Schema) -> list[Ingredient]:
    found: list[Ingredient] = []
    for kind in config.parts:
        setting = f"content.{name}.{kind}" if name else f"content.{kind}"
        said = getattr(config, kind)
        if kind == "text":
            found.append(_template(said, setting, source))
        else:
            columns = [said] if isinstance(said, str) else said
            found += [_media_column(MediaColumn(kind, column), setting, source) for column in columns]
    return found


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column of that type holds media themselves."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _media_column(column: MediaColumn, setting: str, source: pa.Schema) -> MediaColumn:
    kind = column_of(source, column.name, setting).type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    fits = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(fit(kind) for fit in fits):
        raise ConfigError(
            f"column {column.name!r} of type {kind} holds no {column.modality}",
            setting=setting,
            hint="name a column of bytes, or of text with paths or URLs, or of lists of them",
        )
    return column


def _template(text: str, setting: str, source: pa.Schema) -> Template:
    template = Template.parse(text, setting)
    for column in template.columns:
        kind = column_of(source, column, setting).type
        if is_bytes(kind):
            raise ConfigError(
                f"column {column!r} holds bytes, which are no text",
                setting=setting,
                hint="decode it in the source: query = \"select …, convert_from(column, 'UTF8') …\"",
            )
    return template


class PayloadRecipe:
    """One sink's payload: which columns, their canonical types, and the hash of each row's values."""

    def __init__(self, names: list[str], source: pa.Schema, *, store_text: bool, modality: bool = False) -> None:
        for name in names:
            column_of(source, name, "sink.payload")
        plain = payload_schema(source, names)
        self._plain = plain
        self.schema = pa.schema([*plain, *[TEXT_FIELD] * store_text, *[MODALITY_FIELD] * modality])
        self.store_text, self.modality = store_text, modality
        self._base = hashlib.sha256(orjson.dumps([(f.name, str(f.type)) for f in self.schema]))

    def columns(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """The payload columns of the rows (without `_text` and `_modality`), in their canonical types."""
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
