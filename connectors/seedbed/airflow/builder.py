"""DAGs from pipeline files: one file, one DAG, one task that brings its sinks in step."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, dag, task
from airflow.sdk.exceptions import AirflowFailException

from seedbed.declaration import Headline, headline
from seedbed.errors import ConfigError

VARIABLE = "SEEDBED_PIPELINES"
"""The folder of pipeline files, or several, divided as PATH is."""

log = logging.getLogger(__name__)


def dags() -> dict[str, DAG]:
    """A DAG for each pipeline file, by its id. A file that cannot be read is logged and costs the others nothing.

    Parsing reads the files alone: it opens no connection and no secret.
    """
    built = {}
    for path in _files():
        try:
            found = headline(path)
        except ConfigError as error:
            log.error("no DAG for %s: %s", path, error)
            continue
        made = _dag(path, found)
        built[made.dag_id] = made
    return built


def _files() -> Iterator[Path]:
    for folder in os.environ.get(VARIABLE, "").split(os.pathsep):
        if folder:
            yield from sorted(Path(folder).glob("*.toml"))


def _dag(path: Path, found: Headline) -> DAG:
    @dag(
        dag_id=f"seedbed_{found.name}",
        schedule=found.airflow.schedule,
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        tags=["seedbed"],
        doc_md=f"Brings the sinks of `{path.name}` in step with its source.",
        default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    )
    def build() -> None:
        sync(str(path))

    return build()


@task(task_id="sync")
def sync(path: str) -> dict[str, Any]:
    """Runs the pipeline; its counts are the result. Rows that failed are a warning, a brake fails without retry."""
    from seedbed import load
    from seedbed.errors import Fatal, Refused

    try:
        report = load(path).sync()
    except (ConfigError, Refused, Fatal) as error:
        raise AirflowFailException(str(error)) from error
    if report.refused is not None:
        raise AirflowFailException(str(report.refused))
    if report.exit_code == 1:
        raise RuntimeError(f"{path}: {'; '.join(f'sink {n}: {s.error}' for n, s in report.sinks.items() if s.error)}")
    if report.newly_failed:
        log.warning(
            "%d rows newly failed and keep their old vectors; the first: %s", report.newly_failed, report.first_failure
        )
    return report.as_dict()
