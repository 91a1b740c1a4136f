"""Pictures and videos made on the spot."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image


def picture(
    width: int = 64, height: int = 48, mode: str = "RGB", kind: str = "PNG", seed: int = 0, **save: Any
) -> bytes:
    """Noise that no compression makes small, softened so that resampling keeps it alike."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    return encoded(image, kind, **save)


def encoded(image: Image.Image, kind: str, **save: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **save)
    return made.getvalue()


def halves(kind: str = "PNG", **save: Any) -> bytes:
    """40x20: the left half red, the right half blue."""
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    return encoded(image, kind, **save)


def video(
    frames: int = 24,
    rate: int = 8,
    size: tuple[int, int] = (96, 64),
    container: str = "mp4",
    codec: str = "libx264",
    gop: int = 8,
) -> bytes:
    """Frame n of all is of the grey `shade(n, frames)`."""
    made = io.BytesIO()
    with av.open(made, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = gop
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), shade(number, frames), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode())
    return made.getvalue()


def shade(number: int, frames: int) -> int:
    return 20 + 200 * number // frames
