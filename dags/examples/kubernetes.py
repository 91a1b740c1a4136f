"""Each shard in a pod with a GPU of its own, by the Kubernetes executor; by Celery, `queue` alone would do."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import dag

from seedbed.airflow.builder import PARAMS
from seedbed.airflow.operators import SeedbedFinishOperator, SeedbedPlanOperator, SeedbedShardOperator

PIPELINE = str(Path(os.environ.get("SEEDBED_PIPELINES", ".")) / "products.toml")


def gpu() -> dict[str, Any]:
    """What the executor lays over its pod's template; nothing where Kubernetes' client is not installed."""
    try:
        from kubernetes.client import models as k8s
    except ModuleNotFoundError:
        return {}
    needed = k8s.V1ResourceRequirements(limits={"nvidia.com/gpu": "1"})
    container = k8s.V1Container(name="base", image="seedbed-airflow:cuda", resources=needed)
    return {"pod_override": k8s.V1Pod(spec=k8s.V1PodSpec(containers=[container]))}


@dag(
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    schedule=None,
    params=PARAMS,
    is_paused_upon_creation=True,
    tags=["seedbed", "example"],
)
def seedbed_example_kubernetes() -> None:
    plan = SeedbedPlanOperator(task_id="plan", pipeline=PIPELINE, shards=32)
    shards = SeedbedShardOperator.partial(
        task_id="shard", pipeline=PIPELINE, executor_config=gpu(), max_active_tis_per_dagrun=8
    ).expand(shard=plan.output)
    shards >> SeedbedFinishOperator(task_id="finish", pipeline=PIPELINE, shards=plan.output)


seedbed_example_kubernetes()
