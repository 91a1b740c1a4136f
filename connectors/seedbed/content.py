"""What one vector is made from.

A `Content` is a sequence of parts in order, text, pictures and video, fused into ONE vector. Media parts hold the
bytes of an encoded file (PNG, JPEG, MP4, …): decoding is the embedder's, since each model has a size of its own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

Kind = Literal["document", "query"]
"""Which tower of the dual tower: documents are stored, queries search them."""
Modality = Literal["text", "image", "video"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "video")


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    modality: ClassVar[Modality] = "text"

    def canonical(self) -> bytes:
        return b"T" + _framed(self.text.encode())


@dataclass(frozen=True, slots=True)
class _Media:
    """`data` is a whole file as it is stored; `digest` its SHA-256."""

    data: bytes = field(repr=False)
    digest: bytes = field(default=b"", repr=False)
    modality: ClassVar[Modality]

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", hashlib.sha256(self.data).digest())

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A file that the caller trusts. Raises OSError."""
        return cls(Path(path).read_bytes())

    def canonical(self) -> bytes:
        """Media count by their bytes' digest, so that a hash needs no second look at them."""
        return canonical_media(self.modality, self.digest)


@dataclass(frozen=True, slots=True)
class Image(_Media):
    modality: ClassVar[Modality] = "image"


@dataclass(frozen=True, slots=True)
class Video(_Media):
    modality: ClassVar[Modality] = "video"


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture or video that is not here yet: the `place` where it lies, and a `stamp` (32 bytes) that changes when
    its bytes may have. Contents with one are compared, not embedded."""

    modality: Modality
    place: str
    stamp: bytes = field(repr=False)

    def canonical(self) -> bytes:
        return canonical_media(self.modality, self.stamp)


Part = Text | Image | Video | Reference


@dataclass(frozen=True, slots=True)
class Content:
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, *parts: str | Part) -> Content:
        """`Content.of("words", Image.read("cat.jpg"))`; strings become `Text`."""
        return cls(tuple(Text(part) if isinstance(part, str) else part for part in parts))

    @property
    def text(self) -> str:
        """The text parts joined by newlines."""
        if len(self.parts) == 1 and isinstance(only := self.parts[0], Text):
            return only.text
        return "\n".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def media(self) -> tuple[Image | Video, ...]:
        """Pictures and videos, in order."""
        return tuple(part for part in self.parts if isinstance(part, Image | Video))

    @property
    def modality(self) -> str:
        """Of what kinds it is: `text`, `image`, `image+text`, …"""
        return modality_of(part.modality for part in self.parts)

    @property
    def empty(self) -> bool:
        """True where there is nothing to embed: no part, or only white space."""
        return all(isinstance(part, Text) and not part.text.strip() for part in self.parts)

    def canonical(self) -> bytes:
        """The bytes that hashes are made from: each part as a letter, its length (u64 LE) and its bytes; of a picture
        or video the bytes' SHA-256.

        Raises UnicodeEncodeError where a text holds a lone surrogate.
        """
        return b"".join(part.canonical() for part in self.parts)


def canonical_media(modality: str, digest: bytes) -> bytes:
    """`I` or `V`, and what stands for the file."""
    return modality[:1].upper().encode() + _framed(digest)


def modality_of(kinds: Iterable[str]) -> str:
    """Kinds in the alphabet's order, each once: `image+text`."""
    return "+".join(sorted(set(kinds)))


def _framed(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data
