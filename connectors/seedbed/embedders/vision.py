"""`local:` — vision-language models of Qwen3-VL-Embedding's kind: texts, pictures, video and mixtures, one vector each.

Options: those of `local:` (dtype, truncate, device, threads, batch_tokens), `attention=auto|sdpa|flash` (flash on CUDA
alone), and of video `fps` (1), `frames` (64, the most) and `keyframes=true` (only key frames are decoded: faster, and
other frames, so another space).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seedbed.ahead import ahead
from seedbed.content import Content, Image, Kind, Part, Video
from seedbed.embedders.folder import Folder
from seedbed.embedders.loaded import OPTIONS as LOADED
from seedbed.embedders.loaded import Loaded
from seedbed.embedders.options import Options
from seedbed.embedders.tokens import packed
from seedbed.embedders.unicode import unreadable
from seedbed.embedders.vision_prompt import CELL, Prompts, Sample, cells
from seedbed.errors import ContentsRefused, RowError
from seedbed.media import pictures
from seedbed.media.clips import Clip, Sampling, Share
from seedbed.media.fits import Grid
from seedbed.media.limits import USUAL
from seedbed.media.pictures import Pixels
from seedbed.protocols import Vectors

if TYPE_CHECKING:
    from seedbed.embedders.runner import Runner

PROFILE = 2
"""One number a rendering: the reference's prompts, pictures resampled by Pillow, frames with their own times. Raised
when any of that changes; transformers' versions differ in how they render a video, and this one is none of theirs."""
MOST_TOKENS = 8192
_MOST_CELLS = 1800
"""Of a picture."""
_PICTURE = Grid(CELL, 4 * CELL * CELL, _MOST_CELLS * CELL * CELL)
_VIDEO = Share(CELL, 128 * CELL * CELL, 768 * CELL * CELL, 7680 * CELL * CELL)
OPTIONS = (*LOADED, "attention", "fps", "frames", "keyframes")
_TEXTS = 256
"""Prepared at once, while the model works on those before."""
_PICTURES, _AS_PICTURES = 32, 8
"""Likewise, of at most 5.5 MB each; a video takes as much as so many pictures."""
_VIDEO_TOKENS = 4000
"""Of a video whose frames nobody has looked at, about."""


class VisionEmbedder(Loaded):
    """Contents of all kinds to unit vectors. Errors: as LocalEmbedder, and ContentsRefused for media that cannot be
    decoded. One thread embeds at a time, others wait."""

    takes: frozenset[str] = frozenset({"text", "image", "video"})
    profile = PROFILE
    extra = "local,media"
    too_long = "shorten it, or add `?truncate=true` to the embedder's URL, which cuts texts"

    def __init__(self, folder: Folder, options: Options, settings: Mapping[str, Any]) -> None:
        super().__init__(folder, options, settings)
        self._attention = options.choice("attention", ("auto", "sdpa", "flash"))
        frames = max(2, options.whole("frames") or 64)
        exact = not options.flag("keyframes")
        self._sampling = Sampling(options.seconds("fps") or 1.0, min(4, frames), frames, exact)
        self.limits = USUAL

    @property
    def _revision(self) -> str:
        if self._sampling == Sampling():
            return self._folder.revision
        sampled = f"{self._sampling.fps:g} fps, {self._sampling.most} frames" + ", key" * (not self._sampling.exact)
        return f"{self._folder.revision} ({sampled})"

    def embed(self, contents: Sequence[Content], kind: Kind = "document") -> Vectors:
        """float32 (n, dimensions), unit length. Without `truncate`, more than 8,192 tokens are refused."""
        vectors = np.zeros((len(contents), self.space.dimensions), np.float32)
        refused = unreadable([content.text for content in contents])
        wanted = [number for number in range(len(contents)) if number not in refused]
        with self._lock:
            for part, samples, bad in ahead(self._prepared(contents, wanted, kind), depth=1):
                refused |= bad
                refused |= self._run(part, samples, vectors, packed)
                self._usage.image_tokens += sum(
                    sample.vision for number, sample in zip(part, samples, strict=True) if number not in refused
                )
        self._usage.calls += 1
        self._usage.contents += len(contents) - len(refused)
        if refused:
            raise ContentsRefused(dict(sorted(refused.items())), vectors)
        return vectors

    def count_tokens(self, contents: Sequence[Content], kind: Kind = "document") -> npt.NDArray[np.int64]:
        """Of texts and pictures exactly, by the pictures' headers; a video counts as one of a minute or so: what it
        takes is known once it is decoded. A file that is no picture counts nothing."""
        texts = [content.text for content in contents]
        for number in unreadable(texts):
            texts[number] = ""
        bare = [bool(content.media) for content in contents]
        counts = np.array([len(sample) for sample in self._prompts[kind].worded(texts, bare=bare)], np.int64)
        return counts + np.array([_media_tokens(content) for content in contents], np.int64)

    @cached_property
    def _prompts(self) -> dict[Kind, Prompts]:
        """The instruction goes into the system's turn."""
        said: dict[Kind, str] = {"document": self._settings.instruction, "query": self._settings.query_instruction}
        return {kind: Prompts(self._folder.path, instruction) for kind, instruction in said.items()}

    @property
    def _limit(self) -> int:
        return min(MOST_TOKENS, self._card.limit or MOST_TOKENS)

    def _made(self) -> Runner:
        from seedbed.embedders.runner import PROBES, Runner
        from seedbed.embedders.vision_model import VisionModel

        return Runner(
            self._folder.complete(),
            self._card,
            [sample.ids for sample in self._prompts["document"].worded(PROBES)],
            device=self._device,
            dtype=self._dtype,
            threads=self._threads,
            budget=self._budget,
            model=VisionModel,
            attention=self._attention,
        )

    # --- before the model -----------------------------------------------------------------------------

    def _prepared(
        self, contents: Sequence[Content], wanted: Sequence[int], kind: Kind
    ) -> Iterator[tuple[list[int], list[Sample], dict[int, str]]]:
        """Slices of contents as samples, those of text alone first, of about the same length together; and what cannot
        be decoded."""
        weights = {n: _media_tokens(contents[n]) + len(contents[n].text) // 4 for n in wanted}
        worded = sorted((n for n in wanted if not contents[n].media), key=lambda n: -len(contents[n].text))
        mixed = sorted((n for n in wanted if contents[n].media), key=lambda n: -weights[n])
        cut = self._limit if self._truncate else None
        for start in range(0, len(worded), _TEXTS):
            part = worded[start : start + _TEXTS]
            yield part, self._prompts[kind].worded([contents[n].text for n in part], cut), {}
        for slice_ in _slices(contents, mixed):
            part, samples, refused = list[int](), list[Sample](), dict[int, str]()
            for number, found in self._decoded(contents, slice_):
                if isinstance(found, RowError):
                    refused[number] = found.message
                    continue
                images, clips = found
                samples.append(self._prompts[kind].mixed(contents[number], images, clips, cut))
                part.append(number)
            yield part, samples, refused

    def _decoded(
        self, contents: Sequence[Content], part: Sequence[int]
    ) -> Iterator[tuple[int, RowError | tuple[list[Pixels], list[Clip]]]]:
        """In worker processes, several at once."""
        jobs = [(number, [self._decoding(medium) for medium in contents[number].media]) for number in part]
        for number, decoding in jobs:
            images, clips = list[Pixels](), list[Clip]()
            try:
                for job in decoding:
                    found = job.result()
                    if isinstance(found, Clip):
                        clips.append(found)
                    else:
                        images.append(found)
            except RowError as error:
                yield number, error
            else:
                yield number, (images, clips)

    def _decoding(self, medium: Image | Video) -> Future[Any]:
        from seedbed.media.tasks import Frames, Picture
        from seedbed.media.workers import shared

        limits = self.limits.of(medium.data)
        if isinstance(medium, Video):
            return shared().submit(Frames(self._sampling, _VIDEO, limits), medium.data)
        return shared().submit(Picture(_PICTURE, limits=limits), medium.data)


def _slices(contents: Sequence[Content], numbers: Sequence[int]) -> Iterator[list[int]]:
    """Of as many media as are decoded at once."""
    held, size = list[int](), 0
    for number in numbers:
        media = sum(_AS_PICTURES if part.modality == "video" else 1 for part in contents[number].media)
        if held and size + media > _PICTURES:
            yield held
            held, size = [], 0
        held.append(number)
        size += media
    if held:
        yield held


def _media_tokens(content: Content) -> int:
    """With the marks around each picture; one that is not here yet counts as the largest."""
    return sum(_part_tokens(part) for part in content.parts if part.modality != "text")


def _part_tokens(part: Part) -> int:
    if part.modality == "video":
        return _VIDEO_TOKENS
    return _picture_tokens(part.data) if isinstance(part, Image) and part.data else _MOST_CELLS + 2


def _picture_tokens(data: bytes) -> int:
    try:
        wide, high = _PICTURE.size(*pictures.size(data))
    except RowError:
        return 0
    return cells(high, wide) + 2
