"""Encoded pictures to RGB: upright, on white, eight bits a channel, by Pillow."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from seedbed.errors import RowError
from seedbed.media.fits import Fit
from seedbed.media.kinds import beginning
from seedbed.media.limits import USUAL, Limits

Pixels = npt.NDArray[np.uint8]
"""uint8, shape (height, width, 3)."""

Image.init()  # reads which formats there are; a list of names that are not known yet is an error
_READ = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_FORMATS = tuple(name for name in _READ if name in Image.OPEN)
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError, TypeError, OverflowError)
"""What Pillow's readers raise for files that are not whole."""
_SIXTEEN = 65535

Image.MAX_IMAGE_PIXELS = None  # Limits says it, by name


def rgb(data: bytes, fit: Fit | None = None, limits: Limits = USUAL, *, reduce: bool = False) -> Image.Image:
    """The picture (of an animation the first), of a size that `fit` asks for. `reduce` lets a JPEG be decoded at a
    half, a quarter or an eighth where that is still larger than asked for: much faster, and not the very same pixels.

    Raises RowError for what is no picture, is not whole, or is beyond the limits.
    """
    if not data:
        raise RowError("the picture is empty: 0 bytes")
    if len(data) > limits.bytes:
        raise RowError(f"the picture has {len(data):,} bytes, more than {limits.bytes:,}", setting="media.max_bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return _rgb(image, fit, limits, reduce)
        except UnidentifiedImageError:
            raise RowError(f"this is no picture: it begins with {beginning(data)}") from None
        except _BROKEN as error:
            raise RowError(f"the picture cannot be decoded: {error}") from error


def pixels(data: bytes, fit: Fit | None = None, limits: Limits = USUAL, *, reduce: bool = False) -> Pixels:
    """As `rgb`: uint8, shape (height, width, 3)."""
    return np.array(rgb(data, fit, limits, reduce=reduce))


def size(data: bytes) -> tuple[int, int]:
    """Width and height by the header, nothing decoded. Raises RowError for what is no picture."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return image.size
    except _BROKEN as error:
        raise RowError(f"the picture cannot be read: {error}") from error


def _rgb(image: Image.Image, fit: Fit | None, limits: Limits, reduce: bool) -> Image.Image:
    width, height = image.size
    if width * height > limits.pixels:
        raise RowError(f"a picture of {width}x{height} pixels, more than {limits.pixels:,} in all")
    if fit is not None:
        wanted = fit.size(width, height)
        if reduce and image.format in ("JPEG", "MPO"):
            image.draft("RGB", wanted)
    image.load()
    upright = ImageOps.exif_transpose(image)
    flat = _flat(upright)
    return flat if fit is None else fit.apply(flat)


def _flat(image: Image.Image) -> Image.Image:
    """RGB of eight bits; what is transparent lies on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _narrowed(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGB", image.size, (255, 255, 255))
        ground.paste(layered, mask=layered.getchannel("A"))
        return ground
    return image.convert("RGB")


def _narrowed(image: Image.Image) -> Image.Image:
    """Sixteen bits, or floating point, to eight: Pillow itself would cut at 255."""
    values = np.nan_to_num(np.asarray(image, np.float64))
    if image.mode == "F" and values.max(initial=0) <= 1:
        scale = 255.0
    elif image.mode != "F" or values.max(initial=0) > 255:
        scale = 255 / _SIXTEEN
    else:
        scale = 1.0
    return Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8))
