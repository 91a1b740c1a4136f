"""What the sink asks of a Qdrant, be it a server, one in memory or a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from seedbed.protocols import CollectionSpec, Metric, Vectors
from seedbed.sinks.filters import Condition
from seedbed.sinks.qdrant_payload import Payload

KNOWN: dict[str, tuple[str, ...]] = {
    "m": (),
    "ef_construct": (),
    "on_disk": ("true", "false"),
    "quantization": ("none", "int8", "binary"),
}
"""Options of a URL, all engines."""

DISTANCES: dict[Metric, str] = {"cosine": "Cosine", "dot": "Dot", "l2": "Euclid"}

EF = 128
"""Candidates of a search in HNSW, at least."""
OVERSAMPLING = 3.0
"""Candidates of a search in quantised vectors, for each that is wanted."""


@dataclass(frozen=True)
class Options:
    """How vectors are kept: HNSW's `m` and `ef_construct`, originals on disk, quantised copies in memory."""

    m: int = 16
    ef_construct: int = 100
    on_disk: bool = False
    quantization: str = "none"

    @classmethod
    def of(cls, found: Mapping[str, str]) -> Options:
        return cls(
            int(found.get("m", cls.m)),
            int(found.get("ef_construct", cls.ef_construct)),
            found.get("on_disk") == "true",
            found.get("quantization", "none"),
        )


class Kept(NamedTuple):
    """A point as read back."""

    id: str
    payload: Mapping[str, Any]
    vector: Any = None
    """A list of numbers, or a mapping of them by name."""


class Engine(Protocol):
    """One collection NAME: its version `NAME__v1` and what readers go by. `meta` is meta.to_json's text."""

    def find(self) -> tuple[str, str] | None:
        """(version, meta) of the collection of ours, None where there is none. Raises Refused for another's."""
        ...

    def create(self, version: str, spec: CollectionSpec, meta: str) -> None: ...

    def keep(self, version: str, meta: str) -> None:
        """Replaces the meta."""
        ...

    def upsert(self, points: pa.RecordBatch) -> None: ...

    def overwrite(self, ids: Sequence[str], payloads: Sequence[Payload]) -> None:
        """The payload of points, those that stand there."""
        ...

    def delete(self, ids: Sequence[str]) -> None: ...

    def count(self) -> int: ...

    def scroll(self, start: str | None, limit: int, *, vectors: bool) -> tuple[list[Kept], str | None]:
        """Points in id order from `start` on, and where to go on."""
        ...

    def search(self, vector: Vectors, k: int, tests: Sequence[Condition], using: str) -> list[tuple[Payload, float]]:
        """Payload and Qdrant's score, best first."""
        ...

    def finish(self, indexes: Mapping[str, str]) -> None:
        """Payload indexes (path → kind), then the vectors' index."""
        ...

    def close(self) -> None: ...
