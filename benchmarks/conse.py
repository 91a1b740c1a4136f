"""How often `conse:` finds what belongs together, among the demo's eight photos and clips of them.

python benchmarks/conse.py > benchmarks/conse.md
"""

from __future__ import annotations

from contextlib import closing

import numpy as np

import seedbed
from seedbed import Content
from seedbed.content import Image, Video
from seedbed.demo.photos import clip, photos
from seedbed.protocols import Vectors


def line(name: str, texts: Vectors, media: Vectors) -> str:
    """Of n pairs how many are nearest to each other, either way, and by how much the right one leads on average."""
    near = texts @ media.T
    right, others = near.diagonal(), near - 2 * np.eye(len(near))
    found = int((right > others.max(axis=1)).sum()), int((right > others.max(axis=0)).sum())
    lead = float(np.mean([right - others.max(axis=1), right - others.max(axis=0)]))
    return f"| {name} | {found[0]} of {len(near)} | {found[1]} of {len(near)} | {lead:.2f} |"


def main() -> None:
    shown = photos()
    with closing(seedbed.embedder("conse:minilm?dtype=float32")) as embedder:
        captions = embedder.embed([Content.of(photo.caption) for photo in shown])
        titles = embedder.embed([Content.of(photo.title) for photo in shown])
        pictures = embedder.embed([Content.of(Image(photo.data)) for photo in shown])
        clips = embedder.embed([Content.of(Video(clip(photo))) for photo in shown])
    print("# Photos and English by conse:\n")
    print("Photos and captions were chosen because they work: no estimate for others.\n")
    print("| | text → media | media → text | the right one leads by |")
    print("|---|---|---|---|")
    print(line("captions and photos", captions, pictures))
    print(line("captions and clips of three seconds", captions, clips))
    print(line("one-word titles and photos", titles, pictures))


if __name__ == "__main__":
    main()
