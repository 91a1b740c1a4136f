"""The run: changes → contents → embed → upsert → delete stale → commit.

Reading, embedding and writing overlap through bounded queues (`ahead`). Embed before delete, write before
commit: a crash at any instant is repaired by running again.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

from seedbed import calibration
from seedbed.ahead import ahead
from seedbed.diff import Differ, Gone, PageDiff
from seedbed.embedding import Embedded, EmbeddingStage
from seedbed.errors import Refused, SeedbedError, ServiceError, Transient
from seedbed.identity import show_key
from seedbed.ledger import Destination, Ledger, RowFailure, State
from seedbed.protocols import CanTellProvenance, Feed, Page, Selection, Sink, Usage
from seedbed.report import SinkCounts, SyncReport
from seedbed.retry import Patience
from seedbed.session import Outlet, Session
from seedbed.spool import GoneSpool
from seedbed.work import VECTOR, Work, batched
from seedbed.writing import SinkWriter


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """`limit` changed rows, `keys` (canonical) and `where` narrow a run, which then never deletes.
    `full` rewrites every row, from the cache where it can. `retry`: rows that failed before are tried again, where the
    run would not see them by itself."""

    limit: int | None = None
    keys: Sequence[str] | None = None
    where: str | None = None
    full: bool = False
    allow_deletes: bool = False
    allow_reembed: bool = False
    retry: bool = True
    patience: Patience = field(default_factory=Patience)

    @property
    def narrowed(self) -> bool:
        return self.limit is not None or self.keys is not None or self.where is not None


@dataclass(slots=True)
class _Live:
    """A sink that is up, in this run."""

    outlet: Outlet
    sink: Sink
    writer: SinkWriter
    destination: Destination
    counts: SinkCounts
    fresh: int = 0
    """Rows of this run that had no points there before."""

    @contextmanager
    def timed(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.counts.seconds += time.monotonic() - started


def sync(
    session: Session,
    options: SyncOptions | None = None,
    progress: Callable[[SyncReport], None] = lambda report: None,
    stop: threading.Event | None = None,
) -> SyncReport:
    """Runs a pipeline once. Raises what stops a run as a whole; one sink's failure is in the report."""
    return _Run(session, options or SyncOptions(), progress, stop or threading.Event()).run()


class _Run:
    def __init__(
        self, session: Session, options: SyncOptions, progress: Callable[[SyncReport], None], stop: threading.Event
    ) -> None:
        self._session = session
        self._options = options
        self._progress = progress
        self._stop = stop
        self._report = SyncReport()
        self._started = time.monotonic()
        self._watermark: str | None = None
        self._failed_now: set[bytes] = set()
        self._usage = Usage()
        self._feed: Feed | None = None

    def run(self) -> SyncReport:
        name = self._session.declaration.name
        ledger = self._session.ledger
        self._pipeline = ledger.register(name)
        self._state = ledger.state(self._pipeline)
        self._feed = self._changes()
        try:
            ledger.lock(name, shared=self._feed is not None)
            before, self._state = self._state, ledger.state(self._pipeline)
            if self._feed is not None and self._state != before:
                raise Transient("another run has changed what is to be read", hint="run again")
            return self._locked(name, ledger)
        finally:
            if self._queued:
                self._session.feed.release()
            ledger.unlock()

    @property
    def _queued(self) -> bool:
        return self._session.declaration.source.changes == "queue" and not self._options.narrowed

    def _changes(self) -> Feed | None:
        """The queue, where what it holds is all that a run must see; None where all rows must be read: at first, under
        another subscription or recipe, and where a change concerns them all."""
        if not self._queued:
            return None
        feed = self._session.feed
        known = self._state == State(self._session.recipe.fingerprint, feed.marker)
        whole = feed.all_rows()
        return None if whole or self._options.full or not known else feed

    def _locked(self, name: str, ledger: Ledger) -> SyncReport:
        self._run_id = ledger.begin(self._pipeline, f"process {os.getpid()} on {socket.gethostname()}")
        try:
            self._session.govern(f"run {self._run_id} of {name}")
            self._usage = self._session.embedder.usage
            self._connect()
            self._check_recipe()
            self._put_back()
            with closing(GoneSpool()) as spool:
                self._pass(spool)
                self._retry_left_behind(spool)
                self._delete(spool)
            self._finish()
        except BaseException as error:
            message = error.message if isinstance(error, SeedbedError) else type(error).__name__
            self._end(f"failed: {message}")
            raise
        self._end(self._report.outcome)
        return self._report

    def _end(self, outcome: str) -> None:
        self._report.seconds = time.monotonic() - self._started
        embedder = self._session.embedder if self._usage.calls else None
        provenance: dict[str, str] = dict(embedder.provenance()) if isinstance(embedder, CanTellProvenance) else {}
        if embedder is not None:
            # Also what a run paid for that failed in the middle of a batch.
            self._report.tokens = embedder.usage.tokens
            self._report.cost = self._session.cost(embedder.usage)
            self._report.currency = self._session.prices.currency
            self._session.ledger.add_usage(embedder.space.model, embedder.usage)
        self._session.ledger.end(self._run_id, outcome, self._report.as_record(), provenance)

    # --- opening ------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._live: list[_Live] = []
        first_error: ServiceError | None = None
        for outlet in self._session.outlets:
            counts = self._report.sinks[outlet.config.name] = SinkCounts()
            try:
                self._live.append(self._open(outlet, counts))
            except ServiceError as error:
                counts.error = error.message
                first_error = first_error or error
        if first_error is not None and not self._live:
            raise first_error

    def _open(self, outlet: Outlet, counts: SinkCounts) -> _Live:
        ledger, patience = self._session.ledger, self._options.patience
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
        elif not holds_points and self._feed is None:  # beside others, one of them may just be writing the first
            ledger.reset(destination)
        ledger.recover(destination)
        writer = SinkWriter(len(self._live), sink, destination, outlet, ledger, self._run_id, self._options.patience)
        return _Live(outlet, sink, writer, destination, counts)

    def _differ(self) -> Differ:
        return Differ(
            self._session.recipe,
            [live.outlet.payload for live in self._live],
            self._session.ledger,
            [live.destination for live in self._live],
            fetch=self._session.fetch,
            rewrite=self._options.full,
        )

    def _check_recipe(self) -> None:
        """Past `[limits] max_reembed`, rows that changed only because the recipe did are not paid for unasked."""
        fingerprint, before = self._session.recipe.fingerprint, self._state.recipe
        limit = self._session.declaration.limits.max_reembed
        if before not in (None, fingerprint) and not self._options.allow_reembed:
            changed = rows = 0
            differ = self._differ()
            for page in self._session.source.pages(self._selection()):
                found = differ.diff(page)
                changed, rows = changed + found.changed, rows + found.read
            if changed > limit * rows:
                raise Refused(
                    f"the content template or chunking has changed: {changed} of {rows} rows would be embedded anew, "
                    f"more than the limit of {limit:.0%}",
                    setting="limits.max_reembed",
                    hint="look at `seedbed plan`; then run again with --allow-reembed",
                )
        # Until all rows are seen, none are known to be done: a run that is cut short begins at the first one again.
        seen = None if self._queued and self._feed is None else self._state.watermark
        self._state = State(fingerprint, seen)
        self._session.ledger.set_state(self._pipeline, self._state)

    def _selection(self) -> Selection:
        config, options = self._session.declaration.source, self._options
        by_watermark = config.changes == "watermark" and not options.narrowed
        return self._session.selection(
            keys=options.keys,
            where=options.where,
            watermark=by_watermark,
            since=self._state.watermark if by_watermark and not options.full else None,
        )

    def _put_back(self) -> None:
        """Rows that failed or were left in doubt go into the queue again, where workers share them."""
        if self._feed is None or not self._options.retry:
            return
        ledger = self._session.ledger
        doubtful = {entry.key for live in self._live for entry in ledger.unknown(live.destination)}
        self._feed.put(sorted(doubtful | {failure.key for failure in ledger.failures(self._pipeline)}))

    # --- the pass -----------------------------------------------------------------------------------

    def _pass(self, spool: GoneSpool) -> None:
        earlier = [failure.position for failure in self._session.ledger.failures(self._pipeline)]
        self._seen = set(earlier) if self._feed is None else set()
        self._earlier = frozenset(earlier)
        pages = self._session.source.pages
        changed = pages(self._selection()) if self._feed is None else self._feed.pages(self._selection(), pages)
        self._run_stages(changed, spool, derive=not self._options.narrowed)
        whole = not self._options.narrowed and not self._stop.is_set()
        if whole and self._session.declaration.source.changes != "watermark":
            mended = [position for position in earlier if position in self._seen - self._failed_now]
            self._session.ledger.forget_failures(self._pipeline, mended)

    def _retry_left_behind(self, spool: GoneSpool) -> None:
        """A scan sees every row again; a watermark does not see those that failed or were left in doubt."""
        if self._session.declaration.source.changes != "watermark" or self._options.narrowed or self._stop.is_set():
            return
        ledger = self._session.ledger
        doubtful = [ledger.unknown(live.destination) for live in self._live]
        failed = ledger.failures(self._pipeline)
        keys = sorted({entry.key for entries in doubtful for entry in entries} | {f.key for f in failed})
        if not keys:
            return
        seen: set[str] = set()

        def pages() -> Iterator[Page]:
            for page in self._session.source.pages(self._session.selection(keys=keys)):
                seen.update(page.keys, page.failed)
                yield page

        self._run_stages(pages(), spool, derive=False)
        for number, entries in enumerate(doubtful):
            spool.add(Gone(number, e.position, e.key, e.points) for e in entries if e.key not in seen)
        ledger.forget_failures(self._pipeline, [f.position for f in failed if f.key not in seen])

    def _run_stages(self, pages: Iterator[Page], spool: GoneSpool, *, derive: bool) -> None:
        stage = EmbeddingStage(
            self._session.embedder,
            self._session.cache,
            self._session.chunker,
            self._options.patience,
            stop=self._stop,
            most_tokens=self._session.declaration.limits.tokens,
        )
        read = ahead(pages, depth=1)
        works = ahead(batched(self._read(read, spool, derive=derive)))
        loaded = ahead(self._session.loading.each(works), depth=1) if self._session.loading else works
        with (
            closing(read),
            closing(works),
            closing(loaded),
            closing(ahead(self._intended(stage.each(loaded)), depth=1)) as batches,
        ):
            for batch in batches:
                self._write(batch)
                self._progress(self._report)
                if batch.cut:
                    # Nothing more of this run, as after a signal: what is left is left for the next one.
                    self._report.refused = batch.spent
                    self._report.stopped = True
                    self._stop.set()

    def _intended(self, batches: Iterable[Embedded]) -> Iterator[Embedded]:
        for batch in batches:
            for live in self._live:
                if live.counts.error is None:
                    live.writer.intend(batch)
            yield batch

    def _read(self, pages: Iterator[Page], spool: GoneSpool, *, derive: bool) -> Iterator[Work]:
        differ, left = self._differ(), self._options.limit
        for page in pages:
            found = differ.diff(page)
            self._note(found)
            if derive:
                spool.add(found.gone)
                self._watermark = page.watermark or self._watermark
            work = found.work
            if work is not None and left is not None:
                work = work.take(range(min(left, len(work))))
                left -= len(work)
            if work is not None and len(work):
                yield work
            self._settle(page, found)
            if self._stop.is_set():
                self._report.stopped = True
                return
            if left == 0:
                return

    def _settle(self, page: Page, found: PageDiff) -> None:
        """Changes that need no write are worked off as soon as that is known."""
        if self._feed is None:
            return
        self._seen |= self._earlier.intersection([*page.positions, *(position for _, position in page.deleted)])
        waits = {*(found.work.keys if found.work else ()), *(gone.key for gone in found.gone)}
        self._worked_off({*page.keys, *page.failed, *(key for key, _ in page.deleted)} - waits)

    def _worked_off(self, keys: Iterable[str]) -> None:
        """Only while every sink is up: one that is not needs them again."""
        if self._feed is not None and all(counts.error is None for counts in self._report.sinks.values()):
            self._feed.finish(sorted(keys))

    def _note(self, found: PageDiff) -> None:
        report = self._report
        report.read += found.read
        report.skipped += found.skipped
        self._fail(found.failures)
        report.failed += len(found.keyless)
        report.newly_failed += len(found.keyless)
        if found.keyless:
            report.first_failure = report.first_failure or found.keyless[0]

    def _fail(self, failures: Sequence[RowFailure]) -> None:
        if failures:
            self._failed_now.update(failure.position for failure in failures)
            self._report.failed += len(failures)
            self._report.newly_failed += self._session.ledger.record_failures(self._pipeline, failures)
            self._report.first_failure = (
                self._report.first_failure or f"row {show_key(failures[0].key)}: {failures[0].error}"
            )

    # --- writing ------------------------------------------------------------------------------------

    def _write(self, batch: Embedded) -> None:
        report, work = self._report, batch.work
        refused, stands = dict(batch.failed), set[int]()
        if self._feed is not None:
            self._feed.check(work.keys)
        for live in self._live:
            needed = sum(what != 0 for what in work.needs[live.writer.number].what)
            if live.counts.error is not None:
                live.counts.behind += needed
                continue
            try:
                with live.timed():
                    written, bad = live.writer.write(batch)
                live.counts.upserted += len(written)
                need = work.needs[live.writer.number]
                live.fresh += sum(need.what[row] == VECTOR and not need.stands[row] for row in written)
                stands.update(written)
                refused.update(bad)
            except ServiceError as error:
                self._down(live, error, needed)
        report.embedded += batch.embedded
        report.cached += batch.cached
        report.tokens += batch.tokens
        report.upserted += len(stands)
        self._fail([RowFailure(work.positions[r], work.keys[r], work.hashes[r], why) for r, why in refused.items()])
        self._worked_off(work.keys)

    def _down(self, live: _Live, error: ServiceError, behind: int) -> None:
        live.counts.error = error.message
        live.counts.behind += behind
        if all(other.counts.error is not None for other in self._live):
            raise error

    def _delete(self, spool: GoneSpool) -> None:
        if self._stop.is_set() or self._options.narrowed:
            return
        limit = self._session.declaration.limits.max_delete
        for live in self._live:
            gone = spool.counts.get(live.writer.number, 0)
            if live.counts.error is not None:
                live.counts.behind += gone
            elif gone and not self._options.allow_deletes and not self._beyond(live, gone / limit if limit else None):
                live.counts.behind += gone
                before = self._session.ledger.count(live.destination) - live.fresh
                self._report.refused = Refused(
                    f"{gone} of {before} rows are gone from the source (or empty): more than the limit "
                    f"of {limit:.0%}, so their vectors were kept",
                    setting="limits.max_delete",
                    hint="look whether the source is whole; then run again with --allow-deletes",
                )
            else:
                self._delete_from(live, spool)
        self._finish_deleted(spool)
        self._report.deleted = max((live.counts.deleted for live in self._live), default=0)

    def _beyond(self, live: _Live, rows: float | None) -> bool:
        """Whether at least so many rows stood at the sink before this run; None: more than there are."""
        if rows is None:
            return False
        most = math.ceil(rows) + live.fresh
        return self._session.ledger.count(live.destination, most) - live.fresh >= rows

    def _finish_deleted(self, spool: GoneSpool) -> None:
        if self._feed is not None and self._report.refused is None:
            for live in self._live:
                for batch in spool.batches(live.writer.number):
                    self._worked_off(gone.key for gone in batch)

    def _delete_from(self, live: _Live, spool: GoneSpool) -> None:
        for batch in spool.batches(live.writer.number):
            if self._feed is not None:
                self._feed.check([gone.key for gone in batch])
            try:
                with live.timed():
                    live.writer.remove(batch)
            except ServiceError as error:
                self._down(live, error, spool.counts[live.writer.number] - live.counts.deleted)
                return
            live.counts.deleted += len(batch)
            self._session.ledger.forget_failures(self._pipeline, [gone.position for gone in batch])
            self._progress(self._report)

    def _finish(self) -> None:
        for live in self._live:
            if live.counts.error is None:
                try:
                    with live.timed():
                        self._options.patience.run(live.sink.finish)
                        self._calibrate(live)
                except ServiceError as error:
                    self._down(live, error, 0)
        if self._report.exit_code in (0, 3):
            self._remember()

    def _remember(self) -> None:
        """How far this run has come, so that the next begins there."""
        if self._queued and self._feed is None and not self._stop.is_set():
            self._watermark = self._session.feed.marker
            self._session.feed.finish_all_rows()
        if self._watermark is not None:
            self._session.ledger.set_state(self._pipeline, State(self._state.recipe, self._watermark))

    def _calibrate(self, live: _Live) -> None:
        """Measures the kinds of vectors that searches may put into one list, where rows came or went."""
        spec = live.outlet.spec
        changed = live.counts.upserted or live.counts.deleted
        if calibration.applies(spec) and changed and calibration.stale(spec.info, live.sink.count()):
            others = {name: text for name, text in spec.info.items() if name not in calibration.kept(spec.info)}
            measured = calibration.measured(live.sink, spec)
            live.sink.ensure(replace(spec, info={**others, **measured}))
