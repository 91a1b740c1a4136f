"""What one vector is made from.

A `Content` is a sequence of parts in order, fused into ONE vector. Today a part is text; pictures and
video join the same union.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["document", "query"]
"""Which tower of the dual tower: documents are stored, queries search them."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str

    def canonical(self) -> bytes:
        return b"T" + _framed(self.text.encode())


Part = Text


@dataclass(frozen=True, slots=True)
class Content:
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, *parts: str | Part) -> Content:
        """`Content.of("words")`; strings become `Text`."""
        return cls(tuple(Text(part) if isinstance(part, str) else part for part in parts))

    @property
    def text(self) -> str:
        """The text parts joined by newlines."""
        if len(self.parts) == 1:
            return self.parts[0].text
        return "\n".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def empty(self) -> bool:
        """True where there is nothing to embed: no part, or only white space."""
        return not self.text.strip()

    def canonical(self) -> bytes:
        """The bytes that hashes are made from: each part as a letter, its length (u64 LE) and its bytes.

        Raises UnicodeEncodeError where a text holds a lone surrogate.
        """
        return b"".join(part.canonical() for part in self.parts)


def _framed(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def texts(contents: Sequence[Content]) -> list[str]:
    return [content.text for content in contents]
