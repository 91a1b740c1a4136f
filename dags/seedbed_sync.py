"""One DAG for each pipeline file in $SEEDBED_PIPELINES, on the schedule that its [airflow] table gives."""

from seedbed.airflow.builder import dags

globals().update(dags())
