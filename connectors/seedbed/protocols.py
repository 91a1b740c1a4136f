"""The three roles: Source, Embedder, Sink. Nobody must inherit; the classes only have to fit.

Optional abilities are small Protocols of their own. Only the pipeline knows all three roles: a sink
never embeds, an embedder never retries, a source never hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seedbed.content import Content, Kind
from seedbed.identity import KeyRange, Space

if TYPE_CHECKING:
    import threading

    from seedbed.embedders.account import Keeper
    from seedbed.embedders.budget import Budget
    from seedbed.media.limits import Limits

Vectors = npt.NDArray[np.float32]
"""float32, C-contiguous, shape (n, dimensions)."""

Metric = Literal["cosine", "dot", "l2"]
UNNAMED = ""
"""The name of a point's only vector."""


# --- source -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in strictly ascending key order, and the stretch of keys that they are complete for.

    `keys` are canonical (identity.canonical_key), `positions` order-preserving (identity.position): one
    each a row, ascending. `rows` holds the columns asked for, row by row with them.
    `covers` is the stretch read to its end: every ledger row in it that is not in `keys` or `failed` is
    gone from the source. None where nothing may be concluded (watermark, `--keys`, `--where`).
    `deleted` are (key, position) that the source itself says are deleted (a soft-delete column).
    `failed` maps a key to (position, reason): rows that exist but cannot be used (duplicate key,
    invalid UTF-8). A row whose key itself is unusable has position None.
    `watermark` is the cursor to store once this page and all before it are done, else None.
    """

    keys: list[str]
    positions: list[bytes]
    rows: pa.RecordBatch
    covers: KeyRange | None = None
    deleted: list[tuple[str, bytes]] = field(default_factory=list)
    failed: dict[str, tuple[bytes | None, str]] = field(default_factory=dict)
    watermark: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows a read wants. `columns` beside the key; the rest narrow it.

    `keys` are canonical keys; `where` is a condition in the source's own language; `since` a stored
    watermark; `within` a key range (a shard).
    """

    columns: Sequence[str]
    page_rows: int = 16384
    within: KeyRange | None = None
    keys: Sequence[str] | None = None
    where: str | None = None
    since: str | None = None
    watermark: bool = False


class Source(Protocol):
    """Where rows come from. Errors: ConfigError (a table or column that is not there, naming it),
    Transient (connection), Fatal (password, rights)."""

    @property
    def key_columns(self) -> tuple[str, ...]: ...

    @property
    def key_kinds(self) -> tuple[str, ...]:
        """identity.KINDS, one a key column: how positions are ordered."""
        ...

    def schema(self) -> pa.Schema:
        """All columns with their Arrow types; reads no rows."""
        ...

    def pages(self, selection: Selection) -> Iterator[Page]:
        """Pages in key order. No transaction is open while the caller holds a page."""
        ...

    def estimate(self) -> int | None:
        """About how many rows there are, cheaply; for progress only."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class CanShard(Protocol):
    def shards(self, n: int) -> list[KeyRange]:
        """At most n key ranges that together cover every key once, of about the same number of rows."""
        ...


@runtime_checkable
class CanTellHorizon(Protocol):
    def horizon(self) -> str:
        """The highest watermark that is safe for reads which begin after this call."""
        ...


class Waiting(NamedTuple):
    """What stands in a queue: changes, those of them that somebody holds now, those that were taken five times and
    never finished; and the age of the oldest, in seconds."""

    changes: int
    taken: int
    stuck: int
    oldest: float

    @property
    def free(self) -> int:
        return self.changes - self.taken - self.stuck


class Feed(Protocol):
    """Changes that a source queues for one pipeline, leased by this reader. `marker` names the subscription: under
    another marker, changes may have been missed. Errors: Transient, Fatal."""

    marker: str
    upto: int
    """Changes up to this number are this reader's; set by `all_rows` and `pages`."""

    def all_rows(self) -> bool:
        """Whether a change that concerns all rows stands there; it is leased now."""
        ...

    def pages(self, selection: Selection, read: Callable[[Selection], Iterator[Page]]) -> Iterator[Page]:
        """The rows of all changes up to now, by `read`; keys without a row are `deleted`. None covers anything."""
        ...

    def check(self, keys: Sequence[str]) -> None:
        """Before a store is written. Raises Transient where one of these leases has run out."""
        ...

    def finish(self, keys: Sequence[str]) -> None:
        """These are worked off; what has changed again since stays."""
        ...

    def finish_all_rows(self) -> None:
        """All rows were seen; that settles also what could never be finished by itself."""
        ...

    def put(self, keys: Sequence[str]) -> None:
        """Queues keys whose rows are to be tried again."""
        ...

    def release(self) -> None:
        """Gives back what was taken and not finished."""
        ...

    def waiting(self) -> Waiting: ...

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Until a change comes, for so long at most."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class CanQueue(Protocol):
    """A source that can have its changes queued."""

    def watch(self, pipeline: str, columns: Sequence[str]) -> None:
        """Queues changes of these columns from now on. Raises ConfigError where that cannot be."""
        ...

    def unwatch(self, pipeline: str) -> bool:
        """Whether there was something to end."""
        ...

    def feed(self, pipeline: str, columns: Sequence[str]) -> Feed:
        """Raises ConfigError where nothing is queued for this pipeline, or less than these columns."""
        ...


@runtime_checkable
class CanFetch(Protocol):
    """A source with a column that is dear to read. Its pages hold a stand-in there, which changes when the value
    may have: hashes are of stand-ins, and only rows that are to be written are read whole."""

    def fetch(self, page: Page, rows: Sequence[int]) -> tuple[pa.RecordBatch, dict[int, str | None]]:
        """These rows of the page, whole and in this order; and those that cannot be had (null there), each with
        the reason, None where the row has gone meanwhile."""
        ...


# --- embedder ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Usage:
    """What an embedder has consumed since it was made. Tokens are the model's own, after truncation."""

    calls: int = 0
    contents: int = 0
    tokens: int = 0
    image_tokens: int = 0
    """Those of `tokens` that pictures and video frames made; they have a price of their own."""
    estimated: float = 0.0
    """What the embedder had expected `tokens` to be, where it cannot count."""

    def since(self, before: Usage) -> Usage:
        """What has come since the usage stood as `before`."""
        names = [field.name for field in fields(Usage)]
        return Usage(**{name: getattr(self, name) - getattr(before, name) for name in names})


@dataclass(frozen=True, slots=True)
class Portion:
    """Some of the vectors that were asked for: their positions, float32 (len(positions), dimensions) of unit length,
    and positions that were refused, with the reason."""

    positions: list[int]
    vectors: Vectors
    refused: Mapping[int, str] = field(default_factory=dict)


class Embedder(Protocol):
    """Contents in, one float32 array of unit length (L2) out. Errors: ContentsRefused (with the others'
    vectors), Transient, Fatal. Never retries a batch, never caches."""

    @property
    def space(self) -> Space:
        """Known without loading weights."""
        ...

    @property
    def usage(self) -> Usage: ...

    def embed(self, contents: Sequence[Content], kind: Kind = "document") -> Vectors: ...

    def close(self) -> None: ...


@runtime_checkable
class CanCountTokens(Protocol):
    def count_tokens(self, contents: Sequence[Content], kind: Kind = "document") -> npt.NDArray[np.int64]:
        """Tokens of each content, without loading weights and before truncation to the model's limit."""
        ...


@runtime_checkable
class CanTellProvenance(Protocol):
    def provenance(self) -> Mapping[str, str]:
        """dtype, device, library versions of this run."""
        ...


@runtime_checkable
class CanStream(Protocol):
    """An embedder that pays for each vector by itself, so that one is kept as soon as it is there."""

    def stream(self, contents: Sequence[Content], kind: Kind = "document") -> Generator[Portion, None, None]:
        """As `embed`, in any order. What is raised comes after all that were in flight; closing the iterator gives up
        what was not yet asked for. Sends a request that failed again by itself."""
        ...


@runtime_checkable
class TakesMedia(Protocol):
    """An embedder of more than text."""

    @property
    def takes(self) -> frozenset[str]:
        """Which of `text`, `image` and `video` a content may have."""
        ...


@runtime_checkable
class DecodesMedia(Protocol):
    """An embedder that decodes pictures and video here."""

    limits: Limits
    """What one file may cost; set before the first call."""


def modalities(embedder: Embedder) -> frozenset[str]:
    """Text alone, where an embedder does not say."""
    return embedder.takes if isinstance(embedder, TakesMedia) else frozenset({"text"})


@runtime_checkable
class CanSubmit(Protocol):
    """An embedder whose calls run beside one another (an API): a server puts no batching before it."""

    def submit(self, content: Content, kind: Kind = "document") -> Future[Vectors]:
        """The vector, shape (dimensions,). The future raises RowError (this content's fault), Transient, Fatal or
        Refused (a budget is spent)."""
        ...


@runtime_checkable
class CanSpend(Protocol):
    """An embedder whose calls cost money, under an account's limits."""

    def govern(self, keeper: Keeper | None = None, budget: Budget | None = None) -> None:
        """Before the first call: where the account's limits are kept, for all that share them, and what may be
        spent. `embed` and `stream` then raise Refused once it is."""
        ...


# --- sink -------------------------------------------------------------------------------------------

Filter = Mapping[str, object]
"""Equality `{"brand": "x"}`, membership `{"brand": ["x", "y"]}`, ranges `{"price": {"gte": 1, "lt": 5}}`
(gt, gte, lt, lte); several entries are and-ed. Fields are payload fields or `_key`. The same answers in every store."""


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """What a collection must be. `payload` are the payload fields with their canonical Arrow types
    (batch.payload_schema): string, bool, int64, double, timestamp, list<string>, JSON as string."""

    name: str
    pipeline: str
    space: Space
    metric: Metric
    payload: pa.Schema
    info: Mapping[str, str] = field(default_factory=dict)
    """More that is kept with the collection: query template, recipe digest."""
    vectors: tuple[str, ...] = (UNNAMED,)
    """The names of a point's vectors, all of one space: one without a name, or several named ones."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One point found. `score` higher is better: cosine similarity, inner product, or minus L2 distance."""

    key: str
    chunk: int
    score: float
    payload: dict[str, object]


WRITE_SECONDS = 120.0
"""The most that one write of a sink may take: past it the store has done it or will not do it. Leases outlast it."""


@runtime_checkable
class TakesOneProcess(Protocol):
    """A sink whose store may be one process's at a time (a folder, memory): a run that writes there is not shared."""

    @property
    def one_process(self) -> bool: ...


class Sink(Protocol):
    """Where vectors stand. A batch has the columns of batch.point_schema; a named vector may be NULL, not all of
    a point's. Errors: Refused (a collection that is not ours, another space), ConfigError, Transient, Fatal; a row
    that the store cannot take raises RowError with its key, and nothing of that batch is written."""

    def ensure(self, spec: CollectionSpec) -> str:
        """Creates `NAME__v1` and what readers use (`NAME`), or checks that what stands there fits: both
        sides of what does not are named. New payload columns are added. Returns the version (`v1`)."""
        ...

    def describe(self) -> CollectionSpec | None:
        """The spec that the collection was made with, None where there is no such collection; writes nothing."""
        ...

    def upsert(self, points: pa.RecordBatch) -> None:
        """Idempotent by `id`. Durable on return."""
        ...

    def set_payload(self, points: pa.RecordBatch) -> None:
        """As upsert, of points that stand there, without the vectors' columns: vectors stay."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """By point id; an id that is not there is no error."""
        ...

    def count(self) -> int: ...

    def scan(self, page_rows: int = 4096, *, vectors: bool = False) -> Iterator[pa.RecordBatch]:
        """All points in id order: `id`, the reserved fields, payload, and the vectors if wanted."""
        ...

    def search(self, vector: Vectors, k: int, filter: Filter | None = None, using: str = UNNAMED) -> list[Hit]:
        """The k nearest points to one vector of shape (dimensions,), best first, by their vector `using`; points
        that have none of that name are not found."""
        ...

    def finish(self) -> None:
        """After a run's last write: builds an index that waited for a bulk load. Idempotent."""
        ...

    def close(self) -> None: ...
