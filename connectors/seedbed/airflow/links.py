"""The link from a task to its report."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import attrs
from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


@attrs.define()
class ReportLink(BaseOperatorLink):
    """To where Airflow shows the task's result: read, embedded, cached, deleted, dead, tokens, money, lag, slowest."""

    name = "Seedbed report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        from airflow.sdk.configuration import conf

        base = str(conf.get("api", "base_url", fallback="")).rstrip("/")
        run, task = quote(ti_key.run_id, safe=""), quote(ti_key.task_id, safe="")
        return f"{base}/dags/{quote(ti_key.dag_id, safe='')}/runs/{run}/tasks/{task}/xcom"
