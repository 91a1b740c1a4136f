"""Rows that are gone from the source, kept on disk until the whole scan has shown how many they are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from seedbed.diff import Gone

BATCH = 1024


class GoneRows(Protocol):
    """Rows that are gone, by sink."""

    @property
    def counts(self) -> Mapping[int, int]: ...

    def batches(self, sink: int) -> Iterator[list[Gone]]: ...


class GoneSpool:
    """A temporary file of Gone rows, with a count a sink."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", prefix="seedbed-gone-")  # noqa: SIM115 - closed by close()
        self.counts: dict[int, int] = {}

    def add(self, rows: Iterable[Gone]) -> None:
        for row in rows:
            self._file.write(json.dumps([row.sink, row.position.hex(), row.key, row.points]) + "\n")
            self.counts[row.sink] = self.counts.get(row.sink, 0) + 1

    def batches(self, sink: int, size: int = BATCH) -> Iterator[list[Gone]]:
        self._file.seek(0)
        batch: list[Gone] = []
        for line in self._file:
            number, position, key, points = json.loads(line)
            if number == sink:
                batch.append(Gone(number, bytes.fromhex(position), key, points))
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def close(self) -> None:
        self._file.close()
