"""The run: changes → contents → embed → upsert → delete stale → commit.

Reading, embedding and writing overlap through bounded queues (`passing`). Embed before delete, write before
commit: a crash at any instant is repaired by running again.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from seedbed.delivery import Delivery
from seedbed.diff import Gone
from seedbed.errors import Refused, SeedbedError, Transient
from seedbed.ledger import Held, Ledger, State
from seedbed.passing import Passing
from seedbed.protocols import CanTellProvenance, Page, Selection, Usage
from seedbed.report import SyncReport
from seedbed.retry import Patience
from seedbed.session import Session
from seedbed.spool import GoneSpool
from seedbed.taking import Taking


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
    held: Held | None = None,
    report: SyncReport | None = None,
) -> SyncReport:
    """Runs a pipeline once. Raises what stops a run as a whole; one sink's failure is in the report. `held`: as a shard
    of a shared run, whose attempt fills `report` and records its end itself."""
    return _Run(session, options or SyncOptions(), progress, stop or threading.Event(), held, report).run()


def worker() -> str:
    """This process, for people who ask who is at work."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def end(session: Session, run: int, report: SyncReport, outcome: str, before: Usage) -> None:
    """Records what a run or an attempt did since the usage stood as `before`: also what one paid for that failed in the
    middle of a batch."""
    ledger, embedder, used = session.ledger, session.opened_embedder, session.usage.since(before)
    provenance: dict[str, str] = {}
    if embedder is not None and used.calls:
        provenance = dict(embedder.provenance()) if isinstance(embedder, CanTellProvenance) else {}
        report.tokens = used.tokens
        report.cost = session.cost(used)
        report.currency = session.prices.currency
        ledger.add_usage(embedder.space.model, used)
    ledger.end(run, outcome, report.as_record(), provenance)


def check_recipe(session: Session, passing: Passing, before: State, selection: Selection, *, allowed: bool) -> None:
    """Past `[limits] max_reembed`, rows that changed only because the recipe did are not paid for unasked. Raises
    Refused."""
    if allowed or before.recipe in (None, session.recipe.fingerprint):
        return
    limit = session.declaration.limits.max_reembed
    changed = rows = 0
    differ = passing.differ()
    for page in session.source.pages(selection):
        found = differ.diff(page)
        changed, rows = changed + found.changed, rows + found.read
    if changed > limit * rows:
        raise Refused(
            f"the content template or chunking has changed: {changed} of {rows} rows would be embedded anew, "
            f"more than the limit of {limit:.0%}",
            setting="limits.max_reembed",
            hint="look at `seedbed plan`; then run again with --allow-reembed",
        )


class _Run:
    def __init__(
        self,
        session: Session,
        options: SyncOptions,
        progress: Callable[[SyncReport], None],
        stop: threading.Event,
        held: Held | None,
        report: SyncReport | None,
    ) -> None:
        self._session = session
        self._options = options
        self._progress = progress
        self._stop = stop
        self._held = held
        self._report = report or SyncReport()
        self._before = session.usage
        self._started = time.monotonic()

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
            ledger.unlock(run=self._held is None)

    def _locked(self, name: str, ledger: Ledger) -> SyncReport:
        alone = not self._taking.partly
        if self._held is None:
            self._run_id = ledger.begin(self._pipeline, worker(), alone=alone)
        else:
            self._run_id = self._held.token
        try:
            self._session.govern(f"run {self._held.run if self._held else self._run_id} of {name}")
            self._delivery = Delivery(self._session, self._options.patience, self._report, self._pipeline, self._run_id)
            self._passing = self._new_passing()
            self._delivery.open(alone=alone)
            allowed = self._options.allow_reembed
            check_recipe(self._session, self._passing, self._state, self._selection(), allowed=allowed)
            self._state = State(self._session.recipe.fingerprint, self._taking.known_until_done(self._state.watermark))
            ledger.set_state(self._pipeline, self._state)
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
        if self._held is None:
            end(self._session, self._run_id, self._report, outcome, self._before)

    def _new_passing(self) -> Passing:
        return Passing(
            self._session,
            self._delivery,
            self._taking,
            self._report,
            self._pipeline,
            full=self._options.full,
            limit=self._options.limit,
            patience=self._options.patience,
            progress=self._progress,
            stop=self._stop,
        )

    # --- the pass -----------------------------------------------------------------------------------

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

    def _pass(self, spool: GoneSpool) -> None:
        self._passing.remember_failures()
        changed = self._taking.pages(self._selection(), self._session.source.pages)
        self._passing.run(changed, spool, derive=not self._options.narrowed)
        whole = not self._options.narrowed and not self._stop.is_set()
        if whole and self._session.declaration.source.changes != "watermark":
            self._passing.forget_failures(None if self._taking.partly else self._passing.earlier)

    def _retry_left_behind(self, spool: GoneSpool) -> None:
        """A scan sees every row again; a watermark does not see those that failed or were left in doubt."""
        if self._session.declaration.source.changes != "watermark" or self._options.narrowed or self._stop.is_set():
            return
        retry_left_behind(self._session, self._passing, self._delivery, self._pipeline, spool)

    def _delete(self, spool: GoneSpool) -> None:
        if self._stop.is_set() or self._options.narrowed:
            return
        for gone in self._delivery.delete(spool, self._taking.check, allowed=self._options.allow_deletes):
            self._session.ledger.forget_failures(self._pipeline, [row.position for row in gone])
            self._progress(self._report)
        if self._taking.partly and self._report.refused is None:
            for gone in self._delivery.gone(spool):
                self._passing.worked_off(row.key for row in gone)

    def _finish(self) -> None:
        self._delivery.finish()
        watermark = self._passing.watermark
        if self._report.exit_code in (0, 3):
            if not self._stop.is_set():
                watermark = self._taking.all_seen() or watermark
            if watermark is not None:
                # How far this run has come, so that the next begins there.
                self._session.ledger.set_state(self._pipeline, State(self._state.recipe, watermark))


def retry_left_behind(
    session: Session, passing: Passing, delivery: Delivery, pipeline_id: int, spool: GoneSpool
) -> None:
    """Rows that failed or were left in doubt, read by key."""
    ledger = session.ledger
    doubtful = [ledger.unknown(live.destination) for live in delivery.live]
    failed = ledger.failures(pipeline_id)
    keys = sorted({entry.key for entries in doubtful for entry in entries} | {f.key for f in failed})
    if not keys:
        return
    seen: set[str] = set()

    def pages() -> Iterator[Page]:
        for page in session.source.pages(session.selection(keys=keys)):
            seen.update(page.keys, page.failed)
            yield page

    passing.remember_failures()
    passing.run(pages(), spool, derive=False)
    for number, entries in enumerate(doubtful):
        spool.add(Gone(number, e.position, e.key, e.points) for e in entries if e.key not in seen)
    passing.forget_failures()
    ledger.forget_failures(pipeline_id, [f.position for f in failed if f.key not in seen])
