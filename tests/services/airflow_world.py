"""A real Airflow with what its pipelines work on: a table, an emulated Ark, two Postgres stores."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from seedbed import Pipeline
from seedbed.testing.ark import ArkEmulator
from services.airflow import Airflow, airflow
from services.airflow_api import Api
from services.postgres import fresh_database

DAGS = Path(__file__).parents[2] / "dags"
MODEL = "doubao-embedding-vision-250615"

PIPELINE = """
name = "{name}"
source.url = "${{SHOP_URL}}"
source.table = "{name}"
content.text = "{{title}}"
embedder = {{ url = "${{ARK_URL}}", api_key = "k", dimensions = 1024, rpm = 1000000, tpm = 0 }}
sink = [
    {{ name = "first", url = "${{FIRST_URL}}&index=none", collection = "{name}" }},
    {{ name = "second", url = "${{SECOND_URL}}&index=none", collection = "{name}" }},
]
ledger.url = "${{SHOP_URL}}"
prices.text = 0.7
airflow.retry_delay = "1s"
airflow.shards = {shards}
airflow.tags = ["shop"]
airflow.owner = "ana"
{more}
"""


@dataclass
class World:
    """What the tests share: `shop` is the database of the tables and of the ledger, `urls` are those of the stores."""

    airflow: Airflow
    pipelines: Path
    ark: ArkEmulator
    shop: str
    urls: dict[str, str]
    connections: dict[str, psycopg.Connection[Any]] = field(default_factory=dict)

    @property
    def api(self) -> Api:
        return self.airflow.api

    def sql(self, statement: str, where: str = "") -> list[Any]:
        url = self.urls[where] if where else self.shop
        if url not in self.connections:
            self.connections[url] = psycopg.connect(url, autocommit=True)
        cursor = self.connections[url].execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def declare(self, name: str, text: str) -> str:
        """Writes a pipeline file; its DAG's id, once Airflow has it."""
        (self.pipelines / f"{name}.toml").write_text(text, encoding="utf-8")
        self.parse()
        self.api.dag(f"seedbed_{name}")
        return f"seedbed_{name}"

    def parse(self) -> None:
        """Has Airflow read the files of DAGs again."""
        tokens = {dag["file_token"] for dag in self.api.call("GET", "/dags", limit=100)["dags"]}
        for token in tokens:
            self.api.call("PUT", f"/parseDagFile/{token}")

    def run(self, dag_id: str, conf: dict[str, Any] | None = None, state: str = "success") -> str:
        """A run that has ended so."""
        run = self.api.trigger(dag_id, conf)
        self.api.finished(dag_id, run, state, 120)
        return run

    def told(self, dag_id: str, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.xcom(dag_id, run, "finish")
        return found


@contextmanager
def opened() -> Iterator[World]:
    """Ends with all that it started."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(dir=os.environ["SEEDBED_TEST_RUN"]))
        folder.chmod(0o755)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        pipelines = folder / "pipelines"
        pipelines.mkdir()
        shop, first, metadata = (stack.enter_context(fresh_database("18")) for _ in range(3))
        second = stack.enter_context(fresh_database("15"))
        for url in (first, second):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("create extension if not exists vector")
        with psycopg.connect(shop, autocommit=True) as connection:
            connection.execute("create table watched (id int primary key, title text not null)")
            connection.execute("insert into watched select n, 'watched number ' || n from generate_series(1, 5) n")
        queued = {"url": shop, "table": "watched", "changes": "queue"}
        watched = Pipeline(
            name="watched",
            source=queued,
            content={"text": "{title}"},
            embedder={"url": "hash:8"},
            sink=[{"url": "memory:"}],
        )
        watched.watch()
        for name, more in (("small", ""), ("watched", 'source.changes = "queue"')):
            (pipelines / f"{name}.toml").write_text(PIPELINE.format(name=name, shards=2, more=more), encoding="utf-8")
        ark = ArkEmulator()
        env = {
            # A worker that died without a word is missed in seconds, not in five minutes.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "6",
            # `declare` asks for it: files that are parsed again and again take a processor.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
            "SEEDBED_PIPELINES": str(pipelines),
            "SHOP_URL": shop,
            "FIRST_URL": first,
            "SECOND_URL": second,
            "ARK_URL": f"ark:{MODEL}?endpoint={stack.enter_context(ark.serving())}",
        }
        files = [*DAGS.glob("*.py"), DAGS / "examples" / "downstream.py"]
        started = stack.enter_context(airflow(folder, metadata, dags=files, env=env))
        made = World(started, pipelines, ark, shop, {"first": first, "second": second})
        yield made
        for connection in made.connections.values():
            connection.close()
