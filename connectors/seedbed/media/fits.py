"""The sizes that models take pictures in. All resample bicubically by Pillow, which is part of the profile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from seedbed.errors import RowError

_MOST_ASPECT = 200


class Fit(Protocol):
    """What a picture becomes for one model; picklable, as it is sent to a worker."""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels that a picture of that size is brought to. Raises RowError for a shape that the
        model does not take."""
        ...

    def apply(self, image: Image.Image) -> Image.Image: ...


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True, slots=True)
class Grid:
    """Both sides multiples of `factor`, `least` to `most` pixels in all, the aspect as near as that allows: Qwen-VL's
    smart_resize (qwen-vl-utils, vision_process)."""

    factor: int
    least: int
    most: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        if max(width, height) > _MOST_ASPECT * min(width, height):
            raise RowError(
                f"a picture of {width}x{height} pixels: one side is more than {_MOST_ASPECT} times the other"
            )
        factor = self.factor
        wide, high = (max(factor, round(side / factor) * factor) for side in (width, height))
        if wide * high > self.most:
            shrink = math.sqrt(width * height / self.most)
            wide, high = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
        elif wide * high < self.least:
            grow = math.sqrt(self.least / (width * height))
            wide, high = (math.ceil(side * grow / factor) * factor for side in (width, height))
        return wide, high

    def apply(self, image: Image.Image) -> Image.Image:
        return resized(image, self.size(*image.size))


@dataclass(frozen=True, slots=True)
class Within:
    """At most `most` pixels, the aspect kept; never enlarged."""

    most: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        if width * height <= self.most:
            return width, height
        shrink = math.sqrt(self.most / (width * height))
        return max(1, int(width * shrink)), max(1, int(height * shrink))

    def apply(self, image: Image.Image) -> Image.Image:
        return resized(image, self.size(*image.size))


@dataclass(frozen=True, slots=True)
class Square:
    """The middle, `side` by `side` pixels, after the shorter side was brought to `shorter`: how classifiers see."""

    side: int
    shorter: int

    def size(self, width: int, height: int) -> tuple[int, int]:
        return self.side, self.side

    def apply(self, image: Image.Image) -> Image.Image:
        scale = self.shorter / min(image.size)
        wide, high = (max(self.side, round(side * scale)) for side in image.size)
        left, top = (wide - self.side) // 2, (high - self.side) // 2
        # One step: the box that the middle is made from, in the picture's own pixels.
        right, bottom = (left + self.side) / scale, (top + self.side) / scale
        box = (left / scale, top / scale, min(right, image.width), min(bottom, image.height))
        return image.resize((self.side, self.side), Image.Resampling.BICUBIC, box=box)
