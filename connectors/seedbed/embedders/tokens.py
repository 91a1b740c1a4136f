"""A model's tokens, by the `tokenizers` library alone: the same for counting and for embedding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from seedbed.embedders.card import Card

_FEW, _MOST_COUNTED = 8, 1024


class Tokens:
    """`ids` cuts to the model's limit where `truncate` is set; `count` never does."""

    def __init__(self, folder: Path, card: Card, *, truncate: bool = False) -> None:
        self._folder = folder / card.transformer
        self._lower = card.lower_case
        self._cut = card.limit if truncate else None
        self._counted: dict[str, list[int]] = {}

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids with the special ones; the interpreter's lock is released while a batch is cut up."""
        if self._cut is not None:
            return [encoding.ids for encoding in self._cutting.encode_batch_fast(self._cased(texts))]
        found = [self._counted.pop(text, None) for text in texts] if self._counted else []
        known = [ids for ids in found if ids is not None]
        if known and len(known) == len(texts):
            return known
        return [encoding.ids for encoding in self._whole.encode_batch_fast(self._cased(texts))]

    def count(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        encodings = self._whole.encode_batch_fast(self._cased(texts))
        if len(texts) <= _FEW and self._cut is None:
            # A server counts a caller's few texts just before they are embedded.
            if len(self._counted) > _MOST_COUNTED:
                self._counted.clear()
            self._counted.update(zip(texts, (encoding.ids for encoding in encodings), strict=True))
        return np.fromiter(map(len, encodings), np.int64, len(encodings))

    def _cased(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() for text in texts] if self._lower else list(texts)

    @cached_property
    def _whole(self) -> Tokenizer:
        tokenizer = self._load()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def _cutting(self) -> Tokenizer:
        tokenizer = self._load()
        if self._cut is not None:
            tokenizer.enable_truncation(self._cut)
        return tokenizer

    def _load(self) -> Tokenizer:
        file = self._folder / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else self._converted()
        tokenizer.no_padding()
        return tokenizer

    def _converted(self) -> Tokenizer:
        """For the few folders without tokenizer.json: transformers builds it from the older files, in seconds."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        backend: Tokenizer = tokenizer.backend_tokenizer
        return Tokenizer.from_str(backend.to_str())


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions in batches of at most `budget` padded tokens (or one text), the longest first, so that padding is
    little and a batch that does not fit the memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    found, start = [], 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        found.append(order[start : start + size])
        start += size
    return found


def packed(lengths: Sequence[int], budget: int, waste: float = 0.1) -> list[list[int]]:
    """As `batches`; a batch ends as well where more than a share `waste` of it would be padding."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    found: list[list[int]] = []
    longest = used = 0
    for position in order:
        length = lengths[position]
        padded = longest * (len(found[-1]) + 1) if found else 0
        if found and padded <= budget and used + length >= (1 - waste) * padded:
            found[-1].append(position)
            used += length
        else:
            found.append([position])
            longest = used = length
    return found
