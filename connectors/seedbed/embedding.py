"""The embedding stage: work in, vectors out, through the chunker, the cache and the embedder."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from seedbed.cache import Cache
from seedbed.content import Content
from seedbed.errors import ContentsRefused, Fatal, Refused
from seedbed.identity import cache_key
from seedbed.protocols import CanCountTokens, CanStream, Embedder, Vectors
from seedbed.retry import Patience
from seedbed.work import VECTOR, Work

if TYPE_CHECKING:
    from seedbed.chunk import Chunker
    from seedbed.embedders.budget import Allowance

Span = tuple[int, int]
"""Characters [start, end) of a row's text that one point is made from."""


class Piece(NamedTuple):
    """What one vector is made from: which of a point's vectors it is, which of the row's points, the cache's key."""

    vector: int
    point: int
    key: bytes
    content: Content


Pieces = dict[int, list[Piece]]
"""By row."""


@dataclass(slots=True)
class Embedded:
    """Work with its vectors. Point p of row r is number `first[r] + p` of each array of `vectors`, of which there is
    one a vector's name; `present` says where it has one. Rows that need no vector have spans all the same."""

    work: Work
    spans: list[list[Span]]
    vectors: list[Vectors] = field(default_factory=list)
    present: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    """Rows that the model refused: index → reason."""
    intents: dict[int, int] = field(default_factory=dict)
    """The ledger's intents of this batch, by the sink's number."""
    cut: bool = False
    """Some of the rows were left out, as the run was stopped or its budget spent; no batch comes after this one."""
    spent: Refused | None = None
    """Why, where it was the budget."""
    embedded: int = 0
    cached: int = 0
    tokens: int = 0


class EmbeddingStage:
    """`allowance` is a budget for embedders that do not keep to one themselves. `stop` ends a batch early, with the
    rows that are embedded by then."""

    def __init__(
        self,
        embedder: Embedder,
        cache: Cache | None,
        chunker: Chunker | None,
        patience: Patience,
        *,
        stop: threading.Event | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self._stop = stop or threading.Event()
        self._allowance = allowance
        self._spent: Refused | None = None
        self._embedder = embedder
        self._cache = cache
        self._chunker = chunker
        self._patience = patience
        self._dimensions = embedder.space.dimensions
        self._space = embedder.space.digest

    def each(self, works: Iterable[Work]) -> Iterator[Embedded]:
        """The works embedded, up to the first that was cut."""
        for work in works:
            batch = self(work)
            yield batch
            if batch.cut:
                return

    def __call__(self, work: Work) -> Embedded:
        spans = [self.spans(contents) for contents in work.contents]
        pieces = self._pieces(work, spans)
        known = self._known(pieces)
        missing, askers = _first_askers(pieces, known)
        before = self._embedder.usage.tokens
        refused = self._embed(missing, known)
        tokens = self._embedder.usage.tokens - before
        result = Embedded(work, spans, tokens=tokens, spent=self._spent, failed=dict(work.failed))
        undone = {
            row for row, found in pieces.items() if any(p.key not in known and p.key not in refused for p in found)
        }
        for row, row_pieces in pieces.items():
            if row in undone:
                continue
            bad = next((refused[piece.key] for piece in row_pieces if piece.key in refused), None)
            if bad is not None:
                result.failed[row] = bad
            elif row in askers:
                result.embedded += 1
            else:
                result.cached += 1
        self._fill(result, {row: found for row, found in pieces.items() if row not in undone}, known)
        return _without(result, undone) if undone else result

    def missing(self, work: Work) -> list[Content]:
        """The contents that `__call__` would embed; embeds nothing."""
        pieces = self._pieces(work, [self.spans(contents) for contents in work.contents])
        return list(_first_askers(pieces, self._known(pieces))[0].values())

    def spans(self, contents: Sequence[Content]) -> list[Span]:
        text = whole_text(contents)
        if self._chunker is None:
            return [(0, len(text))]
        return self._chunker.spans(text)

    def _pieces(self, work: Work, spans: list[list[Span]]) -> Pieces:
        """Of the rows that need vectors."""
        return {
            row: [
                Piece(vector, point, cache_key(self._space, "document", part.canonical()), part)
                for vector, content in enumerate(work.contents[row])
                if not content.empty
                for point, part in enumerate(piece(content, span) for span in spans[row])
            ]
            for row in range(len(work))
            if row not in work.failed and any(need.what[row] == VECTOR for need in work.needs)
        }

    def _known(self, pieces: Pieces) -> dict[bytes, Vectors]:
        if self._cache is None:
            return {}
        return self._cache.get([piece.key for row_pieces in pieces.values() for piece in row_pieces])

    def _fill(self, result: Embedded, pieces: Pieces, known: dict[bytes, Vectors]) -> None:
        counts = [len(spans) for spans in result.spans]
        result.first = [0, *accumulate(counts)][:-1]
        for _ in range(max(map(len, result.work.contents), default=0)):
            result.vectors.append(np.zeros((sum(counts), self._dimensions), np.float32))
            result.present.append(np.zeros(sum(counts), np.bool_))
        for row, row_pieces in pieces.items():
            if row in result.failed:
                continue
            for vector, point, key, _ in row_pieces:
                result.vectors[vector][result.first[row] + point] = known[key]
                result.present[vector][result.first[row] + point] = True

    def _stream(
        self, embedder: CanStream, keys: list[bytes], contents: list[Content], known: dict[bytes, Vectors]
    ) -> dict[bytes, str]:
        """As `_embed`; what is paid for is in the cache at once, whatever happens to the rest."""
        refused: dict[bytes, str] = {}
        try:
            with closing(embedder.stream(contents)) as portions:
                for portion in portions:
                    fresh = {keys[n]: vector for n, vector in zip(portion.positions, portion.vectors, strict=True)}
                    known.update(fresh)
                    if self._cache and fresh:
                        self._cache.put(fresh)
                    refused.update({keys[n]: reason for n, reason in portion.refused.items()})
                    if self._stop.is_set():
                        break
        except Refused as spent:
            self._spent = spent
        return refused

    def _affordable(self, contents: list[Content]) -> tuple[list[Content], int]:
        """As many as the budget allows, by their count beforehand; and that count."""
        if self._allowance is None or not isinstance(self._embedder, CanCountTokens):
            return contents, 0
        counts = self._embedder.count_tokens(contents).tolist()
        fitting = self._allowance.take(counts)
        if fitting < len(contents):
            self._spent = self._allowance.spent()
        return contents[:fitting], sum(counts[:fitting])

    def _embed(self, missing: dict[bytes, Content], known: dict[bytes, Vectors]) -> dict[bytes, str]:
        """Adds the missing vectors to the known ones and to the cache; the refused ones with their reasons."""
        if not missing:
            return {}
        keys, contents = list(missing), list(missing.values())
        if isinstance(self._embedder, CanStream):
            return self._stream(self._embedder, keys, contents, known)
        contents, taken = self._affordable(contents)
        if not contents:
            return {}
        before = self._embedder.usage.tokens
        vectors, refused = self._patience.run(lambda: _call(self._embedder, contents))
        if self._allowance is not None:
            self._allowance.give_back(taken - (self._embedder.usage.tokens - before))
        if vectors.shape != (len(contents), self._dimensions):
            raise Fatal(
                f"the embedder answered {vectors.shape}, not {(len(contents), self._dimensions)}",
                setting="embedder.dimensions",
                hint="set `dimensions` to what the model gives",
            )
        for number in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
            refused.setdefault(int(number), "the model answered with NaN or infinite numbers")
        fresh = {keys[n]: vectors[n] for n in range(len(contents)) if n not in refused}
        known.update(fresh)
        if self._cache:
            self._cache.put(fresh)
        return {keys[n]: reason for n, reason in refused.items()}


def _without(batch: Embedded, undone: set[int]) -> Embedded:
    """The rows that are whole; points keep their numbers."""
    kept = [row for row in range(len(batch.work)) if row not in undone]
    return replace(
        batch,
        work=batch.work.take(kept),
        spans=[batch.spans[row] for row in kept],
        first=[batch.first[row] for row in kept],
        failed={new: batch.failed[row] for new, row in enumerate(kept) if row in batch.failed},
        cut=True,
    )


def whole_text(contents: Sequence[Content]) -> str:
    """The text of all of a row's contents."""
    return contents[0].text if len(contents) == 1 else "\n".join(c.text for c in contents if not c.empty)


def piece(content: Content, span: Span) -> Content:
    """A row's only content, or its chunk; several contents are never cut."""
    text = content.text
    return Content.of(text[slice(*span)]) if span[0] > 0 or span[1] < len(text) else content


def _first_askers(pieces: Pieces, known: dict[bytes, Vectors]) -> tuple[dict[bytes, Content], set[int]]:
    """Each unknown content once, and the rows that first asked for one."""
    missing: dict[bytes, Content] = {}
    askers: set[int] = set()
    for row, row_pieces in pieces.items():
        for _, _, key, content in row_pieces:
            if key not in known and key not in missing:
                missing[key] = content
                askers.add(row)
    return missing, askers


def _call(embedder: Embedder, contents: Sequence[Content]) -> tuple[Vectors, dict[int, str]]:
    try:
        return embedder.embed(contents), {}
    except ContentsRefused as error:
        return error.vectors, dict(error.refused)
