"""Contents as token ids for Qwen3-VL-Embedding, as its reference renders them (QwenLM/Qwen3-VL-Embedding,
`Qwen3VLEmbedder.format_model_input`, with transformers 4.57's rendering of video):

    <|im_start|>system\\n{instruction}<|im_end|>\\n<|im_start|>user\\n{videos}{pictures}{text}<|im_end|>\\n
    <|im_start|>assistant\\n<|endoftext|>

A picture is `<|vision_start|>`, a pad a cell of 32x32 pixels, `<|vision_end|>`; a video the same for each pair of
frames, `<1.5 seconds>` before it. Only a text's own words go through the tokenizer each time. What looks like a special
token in them is taken as text, unlike in the reference: nobody's title may end its turn.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from seedbed.content import Content
from seedbed.errors import ConfigError
from seedbed.media.clips import Clip
from seedbed.media.pictures import Pixels

DEFAULT_INSTRUCTION = "Represent the user's input."
EMPTY = "NULL"
END = "<|endoftext|>"
CELL = 32
"""Pixels a token is wide and high: patches of 16, two by two."""


@dataclass(slots=True)
class Sample:
    """One content for the model: `ids`, and what the pads in them stand for, in order: uint8 (frames, height, width,
    3), of a picture one frame."""

    ids: list[int]
    pictures: list[Pixels] = field(default_factory=list)
    videos: list[Pixels] = field(default_factory=list)
    vision: int = 0
    """How many of the ids are pads."""

    def __len__(self) -> int:
        return len(self.ids)


class Prompts:
    """Of one instruction."""

    def __init__(self, folder: Path, instruction: str) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._image, self._video = self._special("<|image_pad|>"), self._special("<|video_pad|>")
        self._start, self._stop = self._special("<|vision_start|>"), self._special("<|vision_end|>")
        self._head = self._known(f"<|im_start|>system\n{sentence(instruction)}<|im_end|>\n<|im_start|>")
        self._user = self._known("user\n")
        self._tail = [*self._known("<|im_end|>\n<|im_start|>assistant\n"), self._special(END)]
        # From here on texts are only texts.
        self._tokenizer.encode_special_tokens = True

    def worded(
        self, texts: Sequence[str], limit: int | None = None, bare: Sequence[bool] | None = None
    ) -> list[Sample]:
        """Samples of text alone; where there is a `limit`, texts are cut to it. Those that are `bare` stand beside
        media, and may be empty."""
        bare = bare or [False] * len(texts)
        rows = self._encoded([f"user\n{text or EMPTY * (not alone)}" for text, alone in zip(texts, bare, strict=True)])
        room = None if limit is None else limit - len(self._head) - len(self._tail)
        return [Sample([*self._head, *row[:room], *self._tail]) for row in rows]

    def mixed(self, content: Content, pictures: Sequence[Pixels], videos: Sequence[Clip], limit: int | None) -> Sample:
        """A sample with media; where there is a `limit`, the text is cut to it."""
        ids, vision = [*self._head, *self._user], 0
        for clip in videos:
            made, pads = self._clip(clip)
            ids, vision = ids + made, vision + pads
        for picture in pictures:
            pads = cells(*picture.shape[:2])
            ids += [self._start, *[self._image] * pads, self._stop]
            vision += pads
        text = self._encoded([content.text])[0]
        if limit is not None:
            text = text[: max(0, limit - len(ids) - len(self._tail))]
        frames = [clip.frames for clip in videos]
        return Sample([*ids, *text, *self._tail], [one[None] for one in pictures], frames, vision)

    def _clip(self, clip: Clip) -> tuple[list[int], int]:
        """Two frames at a time, told by the middle of their times; the last stands twice where it is alone."""
        seconds = [*clip.seconds, *clip.seconds[len(clip.seconds) - len(clip.seconds) % 2 :]]
        times = [f"<{(first + second) / 2:.1f} seconds>" for first, second in zip(*[iter(seconds)] * 2, strict=True)]
        pads = cells(*clip.frames.shape[1:3])
        ids: list[int] = []
        for time in self._encoded(times):
            ids += [*time, self._start, *[self._video] * pads, self._stop]
        return ids, pads * len(times)

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        return [row.ids for row in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _known(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _special(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ConfigError(f"the tokenizer knows no {token}", setting="embedder.url", hint="download it again")
        return int(found)


def sentence(instruction: str) -> str:
    """The instruction with a full stop where it ends without punctuation."""
    said = instruction.strip() or DEFAULT_INSTRUCTION
    return said if unicodedata.category(said[-1]).startswith("P") else said + "."


def cells(height: int, width: int) -> int:
    return (height // CELL) * (width // CELL)


def positions(sample: Sample, image: int, video: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """int64 (3, tokens): time, row and column of each token in the model's rotary positions. Text counts on; the cells
    of a picture, or of a pair of frames, lie in a plane, after which it goes on from its longer side (Qwen3VLModel's
    get_rope_index)."""
    ids = np.asarray(sample.ids)
    made = np.zeros((3, len(ids)), np.int64)
    planes = iter(_planes(sample))
    at = current = 0
    starts = np.flatnonzero(np.diff(np.concatenate([[0], np.isin(ids, (image, video)).astype(np.int8)])) == 1)
    for start in starts:
        made[:, at:start] = current + np.arange(start - at)
        current += int(start) - at
        high, wide = next(planes)
        grid = np.indices((high, wide)).reshape(2, -1)
        made[0, start : start + high * wide] = current
        made[1:, start : start + high * wide] = current + grid
        current += max(high, wide)
        at = int(start) + high * wide
    made[:, at:] = current + np.arange(len(ids) - at)
    return made


def _planes(sample: Sample) -> list[tuple[int, int]]:
    """Of each run of pads the cells down and across, in the order in which they stand."""
    return [
        (frames.shape[1] // CELL, frames.shape[2] // CELL)
        for frames in [*sample.videos, *sample.pictures]
        for _ in range((len(frames) + 1) // 2)
    ]
