"""EfficientNet-Lite0 by torch: which of ImageNet's 1000 classes a picture shows."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

from seedbed.embedders.sights import Pictures, Posteriors

_MIDDLE, _SCALE = 127.0, 128.0
"""How the weights were trained to see pixels. By the usual mean and deviation of ImageNet a daisy was one at 0.12, and
is at 0.35 like this; an espresso at 0.78 and 0.95."""


_PASS = 4
"""Pictures a pass: its intermediate arrays stay in the caches. 32 took up to twice the time."""


class Lite0:
    """On the processors, in float32, a pass on each: sharing every operation took twice the time where other work ran.
    Errors: OSError, RuntimeError for a file that holds no such weights."""

    def __init__(self, weights: Path) -> None:
        # Not by from_pretrained, which prints to stdout and lets torch run what a pickle asks for.
        self._net = EfficientNet.from_name("efficientnet-lite0")
        self._net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self._net.eval()
        count = len(os.sched_getaffinity(0))
        self._lanes = ThreadPoolExecutor(count, "see", initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, pictures: Pictures) -> Posteriors:
        passes = [pictures[start : start + _PASS] for start in range(0, len(pictures), _PASS)]
        return np.concatenate(list(self._lanes.map(self._pass, passes)))

    def close(self) -> None:
        self._lanes.shutdown()

    def _pass(self, pictures: Pictures) -> Posteriors:
        with torch.inference_mode():
            pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
            made: Posteriors = self._net((pixels - _MIDDLE) / _SCALE).softmax(1).numpy()
        return made
