"""Videos to evenly sampled frames with their times, by PyAV. Nothing that a file's header claims is believed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from seedbed.errors import RowError
from seedbed.media.fits import Fit, Grid
from seedbed.media.kinds import beginning, video_type
from seedbed.media.limits import USUAL, Limits

_DEMUXERS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/x-matroska": "matroska",
    "video/x-msvideo": "avi",
    "video/mpeg": "mpeg",
    "video/mp2t": "mpegts",
}
"""Named, never guessed: a playlist that is taken for a video would make the demuxer open what it names."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """`fps` frames a second, `least` to `most` in all, an even number of them. `exact` decodes every frame on the way;
    else only key frames are, the nearest to each time wanted: several times as fast, and not the same frames."""

    fps: float = 1.0
    least: int = 4
    most: int = 64
    exact: bool = True

    def count(self, frames: int, seconds: float) -> int:
        """How many of a video's frames; Qwen-VL's smart_nframes (qwen-vl-utils)."""
        wanted = min(max(seconds * self.fps, self.least), self.most, frames)
        return max(1, int(wanted) // 2 * 2)


@dataclass(frozen=True, slots=True)
class Clip:
    """`frames` uint8 of shape (n, height, width, 3), `seconds` float64 (n,) from the video's beginning."""

    frames: npt.NDArray[np.uint8]
    seconds: npt.NDArray[np.float64]


class FrameFit(Protocol):
    """How large each of n frames is to be: a fit that depends on their number."""

    def __call__(self, count: int) -> Fit: ...


@dataclass(frozen=True, slots=True)
class Share:
    """Qwen-VL's: frames share `total` pixels among pairs of them, `least` to `most` each (qwen-vl-utils,
    vision_process.fetch_video)."""

    factor: int
    least: int
    most: int
    total: int

    def __call__(self, count: int) -> Fit:
        most = max(min(self.most, self.total / count * 2), int(self.least * 1.05))
        return Grid(self.factor, self.least, int(most))


@dataclass(frozen=True, slots=True)
class Same:
    """One fit for all frames."""

    fit: Fit

    def __call__(self, count: int) -> Fit:
        return self.fit


def sample(data: bytes, sampling: Sampling, fits: FrameFit, limits: Limits = USUAL) -> Clip:
    """Raises RowError for what is no video, has no frames that can be decoded, or is beyond the limits."""
    if not data:
        raise RowError("the video is empty: 0 bytes")
    if len(data) > limits.bytes:
        raise RowError(f"the video has {len(data):,} bytes, more than {limits.bytes:,}", setting="media.max_bytes")
    times = _times(data, limits)
    seconds = times[-1] - times[0] + (times[-1] - times[0]) / max(1, len(times) - 1)
    wanted = np.linspace(0, len(times) - 1, sampling.count(len(times), seconds)).round().astype(int)
    fit = fits(len(wanted))
    found = list(_pictured(data, times[wanted], sampling.exact, fit, limits))
    if not found:
        raise RowError("no frame of the video can be decoded")
    frames = np.stack([frame for frame, _ in found])
    return Clip(frames, np.array([moment for _, moment in found]) - times[0])


def _open(data: bytes) -> Any:
    kind = video_type(data)
    if kind is None:
        raise RowError(f"this is no video: it begins with {beginning(data)}")
    try:
        container = av.open(io.BytesIO(data), format=_DEMUXERS[kind], metadata_errors="ignore")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise RowError(f"the video cannot be read: {_said(error)}") from error
    if not container.streams.video:
        container.close()
        raise RowError("the video has no pictures: no video stream")
    return container


def _times(data: bytes, limits: Limits) -> npt.NDArray[np.float64]:
    """When each frame is shown, in seconds, ascending: by the packets that are there, not by the header's claims."""
    with _open(data) as container:
        stream = container.streams.video[0]
        if stream.codec_context.width * stream.codec_context.height > limits.pixels:
            size = f"{stream.codec_context.width}x{stream.codec_context.height}"
            raise RowError(f"a video of {size} pixels a frame, more than {limits.pixels:,}")
        base, found = float(stream.time_base or 1), list[float]()
        try:
            for packet in container.demux(stream):
                moment = packet.pts if packet.pts is not None else packet.dts
                if packet.size and moment is not None:
                    found.append(moment * base)
                    if len(found) > limits.frames:
                        raise RowError(f"the video has more than {limits.frames:,} frames")
        except av.error.FFmpegError as error:
            if not found:
                raise RowError(f"the video cannot be read: {_said(error)}") from error
    if not found:
        raise RowError("the video has no frames")
    times = np.sort(np.array(found))
    if times[-1] - times[0] > limits.seconds:
        raise RowError(f"the video is {times[-1] - times[0]:,.0f} seconds long, more than {limits.seconds:,.0f}")
    return times


def _pictured(
    data: bytes, wanted: npt.NDArray[np.float64], exact: bool, fit: Fit, limits: Limits
) -> Iterator[tuple[npt.NDArray[np.uint8], float]]:
    """Of each moment wanted the frame that is nearest, among all or among the key frames."""
    left = list(wanted)
    before: tuple[Any, float] | None = None
    with _open(data) as container:
        stream = container.streams.video[0]
        base = float(stream.time_base or 1)
        if not exact:
            stream.codec_context.skip_frame = "NONKEY"
        for frame in _decoded(container, stream):
            if frame.pts is None:
                continue
            if frame.width * frame.height > limits.pixels:
                raise RowError(f"a video of {frame.width}x{frame.height} pixels a frame, more than {limits.pixels:,}")
            moment = frame.pts * base
            while left and moment >= left[0]:
                nearer = before is not None and left[0] - before[1] < moment - left[0]
                chosen = before if nearer and before is not None else (frame, moment)
                yield _picture(chosen[0], fit), chosen[1]
                left.pop(0)
            if not left:
                return
            before = (frame, moment)
        if before is not None:
            last = _picture(before[0], fit)
            yield from ((last, before[1]) for _ in left)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames up to the first that cannot be decoded: a file that was cut off still shows its beginning."""
    try:
        yield from container.decode(stream)
    except av.error.FFmpegError:
        return


def _picture(frame: Any, fit: Fit) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turned = round(getattr(frame, "rotation", 0) or 0) % 360
    if turned:
        image = image.rotate(turned, expand=True)
    return np.asarray(fit.apply(image))


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
