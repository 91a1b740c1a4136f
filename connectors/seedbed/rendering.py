"""Rows' contents, rendered: for each named vector what its parts are, with stamps in place of media not yet here."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from seedbed.content import Content, Image, Modality, Part, Reference, Text, Video
from seedbed.errors import RowError
from seedbed.media.dataurl import of_data_url
from seedbed.media.errors import Missing
from seedbed.template import Template

Stamps = Callable[[Sequence[str]], Mapping[str, bytes | RowError]]
"""media.library.Library.stamps."""
_LENGTH = struct.Struct("<Q").pack


class Rendering(Protocol):
    """One content of each of some rows."""

    refused: dict[int, str]
    """Rows that cannot have it: row → reason."""

    def empty(self) -> set[int]: ...
    def content(self, row: int) -> Content: ...
    def canonical(self) -> list[bytes]:
        """Of each row, as Content.canonical."""
        ...


@dataclass(slots=True)
class Texts:
    """Contents of text alone: most are, and every row of every run comes by here."""

    texts: list[str]
    refused: dict[int, str] = field(default_factory=dict)

    def empty(self) -> set[int]:
        return {row for row, text in enumerate(self.texts) if not text or text.isspace()}

    def content(self, row: int) -> Content:
        return Content((Text(self.texts[row]),))

    def canonical(self) -> list[bytes]:
        return [b"T" + _LENGTH(len(raw)) + raw for raw in map(str.encode, self.texts)]


@dataclass(slots=True)
class Mixtures:
    """Contents with media."""

    contents: list[Content]
    refused: dict[int, str]

    def empty(self) -> set[int]:
        return {row for row, content in enumerate(self.contents) if content.empty}

    def content(self, row: int) -> Content:
        return self.contents[row]

    def canonical(self) -> list[bytes]:
        return [content.canonical() for content in self.contents]


@dataclass(frozen=True, slots=True)
class MediaColumn:
    """A column of pictures or videos: bytes, or text that says where they lie; a list of either."""

    modality: Modality
    name: str


Ingredient = Template | MediaColumn


def render(
    rows: pa.RecordBatch, ingredients: Sequence[Ingredient], *, missing_fails: bool, stamps: Stamps
) -> Rendering:
    """`missing_fails`: a row that lacks one of several parts is refused; else it goes without."""
    if len(ingredients) == 1 and isinstance(only := ingredients[0], Template):
        return Texts(only.render(rows))
    columns = [_parts(rows, ingredient, stamps) for ingredient in ingredients]
    refused: dict[int, str] = {}
    contents = []
    for row, found in enumerate(zip(*columns, strict=True)):
        parts = tuple(part for cell in found for part in cell.parts)
        wrong = next((cell.wrong for cell in found if cell.wrong), None)
        lacking = next((cell.lacking for cell in found if cell.lacking), None)
        if wrong or (missing_fails and lacking and parts):
            refused[row] = wrong or lacking or ""
        contents.append(Content(parts))
    return Mixtures(contents, refused)


@dataclass(slots=True)
class _Cell:
    """What one row has of one ingredient. `lacking` says that a part is missing, `wrong` that one cannot be had."""

    parts: list[Part] = field(default_factory=list)
    lacking: str = ""
    wrong: str = ""


def _parts(rows: pa.RecordBatch, ingredient: Ingredient, stamps: Stamps) -> list[_Cell]:
    if isinstance(ingredient, Template):
        return [
            _Cell([Text(text)]) if text and not text.isspace() else _Cell(lacking="its text is missing")
            for text in ingredient.render(rows)
        ]
    values = [_listed(value) for value in rows.column(ingredient.name).to_pylist()]
    known = stamps([value for found in values for value in found if isinstance(value, str) and not _is_data(value)])
    return [_cell(found, ingredient, known) for found in values]


def _cell(values: list[Any], column: MediaColumn, known: Mapping[str, bytes | RowError]) -> _Cell:
    cell = _Cell()
    if not values:
        cell.lacking = f"its {column.modality} is missing: {column.name} is empty"
    for value in values:
        try:
            cell.parts.append(_part(value, column.modality, known))
        except Missing as error:
            cell.lacking = f"its {column.modality} is missing: {error.message}"
        except RowError as error:
            cell.wrong = f"{column.name}: {error.message}"
    return cell


def _part(value: Any, modality: Modality, known: Mapping[str, bytes | RowError]) -> Part:
    made = Image if modality == "image" else Video
    if isinstance(value, bytes):
        return made(value)
    if _is_data(value):
        return made(of_data_url(value) or b"")
    stamp = known[value]
    if isinstance(stamp, RowError):
        raise stamp
    return Reference(modality, value, hashlib.sha256(stamp).digest())


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [item.strip() if isinstance(item, str) else item for item in value if item]
    if isinstance(value, str):
        value = value.strip()
    return [value] if value else []


def _is_data(value: Any) -> bool:
    return isinstance(value, str) and value[:5].lower() == "data:"
