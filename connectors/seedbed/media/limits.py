"""How much of a picture or video is looked at. Media are hostile: each number bounds what one file may cost."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Limits:
    """`bytes` of a file, `pixels` of a picture or frame, `frames` of a video's file, `seconds` of its length;
    `patience` in seconds is what decoding one file may take."""

    bytes: int = 20_000_000
    pixels: int = 64_000_000
    frames: int = 500_000
    seconds: float = 4 * 3600.0
    patience: float = 60.0

    def of(self, data: Sized) -> Limits:
        """For a file that is here already: where it came from has said how large it may be."""
        return replace(self, bytes=max(self.bytes, len(data)))


USUAL = Limits()
