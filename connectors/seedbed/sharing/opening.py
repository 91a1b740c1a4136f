"""Opening a shared run: what can stop it stops it here, before a row is paid for; then it is divided."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from seedbed.delivery import Delivery
from seedbed.errors import ConfigError, SeedbedError
from seedbed.expansion import in_folder
from seedbed.identity import KeyRange
from seedbed.ledger import State
from seedbed.ledger.shards import Shards, SharedRun, not_done
from seedbed.passing import Passing
from seedbed.protocols import CanShard, CanTellHorizon, TakesOneProcess
from seedbed.report import SyncReport
from seedbed.session import Session
from seedbed.sharing.shard import Shard, declared, told
from seedbed.sync import SyncOptions, check_recipe
from seedbed.tables import MOST_SHARDS
from seedbed.taking import Taking

CHANGES_A_SHARD = 2048
"""Queued changes that are worth a worker of their own."""


def begin_run(
    session: Session,
    options: SyncOptions | None = None,
    *,
    label: str,
    shards: int = 8,
    lives: Callable[[str], bool] = lambda label: False,
) -> list[Shard]:
    """Checks what a run needs and divides it into at most `shards` pieces: one, where the source, a sink or the ledger
    is for a single process. An unfinished run of the same label, pipeline and options goes on; another one that nobody
    works on is given up, unless `lives` says of its label that its scheduler is not done with it. Raises AlreadyRunning
    while somebody else is at work, Refused where a brake holds the run back."""
    if not 1 <= shards <= MOST_SHARDS:
        raise ConfigError(f"{shards} shards: from 1 to {MOST_SHARDS} are possible", setting="airflow.shards")
    options = options or SyncOptions()
    if options.narrowed:
        raise ConfigError("a run of chosen rows is not shared", hint="run it in one process: `seedbed sync`")
    ledger, name = session.ledger, session.declaration.name
    pipeline, book = ledger.register(name), Shards(ledger)
    ledger.lock(name, shared=True)
    try:
        left = []
        for other in book.unfinished(pipeline):
            if other != label and lives(other):
                raise not_done(other)
            left.append(other)
        run = book.resumable(pipeline, label)
        agreed = {"declared": declared(session), "options": told(session, options)}
        if run is None or any(run.plan[name] != value for name, value in agreed.items()):
            run = _Opening(session, options, book, pipeline).open(label, agreed, shards, left)
        count = len(book.records(run.id)) - 1
        host = socket.gethostname() if _here_alone(session) else None
        return [Shard(run.id, number, count, host) for number in range(count)]
    finally:
        ledger.unlock()


class _Opening:
    def __init__(self, session: Session, options: SyncOptions, book: Shards, pipeline: int) -> None:
        self._session, self._options, self._book, self._pipeline = session, options, book, pipeline
        self._by_watermark = session.declaration.source.changes == "watermark"

    def open(self, label: str, agreed: dict[str, Any], most: int, left: Sequence[str]) -> SharedRun:
        ledger = self._session.ledger
        state = ledger.state(self._pipeline)
        taking = Taking.of(self._session, state, narrowed=False, full=self._options.full)
        try:
            plan = {
                **agreed,
                "queue": taking.partly,
                "upto": taking.upto,
                "since": state.watermark if self._by_watermark and not self._options.full else None,
                "horizon": self._horizon(),
            }
            ranges: Sequence[KeyRange | None] = [None] * self._workers(most) if taking.partly else self._ranges(most)
            run = self._book.open(self._pipeline, label, plan, ranges, left)
            try:
                self._check(state, taking, run, plan["since"])
                self._book.checked(run, plan)
            except BaseException as error:
                message = error.message if isinstance(error, SeedbedError) else type(error).__name__
                ledger.end(run, f"failed: {message}", {}, {})
                raise
        finally:
            taking.release()
        return self._book.find(run)

    def _check(self, state: State, taking: Taking, run: int, since: str | None) -> None:
        """Afterwards the ledger says that the run is under way."""
        session, options, report = self._session, self._options, SyncReport()
        session.govern(f"run {run} of {session.declaration.name}")
        delivery = Delivery(session, options.patience, report, self._pipeline, run)
        delivery.open(alone=not taking.partly)
        passing = Passing(
            session,
            delivery,
            taking,
            report,
            self._pipeline,
            patience=options.patience,
            progress=lambda report: None,
            stop=threading.Event(),
        )
        selection = session.selection(watermark=self._by_watermark, since=since)
        check_recipe(session, passing, state, selection, allowed=options.allow_reembed)
        known = taking.known_until_done(state.watermark)
        session.ledger.set_state(self._pipeline, State(session.recipe.fingerprint, known))

    def _horizon(self) -> str | None:
        """Before any shard reads: no watermark may go beyond what was safe for all of them."""
        source = self._session.source
        return source.horizon() if self._by_watermark and isinstance(source, CanTellHorizon) else None

    def _ranges(self, most: int) -> list[KeyRange]:
        source = self._session.source
        return source.shards(self._shared(most)) if isinstance(source, CanShard) else [KeyRange()]

    def _workers(self, most: int) -> int:
        return self._shared(min(most, 1 + self._session.feed.waiting().free // CHANGES_A_SHARD))

    def _shared(self, wanted: int) -> int:
        """Of shards: one, where a store or the ledger is one process's at a time."""
        sinks = map(self._session.open_sink, self._session.declaration.sink)
        alone = any(isinstance(sink, TakesOneProcess) and sink.one_process for sink in sinks)
        return wanted if self._session.ledger.shared and not alone else 1


def _here_alone(session: Session) -> bool:
    """Whether something of the pipeline stands in a folder, which another machine does not have."""
    declaration = session.declaration
    urls = [declaration.source.url, declaration.ledger.url, *(sink.url for sink in declaration.sink)]
    return any(in_folder(url) for url in urls)
