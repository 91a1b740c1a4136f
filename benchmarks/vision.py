"""The vision-language path on a tiny random checkpoint: what padding costs on a mixed corpus, and texts a second
against sentence-transformers on the same checkpoint.

    python benchmarks/vision.py > benchmarks/vision.md

One thread is the number to believe on a busy machine: two of torch's that wait for each other, while others want the
processors too, slow sentence-transformers many times over, which says nothing about either side.

sentence-transformers wants torchvision for such a checkpoint: the tests' folder of it is used (tests/services).
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import numpy as np

from media.samples import picture, video
from seedbed import Content
from seedbed.content import Image, Video
from seedbed.embedders.local import local
from seedbed.embedders.vision import VisionEmbedder
from seedbed.embedders.vision_prompt import Sample
from seedbed.protocols import Vectors
from services import tiny_vlm, vlm_reference

TEXTS, ROUNDS, SEED = 512, 5, 20240229
WORDS = " ".join(tiny_vlm.CORPUS).split()


def corpus(count: int) -> list[str]:
    """Of log-normally many words, 2 to 200, median 30."""
    rng = np.random.default_rng(SEED)
    lengths = np.clip(rng.lognormal(np.log(30), 0.8, count), 2, 200).astype(int)
    return [" ".join(rng.choice(WORDS, length)) for length in lengths]


def mixture() -> list[Content]:
    """256 texts, 96 pictures of many sizes (half with a text), 16 clips."""
    rng = np.random.default_rng(SEED)
    texts = corpus(400)
    made = [Content.of(text) for text in texts[:256]]
    for number in range(96):
        width, height = (int(side) for side in rng.integers(100, 900, 2))
        image = Image(picture(width, height, seed=number))
        made.append(Content.of(image) if number % 2 else Content.of(texts[256 + number], image))
    made += [Content.of(Video(video(frames=int(rng.integers(8, 60)), rate=4))) for _ in range(16)]
    return [made[int(number)] for number in rng.permutation(len(made))]


def padding(embedder: VisionEmbedder, contents: Sequence[Content]) -> float:
    """The share of tokens that were only padding."""
    from seedbed.embedders.vision_model import VisionModel

    whole = VisionModel.pooled
    used = padded = 0

    def counted(self: Any, samples: Sequence[Sample], dimensions: int, **more: Any) -> Vectors:
        nonlocal used, padded
        used += sum(map(len, samples))
        padded += len(samples) * max(map(len, samples))
        return whole(self, samples, dimensions, **more)

    VisionModel.pooled = counted  # type: ignore[method-assign]
    try:
        embedder.embed(contents)
    finally:
        VisionModel.pooled = whole  # type: ignore[method-assign]
    return 1 - used / padded


def torchvision() -> Any:
    """Before transformers is imported, which looks once for what there is."""
    sys.path.append(str(vlm_reference.library()))
    import torch

    made: Any = torch.library.Library
    library = made("torchvision", "DEF")
    for name in ("nms(Tensor dets, Tensor scores, float iou_threshold)", "qnms(Tensor dets, Tensor scores, float t)"):
        library.define(f"{name} -> Tensor")
    return library


def seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(folder: Path, threads: int) -> str:
    """A row: texts a second of both sides, and the ratios round by round."""
    import torch
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu")
    embedder = local(f"local:{folder}?dtype=float32&threads={threads}", {})
    texts = corpus(TEXTS)
    system = {"role": "system", "content": [{"type": "text", "text": "Represent the user's input."}]}
    turns: Any = [[system, {"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    contents = [Content.of(text) for text in texts]

    def encode(given: Any) -> Any:
        torch.set_num_threads(threads)
        return theirs.encode(given, show_progress_bar=False)

    near = float(np.einsum("ij,ij->i", embedder.embed(contents), np.asarray(encode(turns))).min())
    ours, others, bare = list[float](), list[float](), list[float]()
    for _ in range(ROUNDS):
        others.append(seconds(lambda: encode(turns)))
        ours.append(seconds(lambda: embedder.embed(contents)))
        bare.append(seconds(lambda: encode(texts)))
    embedder.close()
    ratios = [theirs / mine for mine, theirs in zip(ours, others, strict=True)]
    easier = statistics.median(theirs / mine for mine, theirs in zip(ours, bare, strict=True))
    return (
        f"| {threads} | {TEXTS / statistics.median(ours):.0f} | {TEXTS / statistics.median(others):.0f} | "
        f"{statistics.median(ratios):.2f} | {min(ratios):.2f}–{max(ratios):.2f} | {easier:.2f} | {near:.6f} |"
    )


def main() -> None:
    _kept = torchvision()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        folder = tiny_vlm.build(Path(place) / "tiny")
        rows, wasted = [compare(folder, threads) for threads in (1, 2)], list[str]()
        for budget in (1024, 8192, 32768):
            embedder = local(f"local:{folder}?dtype=float32&threads=1&batch_tokens={budget}", {})
            assert isinstance(embedder, VisionEmbedder)
            wasted.append(f"| {budget:,} | {padding(embedder, mixture()):.1%} |")
    print("# The vision-language path on a tiny random checkpoint\n")
    print(f"float32, {ROUNDS} rounds in turn, medians, ratios round by round; no statement on quality. Load average")
    print(f"{before:.1f} before and {os.getloadavg()[0]:.1f} after on {os.cpu_count()} processors. {TEXTS} texts; the")
    print("bare ones are without the system's turn, so shorter. Target: 1.3 times.\n")
    print("| threads | texts/s | sentence-transformers | times | least–most | times, given bare texts | least cosine |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    print("\n".join(rows))
    print("\nPadding on 256 texts, 96 pictures and 16 clips. Target: at most 10 %.\n")
    print("| `batch_tokens` | padding |\n|---:|---:|")
    print("\n".join(wasted))


if __name__ == "__main__":
    main()
