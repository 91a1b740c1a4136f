"""A pass: pages of rows through the stages, each in a thread of its own: compared, embedded, written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

from seedbed.ahead import ahead
from seedbed.delivery import Delivery
from seedbed.diff import Differ, PageDiff
from seedbed.embedding import Embedded, EmbeddingStage
from seedbed.identity import show_key
from seedbed.ledger import RowFailure
from seedbed.protocols import Page
from seedbed.report import SyncReport
from seedbed.retry import Patience
from seedbed.session import Session
from seedbed.spool import GoneSpool
from seedbed.taking import Taking, unwritten
from seedbed.work import Work, batched


class Passing:
    """The passes of one run, or of one shard of it: what they have met, and how far they have come. `full` writes every
    row anew; `limit` changed rows are taken at most."""

    def __init__(
        self,
        session: Session,
        delivery: Delivery,
        taking: Taking,
        report: SyncReport,
        pipeline_id: int,
        *,
        full: bool = False,
        limit: int | None = None,
        patience: Patience,
        progress: Callable[[SyncReport], None],
        stop: threading.Event,
    ) -> None:
        self._session = session
        self._delivery = delivery
        self._taking = taking
        self._report = report
        self._pipeline = pipeline_id
        self._full = full
        self._limit = limit
        self._patience = patience
        self._progress = progress
        self._stop = stop
        self._failed_now: set[bytes] = set()
        self._earlier: frozenset[bytes] = frozenset()
        """Rows that failed before, and those of them that this run has met."""
        self._met: set[bytes] = set()
        self.watermark: str | None = None

    def differ(self) -> Differ:
        return Differ(
            self._session.recipe,
            [live.outlet.payload for live in self._delivery.live],
            self._session.ledger,
            [live.destination for live in self._delivery.live],
            fetch=self._session.fetch,
            rewrite=self._full,
        )

    def run(self, pages: Iterator[Page], spool: GoneSpool, *, derive: bool) -> None:
        """With `derive`, what is gone goes into the spool, and the watermark is noted."""
        stage = EmbeddingStage(
            self._session.embedder,
            self._session.cache,
            self._session.chunker,
            self._patience,
            stop=self._stop,
            allowance=self._session.allowance,
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
            self._delivery.intend(batch)
            yield batch

    # --- reading ------------------------------------------------------------------------------------

    def _read(self, pages: Iterator[Page], spool: GoneSpool, *, derive: bool) -> Iterator[Work]:
        differ, left = self.differ(), self._limit
        for page in pages:
            found = differ.diff(page)
            self._note(found)
            if derive:
                spool.add(found.gone)
                self.watermark = page.watermark or self.watermark
            work = found.work
            if work is not None and left is not None:
                work = work.take(range(min(left, len(work))))
                left -= len(work)
            if work is not None and len(work):
                yield work
            self._met |= self._earlier.intersection([*page.positions, *(position for _, position in page.deleted)])
            self.worked_off(unwritten(page, found))
            if self._stop.is_set():
                self._report.stopped = True
                return
            if left == 0:
                return

    def _note(self, found: PageDiff) -> None:
        report = self._report
        report.read += found.read
        report.skipped += found.skipped
        self._fail(found.failures)
        report.failed += len(found.keyless)
        report.newly_failed += len(found.keyless)
        if found.keyless:
            report.first_failure = report.first_failure or found.keyless[0]

    # --- rows that fail -----------------------------------------------------------------------------

    def remember_failures(self) -> None:
        """Those of earlier runs, before the first page."""
        self._earlier = frozenset(failure.position for failure in self._session.ledger.failures(self._pipeline))

    def forget_failures(self, seen: Iterable[bytes] | None = None) -> None:
        """Rows that failed earlier and were seen (by default, those that were met) fail no more, but for those that
        failed now."""
        cured = (self._met if seen is None else self._earlier.intersection(seen)) - self._failed_now
        self._session.ledger.forget_failures(self._pipeline, sorted(cured))

    @property
    def earlier(self) -> frozenset[bytes]:
        return self._earlier

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
        self._taking.check(work.keys)
        stands, refused = self._delivery.write(batch)
        report.embedded += batch.embedded
        report.cached += batch.cached
        report.tokens += batch.tokens
        report.upserted += len(stands)
        self._fail([RowFailure(work.positions[r], work.keys[r], work.hashes[r], why) for r, why in refused.items()])
        self.worked_off(work.keys)

    def worked_off(self, keys: Iterable[str]) -> None:
        """Only while every sink is up: one that is not needs them again."""
        if self._delivery.all_up:
            self._taking.worked_off(keys)
