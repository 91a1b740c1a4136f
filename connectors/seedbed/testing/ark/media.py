"""The limits of pictures and videos, by the headers of their files."""

from __future__ import annotations

import io

from seedbed.testing.ark.errors import ArkError

_IMAGE_BYTES, _IMAGE_PIXELS, _IMAGE_SIDE, _IMAGE_TOKENS = 10_000_000, 36_000_000, 14, 1312
_VIDEO_BYTES = 50_000_000
_VIDEO_TOKENS = (10_000, 80_000)
_BYTES_A_TOKEN = 400
"""The emulator decodes no video: a stand-in for its frames."""

_MAGIC = {
    "image/png": (0, b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": (0, b"\xff\xd8\xff"),
    "image/gif": (0, b"GIF8"),
    "image/webp": (8, b"WEBP"),
    "image/bmp": (0, b"BM"),
    "video/mp4": (4, b"ftyp"),
    "video/quicktime": (4, b"ftyp"),
    "video/mov": (4, b"ftyp"),
    "video/x-msvideo": (8, b"AVI "),
    "video/avi": (8, b"AVI "),
}


def check_image(mime: str, data: bytes) -> tuple[int, int]:
    """Width and height in pixels. Raises ArkError."""
    _check_kind("image", mime, data, "InvalidImageURL.InvalidFormat")
    if len(data) >= _IMAGE_BYTES:
        raise ArkError("InvalidImageURL.TooLarge", "an image must be smaller than 10 MB")
    width, height = _size(data)
    if width * height >= _IMAGE_PIXELS:
        raise ArkError("InvalidImageURL.TooLarge", "an image must be smaller than 36 megapixels")
    if min(width, height) <= _IMAGE_SIDE:
        raise ArkError("InvalidImageURL.TooSmall", "an image's sides must be longer than 14 pixels")
    if not 0.01 <= width / height <= 100:
        raise ArkError("InvalidImageURL.AspectRatio", "an image's sides must be 1:100 to 100:1")
    return width, height


def image_tokens(width: int, height: int) -> int:
    return min(width * height // 784, _IMAGE_TOKENS)


def check_video(mime: str, data: bytes) -> None:
    """Raises ArkError."""
    _check_kind("video", mime, data, "InvalidParameter.video_url")
    if len(data) > _VIDEO_BYTES:
        raise ArkError("InvalidParameter.video_url", "a video must be at most 50 MB")


def video_tokens(data: bytes) -> int:
    least, most = _VIDEO_TOKENS
    return max(least, min(most, len(data) // _BYTES_A_TOKEN))


def _check_kind(kind: str, mime: str, data: bytes, code: str) -> None:
    if not mime.startswith(f"{kind}/") or mime not in _MAGIC:
        raise ArkError(code, f"{mime} is no supported {kind} format")
    at, magic = _MAGIC[mime]
    if data[at : at + len(magic)] != magic:
        raise ArkError(code, f"the bytes are no {mime}")


def _size(data: bytes) -> tuple[int, int]:
    # Needed for pictures alone.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.width, image.height
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        raise ArkError("InvalidImageURL.InvalidFormat", "the image cannot be read") from None
