"""Pictures and video as the Ark API takes them: within its limits, and no larger than what it would pay heed to.

Source of the limits: the Volcengine Ark documentation of the multimodal embedding API. A picture of more than about one
megapixel is billed as one of 1,312 tokens, so it is sent at that size: the same price, fewer bytes.
"""

from __future__ import annotations

import asyncio
import io
import math
from dataclasses import dataclass, field
from fractions import Fraction

import av
from PIL import Image as Pillow

from seedbed.content import Content, Image, Part, Video
from seedbed.errors import RowError
from seedbed.media import clips, pictures
from seedbed.media.fits import Within
from seedbed.media.kinds import picture_type, video_type
from seedbed.media.limits import USUAL, Limits
from seedbed.media.tasks import jpeg
from seedbed.media.workers import shared

PIXELS_A_TOKEN = 784
MOST_IMAGE_TOKENS = 1312
VIDEO_TOKENS = (10_000, 80_000)
_PIXELS = MOST_IMAGE_TOKENS * PIXELS_A_TOKEN
_IMAGE_BYTES, _SIDE, _ASPECT = 10_000_000, 14, 100
_VIDEO_BYTES = 50_000_000
_QUALITY = 92
_AS_THEY_ARE = ("image/jpeg", "image/png", "image/webp")
_CONTAINERS = ("video/mp4", "video/quicktime", "video/x-msvideo")
_TOKENS_A_FRAME = 128
_MOST_FRAMES = 128
_FRAME_PIXELS = 640 * 360
_UPRIGHT = 1
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Ready(Image):
    """A picture as it is sent."""

    tokens: int = MOST_IMAGE_TOKENS


@dataclass(frozen=True, slots=True)
class ReadyVideo(Video):
    tokens: int = VIDEO_TOKENS[0]


@dataclass(frozen=True)
class ArkPicture:
    """A picture within the limits, as it is where it can be."""

    limits: Limits = field(default=USUAL)

    def __call__(self, data: bytes) -> Ready:
        image = pictures.rgb(data, Within(_PIXELS), self.limits, reduce=True)
        width, height = image.size
        if min(width, height) <= _SIDE:
            raise RowError(f"a picture of {width}x{height} pixels: Ark takes none with a side of {_SIDE} or fewer")
        if max(width, height) > _ASPECT * min(width, height):
            raise RowError(f"a picture of {width}x{height} pixels: Ark takes sides of at most 1:{_ASPECT}")
        tokens = min(width * height // PIXELS_A_TOKEN, MOST_IMAGE_TOKENS)
        if picture_type(data) in _AS_THEY_ARE and len(data) < _IMAGE_BYTES and _plain(data, image.size):
            return Ready(data, tokens=tokens)
        return Ready(jpeg(image, _QUALITY), tokens=tokens)


@dataclass(frozen=True)
class ArkVideo:
    """A video within the limits: as it is where its container is taken and small enough, else its frames anew."""

    limits: Limits = field(default=USUAL)

    def __call__(self, data: bytes) -> ReadyVideo:
        whole = video_type(data) in _CONTAINERS and len(data) <= _VIDEO_BYTES
        most = 2 if whole else _MOST_FRAMES
        sampling = clips.Sampling(fps=1.0, least=min(16, most), most=most, exact=not whole)
        clip = clips.sample(data, sampling, clips.Same(Within(_FRAME_PIXELS)), self.limits)
        seconds = float(clip.seconds[-1])
        least, dearest = VIDEO_TOKENS
        tokens = int(min(max(seconds * _TOKENS_A_FRAME, least), dearest))
        return ReadyVideo(data if whole else _encoded(clip), tokens=tokens)


def _plain(data: bytes, size: tuple[int, int]) -> bool:
    """Whether any reader sees the same picture: eight bits, upright, not transparent, one of them, of that size."""
    with Pillow.open(io.BytesIO(data)) as image:
        upright = image.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
        still = not getattr(image, "is_animated", False) and image.format != "MPO"
        plain = image.mode in ("RGB", "L") and "transparency" not in image.info
        return image.size == size and upright and still and plain


def _encoded(clip: clips.Clip) -> bytes:
    """The frames as H.264 in MP4, as long as the video was."""
    made = io.BytesIO()
    count, height, width = clip.frames.shape[:3]
    rate = Fraction(max(1, count - 1) / max(float(clip.seconds[-1]), 0.1)).limit_denominator(1000)
    with av.open(made, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width // 2 * 2, height // 2 * 2, "yuv420p"
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return made.getvalue()


async def prepared(content: Content, limits: Limits = USUAL) -> Content:
    """With its media as they are sent; made in the workers. Raises RowError."""
    if not content.media:
        return content
    parts = list[Part]()
    for part in content.parts:
        match part:
            case Ready() | ReadyVideo():
                parts.append(part)
            case Image():
                parts.append(await asyncio.wrap_future(shared().submit(ArkPicture(limits.of(part.data)), part.data)))
            case Video():
                parts.append(await asyncio.wrap_future(shared().submit(ArkVideo(limits.of(part.data)), part.data)))
            case _:
                parts.append(part)
    return Content(tuple(parts))


def tokens(content: Content) -> float:
    """Of its media: exact for pictures that are prepared, else the most of a picture and the least of a video."""
    return math.fsum(map(_tokens, _seen(content)))


def most_tokens(content: Content) -> float:
    """What its media cannot exceed."""
    return math.fsum(MOST_IMAGE_TOKENS if part.modality == "image" else VIDEO_TOKENS[1] for part in _seen(content))


def _seen(content: Content) -> list[Part]:
    """Its pictures and video, also those that are not here yet."""
    return [part for part in content.parts if part.modality != "text"]


def _tokens(part: Part) -> int:
    if isinstance(part, Ready | ReadyVideo):
        return part.tokens
    return MOST_IMAGE_TOKENS if part.modality == "image" else VIDEO_TOKENS[0]
