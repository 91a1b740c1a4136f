"""The DAG files as Airflow parses them in a process of its own, and each run by `dag.test()`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from seedbed import load

DAGS = Path(__file__).parents[2] / "dags"

PIPELINE = """
name = "{name}"
source.url = "${{SEEDBED_TEST_URL}}"
source.table = "item"
source.changes = "{changes}"
content.text = "{{title}}"
embedder.url = "hash:16"
sink = [{{ url = "${{SEEDBED_TEST_URL}}", collection = "{name}" }}]
ledger.url = "${{SEEDBED_TEST_URL}}"
airflow = {{ schedule = "@daily", shards = 2, retries = 0, pool = "default_pool", queue = "gpu" }}
"""

# Heavy modules are looked for before the runs, which load what they need.
PROGRAM = """
import json, sys
from airflow.utils.db import initdb
initdb()
from airflow.dag_processing.dagbag import DagBag
bag = DagBag({dags!r})
heavy = sorted({{"torch", "transformers", "pymilvus", "qdrant_client", "pgvector", "psycopg"}} & set(sys.modules))
found = {{id: str(dag.schedule) for id, dag in bag.dags.items()}}
runs = {{}}
for id in sorted(bag.dags):
    if "broken" not in id:
        runs[id] = str(bag.dags[id].test().state).rpartition(".")[2].lower()
print("RESULT " + json.dumps({{"errors": bag.import_errors, "heavy": heavy, "dags": found, "runs": runs}}))
"""


@pytest.fixture
def result(tmp_path: Path, pg_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    pipelines = tmp_path / "pipelines"
    pipelines.mkdir()
    monkeypatch.setenv("SEEDBED_TEST_URL", pg_url)
    for name, changes in (("products", "scan"), ("watched", "queue")):
        (pipelines / f"{name}.toml").write_text(PIPELINE.format(name=name, changes=changes), encoding="utf-8")
    (pipelines / "broken.toml").write_text('name = "broken"\nsorce = {}\n', encoding="utf-8")
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute("create table item (id int primary key, title text)")
        connection.execute("insert into item select n, 'title ' || n from generate_series(1, 20) n")
        load(pipelines / "watched.toml").watch()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(dags=str(DAGS))],
        env={
            **os.environ,
            "AIRFLOW_HOME": str(tmp_path / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "SEEDBED_PIPELINES": str(pipelines),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


def test_each_file_is_parsed_without_a_connection_and_its_dags_run(result: dict[str, Any], pg_url: str) -> None:
    assert result["errors"] == {}
    assert result["heavy"] == []
    assert {id: result["dags"][id] for id in ("seedbed_products", "seedbed_watched")} == {
        "seedbed_products": "@daily",
        "seedbed_watched": "@daily",
    }
    ran = {
        "seedbed_products",
        "seedbed_watched",
        "seedbed_watched_on_change",
        "seedbed_example_by_hand",
        "seedbed_example_kubernetes",
    }
    assert {id: state for id, state in result["runs"].items() if id in ran} == dict.fromkeys(ran, "success")
    assert "seedbed_example_downstream" in result["runs"]
    with psycopg.connect(pg_url) as connection:
        for collection in ("products", "watched"):
            assert connection.execute(f"select count(*) from {collection}".encode()).fetchone() == (20,)
