"""Which URL scheme is served by which class: a name, a lazy import string, and the words to install it.

Outside packages join by entry points of the groups `seedbed.sources`, `seedbed.embedders` and
`seedbed.sinks`, named after their scheme. A factory is a callable `(url: str, settings: Mapping[str, Any])`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple, cast

from seedbed.errors import ConfigError, MissingDependency
from seedbed.protocols import Embedder, Sink, Source


class Entry(NamedTuple):
    target: str
    extra: str | None = None


SOURCES = {
    "postgresql": Entry("seedbed.sources.postgres:PostgresSource", "pgvector"),
    "postgres": Entry("seedbed.sources.postgres:PostgresSource", "pgvector"),
    "pgvector+embedded": Entry("seedbed.sources.postgres:PostgresSource", "embedded"),
    "file": Entry("seedbed.sources.table:TableSource", "table"),
    "files": Entry("seedbed.sources.files:FilesSource", "table"),
}
EMBEDDERS = {
    "hash": Entry("seedbed.embedders.hash:HashEmbedder"),
    "local": Entry("seedbed.embedders.local:local", "local"),
    "conse": Entry("seedbed.embedders.conse:ConseEmbedder", "conse"),
    "ark": Entry("seedbed.embedders.ark:ark", "ark"),
    "http": Entry("seedbed.embedders.openai:http", "ark"),
    "https": Entry("seedbed.embedders.openai:http", "ark"),
}
SINKS = {
    "memory": Entry("seedbed.sinks.memory:MemorySink"),
    "postgresql": Entry("seedbed.sinks.pgvector:PgvectorSink", "pgvector"),
    "postgres": Entry("seedbed.sinks.pgvector:PgvectorSink", "pgvector"),
    "pgvector+embedded": Entry("seedbed.sinks.pgvector:PgvectorSink", "embedded"),
    "qdrant": Entry("seedbed.sinks.qdrant:QdrantSink", "qdrant"),
    "qdrant+embedded": Entry("seedbed.sinks.qdrant:QdrantSink", "embedded"),
    "qdrant+memory": Entry("seedbed.sinks.qdrant:QdrantSink", "qdrant"),
    "milvus": Entry("seedbed.sinks.milvus:MilvusSink", "milvus"),
    "milvus+embedded": Entry("seedbed.sinks.milvus:MilvusSink", "embedded"),
}

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
Factory = Callable[[str, Mapping[str, Any]], Any]


def source(url: str, **settings: Any) -> Source:
    """A source by URL: `postgresql://…` (settings table or query, key, where, …), the path of a
    Parquet, CSV or JSONL file, or `files:PATTERN`."""
    scheme = _scheme(url)
    known = scheme if scheme and (scheme in SOURCES or _outside("seedbed.sources", scheme)) else "file"
    return cast(Source, _make("source", SOURCES, "seedbed.sources", known, url, settings))


def embedder(url: str, **settings: Any) -> Embedder:
    """An embedder by URL: `local:PATH_OR_HUB_ID`, `ark:MODEL`, `http://host:8000/v1`, `hash:N` (settings dimensions,
    instruction, …)."""
    return cast(Embedder, _make("embedder", EMBEDDERS, "seedbed.embedders", _scheme(url), url, settings))


def sink(url: str, **settings: Any) -> Sink:
    """A sink by URL: `postgresql://…`, `qdrant://…`, `milvus://…`; in a folder `pgvector+embedded:DIR`,
    `qdrant+embedded:DIR`, `milvus+embedded:DIR`; `memory:` (settings collection, api_key, tls)."""
    return cast(Sink, _make("sink", SINKS, "seedbed.sinks", _scheme(url), url, settings))


def _scheme(url: str) -> str | None:
    found = _SCHEME.match(url)
    return found[1].lower() if found else None


def _outside(group: str, scheme: str) -> Factory | None:
    for entry in entry_points(group=group, name=scheme):
        return cast(Factory, entry.load())
    return None


def _make(
    role: str, table: Mapping[str, Entry], group: str, scheme: str | None, url: str, settings: Mapping[str, Any]
) -> object:
    entry = table.get(scheme or "")
    if entry is None:
        factory = _outside(group, scheme) if scheme else None
        if factory is None:
            raise ConfigError(
                f"no {role} is known for the scheme of {(scheme or url)!r}",
                setting=f"{role}.url",
                hint=f"known: {', '.join(sorted(table))}; others come with packages that register `{group}`",
            )
        return factory(url, settings)
    module, _, name = entry.target.partition(":")
    try:
        # A class may import what its scheme needs when it is made.
        return getattr(import_module(module), name)(url, settings)
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.split(".")[0] == "seedbed":
            raise
        raise MissingDependency(
            f"{scheme}: needs the package {missing.name!r}, which is not installed",
            setting=f"{role}.url",
            hint=f"pip install 'seedbed[{entry.extra}]'",
        ) from missing
