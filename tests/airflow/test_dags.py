"""The DAG files under a real Airflow: parsed in a process of their own, run by `dag.test()`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

DAGS = Path(__file__).parents[2] / "dags"

PIPELINE = """
name = "{name}"
source.url = "${{SEEDBED_TEST_URL}}"
source.table = "item"
content.text = "{{title}}"
embedder.url = "hash:16"
sink = [{{ url = "${{SEEDBED_TEST_URL}}", collection = "{name}" }}]
airflow.schedule = "@daily"
"""

# Heavy modules are looked for before the run, which loads what it needs.
PROGRAM = """
import json, sys
from airflow.utils.db import initdb
initdb()
from airflow.dag_processing.dagbag import DagBag
bag = DagBag({dags!r})
heavy = sorted({{"torch", "transformers", "pymilvus", "qdrant_client", "pgvector"}} & set(sys.modules))
found = {{id: str(dag.schedule) for id, dag in bag.dags.items()}}
run = bag.dags["seedbed_items"].test()
print("RESULT " + json.dumps({{"errors": bag.import_errors, "heavy": heavy, "dags": found, "state": str(run.state)}}))
"""


@pytest.mark.xdist_group("airflow")
def test_each_pipeline_file_becomes_a_dag_that_runs(tmp_path: Path, pg_url: str) -> None:
    pipelines = tmp_path / "pipelines"
    pipelines.mkdir()
    for name in ("items", "others"):
        (pipelines / f"{name}.toml").write_text(PIPELINE.format(name=name), encoding="utf-8")
    (pipelines / "broken.toml").write_text('name = "broken"\nsorce = {}\n', encoding="utf-8")
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute("create table item (id int primary key, title text)")
        connection.execute("insert into item select n, 'title ' || n from generate_series(1, 20) n")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(dags=str(DAGS))],
            env={
                **os.environ,
                "AIRFLOW_HOME": str(tmp_path / "airflow"),
                "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "SEEDBED_PIPELINES": str(pipelines),
                "SEEDBED_TEST_URL": pg_url,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        result = json.loads(line.removeprefix("RESULT "))
        assert result["errors"] == {}
        assert result["dags"] == {"seedbed_items": "@daily", "seedbed_others": "@daily"}
        assert result["state"].endswith("success")
        assert result["heavy"] == []
        stored = connection.execute("select count(*) from items").fetchone()
    assert stored == (20,)
