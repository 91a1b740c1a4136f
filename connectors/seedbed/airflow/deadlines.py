"""What happens when a run is late."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


async def missed(pipeline: str, after: str, context: dict[str, Any] | None = None, **more: Any) -> None:
    """Says so in the triggerer's log and counts it, where alerts are made from."""
    from airflow.sdk.observability import stats

    run = (context or {}).get("dag_run", {}).get("dag_run_id", "a run")
    log.error("%s of the pipeline %s is not done within %s", run, pipeline, after)
    stats.incr("seedbed.deadline_missed", tags={"pipeline": pipeline})
