"""Which number format a model runs in on this machine: tried out at the start, once a process."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from seedbed.embedders.model import Ids, Model
from seedbed.protocols import Vectors

NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FASTER = 0.8
"""bfloat16 must take at most this share of float32's time: less is noise on a busy machine."""
ALIKE = 0.999
"""… and agree with float32 to this cosine on every probe."""
_ROUNDS = 3
_TRIED_PARAMETERS = 1_000_000_000
"""A larger model is not tried in float32, which would take 4 GB and more: it runs as it was stored."""

_chosen: dict[tuple[Path, int], torch.dtype] = {}
"""By folder and threads."""


def choose(model: Model, folder: Path, probes: Ids) -> None:
    """Brings the model, loaded in float32, into the better format. On CUDA bfloat16, or float16 where the device
    has none (no such device was at hand when this was written)."""
    if model.device.type == "cuda":
        model.to(torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
        return
    key = (folder, torch.get_num_threads())
    if key not in _chosen:
        _chosen[key] = _try(model, probes)
    model.to(_chosen[key])


def loading(card_dtype: str, parameters: int) -> torch.dtype:
    """The format to load in: float32, or the stored one for a model too large to try both."""
    return NAMES.get(card_dtype, torch.float32) if parameters > _TRIED_PARAMETERS else torch.float32


def _try(model: Model, probes: Ids) -> torch.dtype:
    """Times both in turn and takes the fastest round of each. `model` ends in bfloat16, from exact float32 weights."""
    if model.dtype is not torch.float32:
        return model.dtype
    exact, slow = _measure(model, probes)
    kept = model.weights()
    model.to(torch.bfloat16)
    near, fast = _measure(model, probes)
    model.restore(kept)
    alike = float(np.einsum("ij,ij->i", exact, near).min())
    return torch.bfloat16 if fast <= FASTER * slow and alike >= ALIKE else torch.float32


def _measure(model: Model, probes: Ids) -> tuple[Vectors, float]:
    vectors = model.vectors(probes, model.card.dimensions)
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        model.vectors(probes, model.card.dimensions)
        best = min(best, time.perf_counter() - start)
    return vectors, best
