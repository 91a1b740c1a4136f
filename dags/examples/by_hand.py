"""A DAG of one's own around the operators: tasks before and after, four shards on the queue of the GPU machines."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import dag, task

from seedbed.airflow.builder import PARAMS, asset
from seedbed.airflow.operators import SeedbedFinishOperator, SeedbedPlanOperator, SeedbedShardOperator

PIPELINE = str(Path(os.environ.get("SEEDBED_PIPELINES", ".")) / "products.toml")


@dag(
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=True,
    params=PARAMS,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    tags=["seedbed", "example"],
)
def seedbed_example_by_hand() -> None:
    @task
    def prices_are_loaded() -> None:
        """What must be there before the rows are read."""

    plan = SeedbedPlanOperator(task_id="plan", pipeline=PIPELINE, shards=16)
    shards = SeedbedShardOperator.partial(
        task_id="shard", pipeline=PIPELINE, queue="gpu", max_active_tis_per_dagrun=4
    ).expand(shard=plan.output)
    finish = SeedbedFinishOperator(task_id="finish", pipeline=PIPELINE, shards=plan.output, asset=asset("products"))
    prices_are_loaded() >> plan
    shards >> finish


seedbed_example_by_hand()
