"""What things are called, for ever: keys, positions, point ids, hashes, spaces. Golden files pin them all.

A *key* is the canonical JSON array of the key columns' values as strings. A *position* is the same key
as bytes whose order is the source's order, so that a ledger and a source can be walked side by side:
integers as 8 big-endian bytes with the sign bit flipped, all else as UTF-8 (each part but the last ended
by 00 00, a zero inside written 00 FF). Dates, UUIDs, timestamps, booleans and hex are of fixed width or
prefix-free in that form, so their text order is their natural order.
"""

from __future__ import annotations

import hashlib
import json
import struct
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

from seedbed.errors import ConfigError, RowError

SEEDBED_NAMESPACE = uuid.UUID("6a1f9d5e-3c1b-5e0a-9d6f-5eedbed05eed")
KINDS = ("int", "text")

_INT64 = struct.Struct(">Q")
_BIAS = 1 << 63


# --- keys -------------------------------------------------------------------------------------------


def canonical_value(value: object) -> str:
    """One key value as its fixed text. Raises RowError for None, floats, and types without a fixed form."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case uuid.UUID():
            return str(value)
        case bytes():
            return value.hex()
        case datetime():
            moment = value if value.tzinfo else value.replace(tzinfo=UTC)
            return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
        case date():
            return value.isoformat()
        case Decimal():
            return format(value, "f")
        case None:
            raise RowError("a key column is NULL", hint="give every row a key, or leave such rows out with `where`")
        case _:
            raise RowError(
                f"a key of type {type(value).__name__} has no fixed text form",
                hint="name a key of integer, text, uuid, date, timestamp, decimal or bytes columns",
            )


def canonical_key(values: Iterable[object]) -> str:
    """`["42"]`, `["eu","7"]`: compact JSON, no ASCII escapes."""
    return encode_key([canonical_value(value) for value in values])


def encode_key(parts: Sequence[str]) -> str:
    return json.dumps(list(parts), ensure_ascii=False, separators=(",", ":"))


def key_parts(key: str) -> list[str]:
    parts: list[str] = json.loads(key)
    return parts


def show_key(key: str) -> str:
    """As people read it: one column plainly, several as the JSON array."""
    parts = key_parts(key)
    return parts[0] if len(parts) == 1 else key


def read_key(shown: str, columns: int) -> str:
    """The inverse of `show_key`. Raises ConfigError where the number of parts does not fit."""
    if columns == 1:
        return encode_key([shown])
    try:
        parts = json.loads(shown)
    except ValueError:
        parts = None
    if not isinstance(parts, list) or len(parts) != columns:
        raise ConfigError(f"{shown!r} is no key of {columns} columns", hint='write it as a JSON array: \'["eu", "7"]\'')
    return encode_key([str(part) for part in parts])


def position(parts: Sequence[str], kinds: Sequence[str]) -> bytes:
    """The order-preserving bytes of a key's parts (see the module's docstring)."""
    last = len(parts) - 1
    return b"".join(
        _int_position(part) if kind == "int" else _text_position(part, final=number == last)
        for number, (part, kind) in enumerate(zip(parts, kinds, strict=True))
    )


def _int_position(part: str) -> bytes:
    number = int(part)
    if not -_BIAS <= number < _BIAS:
        raise RowError(f"the key {part} does not fit 64 bits", hint="cast the key column to text")
    return _INT64.pack(number + _BIAS)


def _text_position(part: str, *, final: bool) -> bytes:
    raw = part.encode()
    return raw if final else raw.replace(b"\0", b"\0\xff") + b"\0\0"


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Positions `after` (exclusive, None: from the start) to `upto` (inclusive, None: to the end)."""

    after: bytes | None = None
    upto: bytes | None = None

    def holds(self, position: bytes) -> bool:
        return (self.after is None or position > self.after) and (self.upto is None or position <= self.upto)


def point_id(key: str, chunk: int = 0) -> str:
    """uuid5(SEEDBED_NAMESPACE, key + U+001F + chunk number): the same in all stores."""
    return str(uuid.uuid5(SEEDBED_NAMESPACE, f"{key}\x1f{chunk}"))


# --- hashes -----------------------------------------------------------------------------------------


def content_hash(chunker: bytes, canonical: bytes) -> bytes:
    """SHA-256 of what a row becomes: the chunker's digest (empty without one) and the content's bytes."""
    return hashlib.sha256(chunker + canonical).digest()


def named_content_hash(canonical: Mapping[str, bytes]) -> bytes:
    """The same of a row with several named vectors: by name in order, `N`, the name and the content, each behind
    its length (u64 LE). Another order of the names in a pipeline changes nothing."""
    digest = hashlib.sha256()
    for name, content in sorted(canonical.items()):
        raw = name.encode()
        digest.update(b"N" + struct.pack("<Q", len(raw)) + raw + struct.pack("<Q", len(content)) + content)
    return digest.digest()


def cache_key(space: bytes, kind: str, canonical: bytes) -> bytes:
    """SHA-256(space, document|query, canonical content bytes)."""
    return hashlib.sha256(b"%s\0%s\0%s" % (space, kind.encode(), canonical)).digest()


# --- space ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Space:
    """Vectors of one space are comparable.

    `model` and `revision` (for a path a digest of the weights), `dimensions`, the document-side
    `instruction`, and `profile`: one number per rendering of prompts, images and frames.
    """

    model: str
    revision: str
    dimensions: int
    instruction: str = ""
    profile: int = 1

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.to_json().encode()).digest()

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Space:
        return cls(**json.loads(text))

    def __str__(self) -> str:
        shown = f"{self.model}@{self.revision[:12]} {self.dimensions}-d"
        return shown + (f" instruction {self.instruction!r}" if self.instruction else "") + f" profile {self.profile}"
