"""How like a query the vectors of one kind are on the whole, so that pictures and texts share a list.

A text is nearer to other texts than to any picture, whatever both show: scores of two kinds cannot be compared as they
are. Of each kind the mean and the deviation of a sample of its vectors are kept with the collection. For a query q, the
scores of a kind then have the mean q·mean and, its coordinates taken as independent, the variance Σ q²·deviation²; a
score is told by how many deviations it stands above that mean.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from seedbed.batch import present_in, vectors_of
from seedbed.protocols import UNNAMED, CollectionSpec, Metric, Sink, Vectors
from seedbed.recipe import MODALITY_FIELD

_PREFIX = "calibration "
SAMPLE = 2000
ALL = ""
"""Of all kinds: what counts for a kind of which there are too few."""
_LEAST = 8
"""Vectors of a kind; of fewer, nothing is said."""
_DRIFT = 0.1
"""Rows more or fewer, as a share, after which a kind is measured anew."""

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of one kind: `mean` and `deviation`, float64 (dimensions,), and how many points the collection had."""

    mean: Column
    deviation: Column
    points: int

    def above(self, score: float, query: Vectors, metric: Metric) -> float:
        """How many deviations a score of this query stands above its kind's mean."""
        unit = query / max(float(np.linalg.norm(query)), 1e-12)
        likeness = 1 - score * score / 2 if metric == "l2" else score
        spread = math.sqrt(float(np.square(unit * self.deviation).sum()))
        return (likeness - float(unit @ self.mean)) / max(spread, 1e-6)

    def to_json(self) -> str:
        kept = {"mean": _packed(self.mean), "deviation": _packed(self.deviation), "points": self.points}
        return orjson.dumps(kept).decode()

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        kept = orjson.loads(text)
        return cls(_unpacked(kept["mean"]), _unpacked(kept["deviation"]), int(kept["points"]))


@dataclass(slots=True)
class _Sums:
    count: int = 0
    first: Column = field(default_factory=lambda: np.zeros(0))
    second: Column = field(default_factory=lambda: np.zeros(0))

    def add(self, vectors: Vectors) -> None:
        exact = vectors.astype(np.float64)
        if not self.count:
            self.first, self.second = np.zeros(exact.shape[1]), np.zeros(exact.shape[1])
        self.count += len(exact)
        self.first += exact.sum(axis=0)
        self.second += np.square(exact).sum(axis=0)

    def calibration(self, points: int) -> Calibration:
        mean = self.first / self.count
        return Calibration(mean, np.sqrt(np.maximum(0, self.second / self.count - mean * mean)), points)


def measured(sink: Sink, spec: CollectionSpec) -> dict[str, str]:
    """What `CollectionSpec.info` is to hold of each kind, and of all together: by the vector's name, or by the modality
    of points that have one vector. Points come in the order of their ids, which are hashes: the first are a sample."""
    sums: dict[str, _Sums] = {}
    seen, points = 0, sink.count()
    for page in sink.scan(256, vectors=True):
        for kind, vectors in _kinds(page, spec):
            sums.setdefault(kind, _Sums()).add(vectors)
            sums.setdefault(ALL, _Sums()).add(vectors)
        seen += len(page)
        if seen >= SAMPLE:
            break
    return {
        _PREFIX + kind: found.calibration(points).to_json() for kind, found in sums.items() if found.count >= _LEAST
    }


def kept(info: Mapping[str, str]) -> dict[str, str]:
    """The entries of `CollectionSpec.info` that are calibrations."""
    return {name: text for name, text in info.items() if name.startswith(_PREFIX)}


def read(info: Mapping[str, str]) -> dict[str, Calibration]:
    """By kind."""
    return {name.removeprefix(_PREFIX): Calibration.from_json(text) for name, text in kept(info).items()}


def applies(spec: CollectionSpec) -> bool:
    """Whether it holds vectors of several kinds."""
    return spec.vectors != (UNNAMED,) or MODALITY_FIELD.name in spec.payload.names


def stale(info: Mapping[str, str], points: int) -> bool:
    """Whether there is none, or the collection has grown or shrunk since."""
    found = read(info)
    return not found or any(abs(points - one.points) > _DRIFT * max(one.points, 1) for one in found.values())


def _kinds(page: pa.RecordBatch, spec: CollectionSpec) -> Iterable[tuple[str, Vectors]]:
    if spec.vectors == (UNNAMED,):
        vectors = vectors_of(page)
        modalities = np.array(page.column(MODALITY_FIELD.name).to_pylist(), object)
        for modality in sorted({one for one in modalities if one}):
            yield modality, vectors[modalities == modality]
        return
    for name in spec.vectors:
        there = present_in(page, name)
        if there.any():
            yield name, vectors_of(page, name)[there]


def _packed(values: Column) -> str:
    return base64.b64encode(values.astype("<f2").tobytes()).decode()


def _unpacked(text: str) -> Column:
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float64)
