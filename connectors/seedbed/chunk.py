"""Long texts in pieces of bounded tokens, by semchunk.

semchunk is maintained (4.x, 2026), small (one file, tqdm as its one dependency), deterministic, splits at the most
meaningful break that fits (paragraph, line, sentence, clause, word), takes any token counter and answers with exact
character offsets. The others looked at: langchain-text-splitters finds offsets by searching the text again, which
is wrong for repeated passages; chonkie brings more machinery than one splitter needs. Two things are done here: its
breaks know only Western punctuation, so it reads a copy in which East Asian marks stand as their Western twins,
character for character; and its overlap counts sub-chunks, so overlap is built here from its pieces, counted exactly.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, cast

from seedbed.content import Content
from seedbed.errors import ConfigError
from seedbed.protocols import CanCountTokens

Span = tuple[int, int]
Count = Callable[[str], int]

ALGORITHM = 1
"""Raised whenever the same settings give other spans; golden spans in the tests hold it."""

_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,16}|[^\w\s]"
)
_WESTERN = str.maketrans("。．！？；，、：（）「」『』【】", '..!?;,,:()""""[]')
_REMEMBERED = 4096


def count_words(text: str) -> int:
    """Words (a long one counts once for every 16 letters begun), East Asian characters and marks."""
    return sum(1 for _ in _WORD.finditer(text))


class Chunker:
    """Spans of at most `tokens` tokens, the next one sharing at most `overlap` tokens with the one before.

    `counter` is an embedder that counts its own tokens, with its instruction and special tokens: they take room in
    every piece. Without one, words are counted. Raises ConfigError for settings that leave no room.
    """

    def __init__(self, tokens: int, overlap: int = 0, counter: CanCountTokens | None = None) -> None:
        if tokens < 1:
            raise ConfigError(f"{tokens} tokens a chunk leave no room", setting="chunk.tokens", hint="set 1 or more")
        if not 0 <= overlap < tokens:
            raise ConfigError(
                f"an overlap of {overlap} tokens does not fit chunks of {tokens}",
                setting="chunk.overlap",
                hint=f"set 0 to {tokens // 2}",
            )
        self._tokens = tokens
        self._overlap = overlap
        self._counter = counter

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all that decides the spans: enters each row's content hash."""
        space = getattr(self._counter, "space", None)
        counter = (
            "words" if self._counter is None else f"{getattr(space, 'model', '')}@{getattr(space, 'revision', '')}"
        )
        settings = (ALGORITHM, self._tokens, self._overlap, counter, getattr(space, "instruction", ""))
        return hashlib.sha256(repr(settings).encode()).digest()

    def spans(self, text: str) -> list[Span]:
        """Characters [start, end) of each piece, ascending. A text that fits is one span of all of it; otherwise
        pieces begin and end with what is no white space, and only white space stands between them."""
        if self._count(text) <= self._tokens:
            return [(0, len(text))]
        room = self._tokens - self._frame
        overlap = min(self._overlap, room // 2)
        count = lru_cache(_REMEMBERED)(self._inner)
        if not overlap:
            return _atoms(text, room, count)
        return _overlapping(text, _atoms(text, overlap, count), room, overlap, count)

    @cached_property
    def _frame(self) -> int:
        """Tokens of an empty text: special tokens and the instruction."""
        frame = self._count("")
        if frame >= self._tokens:
            raise ConfigError(
                f"chunks of {self._tokens} tokens: the embedder's instruction and special tokens take {frame}",
                setting="chunk.tokens",
                hint=f"set more than {frame}",
            )
        return frame

    def _count(self, text: str) -> int:
        if self._counter is None:
            return count_words(text)
        return int(self._counter.count_tokens([Content.of(text)])[0])

    def _inner(self, text: str) -> int:
        return self._count(text) - self._frame


def _atoms(text: str, room: int, count: Count) -> list[Span]:
    """Pieces of at most `room` tokens, without overlap. A single character that takes more stands alone."""
    spans = []
    for start, end in _semchunk(text.translate(_WESTERN), room, count):
        if count(text[start:end]) <= room or end - start == 1:
            spans.append((start, end))
        else:
            spans += [(start + first, start + last) for first, last in _semchunk(text[start:end], room, count)]
    return spans


def _semchunk(text: str, room: int, count: Count) -> list[Span]:
    import semchunk  # 0.1 s: only for texts that need it

    def bounded(part: str) -> int:
        """semchunk would divide one character for ever."""
        return count(part) if len(part) > 1 else min(count(part), room)

    _, found = cast(Any, semchunk).chunk(text, room, bounded, memoize=False, offsets=True)
    return [(start, end) for start, end in (_stripped(text, span) for span in found) if start < end]


def _stripped(text: str, span: Span) -> Span:
    piece = text[slice(*span)]
    start = span[0] + len(piece) - len(piece.lstrip())
    return start, max(start, span[0] + len(piece.rstrip()))


def _overlapping(text: str, atoms: list[Span], room: int, overlap: int, count: Count) -> list[Span]:
    """Runs of atoms: each as long as `room` allows, the next beginning within `overlap` tokens of its end."""

    def tokens(first: int, last: int) -> int:
        return count(text[atoms[first][0] : atoms[last][1]])

    spans: list[Span] = []
    first = last = 0
    while True:
        while last + 1 < len(atoms) and tokens(first, last + 1) <= room:
            last += 1
        spans.append((atoms[first][0], atoms[last][1]))
        if last + 1 == len(atoms):
            return spans
        following = last + 1
        while (
            following - 1 > first and tokens(following - 1, last) <= overlap and tokens(following - 1, last + 1) <= room
        ):
            following -= 1
        first, last = following, last + 1
