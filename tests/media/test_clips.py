"""Videos become evenly sampled frames with their true times, whatever their headers say."""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import numpy as np
import pytest

from media.samples import picture, shade, video
from seedbed.errors import RowError
from seedbed.media.clips import Clip, Same, Sampling, Share, sample
from seedbed.media.fits import Within
from seedbed.media.limits import Limits

SMALL = Same(Within(96 * 64))


def shades(clip: Clip) -> list[float]:
    return [float(frame.mean()) for frame in clip.frames]


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4")])
def test_frames_are_taken_evenly_with_their_times(container: str, codec: str) -> None:
    clip = sample(video(frames=48, rate=8, container=container, codec=codec), Sampling(fps=1.0), SMALL)
    assert clip.frames.shape == (6, 64, 96, 3)
    wanted = np.linspace(0, 47, 6).round()
    np.testing.assert_allclose(clip.seconds, wanted / 8, atol=0.01)
    np.testing.assert_allclose(shades(clip), [shade(int(number), 48) for number in wanted], atol=4)


def test_no_more_and_no_fewer_frames_than_asked_for() -> None:
    long = video(frames=300, rate=2)
    assert len(sample(long, Sampling(fps=1.0, most=64), SMALL).frames) == 64
    assert len(sample(video(frames=9, rate=30), Sampling(fps=1.0, least=4), SMALL).frames) == 4
    assert len(sample(video(frames=3, rate=30), Sampling(fps=1.0, least=4), SMALL).frames) == 2
    assert len(sample(video(frames=1), Sampling(), SMALL).frames) == 1


def test_key_frames_alone_are_near_the_exact_ones() -> None:
    data = video(frames=64, rate=8, gop=8)
    clip = sample(data, Sampling(fps=1.0, exact=False), SMALL)
    exact = sample(data, Sampling(fps=1.0), SMALL)
    assert clip.frames.shape == exact.frames.shape
    assert np.abs(clip.seconds - exact.seconds).max() < 1
    assert set(np.round(clip.seconds * 8).astype(int) % 8) == {0}


def test_frames_share_their_pixels() -> None:
    clip = sample(
        video(frames=16, rate=8, size=(640, 480)), Sampling(fps=8.0, most=16), Share(32, 4096, 786_432, 800_000)
    )
    height, width = clip.frames.shape[1:3]
    assert height % 32 == width % 32 == 0
    assert height * width <= 800_000 / 16 * 2


def lying(data: bytes, box: bytes, at: int, value: int) -> bytes:
    """With a number of a box of the header replaced."""
    start = data.index(box) + 4 + at
    return data[:start] + struct.pack(">I", value) + data[start + 4 :]


def test_a_lying_header_is_not_believed() -> None:
    data = video(frames=24, rate=8)
    honest = sample(data, Sampling(fps=2.0), SMALL)
    for box, duration in ((b"mvhd", 0x7FFFFFFF), (b"mvhd", 0), (b"mdhd", 0x7FFFFFFF)):
        claim = lying(data, box, 16, duration)
        assert claim != data
        np.testing.assert_array_equal(sample(claim, Sampling(fps=2.0), SMALL).frames, honest.frames)
    with pytest.raises(RowError):
        sample(lying(data, b"stsz", 8, 0x7FFFFFF0), Sampling(), SMALL)


def without_frames() -> bytes:
    made = io.BytesIO()
    with av.open(made, "w", format="mp4") as file:
        stream: Any = file.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        file.mux(stream.encode(silence))
        file.mux(stream.encode())
    return made.getvalue()


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://169.254.169.254/latest/meta-data\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty: 0 bytes"),
        (b"<html></html>", "no video: it begins with '<html>"),
        (picture(), "no video"),
        (PLAYLIST, "no video: it begins with '#EXTM3U"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no video"),
        (without_frames(), "no pictures|no frames"),
        (video()[:600], "cannot be read|no frames|no frame|no pictures"),
        (b"\0\0\0\x18ftypmp42" + bytes(3000), "cannot be read|no pictures|no frames"),
    ],
)
def test_what_is_no_video_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(RowError, match=words):
        sample(data, Sampling(), SMALL)


def test_a_video_that_was_cut_off_shows_its_beginning() -> None:
    whole = video(frames=48, rate=8, container="matroska")
    clip = sample(whole[: len(whole) * 2 // 3], Sampling(fps=1.0), SMALL)
    assert len(clip.frames) >= 2
    assert shades(clip)[0] == pytest.approx(shade(0, 48), abs=4)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(bytes=100), "bytes, more than 100"),
        (Limits(pixels=1000), "96x64 pixels a frame"),
        (Limits(frames=10), "more than 10 frames"),
        (Limits(seconds=1), "seconds long, more than 1"),
    ],
)
def test_limits(limits: Limits, words: str) -> None:
    with pytest.raises(RowError, match=words):
        sample(video(), Sampling(), SMALL, limits)
