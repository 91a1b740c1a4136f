"""DAGs from pipeline files: one file, one DAG: plan → shards → finish."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, Param, get_parsing_context
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowTimetableInvalid

from seedbed.airflow.broken import broken, told_apart
from seedbed.airflow.deadlines import missed
from seedbed.airflow.operators import SHARD_NAME, SeedbedFinishOperator, SeedbedPlanOperator, SeedbedShardOperator
from seedbed.declaration import AirflowConfig, Headline, headline
from seedbed.errors import ConfigError
from seedbed.pipeline_file import located, read_text

VARIABLE = "SEEDBED_PIPELINES"
"""The folder of pipeline files, or several, divided as PATH is."""
log = logging.getLogger(__name__)
_BEGIN = datetime(2024, 1, 1, tzinfo=UTC)

PARAMS = {
    "full_refresh": Param(
        False, type="boolean", title="Full refresh", description="Write every row anew, from the cache where it can."
    ),
    "dry_run": Param(False, type="boolean", title="Dry run", description="Only tell what a run would do and cost."),
    "allow_deletes": Param(
        False, type="boolean", title="Allow deletes", description="Delete even past [limits] max_delete."
    ),
    "allow_reembed": Param(
        False, type="boolean", title="Allow re-embedding", description="Embed anew even past [limits] max_reembed."
    ),
    "tokens": Param(
        None, type=["null", "integer"], minimum=1, title="Budget: tokens", description="At most, in place of [limits]."
    ),
    "money": Param(
        None,
        type=["null", "number"],
        exclusiveMinimum=0,
        title="Budget: money",
        description="At most, in the currency of [prices], in place of [limits].",
    ),
}
"""The form of a run."""


def dags(*, on_change: bool = False) -> dict[str, DAG]:
    """A DAG for each pipeline file of $SEEDBED_PIPELINES, by its id; `on_change`: for each whose changes are queued,
    one that they wake. A broken file costs the others nothing: it is an import error of its own.

    Parsing reads the files alone: it opens no connection and reads no secret.
    """
    wanted = get_parsing_context().dag_id  # by a worker: one task's DAG, of which there may be hundreds here
    built: dict[str, DAG] = {}
    named: dict[str, Path] = {}
    for path in _files():
        try:
            found = headline(path)
            if (other := named.setdefault(found.name, path)) != path:
                raise ConfigError(f"{path}: {other} is called {found.name!r} too", setting="name")
            if wanted is not None and wanted != _dag_id(found.name, on_change=on_change):
                continue
            made = dag_of(path, found, on_change=on_change)
        except ConfigError as error:
            log.error("no DAG for %s: %s", path, error)
            made = broken(path, error) if told_apart() and not on_change and wanted is None else None
        if made is not None:
            built[made.dag_id] = made
    return built


def _files() -> Iterator[Path]:
    for folder in os.environ.get(VARIABLE, "").split(os.pathsep):
        if folder:
            yield from sorted(Path(folder).glob("*.toml"))


def _dag_id(pipeline: str, *, on_change: bool) -> str:
    return f"seedbed_{pipeline}_on_change" if on_change else f"seedbed_{pipeline}"


def asset(pipeline: str) -> Asset:
    """What a pipeline's sinks hold: DAGs that are scheduled on it run after each of its runs."""
    return Asset(name=f"seedbed_{pipeline}", uri=f"seedbed://pipeline/{pipeline}")


def changes(path: Path | str, pipeline: str) -> Asset:
    """What waits in a pipeline's queue, watched by a trigger."""
    from seedbed.airflow.triggers import SeedbedChangesTrigger

    watcher = AssetWatcher(name=f"seedbed_{pipeline}_changes", trigger=SeedbedChangesTrigger(str(path)))
    return Asset(name=f"seedbed_{pipeline}_changes", uri=f"seedbed://changes/{pipeline}", watchers=[watcher])


def dag_of(path: Path | str, found: Headline | None = None, *, on_change: bool = False) -> DAG | None:
    """The DAG of one pipeline file; None for one whose changes are not queued, with `on_change`. Raises ConfigError."""
    found = found or headline(path)
    if on_change and found.changes != "queue":
        return None
    said = found.airflow
    with DAG(
        dag_id=_dag_id(found.name, on_change=on_change),
        schedule=[changes(path, found.name)] if on_change else said.schedule,
        start_date=_BEGIN,
        catchup=False,
        max_active_runs=1,
        params=PARAMS,
        tags=["seedbed", *said.tags],
        doc_md=f"Brings the sinks of `{Path(path).name}` in step with its source.",
        default_args=_defaults(said),
        deadline=_deadline(found),
        auto_register=False,  # one that turns out to be wrong would cost the others of its file
    ) as made:
        run_of(str(path), found.name, said)
    _check_schedule(Path(path), made)
    return made


def _check_schedule(path: Path, made: DAG) -> None:
    """Here, where it costs this file's DAG alone. Raises ConfigError."""
    try:
        made.timetable.validate()
    except AirflowTimetableInvalid as error:
        with located(path, read_text(path)):
            raise ConfigError(str(error), setting="airflow.schedule", hint='schedule = "0 3 * * *"') from error


def run_of(path: str, pipeline: str, said: AirflowConfig) -> None:
    """The tasks of a run, in the DAG that is open. The pool and the queue are the shards': the rest is quick."""
    plan = SeedbedPlanOperator(task_id="plan", pipeline=path, shards=said.shards)
    limited: dict[str, Any] = {"pool": said.pool, "queue": said.queue, "max_active_tis_per_dagrun": said.parallel}
    settings = {name: value for name, value in limited.items() if value is not None}
    shards = SeedbedShardOperator.partial(
        task_id="shard", pipeline=path, map_index_template=SHARD_NAME, **settings
    ).expand(shard=plan.output)
    finish = SeedbedFinishOperator(task_id="finish", pipeline=path, shards=plan.output, asset=asset(pipeline))
    shards >> finish


def _defaults(said: AirflowConfig) -> dict[str, Any]:
    owner = {} if said.owner is None else {"owner": said.owner}
    return {"retries": said.retries, "retry_delay": said.retry_wait, **owner}


def _deadline(found: Headline) -> DeadlineAlert | None:
    if (after := found.airflow.deadline_after) is None:
        return None
    told = {"pipeline": found.name, "after": found.airflow.deadline}
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT, interval=after, callback=AsyncCallback(missed, told)
    )
