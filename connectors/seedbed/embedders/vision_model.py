"""A loaded vision-language model: samples in, pooled float32 vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch.nn import functional

from seedbed.embedders.card import Card
from seedbed.embedders.model import Model
from seedbed.embedders.vision_prompt import Sample, positions
from seedbed.media.pictures import Pixels
from seedbed.protocols import Vectors

_PATCH, _TEMPORAL, _MERGE = 16, 2, 2


class VisionModel(Model):
    """As Model, of samples with pictures and video (or plain ids)."""

    def __init__(self, folder: Path, card: Card, device: torch.device, dtype: torch.dtype, attention: str = "") -> None:
        super().__init__(folder, card, device, dtype, attention)
        config = self._transformer.config
        self._image, self._video = int(config.image_token_id), int(config.video_token_id)
        self._pad = int(getattr(config.text_config, "pad_token_id", None) or 0)
        told = _json(folder / "preprocessor_config.json")
        self._mean = torch.tensor(told.get("image_mean", [0.5] * 3), device=device)
        self._deviation = torch.tensor(told.get("image_std", [0.5] * 3), device=device)

    @torch.inference_mode()
    def vectors(self, ids: Sequence[Sample | Sequence[int]], dimensions: int) -> Vectors:
        """float32 (n, dimensions): the last token's state, cut first (Matryoshka), then of unit length."""
        return self.pooled([one if isinstance(one, Sample) else Sample(list(one)) for one in ids], dimensions)

    @torch.inference_mode()
    def pooled(self, samples: Sequence[Sample], dimensions: int, *, left: bool = False) -> Vectors:
        """`left` pads before the tokens and not after them, which changes nothing but the work: on the right no mask
        is needed, since no token of a causal model looks there, and attention is faster without one."""
        lengths = [len(sample) for sample in samples]
        longest = max(lengths)
        starts = [longest - length if left else 0 for length in lengths]
        tokens = np.full((len(samples), longest), self._pad, np.int64)
        mask = np.zeros((len(samples), longest), np.int64)
        for row, (sample, start) in enumerate(zip(samples, starts, strict=True)):
            tokens[row, start : start + len(sample)] = sample.ids
            mask[row, start : start + len(sample)] = 1
        inputs: dict[str, Any] = {"input_ids": self._moved(tokens)}
        if left and min(lengths) < longest:
            inputs["attention_mask"] = self._moved(mask)
        if left or any(sample.vision for sample in samples):
            inputs["position_ids"] = self._moved(self._positions(samples, starts, longest))
            inputs |= self._pixels(samples)
        hidden = self._transformer(**inputs, use_cache=False).last_hidden_state
        ends = torch.tensor([start + length - 1 for start, length in zip(starts, lengths, strict=True)])
        state = hidden[torch.arange(len(samples)), ends.to(hidden.device)].float()
        units = functional.normalize(state[:, :dimensions], dim=1)
        return np.ascontiguousarray(units.cpu().numpy(), np.float32)

    def _positions(self, samples: Sequence[Sample], starts: Sequence[int], longest: int) -> Any:
        """int64 (4, n, longest): running numbers, then time, row and column. Without the first of them transformers
        4.57 takes the pads of a picture, which share a time, for texts packed into one row."""
        made = np.ones((4, len(samples), longest), np.int64)
        made[0] = np.arange(longest)
        for row, (sample, start) in enumerate(zip(samples, starts, strict=True)):
            made[1:, row, start : start + len(sample)] = positions(sample, self._image, self._video)
        return made

    def _pixels(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = {}
        for name, grid, frames in (
            ("pixel_values", "image_grid_thw", [one for sample in samples for one in sample.pictures]),
            ("pixel_values_videos", "video_grid_thw", [one for sample in samples for one in sample.videos]),
        ):
            if frames:
                made[name] = torch.cat([self._patches(one) for one in frames])
                made[grid] = torch.tensor([_grid(one) for one in frames], device=self.device)
        return made

    def _patches(self, frames: Pixels) -> torch.Tensor:
        """uint8 (frames, height, width, 3) → (patches, 3·2·16·16), the four patches of a cell together, as the
        model's merger wants them (transformers' Qwen2VLImageProcessor). The arithmetic is the device's."""
        count, high, wide = frames.shape[0], frames.shape[1] // _PATCH, frames.shape[2] // _PATCH
        pixels = self._moved(frames).float() / 255
        pixels = ((pixels - self._mean) / self._deviation).permute(0, 3, 1, 2)
        if count % _TEMPORAL:
            pixels = torch.cat([pixels, pixels[-1:]])
        cells = pixels.reshape(
            -1, _TEMPORAL, 3, high // _MERGE, _MERGE, _PATCH, wide // _MERGE, _MERGE, _PATCH
        ).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return cells.reshape(-1, 3 * _TEMPORAL * _PATCH * _PATCH).to(self.dtype)

    def _moved(self, array: Any) -> torch.Tensor:
        """On the device; from pinned memory the copy runs beside the work."""
        made = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type != "cuda":
            return made
        return made.pin_memory().to(self.device, non_blocking=True)


def _grid(frames: Pixels) -> tuple[int, int, int]:
    """Pairs of frames, and patches down and across."""
    return (len(frames) + 1) // _TEMPORAL, frames.shape[1] // _PATCH, frames.shape[2] // _PATCH


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(file.read_bytes()) if file.is_file() else {}
    return found
