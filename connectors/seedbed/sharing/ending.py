"""The end of a shared run: what is gone is deleted, how far the run has come is recorded, and all of it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from copy import deepcopy
from datetime import UTC, datetime

from seedbed.delivery import Delivery
from seedbed.diff import Gone
from seedbed.errors import Refused
from seedbed.ledger import State
from seedbed.ledger.shards import Shards
from seedbed.report import RunReport, SyncReport
from seedbed.session import Session
from seedbed.sharing.attempt import Attempt
from seedbed.sharing.lease import Lease
from seedbed.sharing.shard import Shard, options_of
from seedbed.sharing.working import Progress, delivery_of, passing_of
from seedbed.spool import BATCH, GoneRows, GoneSpool
from seedbed.sync import retry_left_behind
from seedbed.taking import Taking


def finish_run(
    session: Session,
    shard: Shard,
    progress: Progress = lambda report: None,
    stop: threading.Event | None = None,
) -> RunReport:
    """Deletes what is gone, within `[limits] max_delete`, and records how far the run has come; `shard` is any of the
    run's. A brake that held a shard or the deletes back is in the report, and so is a sink that failed. Raises Refused
    where a shard is not done."""
    last = Shard(shard.run, shard.of, shard.of, shard.host)
    return _Ending(Attempt(session, last, stop or threading.Event()), progress).run()


class _Ending:
    def __init__(self, attempt: Attempt, progress: Progress) -> None:
        self._attempt, self._progress = attempt, progress
        self._session, self._book, self._run = attempt.session, attempt.book, attempt.run

    def run(self) -> RunReport:
        with self._attempt.leased(locked=not self._run.plan["queue"]) as lease:
            told, undone = self._told()
            total = told.report
            if undone and total.refused is None:
                raise Refused(
                    f"{len(undone)} of {told.shards} shards are not done: the first is number {undone[0]}",
                    hint="run them again, then this",
                )
            before = deepcopy(total)

            def note(report: SyncReport) -> None:
                """Batch by batch, so that what a killed end has done is told by the next."""
                self._attempt.report = total.less(before)
                self._book.note(lease.held, self._attempt.counts())
                self._progress(total)

            if not undone and not self._run.plan["queue"]:
                self._end_scan(lease, total, note)
            self._attempt.report = total.less(before)
            self._tell(told)
            self._book.complete(lease.held, [])
        if (own := self._attempt.report).cost is not None:
            total.cost, total.currency = (total.cost or 0.0) + own.cost, own.currency
        self._session.ledger.end(self._run.id, total.outcome, total.as_record(), self._book.provenance(self._run.id))
        return told

    def _told(self) -> tuple[RunReport, list[int]]:
        """All attempts, added up, and the shards that are not done."""
        shards = self._book.records(self._run.id)[:-1]
        last = {shard.holder: shard.number for shard in shards}
        told = RunReport(self._run.id, len(shards), SyncReport())
        for number, kept in self._book.attempts(self._run.id):
            counts = SyncReport.of_attempt(kept)
            told.report.add(counts, reading=number in last)
            if number in last and counts.seconds > told.slowest_seconds:
                told.slowest, told.slowest_seconds = last[number], counts.seconds
        return told, [shard.number for shard in shards if not shard.done]

    def _end_scan(self, lease: Lease, total: SyncReport, note: Progress) -> None:
        session, options, pipeline = self._session, options_of(self._run), self._run.pipeline_id
        delivery = delivery_of(self._attempt, lease, total)
        if session.declaration.source.changes == "watermark":
            with closing(GoneSpool()) as spool:
                passing = passing_of(self._attempt, delivery, total, note)
                retry_left_behind(session, passing, delivery, pipeline, spool)
                self._delete(delivery, spool, note, allowed=options.allow_deletes)
        self._delete(delivery, _KeptGone(self._book, self._run.id, delivery), note, allowed=options.allow_deletes)
        delivery.finish()
        if total.exit_code in (0, 3):
            session.ledger.set_state(pipeline, State(session.recipe.fingerprint, self._mark(total)))

    def _delete(self, delivery: Delivery, gone: GoneRows, note: Progress, *, allowed: bool) -> None:
        for rows in delivery.delete(gone, lambda keys: None, allowed=allowed):
            positions = [row.position for row in rows]
            self._session.ledger.forget_failures(self._run.pipeline_id, positions)
            destination = delivery.live[rows[0].sink].destination
            self._book.forget_gone(self._run.id, destination, positions)
            note(self._attempt.report)

    def _mark(self, total: SyncReport) -> str | None:
        """What the ledger says from now on, so that the next run begins there."""
        plan, changes = self._run.plan, self._session.declaration.source.changes
        if changes == "queue":
            return Taking.settle(self._session.feed, plan["upto"])
        before = self._session.ledger.state(self._run.pipeline_id).watermark
        if changes != "watermark" or total.watermark is None:
            return before
        return str(min(filter(None, (total.watermark, plan["horizon"]))))

    def _tell(self, told: RunReport) -> None:
        now = datetime.now(UTC)
        started = datetime.fromisoformat(self._run.started)
        told.report.seconds = (now - started).total_seconds()
        told.dead = len(self._session.ledger.failures(self._run.pipeline_id))
        told.watermark, told.lag = self._run.started, told.report.seconds
        changes = self._session.declaration.source.changes
        if changes == "watermark" and (mark := self._session.ledger.state(self._run.pipeline_id).watermark):
            told.watermark, told.lag = mark, (now - datetime.fromisoformat(mark)).total_seconds()
        elif changes == "queue":
            told.lag = self._session.feed.waiting().oldest


class _KeptGone:
    """As spool.GoneRows: what the shards noted in the ledger."""

    def __init__(self, book: Shards, run: int, delivery: Delivery) -> None:
        self._book, self._run = book, run
        self._places = {live.writer.number: live.destination for live in delivery.live}

    @property
    def counts(self) -> Mapping[int, int]:
        return {number: self._book.count_gone(self._run, place) for number, place in self._places.items()}

    def batches(self, sink: int) -> Iterator[list[Gone]]:
        return self._book.gone(self._run, self._places[sink], sink, BATCH)
