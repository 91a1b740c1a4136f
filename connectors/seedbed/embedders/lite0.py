"""EfficientNet-Lite0 by torch: which of ImageNet's 1000 classes a picture shows."""

from __future__ import annotations

from pathlib import Path

import torch
from efficientnet_lite_pytorch import EfficientNet

from seedbed.embedders.sights import Pictures, Posteriors

_MIDDLE, _SCALE = 127.0, 128.0
"""How the weights were trained to see pixels. By the usual mean and deviation of ImageNet a daisy was one at 0.12, and
is at 0.35 like this; an espresso at 0.78 and 0.95."""


class Lite0:
    """On the processor, in float32. Errors: OSError, RuntimeError for a file that holds no such weights."""

    def __init__(self, weights: Path) -> None:
        # Not by from_pretrained, which prints to stdout and lets torch run what a pickle asks for.
        self._net = EfficientNet.from_name("efficientnet-lite0")
        self._net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self._net.eval()

    def __call__(self, pictures: Pictures) -> Posteriors:
        with torch.inference_mode():
            pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
            made: Posteriors = self._net((pixels - _MIDDLE) / _SCALE).softmax(1).numpy()
        return made
