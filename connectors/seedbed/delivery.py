"""The sinks of a run: opened, written, freed of what is gone, finished. One that fails leaves the others to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from seedbed import calibration
from seedbed.diff import Gone
from seedbed.embedding import Embedded
from seedbed.errors import Refused, ServiceError
from seedbed.ledger import Destination
from seedbed.protocols import Sink
from seedbed.report import SinkCounts, SyncReport
from seedbed.retry import Patience
from seedbed.session import Outlet, Session
from seedbed.spool import GoneRows
from seedbed.work import VECTOR
from seedbed.writing import SinkWriter


@dataclass(slots=True)
class Live:
    """A sink that is up, in this run."""

    outlet: Outlet
    sink: Sink
    writer: SinkWriter
    destination: Destination
    counts: SinkCounts

    @contextmanager
    def timed(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.counts.seconds += time.monotonic() - started


class Delivery:
    """`live` are the sinks that could be opened; `report` is filled in. What fails all of them is raised."""

    def __init__(
        self,
        session: Session,
        patience: Patience,
        report: SyncReport,
        pipeline_id: int,
        run_id: int,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        self._session = session
        self._patience = patience
        self._report = report
        self._pipeline = pipeline_id
        self._run_id = run_id
        self._may_write = may_write
        self.live: list[Live] = []

    @property
    def all_up(self) -> bool:
        return all(counts.error is None for counts in self._report.sinks.values())

    # --- opening ------------------------------------------------------------------------------------

    def open(self, *, alone: bool) -> None:
        """`alone`: no other run writes there meanwhile, so that an empty collection was emptied by others."""
        first_error: ServiceError | None = None
        for outlet in self._session.outlets:
            counts = self._report.sinks.setdefault(outlet.config.name, SinkCounts())
            if counts.error is not None:
                continue  # down for another worker of this run
            try:
                self.live.append(self._open(outlet, counts, alone=alone))
            except ServiceError as error:
                counts.error = error.message
                first_error = first_error or error
        if first_error is not None and not self.live:
            raise first_error

    def _open(self, outlet: Outlet, counts: SinkCounts, *, alone: bool) -> Live:
        ledger, patience = self._session.ledger, self._patience
        sink = self._session.open_sink(outlet.config)
        if calibration.applies(outlet.spec) and (before := patience.run(sink.describe)) is not None:
            outlet.spec = replace(outlet.spec, info={**outlet.spec.info, **calibration.kept(before.info)})
        version = patience.run(lambda: sink.ensure(outlet.spec))
        destination = ledger.add_destination(self._pipeline, outlet.config.name, version, outlet.spec.space)
        holds_points = any(len(page) for page in sink.scan(1))
        if not ledger.touched(destination):
            if holds_points:
                raise Refused(
                    f"the collection {outlet.config.collection!r} holds points of this pipeline, but the ledger "
                    "knows nothing of them",
                    setting="ledger.url",
                    hint="`seedbed adopt` rebuilds the ledger from the collection, with no embedding",
                )
        elif not holds_points and alone:
            ledger.reset(destination)
        ledger.recover(destination)
        number = len(self.live)
        writer = SinkWriter(number, sink, destination, outlet, ledger, self._run_id, patience, self._may_write)
        return Live(outlet, sink, writer, destination, counts)

    # --- writing ------------------------------------------------------------------------------------

    def intend(self, batch: Embedded) -> None:
        for live in self.live:
            if live.counts.error is None:
                live.writer.intend(batch)

    def write(self, batch: Embedded) -> tuple[set[int], dict[int, str]]:
        """Rows that stand at some sink now, and those refused by the model or by a sink: row → reason."""
        work = batch.work
        refused, stands = dict(batch.failed), set[int]()
        for live in self.live:
            need = work.needs[live.writer.number]
            needed = sum(what != 0 for what in need.what)
            if live.counts.error is not None:
                live.counts.behind += needed
                continue
            try:
                with live.timed():
                    written, bad = live.writer.write(batch)
                live.counts.upserted += len(written)
                live.counts.fresh += sum(need.what[row] == VECTOR and not need.stands[row] for row in written)
                stands.update(written)
                refused.update(bad)
            except ServiceError as error:
                self._down(live, error, needed)
        return stands, refused

    def _down(self, live: Live, error: ServiceError, behind: int) -> None:
        live.counts.error = error.message
        live.counts.behind += behind
        if all(other.counts.error is not None for other in self.live):
            raise error

    # --- deleting -----------------------------------------------------------------------------------

    def delete(self, spool: GoneRows, check: Callable[[Sequence[str]], None], *, allowed: bool) -> Iterator[list[Gone]]:
        """Removes what is gone, batch by batch, each given out once it is removed. Past `[limits] max_delete` of a
        sink's rows, unless that is `allowed`, they are kept, and the report says so. `check` is called before each."""
        limit = self._session.declaration.limits.max_delete
        for live in self.live:
            gone = spool.counts.get(live.writer.number, 0)
            if live.counts.error is not None:
                live.counts.behind += gone
            elif gone and not allowed and not self._stood_at_least(live, gone / limit if limit else math.inf):
                live.counts.behind += gone
                before = self._session.ledger.count(live.destination) - live.counts.fresh
                self._report.refused = Refused(
                    f"{gone} of {before} rows are gone from the source (or empty): more than the limit "
                    f"of {limit:.0%}, so their vectors were kept",
                    setting="limits.max_delete",
                    hint="look whether the source is whole; then run again with --allow-deletes",
                )
            else:
                yield from self._delete_from(live, spool, check)
        self._report.deleted = max((live.counts.deleted for live in self.live), default=0)

    def gone(self, spool: GoneRows) -> Iterator[list[Gone]]:
        """All that is gone, of every sink that is up."""
        for live in self.live:
            yield from spool.batches(live.writer.number)

    def _stood_at_least(self, live: Live, rows: float) -> bool:
        """At the sink, before this run. Counted no further than that, as a sink may hold millions."""
        if rows == math.inf:
            return False
        fresh = live.counts.fresh
        return self._session.ledger.count(live.destination, math.ceil(rows) + fresh) - fresh >= rows

    def _delete_from(self, live: Live, spool: GoneRows, check: Callable[[Sequence[str]], None]) -> Iterator[list[Gone]]:
        left = spool.counts.get(live.writer.number, 0)
        for batch in spool.batches(live.writer.number):
            check([gone.key for gone in batch])
            try:
                with live.timed():
                    live.writer.remove(batch)
            except ServiceError as error:
                self._down(live, error, left)
                return
            live.counts.deleted += len(batch)
            left -= len(batch)
            yield batch

    # --- finishing ----------------------------------------------------------------------------------

    def finish(self) -> None:
        for live in self.live:
            if live.counts.error is None:
                try:
                    with live.timed():
                        self._patience.run(live.sink.finish)
                        self._calibrate(live)
                except ServiceError as error:
                    self._down(live, error, 0)

    def _calibrate(self, live: Live) -> None:
        """Measures the kinds of vectors that searches may put into one list, where rows came or went."""
        spec = live.outlet.spec
        changed = live.counts.upserted or live.counts.deleted
        if calibration.applies(spec) and changed and calibration.stale(spec.info, live.sink.count()):
            others = {name: text for name, text in spec.info.items() if name not in calibration.kept(spec.info)}
            measured = calibration.measured(live.sink, spec)
            live.sink.ensure(replace(spec, info={**others, **measured}))
