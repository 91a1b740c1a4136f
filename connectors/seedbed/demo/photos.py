"""The demo's photos, out of scikit-image's package: no download. A clip of each is made on the spot."""

from __future__ import annotations

import io
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from seedbed.errors import MissingDependency
from seedbed.media.tasks import jpeg

_FPS, _FRAMES = 12, 36
_ZOOM = 1.4
"""How much nearer the last frame is."""
_WIDTH = 320
"""Of a clip, in pixels; its height is in the photo's proportion."""


class Photo(NamedTuple):
    """`caption` is an English sentence, `data` a JPEG."""

    id: int
    title: str
    caption: str
    data: bytes


# Those that `conse:` knows by their captions; its weights have seen no space suit, but helmets.
_PHOTOS = (
    ("chelsea.png", "Chelsea", "A cat looks past the camera with green eyes."),
    ("coffee.png", "Coffee", "A cup of espresso stands on a wooden table."),
    ("rocket.jpg", "Rocket", "A rocket stands on its launch pad in the evening."),
    ("camera.png", "Cameraman", "A photographer looks through a camera on a tripod."),
    ("astronaut.png", "Astronaut", "An astronaut in a space suit smiles, her helmet beside her."),
    ("motorcycle_left.png", "Motorcycle", "A red motorcycle is parked in a garage."),
    ("brick.png", "Bricks", "A wall of bricks."),
    ("page.png", "Page", "A printed page of a book."),
)


def photos() -> list[Photo]:
    """Always the same, in the same order. Raises MissingDependency without scikit-image."""
    folder = _folder()
    return [
        Photo(number, title, caption, _as_jpeg(folder / name))
        for number, (name, title, caption) in enumerate(_PHOTOS, 1)
    ]


def clip(photo: Photo) -> bytes:
    """An MP4 of three seconds that slowly comes nearer to the photo's middle."""
    with Image.open(io.BytesIO(photo.data)) as image:
        made = io.BytesIO()
        with av.open(made, "w", format="mp4") as container:
            _film(container, image)
    return made.getvalue()


def _film(container: Any, image: Image.Image) -> None:
    # MPEG-4 part 2: every build of FFmpeg can write it, unlike H.264.
    stream = container.add_stream("mpeg4", rate=_FPS)
    # Even numbers, since colours are kept at half the resolution.
    size = stream.width, stream.height = _WIDTH, round(_WIDTH * image.height / image.width / 2) * 2
    stream.pix_fmt, stream.bit_rate = "yuv420p", 1_000_000
    for number in range(_FRAMES):
        near = _nearer(image, _ZOOM ** (number / (_FRAMES - 1)), size)
        frame = av.VideoFrame.from_ndarray(np.asarray(near), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, _FPS)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _nearer(image: Image.Image, zoom: float, size: tuple[int, int]) -> Image.Image:
    """The picture's middle."""
    left, top = (side * (1 - 1 / zoom) / 2 for side in image.size)
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, image.width - left, image.height - top))


def _as_jpeg(file: Path) -> bytes:
    with Image.open(file) as image:
        return jpeg(image.convert("RGB"), quality=90)


def _folder() -> Path:
    """Where scikit-image keeps its pictures; it is not imported, which takes a second."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(
            "the demo's photos come with the package 'scikit-image', which is not installed",
            hint="pip install 'seedbed[demo]'",
        )
    return Path(spec.submodule_search_locations[0]) / "data"
