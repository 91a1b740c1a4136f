"""Working on a shard: the rows of a key range, or what a queue holds, beside the run's other workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

from seedbed.delivery import Delivery
from seedbed.diff import Gone
from seedbed.passing import Passing
from seedbed.report import SyncReport
from seedbed.session import Session
from seedbed.sharing.attempt import Attempt
from seedbed.sharing.lease import Lease
from seedbed.sharing.shard import Shard, options_of
from seedbed.spool import GoneSpool
from seedbed.sync import sync
from seedbed.taking import Taking

Progress = Callable[[SyncReport], None]


def run_shard(
    session: Session,
    shard: Shard,
    progress: Progress = lambda report: None,
    stop: threading.Event | None = None,
) -> SyncReport:
    """Embeds and writes the rows of one shard; what is gone is noted for the run's end. A shard that was done is done
    again, at the price of reading it. Raises AlreadyRunning, after a while, where another worker holds it, LeaseLost
    where one took it over, Refused for a run that ended and was followed by another."""
    attempt = Attempt(session, shard, stop or threading.Event())
    queued = attempt.run.plan["queue"]
    with attempt.leased(locked=not queued) as lease:
        (_work_queue if queued else _work_range)(attempt, lease, progress)
    return attempt.report


def _noting(attempt: Attempt, lease: Lease, progress: Progress) -> Progress:
    """What is written is noted batch by batch, so that a killed worker's part is told."""

    def note(report: SyncReport) -> None:
        attempt.book.note(lease.held, attempt.counts())
        progress(report)

    return note


def delivery_of(attempt: Attempt, lease: Lease, report: SyncReport) -> Delivery:
    """The run's sinks, open for this attempt."""
    session, run = attempt.session, attempt.run
    session.govern(f"run {run.id} of {session.declaration.name}")
    patience = options_of(run).patience
    delivery = Delivery(session, patience, report, run.pipeline_id, lease.held.token, lease.outlast_write)
    delivery.open(alone=False)
    return delivery


def passing_of(attempt: Attempt, delivery: Delivery, report: SyncReport, progress: Progress) -> Passing:
    options = options_of(attempt.run)
    return Passing(
        attempt.session,
        delivery,
        Taking(None, all_rows=True),
        report,
        attempt.run.pipeline_id,
        full=options.full,
        patience=options.patience,
        progress=progress,
        stop=attempt.stop,
    )


def _work_range(attempt: Attempt, lease: Lease, progress: Progress) -> None:
    session, report = attempt.session, attempt.report
    by_watermark = session.declaration.source.changes == "watermark"
    within = attempt.book.range_of(attempt.run.id, attempt.shard.number)
    delivery = delivery_of(attempt, lease, report)
    passing = passing_of(attempt, delivery, report, _noting(attempt, lease, progress))
    passing.remember_failures()
    with closing(GoneSpool()) as spool:
        selection = session.selection(within=within, watermark=by_watermark, since=attempt.run.plan["since"])
        passing.run(session.source.pages(selection), spool, derive=True)
        if report.stopped:
            return
        if by_watermark:
            report.watermark = passing.watermark
        else:
            passing.forget_failures(at for at in passing.earlier if within is None or within.holds(at))
        gone = [(live.destination, _all(spool, live.writer.number)) for live in delivery.live]
        attempt.book.complete(lease.held, gone)


def _all(spool: GoneSpool, number: int) -> Iterator[Gone]:
    for batch in spool.batches(number):
        yield from batch


def _work_queue(attempt: Attempt, lease: Lease, progress: Progress) -> None:
    """Each worker takes what the others leave; the first tries again what failed."""
    options = replace(options_of(attempt.run), allow_reembed=True, retry=attempt.shard.number == 0)
    note = _noting(attempt, lease, progress)
    sync(attempt.session, options, note, attempt.stop, lease.held, attempt.report)
    if not attempt.report.stopped:
        attempt.book.complete(lease.held, [])
