"""Pictures of all kinds become upright RGB of eight bits, and what is none is said to be none."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from media.samples import encoded, halves, picture
from seedbed.errors import RowError
from seedbed.media import pictures
from seedbed.media.fits import Fit, Grid, Square, Within
from seedbed.media.limits import Limits


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, of one row of zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 + 3 * width))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty: 0 bytes"),
        (b"<html><body>404</body></html>", "no picture: it begins with '<html>"),
        (b"\x7fELF\x02\x01\x01", "no picture: it begins with 7f 45"),
        (picture(400, 300)[:2000], "cannot be decoded|no picture"),
        (picture(400, 300, kind="JPEG")[:1500], "cannot be decoded"),
        (picture(400, 300, kind="WEBP")[:300], "cannot be decoded|no picture"),
        (png_header(10_000, 10_000), "10000x10000 pixels, more than 64,000,000"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "no picture"),
    ],
)
def test_what_is_no_whole_picture_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(RowError, match=words):
        pictures.rgb(data)


def test_a_file_of_too_many_bytes_is_not_looked_at() -> None:
    with pytest.raises(RowError, match="more than 100") as caught:
        pictures.rgb(picture(), limits=Limits(bytes=100))
    assert caught.value.setting == "media.max_bytes"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_set_upright(orientation: int) -> None:
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    upright = Image.open(io.BytesIO(halves()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = upright if stored is None else upright.transpose(stored)
    found = pictures.rgb(encoded(turned, "PNG", exif=exif))
    assert found.size == (40, 20)
    assert (found.getpixel((5, 10)), found.getpixel((35, 10))) == ((255, 0, 0), (0, 0, 255))


def test_what_is_transparent_lies_on_white() -> None:
    layered = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    layered.putpixel((0, 0), (255, 0, 0, 255))
    layered.putpixel((1, 0), (0, 0, 0, 128))
    found = pictures.rgb(encoded(layered, "PNG"))
    assert [found.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (127, 127, 127), (255, 255, 255)]
    grey = pictures.rgb(encoded(Image.new("LA", (4, 4), (0, 0)), "PNG"))
    palette = pictures.rgb(encoded(Image.new("P", (4, 4), 0), "PNG", transparency=0))
    assert grey.getpixel((0, 0)) == palette.getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_and_sixteen_bits_keep_their_colours() -> None:
    ink = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    red = pictures.rgb(encoded(ink, "JPEG", quality=95)).getpixel((8, 8))
    assert isinstance(red, tuple)
    assert red[0] > 230
    assert max(red[1:]) < 40
    deep = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert pictures.rgb(encoded(deep, "PNG")).getpixel((0, 0)) == (128, 128, 128)
    light = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    assert pictures.rgb(encoded(light, "TIFF")).getpixel((0, 0)) == (128, 128, 128)


def test_of_an_animation_the_first_picture_is_taken() -> None:
    first, second = Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGB", (20, 20), (0, 255, 0))
    moving = encoded(first, "GIF", save_all=True, append_images=[second] * 3, duration=50)
    assert pictures.rgb(moving).getpixel((0, 0)) == (255, 0, 0)


def test_a_picture_of_one_pixel_is_one_colour() -> None:
    found = pictures.pixels(encoded(Image.new("RGB", (1, 1), (10, 20, 30)), "PNG"), Grid(32, 4096, 1_843_200))
    assert found.shape == (64, 64, 3)
    assert (found == [10, 20, 30]).all()


@pytest.mark.parametrize(
    ("fit", "given", "wanted"),
    [
        (Grid(32, 4096, 1_843_200), (640, 480), (640, 480)),
        (Grid(32, 4096, 1_843_200), (650, 470), (640, 480)),
        (Grid(32, 4096, 1_843_200), (4000, 3000), (1536, 1152)),
        (Grid(32, 4096, 1_843_200), (10, 10), (64, 64)),
        (Grid(32, 4096, 1_843_200), (2000, 10), (1984, 32)),
        (Within(1_028_608), (4000, 3000), (1171, 878)),
        (Within(1_028_608), (30, 20), (30, 20)),
        (Square(224, 256), (4000, 3000), (224, 224)),
    ],
)
def test_sizes(fit: Fit, given: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert fit.size(*given) == wanted
    assert fit.apply(Image.new("RGB", given)).size == wanted


def test_a_strip_is_no_picture_for_a_grid() -> None:
    with pytest.raises(RowError, match="more than 200 times"):
        Grid(32, 4096, 1_843_200).size(4020, 20)


def test_a_reduced_decoding_is_almost_the_same_picture() -> None:
    large = picture(1600, 1200, kind="JPEG")
    exact, quick = (pictures.pixels(large, Within(40_000), reduce=reduce) for reduce in (False, True))
    assert exact.shape == quick.shape
    assert np.abs(exact.astype(int) - quick).mean() < 3
