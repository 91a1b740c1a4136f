"""The run: changes → contents → embed → upsert → delete stale → commit.

Reading, embedding and writing overlap through bounded queues (`ahead`). Embed before delete, write before
commit: a crash at any instant is repaired by running again.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from seedbed.ahead import ahead
from seedbed.delivery import Delivery
from seedbed.diff import Differ, Gone, PageDiff
from seedbed.embedding import Embedded, EmbeddingStage
from seedbed.errors import Refused, SeedbedError, Transient
from seedbed.identity import show_key
from seedbed.ledger import Ledger, RowFailure, State
from seedbed.protocols import CanTellProvenance, Page, Selection, Usage
from seedbed.report import SyncReport
from seedbed.retry import Patience
from seedbed.session import Session
from seedbed.spool import GoneSpool
from seedbed.taking import Taking, unwritten
from seedbed.work import Work, batched


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
        self._earlier: frozenset[bytes] = frozenset()
        """Rows that failed before, and those of them that this run has met."""
        self._met: set[bytes] = set()
        self._usage = Usage()

    def run(self) -> SyncReport:
        name = self._session.declaration.name
        ledger = self._session.ledger
        self._pipeline = ledger.register(name)
        self._state = ledger.state(self._pipeline)
        self._taking = Taking.of(self._session, self._state, narrowed=self._options.narrowed, full=self._options.full)
        try:
            ledger.lock(name, shared=self._taking.partly)
            before, self._state = self._state, ledger.state(self._pipeline)
            if self._taking.partly and self._state != before:
                raise Transient("another run has changed what is to be read", hint="run again")
            return self._locked(name, ledger)
        finally:
            self._taking.release()
            ledger.unlock()

    def _locked(self, name: str, ledger: Ledger) -> SyncReport:
        self._run_id = ledger.begin(self._pipeline, f"process {os.getpid()} on {socket.gethostname()}")
        try:
            self._session.govern(f"run {self._run_id} of {name}")
            self._usage = self._session.embedder.usage
            self._delivery = Delivery(self._session, self._options.patience, self._report, self._pipeline, self._run_id)
            self._delivery.open(alone=not self._taking.partly)
            self._check_recipe()
            if self._options.retry:
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

    def _differ(self) -> Differ:
        return Differ(
            self._session.recipe,
            [live.outlet.payload for live in self._delivery.live],
            self._session.ledger,
            [live.destination for live in self._delivery.live],
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
        self._state = State(fingerprint, self._taking.known_until_done(self._state.watermark))
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
        if self._taking.partly:
            ledger = self._session.ledger
            doubtful = [entry.key for live in self._delivery.live for entry in ledger.unknown(live.destination)]
            self._taking.put_back([*doubtful, *(failure.key for failure in ledger.failures(self._pipeline))])

    # --- the pass -----------------------------------------------------------------------------------

    def _pass(self, spool: GoneSpool) -> None:
        self._earlier = frozenset(failure.position for failure in self._session.ledger.failures(self._pipeline))
        changed = self._taking.pages(self._selection(), self._session.source.pages)
        self._run_stages(changed, spool, derive=not self._options.narrowed)
        whole = not self._options.narrowed and not self._stop.is_set()
        if whole and self._session.declaration.source.changes != "watermark":
            seen = self._met if self._taking.partly else self._earlier
            self._session.ledger.forget_failures(self._pipeline, sorted(seen - self._failed_now))

    def _retry_left_behind(self, spool: GoneSpool) -> None:
        """A scan sees every row again; a watermark does not see those that failed or were left in doubt."""
        if self._session.declaration.source.changes != "watermark" or self._options.narrowed or self._stop.is_set():
            return
        ledger = self._session.ledger
        doubtful = [ledger.unknown(live.destination) for live in self._delivery.live]
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
            self._delivery.intend(batch)
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
            self._met |= self._earlier.intersection([*page.positions, *(position for _, position in page.deleted)])
            self._worked_off(unwritten(page, found))
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
        self._worked_off(work.keys)

    def _delete(self, spool: GoneSpool) -> None:
        if self._stop.is_set() or self._options.narrowed:
            return
        for gone in self._delivery.delete(spool, self._taking.check, allowed=self._options.allow_deletes):
            self._session.ledger.forget_failures(self._pipeline, [row.position for row in gone])
            self._progress(self._report)
        if self._taking.partly and self._report.refused is None:
            for gone in self._delivery.gone(spool):
                self._worked_off(row.key for row in gone)

    def _worked_off(self, keys: Iterable[str]) -> None:
        """Only while every sink is up: one that is not needs them again."""
        if self._delivery.all_up:
            self._taking.worked_off(keys)

    def _finish(self) -> None:
        self._delivery.finish()
        if self._report.exit_code in (0, 3):
            if not self._stop.is_set():
                self._watermark = self._taking.all_seen() or self._watermark
            if self._watermark is not None:
                # How far this run has come, so that the next begins there.
                self._session.ledger.set_state(self._pipeline, State(self._state.recipe, self._watermark))
