"""From rows in key order to pages: keys and positions, duplicates, soft deletes, and what each page covers.

Sources hand over `Chunk`s; equal keys may stand in one chunk or on both sides of a boundary, live rows
before soft-deleted ones. One chunk is read ahead, so a page knows whether its last key goes on.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seedbed.batch import numbers_of
from seedbed.errors import Fatal
from seedbed.identity import KeyRange
from seedbed.protocols import Page

DUPLICATE = "several rows have this key: make it unique, or name more key columns"
_ESCAPED = '["\\\\\\x00-\\x1f]'


@dataclass(slots=True)
class Chunk:
    """Rows in ascending order of `positions`, as parallel lists; `rows` as asked for.

    `gone` flags soft-deleted rows, `bad` gives the reason of rows that cannot be used by their number.
    `keyless` are the reasons of rows that have no usable key (they are in no list).
    """

    keys: list[str]
    positions: list[bytes]
    rows: pa.RecordBatch
    gone: list[bool] | None = None
    bad: dict[int, str] = field(default_factory=dict)
    keyless: list[tuple[str, str]] = field(default_factory=list)
    """(what is known of the key, reason)"""


# --- keys -------------------------------------------------------------------------------------------


def encode_keys(columns: Sequence[pa.Array]) -> tuple[list[str], list[bytes]]:
    """Canonical keys and positions of rows by their key columns: int64 (kind `int`) or string (kind `text`).

    Equal to identity.encode_key and identity.position, in bulk. Raises nothing for valid UTF-8 without nulls.
    """
    texts = [column.cast(pa.string()) for column in columns]
    last = len(columns) - 1
    parts = [_positions(column, final=number == last) for number, column in enumerate(columns)]
    positions = parts[0] if last == 0 else [b"".join(row) for row in zip(*parts, strict=True)]
    return _keys(texts), positions


def _keys(texts: list[pa.Array]) -> list[str]:
    if any(pc.any(pc.match_substring_regex(text, _ESCAPED)).as_py() for text in texts):
        rows = zip(*(text.to_pylist() for text in texts), strict=True)
        return [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    rows = zip(*(text.to_pylist() for text in texts), strict=True)
    return ['["' + '","'.join(row) + '"]' for row in rows]


def _positions(column: pa.Array, *, final: bool) -> list[bytes]:
    if pa.types.is_integer(column.type):
        biased = numbers_of(column.cast(pa.int64())).view(np.uint64) ^ np.uint64(1 << 63)
        raw: list[bytes] = biased.astype(">u8").view("V8").tolist()
        return raw
    texts: list[bytes] = column.cast(pa.binary()).to_pylist()
    return texts if final else [text.replace(b"\0", b"\0\xff") + b"\0\0" for text in texts]


def parts_of(position: bytes, kinds: Sequence[str]) -> list[str]:
    """The key parts that identity.position made these bytes of. Raises UnicodeDecodeError for others."""
    parts, at = [], 0
    for number, kind in enumerate(kinds):
        if kind == "int":
            parts.append(str(struct.unpack_from(">Q", position, at)[0] - (1 << 63)))
            at += 8
            continue
        end = len(position) if number == len(kinds) - 1 else _end_of_text(position, at)
        raw = position[at:end]
        parts.append((raw if end == len(position) else raw.replace(b"\0\xff", b"\0")).decode())
        at = end + 2
    return parts


def _end_of_text(position: bytes, start: int) -> int:
    at = position.index(b"\0", start)
    while position[at + 1] == 0xFF:
        at = position.index(b"\0", at + 2)
    return at


# --- pages ------------------------------------------------------------------------------------------


def pages(chunks: Iterable[Chunk], within: KeyRange | None, *, complete: bool) -> Iterator[Page]:
    """Pages of chunks. With `complete`, the chunks are all rows of `within` and the pages cover it without a gap.

    Raises Fatal where rows do not come in the order of their positions: a ledger could not be compared.
    """
    bounds = within or KeyRange()
    after, previous, number = bounds.after, None, 0
    for chunk, following in _with_next(chunks):
        last = chunk.positions[-1] if chunk.positions else after
        upto = bounds.upto if following is None else last
        continued = following.positions[0] if following is not None and _live_first(following) else None
        covers = KeyRange(after, upto) if complete else None
        yield _page(chunk, previous, continued, covers, number)
        after, previous, number = last, last if chunk.positions else previous, number + len(chunk.keyless)


def _with_next(chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Chunk | None]]:
    """Each chunk with the one after it; a chunk without positions is joined to its neighbour's turn as it is."""
    iterator = iter(chunks)
    current = next(iterator, None)
    while current is not None:
        following = next(iterator, None)
        yield current, following
        current = following


def take(rows: pa.RecordBatch, index: pa.Array) -> pa.RecordBatch:
    """The rows of these numbers; Arrow cannot take from a batch of no columns."""
    return rows.take(index) if rows.num_columns else rows


def _live_first(chunk: Chunk) -> bool:
    return bool(chunk.positions) and not (chunk.gone and chunk.gone[0])


def _page(chunk: Chunk, previous: bytes | None, continued: bytes | None, covers: KeyRange | None, number: int) -> Page:
    """`previous` is the last position of the page before; `continued` the next chunk's first, if that row is live."""
    keys, positions = chunk.keys, chunk.positions
    failed: dict[str, tuple[bytes | None, str]] = {
        f"{shown} #{number + i}": (None, reason) for i, (shown, reason) in enumerate(chunk.keyless, 1)
    }
    page = Page(keys, positions, chunk.rows, covers, [], failed)
    plain = not chunk.bad and not (chunk.gone and any(chunk.gone))
    if plain and _strictly_ascending(positions, previous) and (not positions or positions[-1] != continued):
        return page
    return _sift(chunk, previous, continued, page)


def _strictly_ascending(positions: list[bytes], previous: bytes | None) -> bool:
    if not positions:
        return True
    _check_order(positions, previous)
    return positions[0] != previous and len(set(positions)) == len(positions)


def _check_order(positions: list[bytes], previous: bytes | None) -> None:
    # Sorting what is sorted costs one comparison a row.
    if sorted(positions) != positions or (previous is not None and positions[0] < previous):
        raise Fatal(
            "the source did not answer in the order of its keys, so it cannot be compared with the ledger",
            setting="source.key",
            hint="cast the key columns to text in a query",
        )


def _sift(chunk: Chunk, previous: bytes | None, continued: bytes | None, page: Page) -> Page:
    """Takes out bad, duplicate and soft-deleted rows."""
    keys, positions = chunk.keys, chunk.positions
    _check_order(positions, previous)
    gone = chunk.gone or [False] * len(keys)
    good: list[int] = []
    end = 0
    for start in range(len(keys)):
        if start < end:
            continue
        end = start + 1
        while end < len(keys) and positions[end] == positions[start]:
            end += 1
        if positions[start] == previous:
            continue  # the page before has judged this key
        live = sum(not gone[row] for row in range(start, end)) + (end == len(keys) and positions[start] == continued)
        if live > 1:
            page.failed[keys[start]] = (positions[start], DUPLICATE)
        elif live == 0:
            page.deleted.append((keys[start], positions[start]))
        elif start in chunk.bad:
            page.failed[keys[start]] = (positions[start], chunk.bad[start])
        else:
            good.append(start)
    rows = take(chunk.rows, pa.array(good, pa.int64()))
    return Page([keys[i] for i in good], [positions[i] for i in good], rows, page.covers, page.deleted, page.failed)
