"""A model made ready on a device: threads, number format, and batches that fit its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from seedbed.embedders import dtype as formats
from seedbed.embedders.card import Card
from seedbed.embedders.model import Ids, Model, versions
from seedbed.embedders.tokens import Tokens
from seedbed.errors import ConfigError
from seedbed.protocols import Vectors

CPU_TOKENS = 1024
"""Padded tokens a pass: little padding, and the intermediate arrays stay in the caches. 8,192 took twice the time."""
CUDA_TOKENS = 32768
_LEAST_TOKENS = 256
_LANES_PARAMETERS = 200_000_000
"""Up to here processors work on a batch each instead of sharing every operation: no waiting at its end, which on a
busy machine was three times as fast. Larger models' weights are better read once for all."""
_PROBE = "Keeps the rows of a table and the vectors made from them in step, whatever changes. "
_PROBE_REPEATS = (1, 2, 3, 4, 6, 8)


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
        self._threads = threads or torch.get_num_threads()
        size = _size(folder / card.transformer)
        self._lanes = None
        if where.type == "cpu" and self._threads > 1 and size <= _LANES_PARAMETERS:
            self._lanes = ThreadPoolExecutor(self._threads, "lane", initializer=torch.set_num_threads, initargs=(1,))
        self.budget = budget or (CUDA_TOKENS if where.type == "cuda" else CPU_TOKENS)
        if dtype != "auto":
            self._model = Model(folder, card, where, formats.NAMES[dtype])
            return
        self._model = Model(folder, card, where, formats.loading(card.parameters_dtype, size))
        probes = _probes(tokens, card)
        if self._lanes:
            self._lanes.submit(formats.choose, self._model, folder, probes).result()
        else:
            formats.choose(self._model, folder, probes)

    def run(self, batches: Sequence[Ids], dimensions: int) -> list[Vectors]:
        """float32 (n, dimensions) of each batch, in order."""
        # A pass of few tokens is over before several threads have shared it out.
        if self._lanes and (len(batches) > 1 or sum(map(len, batches[0])) <= _LEAST_TOKENS):
            return list(self._lanes.map(lambda batch: self._vectors(batch, dimensions), batches))
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # a thread born after the lanes would have theirs
        return [self._vectors(batch, dimensions) for batch in batches]

    def share(self, tokens: int) -> int:
        """The budget of a pass where a call has so many tokens in all: a small one is cut finer, so that no lane waits
        for another, and a few texts of all lengths are not padded to the longest."""
        if not self._lanes:
            return self.budget
        return min(self.budget, max(_LEAST_TOKENS, tokens // (4 * self._threads)))

    def close(self) -> None:
        if self._lanes:
            self._lanes.shutdown()

    def _vectors(self, ids: Ids, dimensions: int) -> Vectors:
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
        return np.concatenate([self._vectors(ids[:middle], dimensions), self._vectors(ids[middle:], dimensions)])

    def provenance(self) -> Mapping[str, str]:
        return {
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": str(self._model.device),
            "threads": str(self._threads),
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
