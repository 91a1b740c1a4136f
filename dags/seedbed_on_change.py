"""One DAG for each pipeline file in $SEEDBED_PIPELINES whose changes are queued, woken by what is queued."""

from seedbed.airflow.builder import dags

globals().update(dags(on_change=True))
