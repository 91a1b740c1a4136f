"""One process at one shard: it takes the lease, agrees with the run's plan, and says what it has done as it goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from seedbed.errors import AlreadyRunning, Refused, SeedbedError
from seedbed.ledger import Held
from seedbed.ledger.shards import LEASE, Shards, SharedRun
from seedbed.report import SyncReport
from seedbed.session import Session
from seedbed.sharing.lease import Lease
from seedbed.sharing.shard import Shard, declared
from seedbed.sync import end, worker

_POLL = 1.0
_WAIT = LEASE + 30.0
"""Seconds to wait for a shard: a frozen worker's lease has run out by then, and a dead one holds nothing."""


class Attempt:
    """`report` is what this process does; `stop` ends it early."""

    def __init__(self, session: Session, shard: Shard, stop: threading.Event) -> None:
        shard.check_host()
        self.session, self.shard, self.stop = session, shard, stop
        self.book = Shards(session.ledger)
        self.run: SharedRun = self.book.find(shard.run)
        self.report = SyncReport()
        self._before = session.usage
        self._started = time.monotonic()
        self._agree()

    def _agree(self) -> None:
        options = self.run.plan["options"]
        self.session.limit(options["tokens"], options["money"])
        if self.run.plan["declared"] != declared(self.session):
            raise Refused(
                "the pipeline has changed since this run was planned",
                hint="plan anew: in Airflow, clear the plan task with all that is downstream",
            )

    @contextmanager
    def leased(self, *, locked: bool) -> Iterator[Lease]:
        """With the shard's lease, and (`locked`) beside no run that is alone. What fails is recorded as the attempt's
        end."""
        ledger = self.session.ledger
        if self.run.finished is not None:
            self.book.reopen(self.run)
        try:
            if locked:
                ledger.lock(self.session.declaration.name, shared=True)
            with Lease(self.book, self._take(), self.counts) as lease:
                ledger.held = lease.held
                try:
                    yield lease
                except BaseException as error:
                    message = error.message if isinstance(error, SeedbedError) else type(error).__name__
                    self.end(lease, f"failed: {message}")
                    raise
                self.end(lease, self.report.outcome)
        finally:
            ledger.held = None
            ledger.unlock()

    def _take(self) -> Held:
        until = time.monotonic() + _WAIT
        while True:
            try:
                return self.book.take(self.run, self.shard.number, worker())
            except AlreadyRunning:
                if self.stop.wait(_POLL) or time.monotonic() > until:
                    raise

    def counts(self) -> dict[str, Any]:
        self.report.seconds = time.monotonic() - self._started
        used = self.session.usage.since(self._before)
        if used.calls:
            self.report.cost = self.session.cost(used)
            self.report.currency = self.session.prices.currency
        return self.report.as_attempt()

    def end(self, lease: Lease, outcome: str) -> None:
        self.report.seconds = time.monotonic() - self._started
        end(self.session, lease.held.token, self.report, outcome, self._before)
        self.book.note(lease.held, self.report.as_attempt())
