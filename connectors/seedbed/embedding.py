"""The embedding stage: work in, vectors out, through the chunker, the cache and the embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from seedbed.cache import VectorCache
from seedbed.content import Content
from seedbed.diff import VECTOR, Work
from seedbed.errors import ContentsRefused, Fatal
from seedbed.identity import cache_key
from seedbed.protocols import Embedder, Vectors
from seedbed.retry import Patience

if TYPE_CHECKING:
    from seedbed.chunk import Chunker

Span = tuple[int, int]
"""Characters [start, end) of a row's text that one point is made from."""
Pieces = dict[int, list[tuple[bytes, Content]]]
"""By row, the cache key and the content of each point."""


@dataclass(slots=True)
class Embedded:
    """Work with its vectors. Point p of row r is number `first[r] + p`; rows that need no vector have spans,
    but their vectors are undefined."""

    work: Work
    spans: list[list[Span]]
    vectors: Vectors = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    first: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    """Rows that the model refused: index → reason."""
    intents: dict[int, int] = field(default_factory=dict)
    """The ledger's intents of this batch, by the sink's number."""
    embedded: int = 0
    cached: int = 0
    tokens: int = 0


class EmbeddingStage:
    def __init__(
        self, embedder: Embedder, cache: VectorCache | None, chunker: Chunker | None, patience: Patience
    ) -> None:
        self._embedder = embedder
        self._cache = cache
        self._chunker = chunker
        self._patience = patience
        self._dimensions = embedder.space.dimensions
        self._space = embedder.space.digest

    def __call__(self, work: Work) -> Embedded:
        spans = [self.spans(content) for content in work.contents]
        pieces = self._pieces(work, spans)
        known = self._known(pieces)
        missing, askers = _first_askers(pieces, known)
        before = self._embedder.usage.tokens
        refused = self._embed(missing, known)
        result = Embedded(work, spans, tokens=self._embedder.usage.tokens - before)
        for row, row_pieces in pieces.items():
            bad = next((refused[key] for key, _ in row_pieces if key in refused), None)
            if bad is not None:
                result.failed[row] = bad
            elif row in askers:
                result.embedded += 1
            else:
                result.cached += 1
        self._fill(result, pieces, known)
        return result

    def missing(self, work: Work) -> list[Content]:
        """The contents that `__call__` would embed; embeds nothing."""
        pieces = self._pieces(work, [self.spans(content) for content in work.contents])
        return list(_first_askers(pieces, self._known(pieces))[0].values())

    def spans(self, content: Content) -> list[Span]:
        if self._chunker is None:
            return [(0, len(content.text))]
        return self._chunker.spans(content.text)

    def _pieces(self, work: Work, spans: list[list[Span]]) -> Pieces:
        """Of the rows that need vectors."""
        space = self._space
        return {
            row: [
                (cache_key(space, "document", part.canonical()), part)
                for part in (piece(work.contents[row], span) for span in spans[row])
            ]
            for row in range(len(work))
            if any(need.what[row] == VECTOR for need in work.needs)
        }

    def _known(self, pieces: Pieces) -> dict[bytes, Vectors]:
        if self._cache is None:
            return {}
        return self._cache.get([key for row_pieces in pieces.values() for key, _ in row_pieces])

    def _fill(self, result: Embedded, pieces: Pieces, known: dict[bytes, Vectors]) -> None:
        nothing = np.zeros(self._dimensions, np.float32)
        vectors: list[Vectors] = []
        for row, row_spans in enumerate(result.spans):
            result.first.append(len(vectors))
            if row in pieces and row not in result.failed:
                vectors += [known[key] for key, _ in pieces[row]]
            else:
                vectors += [nothing] * len(row_spans)
        result.vectors = np.concatenate([nothing[:0], *vectors]).reshape(-1, self._dimensions)

    def _embed(self, missing: dict[bytes, Content], known: dict[bytes, Vectors]) -> dict[bytes, str]:
        """Adds the missing vectors to the known ones and to the cache; the refused ones with their reasons."""
        if not missing:
            return {}
        keys, contents = list(missing), list(missing.values())
        vectors, refused = self._patience.run(lambda: _call(self._embedder, contents))
        if vectors.shape != (len(contents), self._dimensions):
            raise Fatal(
                f"the embedder answered {vectors.shape}, not {(len(contents), self._dimensions)}",
                setting="embedder.dimensions",
                hint="set `dimensions` to what the model gives",
            )
        for number in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
            refused.setdefault(int(number), "the model answered with NaN or infinite numbers")
        fresh = {key: vectors[n] for n, key in enumerate(keys) if n not in refused}
        known.update(fresh)
        if self._cache:
            self._cache.put(fresh)
        return {keys[n]: reason for n, reason in refused.items()}


def piece(content: Content, span: Span) -> Content:
    text = content.text
    return content if span == (0, len(text)) else Content.of(text[slice(*span)])


def _first_askers(pieces: Pieces, known: dict[bytes, Vectors]) -> tuple[dict[bytes, Content], set[int]]:
    """Each unknown content once, and the rows that first asked for one."""
    missing: dict[bytes, Content] = {}
    askers: set[int] = set()
    for row, row_pieces in pieces.items():
        for key, content in row_pieces:
            if key not in known and key not in missing:
                missing[key] = content
                askers.add(row)
    return missing, askers


def _call(embedder: Embedder, contents: Sequence[Content]) -> tuple[Vectors, dict[int, str]]:
    try:
        return embedder.embed(contents), {}
    except ContentsRefused as error:
        return error.vectors, dict(error.refused)
