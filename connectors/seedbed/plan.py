"""What a run would do, and what it would cost; writes nothing and calls no model."""

from __future__ import annotations

from contextlib import suppress

from seedbed.content import Content, Text
from seedbed.diff import Differ, PageDiff
from seedbed.embedding import EmbeddingStage
from seedbed.errors import ServiceError
from seedbed.ledger import Destination
from seedbed.protocols import CanCountTokens, CanSpend
from seedbed.report import PlanReport
from seedbed.retry import Patience
from seedbed.session import Outlet, Session
from seedbed.sinks.checks import check_fit

CALIBRATED = 200
"""Calls after which an estimate is shown as a number."""


def plan(session: Session) -> PlanReport:
    """The counts of a `sync` without options. Raises what would stop that run."""
    report = PlanReport(currency=session.declaration.prices.currency)
    outlets = session.outlets
    pipeline = session.ledger.pipeline_id(session.declaration.name)
    destinations = [_destination(session, pipeline, outlet) for outlet in outlets]
    differ = Differ(
        session.recipe,
        [outlet.payload for outlet in outlets],
        session.ledger,
        destinations,
        fetch=session.fetch,
    )
    config, state = session.declaration.source, session.ledger.state(pipeline)
    by_watermark = config.changes == "watermark"
    selection = session.selection(watermark=by_watermark, since=state.watermark if by_watermark else None)
    gone: set[bytes] = set()
    for page in session.source.pages(selection):
        found = differ.diff(page)
        gone.update(row.position for row in found.gone)
        _add(report, found)
        _add_tokens(session, report, found)
    report.deleted = len(gone)
    _calibrate(session, report)
    if report.tokens is not None and session.declaration.prices.text:
        share = report.image_tokens / report.tokens if report.tokens else 0.0
        report.cost = _cost(session, report.tokens, share)
        if report.tokens_range is not None:
            least, most = (_cost(session, tokens, share) for tokens in report.tokens_range)
            report.cost_range = (least, most)
    return report


def _cost(session: Session, tokens: int, images: float) -> float:
    """`images` is the share of the tokens that pictures and video make."""
    return session.prices.cost(tokens * (1 - images), tokens * images)


def _calibrate(session: Session, report: PlanReport) -> None:
    """An estimate by what was billed for earlier ones: a range until CALIBRATED calls have told."""
    if not report.tokens or not isinstance(session.embedder, CanSpend):
        return
    told = session.ledger.usage(session.embedder.space.model)
    ratio = told.tokens / told.estimated if told.estimated else 1.0
    if told.calls < CALIBRATED:
        # Half as much and half again with nothing known, narrowing as calls are counted.
        doubt = 0.5 * (1 - told.calls / CALIBRATED)
        report.tokens_range = (round(report.tokens * ratio * (1 - doubt)), round(report.tokens * ratio * (1 + doubt)))
    report.tokens, report.image_tokens = round(report.tokens * ratio), round(report.image_tokens * ratio)


def _destination(session: Session, pipeline: int | None, outlet: Outlet) -> Destination | None:
    """What the ledger knows of this sink, unless the collection itself is not there (any more). Raises Refused
    where it does not fit; a sink that is down does not stop a plan."""
    with suppress(ServiceError):
        found = session.open_sink(outlet.config).describe()
        if found is None:
            return None
        check_fit(found, outlet.spec)
    return session.ledger.destination(pipeline, outlet.config.name)


def _add(report: PlanReport, found: PageDiff) -> None:
    report.new += found.new
    report.changed += found.changed
    report.payload_changed += found.payload_changed
    report.skipped += found.skipped
    report.failed += len(found.failures) + len(found.keyless)
    report.unchanged += found.unchanged


def _add_tokens(session: Session, report: PlanReport, found: PageDiff) -> None:
    if found.work is None or report.tokens is None:
        return
    embedder = session.embedder
    work = session.loading.recognised(found.work) if session.loading else found.work
    missing = EmbeddingStage(embedder, session.cache, session.chunker, Patience()).missing(work)
    if not isinstance(embedder, CanCountTokens):
        report.tokens = None
    elif missing:
        report.tokens += int(embedder.count_tokens(missing).sum())
        mixed = [content for content in missing if content.modality != "text"]
        texts = [Content(tuple(part for part in content.parts if isinstance(part, Text))) for content in mixed]
        report.image_tokens += int(embedder.count_tokens(mixed).sum() - embedder.count_tokens(texts).sum())
