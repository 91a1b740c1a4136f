"""Search over a pipeline's collection, by words, pictures, video or all of them: one hit a row, its best chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pyarrow as pa

from seedbed import calibration
from seedbed.calibration import Calibration
from seedbed.content import MODALITIES, Content, modality_of
from seedbed.declaration import SinkConfig
from seedbed.errors import ConfigError, Refused
from seedbed.identity import show_key
from seedbed.protocols import UNNAMED, CollectionSpec, Filter, Hit, Sink, Vectors, modalities
from seedbed.recipe import MODALITY_FIELD
from seedbed.session import Session

_RRF = 60
_FUSED = 100
"""So many hits of each leg are fused, at least."""
_MODALITY = MODALITY_FIELD.name


@dataclass(frozen=True, slots=True)
class _Leg:
    """One question to the store: which vector, among which points. `kind` is what its scores are calibrated by."""

    using: str
    filter: Filter
    kind: str


def search(
    session: Session,
    query: str | Content,
    k: int = 10,
    *,
    filter: Filter | None = None,
    tenant: str | None = None,
    sink: str | None = None,
    vector: str | None = None,
    modality: str | None = None,
    calibrated: bool = False,
) -> list[dict[str, Any]]:
    """The k nearest rows: `{"id": key, "score", "payload", "chunk"}`, best first, score higher is better.

    Of several named vectors the one called `vector` is asked; without it all are, and their lists are fused by
    reciprocal rank. `modality` leaves only what was made from text, image or video. `calibrated` puts pictures and
    texts into one list by how far each stands above its kind's mean (calibration), in place of ranks and scores.
    Raises ConfigError for an unknown sink, vector, modality or filter field, for a query of a kind that the embedder
    does not take, or where nothing has been synced yet.
    """
    config = _sink(session, sink)
    store = session.open_sink(config)
    spec = _spec(session, config, store)
    wanted = _wanted(session, spec, filter, tenant)
    legs = _legs(session, spec, wanted, vector, modality, apart=calibrated)
    asked = _embedded(session, query)
    if calibrated:
        known = calibration.read(spec.info)
        return [_shown(hit) for hit in _calibrated(store, spec, asked, legs, known, k)]
    if len(legs) == 1:
        chunked = session.declaration.chunk is not None
        return [_shown(hit) for hit in _best(store, asked, k, legs[0], chunked=chunked)]
    lists = [store.search(asked, max(k, _FUSED), leg.filter or None, leg.using) for leg in legs]
    return [_shown(hit) for hit in _fused(lists)[:k]]


def _spec(session: Session, config: SinkConfig, store: Sink) -> CollectionSpec:
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
    return spec


def _wanted(session: Session, spec: CollectionSpec, filter: Filter | None, tenant: str | None) -> dict[str, object]:
    wanted = {name: _typed(spec.payload, name, value) for name, value in (filter or {}).items()}
    if tenant is not None:
        column = session.declaration.source.tenant
        if column is None:
            raise ConfigError("this pipeline has no tenants", setting="source.tenant", hint="leave out --tenant")
        wanted[column] = _typed(spec.payload, column, tenant)
    return wanted


def _embedded(session: Session, query: str | Content) -> Vectors:
    content = Content.of(query) if isinstance(query, str) else query
    takes = modalities(session.embedder)
    for part in content.parts:
        if part.modality not in takes:
            raise ConfigError(
                f"{session.declaration.embedder.url} takes {' and '.join(sorted(takes))}, not {part.modality}",
                setting=f"--{part.modality}",
            )
    if content.empty:
        raise ConfigError("there is nothing to search for", hint="give words, --image or --video")
    vector: Vectors = session.embedder.embed([content], kind="query")[0]
    return vector


def _legs(
    session: Session,
    spec: CollectionSpec,
    wanted: Filter,
    vector: str | None,
    modality: str | None,
    *,
    apart: bool,
) -> list[_Leg]:
    if modality is not None and modality not in MODALITIES:
        raise ConfigError(f"{modality!r} is no modality", setting="--modality", hint=f"one of {', '.join(MODALITIES)}")
    if spec.vectors != (UNNAMED,):
        parts = {name: content.parts for name, content in session.declaration.content.items()}
        asked = spec.vectors if vector is None else (vector,)
        names = [name for name in asked if modality is None or modality in parts.get(name, ())]
        if not names:
            which = "no vector of this pipeline" if vector is None else f"the vector {vector!r} is not one that"
            raise ConfigError(f"{which} is made from {modality}", setting="--modality")
        return [_Leg(name, wanted, name) for name in names]
    using = UNNAMED if vector is None else vector
    mixed = _MODALITY in spec.payload.names
    if modality is not None and not mixed and modality != "text":
        raise ConfigError(f"no vector of this pipeline is made from {modality}", setting="--modality")
    if not mixed:
        return [_Leg(using, wanted, "text")]
    kinds = [kind for kind in _mixtures() if modality is None or modality in kind.split("+")]
    if apart:
        known = calibration.read(spec.info)
        rare = [kind for kind in kinds if kind not in known]
        legs = [_Leg(using, {**wanted, _MODALITY: kind}, kind) for kind in kinds if kind in known]
        return legs + [_Leg(using, {**wanted, _MODALITY: rare}, calibration.ALL)] * bool(rare)
    return [_Leg(using, wanted if modality is None else {**wanted, _MODALITY: kinds}, "")]


def _mixtures() -> list[str]:
    """What a point may be made from: `text`, `image`, `image+text`, …"""
    return [modality_of(kinds) for count in (1, 2, 3) for kinds in combinations(MODALITIES, count)]


def _calibrated(
    store: Sink,
    spec: CollectionSpec,
    query: Vectors,
    legs: Sequence[_Leg],
    known: Mapping[str, Calibration],
    k: int,
) -> list[Hit]:
    if calibration.ALL not in known:
        raise ConfigError(
            "nothing is known of this collection's scores yet",
            setting="--calibrated",
            hint="a sync measures them once there are enough rows; or leave out --calibrated",
        )
    best: dict[str, Hit] = {}
    for leg in legs:
        for hit in store.search(query, max(k, _FUSED), leg.filter or None, leg.using):
            above = known.get(leg.kind, known[calibration.ALL]).above(hit.score, query, spec.metric)
            if hit.key not in best or above > best[hit.key].score:
                best[hit.key] = replace(hit, score=above)
    return sorted(best.values(), key=lambda hit: (-hit.score, hit.key))[:k]


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


def _best(store: Sink, vector: Vectors, k: int, leg: _Leg, *, chunked: bool) -> list[Hit]:
    asked = k * 4 if chunked else k
    while True:
        hits = store.search(vector, asked, leg.filter or None, leg.using)
        best = {hit.key: hit for hit in reversed(hits)}
        if len(best) >= k or len(hits) < asked:
            return sorted(best.values(), key=lambda hit: -hit.score)[:k]
        asked *= 2


def _shown(hit: Hit) -> dict[str, Any]:
    return {"id": show_key(hit.key), "score": hit.score, "payload": hit.payload, "chunk": hit.chunk}
