"""1,000 photos of two megapixels decoded and brought to a model's size: one thread against the worker processes.

python benchmarks/photos.py > benchmarks/photos.md
"""

from __future__ import annotations

import io
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from seedbed.media.fits import Fit, Grid, Within
from seedbed.media.tasks import Picture
from seedbed.media.workers import Workers

PHOTOS, DISTINCT, ROUNDS = 1000, 20, 3
FITS: dict[str, Fit] = {
    "Ark, at most 1,312 tokens of 784 px": Within(1312 * 784),
    "Qwen3-VL, at most 1,843,200 px": Grid(32, 4096, 1_843_200),
}


def photos() -> list[bytes]:
    """JPEGs of 1632x1224 with soft shapes and fine grain, as a camera's are: about 700 kB each."""
    made = []
    for seed in range(DISTINCT):
        rng = np.random.default_rng(seed)
        soft = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).resize(
            (1632, 1224), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 6, (1224, 1632, 1))
        file = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def memory() -> int:
    """Bytes of this process and its children, shared pages by halves (PSS)."""
    total = 0
    for pid in (os.getpid(), *_children(os.getpid())):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread that has ended meanwhile
            yield from map(int, (task / "children").read_text().split())


@contextmanager
def watched() -> Iterator[Callable[[], int]]:
    """The most memory that the block took beyond what stood before it."""
    before, most, done = memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], memory() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: most[0]
    finally:
        done.set()
        thread.join()


def rate(workers: Workers, task: Picture, files: list[bytes]) -> float:
    """Photos a second, once the workers have started."""
    list(workers.map(task, files[:4]))
    start = time.perf_counter()
    count = sum(isinstance(made, np.ndarray) for made in workers.map(task, files))
    return count / (time.perf_counter() - start)


def alone(task: Picture, files: list[bytes]) -> float:
    start = time.perf_counter()
    for data in files:
        task(data)
    return len(files) / (time.perf_counter() - start)


def main() -> None:
    files = photos()
    many = [files[number % DISTINCT] for number in range(PHOTOS)]
    part = many[: PHOTOS // ROUNDS]
    print(f"# {PHOTOS:,} photos of 2 Mpx, decoded and resized\n")
    print(f"{len(os.sched_getaffinity(0))} processors, {ROUNDS} rounds in turn, medians. Memory is of this process and")
    print("its workers together, beyond what stood before the workers were started.\n")
    print("| size | one thread, photos/s | workers, photos/s | times | most memory |")
    print("|---|---|---|---|---|")
    for name, fit in FITS.items():
        task, one, two = Picture(fit), list[float](), list[float]()
        with Workers() as workers:
            for _ in range(ROUNDS):
                one.append(alone(task, part))
                two.append(rate(workers, task, part))
        # By itself: looking at the memory takes time.
        with watched() as growth, Workers() as workers:
            rate(workers, task, part)
            grown = growth() / 1e6
        times = statistics.median(b / a for a, b in zip(one, two, strict=True))
        print(
            f"| {name} | {statistics.median(one):.1f} | {statistics.median(two):.1f} | {times:.2f} | {grown:.0f} MB |"
        )
    print("\nTargets: 1.7 times one thread on two processors, at most 200 MB.")


if __name__ == "__main__":
    main()
