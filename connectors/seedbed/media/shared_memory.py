"""Memory that two processes map: files go one way and results the other, and only their sizes by the socket."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SLOTS = 2
"""A worker has its next file before its last result is taken."""


class Slot:
    """By a file descriptor of memory. It grows to the largest of what was written, and is written by one side while the
    other waits."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._mapped: mmap.mmap | None = None

    def write(self, pieces: Sequence[bytes | memoryview]) -> list[int]:
        """One behind the other; their sizes."""
        sizes = [len(piece) for piece in pieces]
        if sum(sizes) > os.fstat(self.descriptor).st_size:
            os.ftruncate(self.descriptor, sum(sizes))
        start = 0
        if sum(sizes):
            memory = self._map(sum(sizes))
            for piece, size in zip(pieces, sizes, strict=True):
                memory[start : start + size] = piece
                start += size
        return sizes

    def read(self, sizes: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
        """Copies of the pieces."""
        found, start = list[npt.NDArray[np.uint8]](), 0
        for size in sizes:
            whole = np.frombuffer(self._map(start + size), np.uint8, size, start) if size else np.zeros(0, np.uint8)
            found.append(whole.copy())
            start += size
        return found

    def _map(self, size: int) -> mmap.mmap:
        if self._mapped is None or len(self._mapped) < size:
            self._mapped = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        return self._mapped

    def close(self) -> None:
        os.close(self.descriptor)
