"""Search over a pipeline's collection: one hit a row, its best chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from seedbed.content import Content
from seedbed.declaration import SinkConfig
from seedbed.errors import ConfigError, Refused
from seedbed.identity import show_key
from seedbed.protocols import Hit, Sink, Vectors
from seedbed.session import Session

_RRF = 60
_FUSED = 100
"""So many hits of each named vector are fused, at least."""


def search(
    session: Session,
    words: str,
    k: int = 10,
    *,
    filter: Mapping[str, object] | None = None,
    tenant: str | None = None,
    sink: str | None = None,
    vector: str | None = None,
) -> list[dict[str, Any]]:
    """The k nearest rows: `{"id": key, "score", "payload", "chunk"}`, best first, score higher is better.

    Of several named vectors the one called `vector` is asked; without it all are, and their lists are fused by
    reciprocal rank. Raises ConfigError for an unknown sink, vector or filter field, or where nothing has been synced
    yet.
    """
    config = _sink(session, sink)
    store = session.open_sink(config)
    spec = store.describe()
    if spec is None:
        raise ConfigError(
            f"there is no collection {config.collection!r} yet", setting="sink.collection", hint="run `seedbed sync`"
        )
    if spec.space != session.embedder.space:
        raise Refused(
            f"the collection {config.collection!r} holds {spec.space}, the pipeline's embedder makes "
            f"{session.embedder.space}: they cannot be compared",
            setting="embedder",
            hint="search with the embedder that the collection was made with",
        )
    wanted = {name: _typed(spec.payload, name, value) for name, value in (filter or {}).items()}
    if tenant is not None:
        column = session.declaration.source.tenant
        if column is None:
            raise ConfigError("this pipeline has no tenants", setting="source.tenant", hint="leave out --tenant")
        wanted[column] = _typed(spec.payload, column, tenant)
    query = session.embedder.embed([Content.of(words)], kind="query")[0]
    if vector is not None or len(spec.vectors) == 1:
        using = spec.vectors[0] if vector is None else vector
        chunked = session.declaration.chunk is not None
        return [_shown(hit) for hit in _best(store, query, k, wanted, using, chunked=chunked)]
    lists = [store.search(query, max(k, _FUSED), wanted or None, using) for using in spec.vectors]
    return [_shown(hit) for hit in _fused(lists)[:k]]


def _sink(session: Session, name: str | None) -> SinkConfig:
    sinks = {config.name: config for config in session.declaration.sink}
    if name is None:
        return session.declaration.sink[0]
    if name not in sinks:
        raise ConfigError(f"there is no sink {name!r}", setting="sink.name", hint=f"there is: {', '.join(sinks)}")
    return sinks[name]


def _typed(payload: pa.Schema, name: str, value: object) -> object:
    """A filter value given as text, as the payload field's type; ranges and lists item by item."""
    if isinstance(value, Mapping):
        return {operator: _typed(payload, name, item) for operator, item in value.items()}
    if isinstance(value, list):
        return [_typed(payload, name, item) for item in value]
    if not isinstance(value, str) or name not in payload.names:
        return value
    wanted = payload.field(name).type
    try:
        if pa.types.is_boolean(wanted):
            return {"true": True, "false": False}[value.lower()]
        if pa.types.is_integer(wanted):
            return int(value)
        if pa.types.is_floating(wanted):
            return float(value)
    except (KeyError, ValueError):
        raise ConfigError(f"{value!r} is no {wanted} to filter {name!r} by", setting="--filter") from None
    return value


def _fused(lists: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009): a row's score is the sum of 1 / (60 + rank) over
    the lists that hold it, ranks from 1. Scores of different vectors need not be comparable for it."""
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for found in lists:
        for rank, hit in enumerate(found, 1):
            scores[hit.key] = scores.get(hit.key, 0.0) + 1 / (_RRF + rank)
            hits.setdefault(hit.key, hit)
    best = sorted(hits, key=lambda key: (-scores[key], key))
    return [replace(hits[key], score=scores[key]) for key in best]


def _best(
    store: Sink, vector: Vectors, k: int, filter: Mapping[str, object], using: str, *, chunked: bool
) -> list[Hit]:
    asked = k * 4 if chunked else k
    while True:
        hits = store.search(vector, asked, filter or None, using)
        best = {hit.key: hit for hit in reversed(hits)}
        if len(best) >= k or len(hits) < asked:
            return sorted(best.values(), key=lambda hit: -hit.score)[:k]
        asked *= 2


def _shown(hit: Hit) -> dict[str, Any]:
    return {"id": show_key(hit.key), "score": hit.score, "payload": hit.payload, "chunk": hit.chunk}
