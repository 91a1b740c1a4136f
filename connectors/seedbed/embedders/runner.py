"""A model made ready on a device: threads, number format, and batches that fit its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from seedbed.embedders import dtype as formats
from seedbed.embedders.card import Card
from seedbed.embedders.model import Ids, Model, versions
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
PROBES = [_PROBE * repeats for repeats in (1, 2, 3, 4, 6, 8)]
"""Texts of realistic and different lengths, 15 to 120 tokens each."""
_ATTENTION = {"auto": "", "sdpa": "sdpa", "flash": "flash_attention_2"}
Batch = Sequence[Any]
"""Token ids of texts, or vision_prompt.Sample: whatever has a length and the model takes."""


class Runner:
    """Raises ConfigError where the device or format is not to be had. On several CUDA devices each has a model of its
    own, and whichever is free takes the next batch."""

    def __init__(
        self,
        folder: Path,
        card: Card,
        probes: Ids,
        *,
        device: str,
        dtype: str,
        threads: int | None,
        budget: int | None,
        model: type[Model] = Model,
        attention: str = "auto",
    ) -> None:
        where, *others = _devices(device)
        if attention == "flash" and where.type != "cuda":
            raise ConfigError(
                "flash attention is for CUDA devices", setting="embedder.url", hint="leave `attention=` out"
            )
        chosen = _ATTENTION[attention]
        self._threads = threads or torch.get_num_threads()
        size = _size(folder / card.transformer)
        self._lanes = None
        if where.type == "cpu" and self._threads > 1 and size <= _LANES_PARAMETERS:
            self._lanes = ThreadPoolExecutor(self._threads, "lane", initializer=torch.set_num_threads, initargs=(1,))
        self.budget = budget or (CUDA_TOKENS if where.type == "cuda" else CPU_TOKENS)
        loaded = formats.NAMES[dtype] if dtype != "auto" else formats.loading(card.parameters_dtype, size)
        self._models = [model(folder, card, one, loaded, chosen) for one in (where, *others)]
        self._free: SimpleQueue[Model] = SimpleQueue()
        for one in self._models:
            if dtype == "auto" and self._lanes:
                self._lanes.submit(formats.choose, one, folder, probes).result()
            elif dtype == "auto":
                formats.choose(one, folder, probes)
            self._free.put(one)
        if others:
            self._lanes = ThreadPoolExecutor(len(self._models), "device")

    def run(self, batches: Sequence[Batch], dimensions: int) -> list[Vectors]:
        """float32 (n, dimensions) of each batch, in order."""
        if len(self._models) > 1:
            assert self._lanes is not None
            return list(self._lanes.map(lambda batch: self._taken(batch, dimensions), batches))
        # A pass of few tokens is over before several threads have shared it out.
        if self._lanes and (len(batches) > 1 or sum(map(len, batches[0])) <= _LEAST_TOKENS):
            return list(self._lanes.map(lambda batch: self._vectors(batch, dimensions), batches))
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # a thread born after the lanes would have theirs
        return [self._vectors(batch, dimensions) for batch in batches]

    def share(self, tokens: int) -> int:
        """The budget of a pass where a call has so many tokens in all: a small one is cut finer, so that no lane waits
        for another, and a few texts of all lengths are not padded to the longest."""
        if not self._lanes or len(self._models) > 1:
            return self.budget
        return min(self.budget, max(_LEAST_TOKENS, tokens // (4 * self._threads)))

    def close(self) -> None:
        if self._lanes:
            self._lanes.shutdown()

    def _taken(self, batch: Batch, dimensions: int) -> Vectors:
        """By the device that is free first."""
        model = self._free.get()
        try:
            return self._vectors(batch, dimensions, model)
        finally:
            self._free.put(model)

    def _vectors(self, ids: Batch, dimensions: int, model: Model | None = None) -> Vectors:
        """One pass; out of the device's memory, two of half the size, and smaller batches from then on. A single
        text that does not fit is NaN, which the caller refuses."""
        try:
            return (model or self._models[0]).vectors(ids, dimensions)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if len(ids) == 1:
            return np.full((1, dimensions), np.nan, np.float32)
        self.budget = max(1, self.budget // 2)
        middle = len(ids) // 2
        halves = (ids[:middle], ids[middle:])
        return np.concatenate([self._vectors(half, dimensions, model) for half in halves])

    def provenance(self) -> Mapping[str, str]:
        return {
            "dtype": str(self._models[0].dtype).removeprefix("torch."),
            "device": ", ".join(str(model.device) for model in self._models),
            "threads": str(self._threads),
            **versions(),
        }


def _devices(wanted: str) -> list[torch.device]:
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError(
            "no CUDA device is to be had",
            setting="embedder.url",
            hint="leave `device=` out, or install torch with CUDA",
        )
    if wanted == "cpu" or not there:
        return [torch.device("cpu")]
    return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]


def _size(folder: Path) -> int:
    """About how many parameters: bytes of the weights by four, before any is read."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 4
