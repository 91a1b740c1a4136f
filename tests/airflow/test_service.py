"""Airflow's own processes: the scheduler runs tasks, and the triggerer waits for changes without a worker."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest

import seedbed
from services.airflow import Airflow
from services.airflow_world import World

PIPELINE = """
name = "{name}"
source = {{ url = "{url}", table = "{name}", changes = "queue" }}
content.text = "{{title}}"
embedder.url = "hash:16"
sink = [{{ url = "memory:" }}]
"""

TRIVIAL = """
from airflow.sdk import dag, task

@dag(schedule=None)
def trivial():
    @task
    def answer(params=None, dag_run=None):
        return {"answer": 42, **dag_run.conf}
    answer()
trivial()
"""

ON_CHANGE = """
from airflow.sdk import DAG, Asset, AssetWatcher, task
from seedbed.airflow.triggers import SeedbedChangesTrigger

watcher = AssetWatcher(name="changed_queue", trigger=SeedbedChangesTrigger({pipeline!r}, poll=1.0))
asset = Asset(name="changed", uri="seedbed://changes/changed", watchers=[watcher])

with DAG("on_change", schedule=[asset], max_active_runs=1):
    @task
    def told(triggering_asset_events=None):
        return [event.extra["payload"] for event in triggering_asset_events[asset]]
    told()
"""

WAITING = """
from airflow.sdk import DAG
from seedbed.airflow.sensors import SeedbedChangesSensor

with DAG("waiting", schedule=None):
    SeedbedChangesSensor(task_id="wait", pipeline={pipeline!r}, poll=1.0)
"""


@pytest.fixture
def service(world: World) -> Airflow:
    return world.airflow


def _watched(folder: Path, url: str, name: str) -> Path:
    """A pipeline file over a new table whose changes are queued."""
    path = folder / f"{name}.toml"
    path.write_text(PIPELINE.format(name=name, url=url), encoding="utf-8")
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"create table {name} (id int primary key, title text)".encode())
    seedbed.load(path).watch()
    return path


def _insert(url: str, name: str, number: int) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"insert into {name} values (%s, 'a title')".encode(), [number])


def test_the_scheduler_runs_a_dag(service: Airflow) -> None:
    (service.dags / "trivial.py").write_text(TRIVIAL, encoding="utf-8")
    run = service.api.trigger("trivial", {"question": "?"})
    service.api.finished("trivial", run)
    assert service.api.states("trivial", run) == {"answer": "success"}
    assert service.api.xcom("trivial", run, "answer") == {"answer": 42, "question": "?"}
    assert "trivial.py" not in service.api.import_errors()


def test_changes_start_a_dag(service: Airflow, tmp_path: Path, pg_url: str) -> None:
    pipeline = _watched(tmp_path, pg_url, "changed")
    (service.dags / "on_change.py").write_text(ON_CHANGE.format(pipeline=str(pipeline)), encoding="utf-8")
    try:
        service.api.dag("on_change")
        time.sleep(2)
        assert service.api.runs("on_change") == []
        _insert(pg_url, "changed", 1)
        service.api.until(lambda: "a run of on_change", lambda: service.api.runs("on_change"))
        (run,) = service.api.runs("on_change")
        assert run["run_type"] == "asset_triggered"
        service.api.finished("on_change", run["dag_run_id"])
        ((told,),) = [service.api.xcom("on_change", run["dag_run_id"], "told")]
        assert told["pipeline"] == "changed"
        assert told["changes"] == 1
    finally:
        (service.dags / "on_change.py").unlink()


def test_a_sensor_waits_without_a_worker(service: Airflow, tmp_path: Path, pg_url: str) -> None:
    pipeline = _watched(tmp_path, pg_url, "waited")
    (service.dags / "waiting.py").write_text(WAITING.format(pipeline=str(pipeline)), encoding="utf-8")
    run = service.api.trigger("waiting")
    service.api.in_state("waiting", run, "wait", "deferred")
    _insert(pg_url, "waited", 1)
    service.api.finished("waiting", run)
    assert service.api.xcom("waiting", run, "wait")["changes"] == 1
    at_once = service.api.trigger("waiting")
    service.api.finished("waiting", at_once)
    assert service.api.xcom("waiting", at_once, "wait")["changes"] == 1
    seedbed.load(pipeline).unwatch()
    failing = service.api.trigger("waiting")
    service.api.finished("waiting", failing, "failed")
    assert "seedbed watch" in service.task_log("waiting", "wait")
