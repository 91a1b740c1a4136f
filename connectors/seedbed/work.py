"""Rows that are to be embedded and written, in batches that bound the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from seedbed.content import Content

T = TypeVar("T")

NOTHING, PAYLOAD, VECTOR = range(3)
"""What a sink needs of a row: nothing, its payload only, or all of it."""

MOST_ROWS = 2048
"""Of a batch: enough to sort texts by length and to fill a bulk write, few enough to overlap."""
MOST_BYTES = 32_000_000
"""Of a batch's pictures and video, where they are already here."""


@dataclass(slots=True)
class Need:
    """One sink's needs, parallel to the work's rows."""

    payload: list[bytes]
    what: list[int]
    stands: list[int]
    """Points that stand there now; a row of fewer chunks leaves some to be removed."""


@dataclass(slots=True)
class Work:
    """Rows that at least one sink needs, as parallel lists."""

    keys: list[str]
    positions: list[bytes]
    contents: list[tuple[Content, ...]]
    """One a vector's name, in the recipe's order; an empty one has no vector."""
    hashes: list[bytes]
    rows: pa.RecordBatch
    needs: list[Need]
    failed: dict[int, str] = field(default_factory=dict)
    """Rows whose media could not be had: row → reason."""

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, indices: Sequence[int]) -> Work:
        def pick(values: list[T]) -> list[T]:
            return [values[i] for i in indices]

        return Work(
            pick(self.keys),
            pick(self.positions),
            pick(self.contents),
            pick(self.hashes),
            self.rows.take(pa.array(indices, pa.int64())),
            [Need(pick(need.payload), pick(need.what), pick(need.stands)) for need in self.needs],
            {new: self.failed[old] for new, old in enumerate(indices) if old in self.failed},
        )

    @classmethod
    def join(cls, works: Sequence[Work]) -> Work:
        if len(works) == 1:
            return works[0]

        def chain(lists: Iterable[list[T]]) -> list[T]:
            return [value for values in lists for value in values]

        return cls(
            chain(w.keys for w in works),
            chain(w.positions for w in works),
            chain(w.contents for w in works),
            chain(w.hashes for w in works),
            pa.Table.from_batches([w.rows for w in works]).combine_chunks().to_batches()[0],
            [
                Need(chain(n.payload for n in sink), chain(n.what for n in sink), chain(n.stands for n in sink))
                for sink in zip(*(w.needs for w in works), strict=True)
            ],
        )


def media_bytes(contents: Iterable[Content]) -> int:
    """What the pictures and video take that are here."""
    return sum(len(part.data) for content in contents for part in content.media)


def batched(works: Iterable[Work]) -> Iterator[Work]:
    """Joins and splits work into batches of about MOST_ROWS rows and MOST_BYTES of media."""
    held, rows, size = list[Work](), 0, 0
    for work in works:
        start = 0
        for end, contents in enumerate(work.contents, 1):
            rows, size = rows + 1, size + media_bytes(contents)
            if rows >= MOST_ROWS or size >= MOST_BYTES:
                yield Work.join([*held, work.take(range(start, end))])
                held, rows, size, start = [], 0, 0, end
        if start < len(work):
            held.append(work.take(range(start, len(work))) if start else work)
    if held:
        yield Work.join(held)
