"""Qdrant's own engine in a folder, by `qdrant-edge-py`: real HNSW and a write-ahead log, one process at a time.

DIR/NAME/current              the version that readers use: one line
DIR/NAME/v1/collection.json   the meta
DIR/NAME/v1/points/           the engine's shard; its log is the lock
DIR/NAME/v1/holder            who has it open
"""

from __future__ import annotations

import array
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import qdrant_edge as edge

from seedbed.batch import present_in, vector_names, vectors_of
from seedbed.errors import Fatal, Refused, SeedbedError, Transient
from seedbed.protocols import UNNAMED, CollectionSpec, Vectors
from seedbed.sinks.filters import Condition
from seedbed.sinks.qdrant_engine import DISTANCES, EF, OVERSAMPLING, Kept, Options
from seedbed.sinks.qdrant_filter import Words, filter_of
from seedbed.sinks.qdrant_payload import Payload, payloads


def _match(value: bool) -> edge.MatchValue:
    """The engine takes Python's True for the integer 1, NumPy's not."""
    return edge.MatchValue(np.bool_(value))  # type: ignore[arg-type]


_WORDS = Words(edge.Filter, edge.FieldCondition, _match, edge.MatchAny, edge.RangeFloat, edge.RangeDateTime)
_BATCH = 1000


class EdgeEngine:
    """As qdrant_engine.Engine. Raises Transient where another process holds the folder."""

    def __init__(self, folder: str, name: str, options: Options) -> None:
        # A name may hold what a folder's may not.
        self._home = Path(folder).expanduser().absolute() / quote(name, safe="")
        self._options = options
        self._open: _Shard | None = None

    def find(self) -> tuple[str, str] | None:
        with _mapped():
            pointer = self._home / "current"
            if not pointer.exists():
                return None
            version = pointer.read_text(encoding="utf-8").strip()
            return version, self._meta(version).read_text(encoding="utf-8")

    def create(self, version: str, spec: CollectionSpec, meta: str) -> None:
        with _mapped():
            place, fresh = self._home / version, self._home / f"{version}.new"
            # Left by a run that was killed: nothing of it was ever used.
            shutil.rmtree(fresh, ignore_errors=True)
            if not self._meta(version).exists():
                if self._home.exists() and any(self._home.iterdir()):
                    raise Refused(
                        f"the folder {self._home} holds something that Seedbed did not make",
                        setting="sink.url",
                        hint="name another folder or collection",
                    )
                (fresh / "points").mkdir(parents=True)
                edge.EdgeShard.create(str(fresh / "points"), self._config(spec)).close()
                _write(fresh / "collection.json", meta)
                fresh.rename(place)
            _write(self._home / "current", version)

    def keep(self, version: str, meta: str) -> None:
        with _mapped():
            _write(self._meta(version), meta)

    def upsert(self, points: pa.RecordBatch) -> None:
        with _mapped(), self._shard() as shard:
            vectors, ids, kept = _vectors(points), points.column("id").to_pylist(), payloads(points)
            for start in range(0, len(ids), _BATCH):
                made = [
                    edge.Point(ids[row], vectors(row), kept[row]) for row in range(start, min(start + _BATCH, len(ids)))
                ]
                shard.update(edge.UpdateOperation.upsert_points(made))
            shard.flush()

    def overwrite(self, ids: Sequence[str], payloads: Sequence[Payload]) -> None:
        with _mapped(), self._shard() as shard:
            standing = {str(found.id) for found in shard.retrieve(list(ids), with_payload=False, with_vector=False)}
            for identity, payload in zip(ids, payloads, strict=True):
                if identity in standing:
                    shard.update(edge.UpdateOperation.overwrite_payload([identity], payload))
            shard.flush()

    def delete(self, ids: Sequence[str]) -> None:
        with _mapped(), self._shard() as shard:
            shard.update(edge.UpdateOperation.delete_points(list(ids)))
            shard.flush()

    def count(self) -> int:
        with _mapped(), self._shard() as shard:
            return int(shard.count(edge.CountRequest(exact=True)))

    def scroll(self, start: str | None, limit: int, *, vectors: bool) -> tuple[list[Kept], str | None]:
        with _mapped(), self._shard() as shard:
            request = edge.ScrollRequest(offset=start, limit=limit, with_payload=True, with_vector=vectors)
            found, following = shard.scroll(request)
            kept = [Kept(str(point.id), point.payload or {}, point.vector) for point in found]
            return kept, None if following is None else str(following)

    def search(self, vector: Vectors, k: int, tests: Sequence[Condition], using: str) -> list[tuple[Payload, float]]:
        with _mapped(), self._shard() as shard:
            request = edge.SearchRequest(
                edge.Query.Nearest(vector.tolist(), using or None),
                k,
                filter=filter_of(tests, _WORDS),
                params=self._search_params(k),
                with_payload=True,
            )
            return [(dict(point.payload or {}), point.score) for point in shard.search(request)]

    def finish(self, indexes: Mapping[str, str]) -> None:
        with _mapped(), self._shard() as shard:
            standing = shard.info().payload_schema
            for path, kind in indexes.items():
                if path.strip('"') not in standing and path not in standing:
                    wanted = getattr(edge.PayloadSchemaType, kind.capitalize())
                    shard.update(edge.UpdateOperation.create_field_index(path, wanted))
            shard.optimize()
            shard.flush()

    def close(self) -> None:
        if self._open is not None:
            self._open.leave()
            self._open = None

    # --- inside -------------------------------------------------------------------------------------

    def _meta(self, version: str) -> Path:
        return self._home / version / "collection.json"

    def _points(self, version: str) -> Path:
        return self._home / version / "points"

    @contextmanager
    def _shard(self) -> Iterator[Any]:
        if self._open is None:
            found = self.find()
            assert found is not None
            self._open = _Shard.enter(self._points(found[0]))
        with self._open.guard:
            yield self._open.shard

    def _search_params(self, k: int) -> edge.SearchParams:
        # One bit a dimension finds the neighbourhood; the originals decide.
        binary = self._options.quantization == "binary"
        again = edge.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING) if binary else None
        return edge.SearchParams(hnsw_ef=max(EF, k), quantization=again)

    def _config(self, spec: CollectionSpec) -> edge.EdgeConfig:
        options = self._options
        quantization: Any = None
        if options.quantization == "int8":
            quantization = edge.ScalarQuantizationConfig(edge.ScalarType.Int8, memory=edge.Memory.Pinned)
        elif options.quantization == "binary":
            quantization = edge.BinaryQuantizationConfig(memory=edge.Memory.Pinned)
        vectors = edge.EdgeVectorParams(
            size=spec.space.dimensions,
            distance=getattr(edge.Distance, DISTANCES[spec.metric]),
            memory=edge.Memory.Cold if options.on_disk else edge.Memory.Cached,
        )
        return edge.EdgeConfig(
            vectors=vectors if spec.vectors == (UNNAMED,) else dict.fromkeys(spec.vectors, vectors),
            hnsw_config=edge.HnswIndexConfig(options.m, options.ef_construct, full_scan_threshold=10_000),
            quantization_config=quantization,
            wal_enabled=True,
        )


def _vectors(points: pa.RecordBatch) -> Callable[[int], Any]:
    """The vector of a row, or those that it has by name, as the engine takes them.

    A slice of an array is the quickest sequence of floats for it: 12 µs for 1,024, a NumPy row takes 60.
    """
    held = []
    for name in vector_names(points.schema):
        vectors = vectors_of(points, name)
        flat = array.array("f")
        flat.frombytes(vectors.tobytes())
        held.append((name, flat, vectors.shape[1], present_in(points, name)))

    def named(row: int) -> Any:
        return {name: flat[row * width : (row + 1) * width] for name, flat, width, present in held if present[row]}

    if [name for name, *_ in held] != [UNNAMED]:
        return named
    _, only, size, _ = held[0]
    return lambda row: only[row * size : (row + 1) * size]


class _Shard:
    """An open shard, shared by all sinks of this process: the engine lets it be opened once."""

    _all: dict[Path, _Shard] = {}  # noqa: RUF012 - one for the process
    _lock = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.guard = threading.RLock()
        self.users = 0
        self.shard = self._load()
        _write(path.parent / "holder", f"process {os.getpid()} on {socket.gethostname()}")

    def _load(self) -> Any:
        try:
            return edge.EdgeShard.load(str(self.path))
        except Exception as error:
            if "WouldBlock" not in str(error):
                raise
            holder = self.path.parent / "holder"
            who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
            raise Transient(
                f"the folder {self.path.parent} is open in {who}",
                setting="sink.url",
                hint="one process at a time may use it: wait for that one, or run a Qdrant server",
            ) from error

    @classmethod
    def enter(cls, path: Path) -> _Shard:
        with cls._lock:
            found = cls._all.get(path.resolve())
            if found is None:
                found = cls._all[path.resolve()] = cls(path)
            found.users += 1
            return found

    def leave(self) -> None:
        with self._lock, self.guard:
            self.users -= 1
            if self.users == 0:
                del self._all[self.path]
                self.shard.close()


def _write(path: Path, text: str) -> None:
    """Whole or not at all, also through a power cut."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextmanager
def _mapped() -> Iterator[None]:
    """The engine raises plain Exception, with words alone."""
    try:
        yield
    except SeedbedError:
        raise
    except OSError as error:
        raise Fatal(f"{error.strerror}: {error.filename}", setting="sink.url", hint="check the folder") from error
    except Exception as error:
        words = str(error)
        hint = "free space on its disk" if "No space left" in words else None
        raise Fatal(f"Qdrant's engine: {words}", setting="sink.url", hint=hint) from error
