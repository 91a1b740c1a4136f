"""A model made ready on a device: threads, number format, and batches that fit its memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from seedbed.embedders import dtype as formats
from seedbed.embedders.card import Card
from seedbed.embedders.model import Ids, Model, versions
from seedbed.embedders.tokens import Tokens
from seedbed.errors import ConfigError
from seedbed.protocols import Vectors

CPU_TOKENS = 2048
"""Padded tokens a pass: 5 % padding, and the intermediate arrays stay in the caches."""
CUDA_TOKENS = 32768
_PROBE = "Keeps the rows of a table and the vectors made from them in step, whatever changes. "
_PROBE_REPEATS = (1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5)


class Runner:
    """Raises ConfigError where the device or format is not to be had."""

    def __init__(
        self,
        folder: Path,
        card: Card,
        tokens: Tokens,
        *,
        device: str,
        dtype: str,
        threads: int | None,
        budget: int | None,
    ) -> None:
        where = _device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        self.budget = budget or (CUDA_TOKENS if where.type == "cuda" else CPU_TOKENS)
        if dtype == "auto":
            self._model = Model(
                folder, card, where, formats.loading(card.parameters_dtype, _size(folder / card.transformer))
            )
            formats.choose(self._model, folder, _probes(tokens, card))
        else:
            self._model = Model(folder, card, where, formats.NAMES[dtype])

    def vectors(self, ids: Ids, dimensions: int) -> Vectors:
        """One pass; out of the device's memory, two of half the size, and smaller batches from then on. A single
        text that does not fit is NaN, which the caller refuses."""
        try:
            return self._model.vectors(ids, dimensions)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if len(ids) == 1:
            return np.full((1, dimensions), np.nan, np.float32)
        self.budget = max(1, self.budget // 2)
        middle = len(ids) // 2
        return np.concatenate([self.vectors(ids[:middle], dimensions), self.vectors(ids[middle:], dimensions)])

    def provenance(self) -> Mapping[str, str]:
        return {
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": str(self._model.device),
            "threads": str(torch.get_num_threads()),
            **versions(),
        }


def _device(wanted: str) -> torch.device:
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError(
            "no CUDA device is to be had",
            setting="embedder.url",
            hint="leave `device=` out, or install torch with CUDA",
        )
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def _size(folder: Path) -> int:
    """About how many parameters: bytes of the weights by four, before any is read."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 4


def _probes(tokens: Tokens, card: Card) -> list[list[int]]:
    """Texts of realistic and different lengths, 15 to 120 tokens each, within the model's limit."""
    rows = tokens.ids([_PROBE * repeats for repeats in _PROBE_REPEATS])
    return [row[: card.limit] for row in rows]
