"""What stands, what failed, what the last runs did; and whether a pipeline could run at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from seedbed.content import Content
from seedbed.declaration import SinkConfig
from seedbed.errors import RowError, SeedbedError
from seedbed.identity import show_key
from seedbed.ledger import Ledger, RunRecord
from seedbed.protocols import CanSpend, Waiting
from seedbed.session import Session
from seedbed.sinks.checks import check_fit

_SHOWN = 5
_RUNS = 50


def status(session: Session) -> dict[str, Any]:
    """From the ledger alone, and from the queue where changes are queued: no store or model is asked."""
    ledger, name = session.ledger, session.declaration.name
    pipeline = ledger.pipeline_id(name)
    runs = ledger.runs(pipeline, _RUNS)
    failures = ledger.failures(pipeline)[:20]
    waiting = _queue(session)
    return {
        "pipeline": name,
        "sinks": {sink.name: _sink(sink, ledger, pipeline, runs) for sink in session.declaration.sink},
        "failed": [{"key": show_key(failure.key), "error": failure.error} for failure in failures],
        "watermark": ledger.state(pipeline).watermark,
        "runs": [
            {"started": run.started, "finished": run.finished, "outcome": run.outcome, "who": run.who, **run.counts}
            for run in runs[:_SHOWN]
        ],
        **({"queue": waiting._asdict()} if isinstance(waiting, Waiting) else {}),
        "notes": _notes(session, waiting),
    }


def _queue(session: Session) -> Waiting | str | None:
    """What waits there, why it cannot be told, or None where nothing is queued at all."""
    if session.declaration.source.changes != "queue":
        return None
    try:
        return session.feed.waiting()
    except SeedbedError as error:
        return error.message


def _sink(sink: SinkConfig, ledger: Ledger, pipeline: int | None, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """`behind`: rows that its last run left unwritten. `in_step`: when a run last left it in step. `upserted`,
    `deleted` and `seconds` are sums over the last runs: what it costs beside the others."""
    destination = ledger.destination(pipeline, sink.name)
    told = [(run, run.counts["sinks"][sink.name]) for run in runs if sink.name in run.counts.get("sinks", {})]
    good = (run.finished for run, counts in told if counts["error"] is None and not counts["behind"] and _whole(run))
    return {
        "collection": sink.collection,
        "rows": ledger.count(destination),
        "in_doubt": len(ledger.unknown(destination)),
        "behind": told[0][1]["behind"] if told else 0,
        "error": told[0][1]["error"] if told else None,
        "in_step": next(good, None),
        **{name: sum(counts.get(name, 0) for _, counts in told) for name in ("upserted", "deleted")},
        "seconds": round(sum(counts.get("seconds", 0.0) for _, counts in told), 3),
    }


def _whole(run: RunRecord) -> bool:
    """A run that failed on the way may not have seen what was to be written."""
    return not (run.outcome or "failed: ").startswith("failed: ")


UNDRAINED = 3600.0
"""Seconds after which a change that nobody works off is told."""


def _queue_notes(waiting: Waiting) -> list[str]:
    notes = []
    if waiting.oldest > UNDRAINED and not waiting.taken:
        notes.append(
            f"{waiting.changes:,} changes wait, the oldest for {waiting.oldest / 3600:.1f} hours, and nobody works "
            "them off: run `seedbed sync` by a schedule or with --follow, or end it by `seedbed unwatch`"
        )
    if waiting.stuck:
        notes.append(
            f"{waiting.stuck:,} changes were taken five times and never finished (does a row bring its worker down?): "
            "`seedbed sync --full` looks at all rows"
        )
    return notes


def _notes(session: Session, waiting: Waiting | str | None) -> list[str]:
    source = session.declaration.source
    if isinstance(waiting, Waiting):
        return _queue_notes(waiting)
    if waiting is not None:
        return [f"the queue cannot be asked: {waiting}"]
    if source.changes == "watermark" and not source.deleted:
        return [
            'changes = "watermark" sees no deletes: name a soft-delete column (`deleted = "…"`) '
            'or run now and then with changes = "scan"'
        ]
    return []


_LOOKED_AT = 16


class Check(NamedTuple):
    what: str
    ok: bool
    says: str
    hint: str | None = None


def doctor(session: Session) -> list[Check]:
    """Tries every part that a run needs; writes nothing."""
    checks = [
        _check(
            "source", lambda: f"{len(session.source.schema())} columns, key {', '.join(session.source.key_columns)}"
        ),
        _check("content", lambda: f"columns {', '.join(session.recipe.columns)}"),
        _check("embedder", lambda: _embedder(session)),
        _check("ledger", lambda: f"version fits, {len(session.ledger.runs(_pipeline(session)))} recent runs"),
        _check("cache", lambda: "usable" if session.cache is not None else "will be created"),
    ]
    if session.declaration.has_media:
        checks.append(_check("media", lambda: _media(session)))
    if session.declaration.source.changes == "queue":
        checks.append(_check("queue", lambda: f"{session.feed.waiting().changes:,} changes wait"))
    checks += [_check(f"sink {config.name}", partial(_look, session, config)) for config in session.declaration.sink]
    return checks


def _embedder(session: Session) -> str:
    """A service is asked for one vector: only that tells whether the key is right."""
    embedder = session.embedder
    if not isinstance(embedder, CanSpend):
        return str(embedder.space)
    embedder.embed([Content.of("seedbed")])
    return f"{embedder.space} answered, {embedder.usage.tokens} tokens"


def _media(session: Session) -> str:
    """Of the first rows whether there is something where their pictures and video are said to lie."""
    page = next(iter(session.source.pages(session.selection(page_rows=_LOOKED_AT))), None)
    if page is None or not page.keys:
        return "no rows yet"
    rendered = session.recipe.render(page.rows)
    for row, reason in sorted(rendered.refused.items()):
        raise RowError(
            f"row {show_key(page.keys[row])}: {reason}", hint="see docs/media.md: [media] roots, allow_hosts"
        )
    contents = [content for named in rendered.contents(range(len(page.keys))) for content in named]
    found = sum(part.modality != "text" for content in contents for part in content.parts)
    return f"{found} found of the first {len(page.keys)} rows"


def _look(session: Session, config: SinkConfig) -> str:
    found = session.open_sink(config).describe()
    if found is None:
        return f"{config.collection} will be created"
    wanted = next(outlet.spec for outlet in session.outlets if outlet.config is config)
    check_fit(found, wanted)
    return f"{config.collection} stands and fits"


def _pipeline(session: Session) -> int | None:
    return session.ledger.pipeline_id(session.declaration.name)


def _check(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, True, look())
    except SeedbedError as error:
        return Check(what, False, error.message, error.hint)
