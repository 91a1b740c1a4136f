"""Rebuilds a lost ledger from our own collection: no row is read, no model is called."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from seedbed.errors import ConfigError, Refused
from seedbed.identity import key_parts, position
from seedbed.ledger import UNKNOWN, Destination, Entry
from seedbed.protocols import Sink
from seedbed.session import Outlet, Session

_GROUPED = """
select key, min(hash), max(hash), min(payload), max(payload), count(*), max(chunk) + 1
from point group by key order by key
"""


def adopt(session: Session) -> dict[str, int]:
    """Rows adopted, a sink. Raises ConfigError where a sink has no collection, Refused where it is another's."""
    name = session.declaration.name
    session.ledger.lock(name)
    pipeline = session.ledger.register(name)
    return {outlet.config.name: _adopt(session, pipeline, outlet) for outlet in session.outlets}


def _adopt(session: Session, pipeline: int, outlet: Outlet) -> int:
    sink = session.open_sink(outlet.config)
    found = sink.describe()
    if found is None:
        raise ConfigError(
            f"there is no collection {outlet.config.collection!r} to adopt",
            setting="sink.collection",
            hint="`seedbed sync` creates it",
        )
    if found.pipeline != session.declaration.name:
        raise Refused(
            f"the collection {outlet.config.collection!r} belongs to pipeline {found.pipeline!r}",
            setting="sink.collection",
            hint="name another collection",
        )
    version = sink.ensure(outlet.spec)
    destination = session.ledger.add_destination(pipeline, outlet.config.name, version, outlet.spec.space)
    session.ledger.reset(destination)
    return sum(_store(session, destination, batch) for batch in _rows(sink, session.source.key_kinds))


def _store(session: Session, destination: Destination, batch: list[Entry]) -> int:
    session.ledger.commit(destination, 0, None, batch)
    return len(batch)


def _rows(sink: Sink, kinds: tuple[str, ...], size: int = 1024) -> Iterator[list[Entry]]:
    """The collection's rows. A scan is in order of point ids, so chunks are grouped in a temporary file.
    A row whose chunks disagree, or of which one is missing, is in doubt: the next run rewrites it."""
    with (
        tempfile.TemporaryDirectory(prefix="seedbed-adopt-") as folder,
        closing(sqlite3.connect(Path(folder) / "points.db")) as db,
    ):
        db.execute("pragma synchronous = off")
        db.execute("create table point (key text, chunk integer, hash text, payload text)")
        for page in sink.scan():
            db.executemany("insert into point values (?, ?, ?, ?)", _columns(page))
        rows = db.execute(_GROUPED)
        while batch := rows.fetchmany(size):
            yield [_entry(row, kinds) for row in batch]


def _entry(row: tuple[Any, ...], kinds: tuple[str, ...]) -> Entry:
    key, low, high, payload_low, payload_high, count, chunks = row
    whole = low == high and count == chunks
    return Entry(
        position(key_parts(key), kinds),
        key,
        bytes.fromhex(low) if whole else UNKNOWN,
        bytes.fromhex(payload_low) if payload_low == payload_high else UNKNOWN,
        chunks,
    )


def _columns(page: pa.RecordBatch) -> Iterator[tuple[object, ...]]:
    names = ("_key", "_chunk", "_hash", "_payload_hash")
    return zip(*(page.column(name).to_pylist() for name in names), strict=True)
