"""MiniLM: texts a second here against sentence-transformers' `encode` with its defaults, tokenising included.

    python benchmarks/minilm.py [--texts 400] [--rounds 5] [--threads 2] [--write benchmarks/minilm.md]

Both sides get the same texts, length limit (256) and threads, in one process, a round of each in turn; the ratio is
taken round by round, so that a busy machine slows both sides of it, and its median is told.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np

SEED = 20240229
LIMIT = 256
SHORTEST, LONGEST = 5, 400
SOURCES = (
    "decimal",
    "typing",
    "difflib",
    "heapq",
    "doctest",
    "random",
    "tarfile",
    "zipfile",
    "statistics",
    "argparse",
    "threading",
    "tokenize",
    "shelve",
    "secrets",
    "plistlib",
    "pickletools",
    "pdb",
    "optparse",
    "locale",
    "cmd",
)
MEDIAN, SIGMA = 65.0, 0.75
SIDES = {"sentence-transformers, fp32": "", "seedbed, fp32": "float32", "seedbed, auto": "auto"}


def corpus(texts: int, count: Callable[[list[str]], list[int]]) -> list[str]:
    """English of log-normally many tokens (5–400, median 65), cut from the standard library's documentation."""
    words = " ".join(import_module(name).__doc__ or "" for name in SOURCES).split()
    marks = count([""])[0]
    ends = np.cumsum(np.array(count(words)) - marks)  # the model's tokens never cross white space, so they add up
    random = np.random.default_rng(SEED)
    lengths = np.clip(random.lognormal(np.log(MEDIAN), SIGMA, texts), SHORTEST, LONGEST).astype(int) - marks
    starts = random.integers(0, np.searchsorted(ends, ends[-1] - LONGEST), texts)
    found = []
    for start, length in zip(starts, lengths, strict=True):
        end = np.searchsorted(ends, ends[start] + length)
        found.append(" ".join(words[start + 1 : max(start + 2, end)]))
    return found


def sides(folder: Path, threads: int) -> dict[str, Callable[[list[str]], np.ndarray]]:
    import torch
    from sentence_transformers import SentenceTransformer

    from seedbed import registry
    from seedbed.content import Content

    theirs = SentenceTransformer(str(folder), device="cpu")
    theirs.max_seq_length = LIMIT
    made = {
        name: registry.embedder(f"local:minilm?truncate=true&dtype={dtype}&threads={threads}")
        for name, dtype in SIDES.items()
        if dtype
    }

    def ours(name: str) -> Callable[[list[str]], np.ndarray]:
        return lambda texts: made[name].embed([Content.of(text) for text in texts])

    def encode(texts: list[str]) -> np.ndarray:
        torch.set_num_threads(threads)
        return np.asarray(theirs.encode(texts, show_progress_bar=False))

    return {name: ours(name) if name in made else encode for name in SIDES}


def measure(texts: list[str], rounds: int, run: dict[str, Callable[[list[str]], np.ndarray]]) -> dict[str, list[float]]:
    """Texts a second of each side, round by round."""
    speeds: dict[str, list[float]] = {name: [] for name in run}
    for number in range(rounds + 1):
        for name, embed in run.items():
            part = texts if number else texts[:64]  # round 0 only warms up
            start = time.perf_counter()
            embed(part)
            if number:
                speeds[name].append(len(part) / (time.perf_counter() - start))
    return speeds


def processor() -> tuple[str, set[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor(), set()
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    told = {name.strip(): value.strip() for name, value in found.items()}
    return f"{told.get('model name')} family {told.get('cpu family')} model {told.get('model')}", set(
        told.get("flags", "").split()
    )


def table(speeds: dict[str, list[float]], near: dict[str, float]) -> list[str]:
    base = speeds[next(iter(speeds))]
    lines = [
        "| | texts/s, median | ratio, median | ratio, least–most | least cosine to fp32 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, values in speeds.items():
        ratios = [mine / theirs for mine, theirs in zip(values, base, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(values):.1f} | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f}–{max(ratios):.2f} | {near[name]:.5f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()

    import sentence_transformers
    import torch
    import transformers

    from seedbed import registry
    from seedbed.embedders.card import read_card
    from seedbed.embedders.folder import find
    from seedbed.embedders.tokens import Tokens

    torch.set_num_threads(options.threads)
    folder = find("minilm").path
    tokens = Tokens(folder, read_card(folder))
    texts = corpus(options.texts, lambda given: tokens.count(given).tolist())
    lengths = tokens.count(texts)
    run = sides(folder, options.threads)
    vectors = {name: embed(texts[:100]) for name, embed in run.items()}
    exact = vectors["sentence-transformers, fp32"]
    near = {name: float((found * exact).sum(axis=1).min()) for name, found in vectors.items()}
    load = os.getloadavg()[0]
    speeds = measure(texts, options.rounds, run)
    kind, flags = processor()
    auto = registry.embedder("local:minilm")
    dtype = auto.provenance()["dtype"]  # type: ignore[attr-defined]
    report = [
        "# MiniLM against sentence-transformers",
        "",
        f"`python benchmarks/minilm.py --texts {options.texts} --rounds {options.rounds} --threads {options.threads}`",
        "",
        f"- {kind}, {os.cpu_count()} processors, avx512_bf16 {'avx512_bf16' in flags}, "
        f"amx_bf16 {'amx_bf16' in flags}; `auto` chose {dtype}",
        f"- load average {load:.1f} before the rounds and {os.getloadavg()[0]:.1f} after, {options.threads} of it ours",
        f"- torch {torch.__version__}, transformers {transformers.__version__}, "
        f"sentence-transformers {sentence_transformers.__version__}",
        f"- {options.texts} texts, seed {SEED}, {lengths.min()}–{lengths.max()} tokens, mean {lengths.mean():.0f}, "
        f"{np.minimum(lengths, LIMIT).mean():.0f} after the limit of {LIMIT}; {options.rounds} rounds in turn",
        "",
        *table(speeds, near),
    ]
    sys.stdout.write("\n".join(report) + "\n")
    if options.write:
        options.write.write_text("\n".join(report) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
