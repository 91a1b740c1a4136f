"""The writing stage, one sink: intent → upsert → delete stale chunks → ledger commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from seedbed.batch import point_schema, vectors_array
from seedbed.diff import Gone
from seedbed.embedding import Embedded, whole_text
from seedbed.errors import RowError
from seedbed.identity import point_id
from seedbed.ledger import UNKNOWN, Destination, Entry, Ledger
from seedbed.protocols import Sink
from seedbed.retry import Patience
from seedbed.session import Outlet
from seedbed.work import NOTHING, PAYLOAD, VECTOR


class SinkWriter:
    """Writes one sink of a run. Errors of the sink pass through; a row that it refuses is returned. `may_write` is
    called before each write and raises where there must be none."""

    def __init__(
        self,
        number: int,
        sink: Sink,
        destination: Destination,
        outlet: Outlet,
        ledger: Ledger,
        run_id: int,
        patience: Patience,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        self.number = number
        self._sink = sink
        self._destination = destination
        self._payload = outlet.payload
        self._names = outlet.spec.vectors
        self._ledger = ledger
        self._run_id = run_id
        self._patience = patience
        self._may_write = may_write

    def intend(self, batch: Embedded) -> None:
        """Notes what `write` is about to write. Called a stage earlier, so that its commit overlaps a write."""
        rows = self._rows(batch)
        if rows:
            entries = [self._entry(batch, row, most=True) for row in rows]
            batch.intents[self.number] = self._ledger.intend(self._destination, entries)

    def write(self, batch: Embedded) -> tuple[list[int], dict[int, str]]:
        """The rows that now stand there, and those refused: row → reason. Needs `intend` before."""
        refused: dict[int, str] = {}
        rows = self._rows(batch)
        while rows:
            try:
                self._store(batch, rows)
                break
            except RowError as error:
                bad = [row for row in rows if batch.work.keys[row] == error.key]
                if not bad:
                    raise
                refused.update((row, error.message) for row in bad)
                rows = [row for row in rows if row not in refused]
        if self.number in batch.intents:
            entries = [self._entry(batch, row) for row in rows]
            self._ledger.commit(self._destination, self._run_id, batch.intents[self.number], entries)
        return rows, refused

    def _rows(self, batch: Embedded) -> list[int]:
        what = batch.work.needs[self.number].what
        return [row for row in range(len(batch.work)) if what[row] != NOTHING and row not in batch.failed]

    def _store(self, batch: Embedded, rows: list[int]) -> None:
        work, need = batch.work, batch.work.needs[self.number]
        whole = [row for row in rows if need.what[row] == VECTOR]
        plain = [row for row in rows if need.what[row] == PAYLOAD]
        if whole:
            points = self._points(batch, whole, vectors=True)
            self._call(lambda: self._sink.upsert(points))
        if plain:
            fields = self._points(batch, plain, vectors=False)
            self._call(lambda: self._sink.set_payload(fields))
        stale = [
            point_id(work.keys[row], chunk) for row in rows for chunk in range(len(batch.spans[row]), need.stands[row])
        ]
        if stale:
            self._call(lambda: self._sink.delete(stale))

    def _call(self, write: Callable[[], None]) -> None:
        """Each try begins only while this process may write: it may have slept through its lease since the last."""

        def attempt() -> None:
            self._may_write()
            write()

        self._patience.run(attempt)

    def _entry(self, batch: Embedded, row: int, *, most: bool = False) -> Entry:
        work, need = batch.work, batch.work.needs[self.number]
        points = len(batch.spans[row])
        return Entry(
            work.positions[row],
            work.keys[row],
            work.hashes[row],
            need.payload[row],
            max(points, need.stands[row]) if most else points,
        )

    def _points(self, batch: Embedded, rows: Sequence[int], *, vectors: bool) -> pa.RecordBatch:
        """A batch of batch.point_schema: one point a chunk."""
        work, need = batch.work, batch.work.needs[self.number]
        counts = [len(batch.spans[row]) for row in rows]
        spans = [span for row in rows for span in batch.spans[row]]
        chunks = [chunk for count in counts for chunk in range(count)]
        of_row = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
        keys = [work.keys[row] for row in of_row]
        source = work.rows.take(pa.array(of_row, pa.int64()))
        columns: list[pa.Array] = [pa.array(map(point_id, keys, chunks), pa.string())]
        if vectors:
            numbers = [batch.first[row] + chunk for row, chunk in zip(of_row, chunks, strict=True)]
            at = np.asarray(numbers, np.int64)
            columns += [
                vectors_array(found[at], present[at])
                for found, present in zip(batch.vectors, batch.present, strict=True)
            ]
        columns += [
            pa.array(keys, pa.string()),
            pa.array(chunks, pa.int32()),
            pa.array([start for start, _ in spans], pa.int32()),
            pa.array([end for _, end in spans], pa.int32()),
            pa.array([work.hashes[row].hex() for row in of_row], pa.string()),
            pa.array([need.payload[row].hex() for row in of_row], pa.string()),
            *self._payload.columns(source),
        ]
        if self._payload.store_text:
            texts = [whole_text(work.contents[row])[slice(*span)] for row, span in zip(of_row, spans, strict=True)]
            columns.append(pa.array(texts, pa.string()))
        if self._payload.modality:
            columns.append(pa.array([work.contents[row][0].modality for row in of_row], pa.string()))
        dimensions = batch.vectors[0].shape[1] if vectors else None
        return pa.RecordBatch.from_arrays(columns, schema=point_schema(dimensions, self._payload.schema, self._names))

    def remove(self, gone: Sequence[Gone]) -> None:
        """Removes rows' points: intent → delete → ledger commit."""
        entries = [Entry(g.position, g.key, UNKNOWN, UNKNOWN, g.points) for g in gone]
        intent = self._ledger.intend(self._destination, entries)
        ids = [point_id(g.key, chunk) for g in gone for chunk in range(g.points)]
        self._call(lambda: self._sink.delete(ids))
        self._ledger.forget(self._destination, intent, [g.position for g in gone])
