"""What workers do with one file each: picklable, and called with the file's bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from PIL import Image

from seedbed.media import clips, pictures
from seedbed.media.fits import Fit, Within
from seedbed.media.limits import USUAL, Limits
from seedbed.media.pictures import Pixels

R_co = TypeVar("R_co", covariant=True)


class Task(Protocol[R_co]):
    @property
    def limits(self) -> Limits: ...

    def __call__(self, data: bytes) -> R_co:
        """Raises RowError."""
        ...


@dataclass(frozen=True)
class Picture:
    """Pixels of a picture at a model's size: uint8 (height, width, 3)."""

    fit: Fit
    reduce: bool = False
    limits: Limits = USUAL

    def __call__(self, data: bytes) -> Pixels:
        return pictures.pixels(data, self.fit, self.limits, reduce=self.reduce)


@dataclass(frozen=True)
class Frames:
    """A video's frames: clips.Clip."""

    sampling: clips.Sampling
    fits: clips.FrameFit
    limits: Limits = USUAL

    def __call__(self, data: bytes) -> clips.Clip:
        return clips.sample(data, self.sampling, self.fits, self.limits)


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG of a picture, or of a video's first frame, at most `side` pixels wide and high."""

    side: int = 256
    video: bool = False
    limits: Limits = field(default=USUAL)

    def __call__(self, data: bytes) -> bytes:
        fit = Within(self.side * self.side)
        if self.video:
            clip = clips.sample(data, clips.Sampling(least=1, most=1, exact=False), clips.Same(fit), self.limits)
            return jpeg(Image.fromarray(clip.frames[0]))
        return jpeg(pictures.rgb(data, fit, self.limits, reduce=True))


def jpeg(image: Image.Image, quality: int = 85) -> bytes:
    made = io.BytesIO()
    image.save(made, "JPEG", quality=quality)
    return made.getvalue()
