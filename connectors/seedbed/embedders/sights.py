"""What a classifier sees in pictures and videos: decoded by the media workers, classified in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from seedbed.content import Image, Video
from seedbed.errors import RowError
from seedbed.media import workers
from seedbed.media.clips import Same, Sampling
from seedbed.media.fits import Square
from seedbed.media.limits import USUAL, Limits
from seedbed.media.tasks import Frames, Picture

Pictures = npt.NDArray[np.uint8]
"""uint8, shape (n, 224, 224, 3)."""
Posteriors = npt.NDArray[np.float32]
"""float32, shape (n, 1000); each row's sum is 1."""
Classify = Callable[[Pictures], Posteriors]

CLASSES = 1000
_FIT = Square(224, 256)
_SAMPLING = Sampling(fps=1.0, least=4, most=16)
_BATCH = 32
"""Pictures a pass, which bounds the memory."""


def posteriors(
    parts: Sequence[Image | Video], classify: Classify, limits: Limits = USUAL
) -> tuple[Posteriors, dict[int, str]]:
    """Of each part, a video's being its frames' mean; and why a part was refused, whose row is 0 then."""
    refused: dict[int, str] = {}
    sums = np.zeros((len(parts), CLASSES), np.float32)
    counts = np.zeros(len(parts), np.float32)
    for numbers, pictures in _batches(parts, refused, limits):
        np.add.at(sums, numbers, classify(pictures))
        np.add.at(counts, numbers, 1)
    sums /= np.maximum(counts, 1)[:, None]
    return sums, refused


def _batches(
    parts: Sequence[Image | Video], refused: dict[int, str], limits: Limits
) -> Iterator[tuple[list[int], Pictures]]:
    """Pictures and frames with the numbers of the parts that they are of; notes the parts that are refused."""
    numbers: list[int] = []
    held: list[Pictures] = []
    for number, decoded in _decoded(parts, limits):
        if isinstance(decoded, RowError):
            refused[number] = decoded.message
            continue
        for picture in decoded:
            numbers.append(number)
            held.append(picture)
            if len(held) == _BATCH:
                yield numbers, np.stack(held)
                numbers, held = [], []
    if held:
        yield numbers, np.stack(held)


def _decoded(parts: Sequence[Image | Video], limits: Limits) -> Iterator[tuple[int, Pictures | RowError]]:
    """Each part's number with its picture or frames, pictures first."""
    shown = [number for number, part in enumerate(parts) if isinstance(part, Image)]
    filmed = [number for number, part in enumerate(parts) if isinstance(part, Video)]
    allowed = limits.of(max((part.data for part in parts), key=len, default=b""))
    pictures = workers.shared().map(Picture(_FIT, limits=allowed), (parts[number].data for number in shown))
    clips = workers.shared().map(Frames(_SAMPLING, Same(_FIT), allowed), (parts[number].data for number in filmed))
    stacked = (made if isinstance(made, RowError) else made[None] for made in pictures)
    frames = (made if isinstance(made, RowError) else made.frames for made in clips)
    yield from chain(zip(shown, stacked, strict=True), zip(filmed, frames, strict=True))
