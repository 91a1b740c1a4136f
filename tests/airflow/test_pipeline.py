"""Pipelines run by a real scheduler: in shards, into two stores, through edits, kills, cancels and clearing."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from services.airflow_world import PIPELINE, World

ROWS = 10_000
PRODUCTS = "seedbed_products"


def table(world: World, name: str, rows: int) -> None:
    world.sql(f"create table {name} (id int primary key, title text not null)")
    world.sql(f"insert into {name} select n, '{name} number ' || n from generate_series(1, {rows}) n")


def declared(world: World, name: str, shards: int = 2, more: str = "") -> str:
    return world.declare(name, PIPELINE.format(name=name, shards=shards, more=more))


@pytest.fixture(scope="module")
def products(world: World) -> str:
    """A pipeline of 10,000 rows in 8 shards, run once."""
    table(world, "products", ROWS)
    dag = declared(world, "products", shards=8)
    world.run(dag)
    return dag


@pytest.fixture(scope="module")
def small(world: World) -> str:
    """One of 40 rows in 2 shards, run once."""
    table(world, "small", 40)
    world.run("seedbed_small")
    return "seedbed_small"


def in_step(world: World, name: str) -> None:
    wanted = {f'["{number}"]' for (number,) in world.sql(f"select id from {name}")}
    for store in world.urls:
        stored = [key for (key,) in world.sql(f"select _key from {name}", store)]
        assert len(stored) == len(wanted)
        assert {*stored} == wanted


def counts(told: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(told[name] for name in names)


def test_a_pipeline_runs_in_shards_into_two_stores(world: World, products: str) -> None:
    run = world.api.runs(products)[0]["dag_run_id"]
    told = world.told(products, run)
    assert counts(told, "read", "embedded", "upserted", "failed", "shards") == (ROWS, ROWS, ROWS, 0, 8)
    assert told["tokens"] > ROWS
    assert told["cost"] > 0
    states = world.api.states(products, run)
    assert states == {"plan": "success", "finish": "success", **{f"shard[{n}]": "success" for n in range(8)}}
    paid = [text for text in world.ark.texts if text.startswith("products")]
    assert len(paid) == len(set(paid)) == ROWS
    in_step(world, "products")


def test_between_tasks_travel_shards_and_counts_alone(world: World, products: str) -> None:
    run = world.api.runs(products)[0]["dag_run_id"]
    plan = world.api.xcom(products, run, "plan")
    assert [shard["number"] for shard in plan] == list(range(8))
    assert {*plan[0]} == {"run", "number", "of", "host"}
    shard = world.api.xcom(products, run, "shard", map_index=3)
    assert shard["read"] == ROWS // 8
    tasks = world.api.tasks(products, run)
    assert {one["rendered_map_index"] for one in tasks if one["task_id"] == "shard"} >= {"1 of 8", "8 of 8"}


def test_the_report_is_a_link_and_in_the_log(world: World, products: str) -> None:
    run = world.api.runs(products)[0]["dag_run_id"]
    link = world.api.links(products, run, "finish")["Seedbed report"]
    assert link is not None
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/dags/seedbed_products/runs/[^/]+/tasks/finish/xcom", link)
    log = world.airflow.task_log(products, "finish")
    assert f"products: {ROWS:,} read, {ROWS:,} embedded" in log
    assert "8 shards, the slowest number" in log


def test_a_dag_has_its_files_schedule_owner_and_tags(world: World, small: str) -> None:
    dag = world.api.dag(small)
    assert (dag["owners"], sorted(tag["name"] for tag in dag["tags"])) == (["ana"], ["seedbed", "shop"])
    assert dag["timetable_summary"] is None


def test_the_asset_fires_its_downstream_dag_with_the_counts(world: World, products: str) -> None:
    event = world.api.asset_events("seedbed://pipeline/products")[0]
    assert counts(event["extra"], "pipeline", "embedded", "deleted") == ("products", ROWS, 0)
    assert event["extra"]["watermark"].startswith("20")
    downstream = "seedbed_example_downstream"
    run = world.api.until(lambda: "a run downstream", lambda: world.api.runs(downstream))[0]["dag_run_id"]
    world.api.finished(downstream, run)
    assert world.api.xcom(downstream, run, "changed")["embedded"] == ROWS


def test_only_edits_are_embedded(world: World, products: str) -> None:
    before = world.ark.calls
    world.sql("update products set title = 'edited ' || id where id % 100 = 0")
    world.sql("delete from products where id between 1 and 50")
    told = world.told(products, world.run(products))
    assert counts(told, "read", "embedded", "deleted") == (ROWS - 50, 100, 50)
    assert world.ark.calls - before == 100
    in_step(world, "products")


@contextmanager
def writes_held(world: World, name: str) -> Iterator[psycopg.Connection[Any]]:
    """Rows can be read from the second store, and none be written, until it is committed."""
    with psycopg.connect(world.urls["second"]) as connection:
        connection.execute(f"lock table {name}__v1 in share mode".encode())
        yield connection


def attempts(world: World, label: str) -> list[tuple[int, int]]:
    """Shard and process of those that are being worked on."""
    found = world.sql(
        "select s.number, a.who from seedbed_ledger.run r join seedbed_ledger.shard s on s.run_id = r.id "
        "join seedbed_ledger.run a on a.id = s.holder and a.finished is null "
        f"where r.who = '{label}' and r.finished is null and s.done = 0"
    )
    return [(number, int(who.split()[1])) for number, who in found]


def test_a_killed_worker_is_tried_again_and_no_row_is_paid_twice(world: World, products: str) -> None:
    before = world.ark.calls
    world.sql("update products set title = 'once more ' || id where id > 8000")
    with writes_held(world, "products") as held:
        run = world.api.trigger(products)
        world.api.until(lambda: "2,000 calls", lambda: world.ark.calls - before >= 2000, 120)
        label = f"airflow {products} {run}"
        number, process = world.api.until(lambda: "a shard at work", lambda: attempts(world, label))[-1]
        os.kill(process, signal.SIGKILL)

        def tried_again() -> bool:
            return any(one["try_number"] == 2 for one in world.api.tasks(products, run) if one["map_index"] == number)

        world.api.until(lambda: "its retry", tried_again)
        held.commit()
    world.api.finished(products, run, seconds=120)
    told = world.told(products, run)
    assert counts(told, "read", "upserted") == (ROWS - 50, 2000)
    assert world.ark.calls - before == 2000
    in_step(world, "products")


def test_a_cancelled_shard_stops_within_seconds(world: World, small: str) -> None:
    world.sql("update small set title = 'and again ' || id")
    with writes_held(world, "small") as held:
        run = world.api.trigger(small)
        label = f"airflow {small} {run}"
        number, process = world.api.until(lambda: "a shard at work", lambda: attempts(world, label))[-1]
        world.api.mark(small, run, "shard", map_index=number)
        world.api.until(lambda: "its process to end", lambda: not os.path.exists(f"/proc/{process}"), 15)
        held.commit()
    world.api.finished(small, run, "failed", 120)
    assert world.told(small, world.run(small))["read"] == 40
    in_step(world, "small")


def test_what_is_cleared_runs_again_and_pays_nothing(world: World, small: str) -> None:
    run = world.api.runs(small)[-1]["dag_run_id"]
    before = world.ark.calls
    world.api.clear(small, run, "plan")
    world.api.finished(small, run)
    assert world.told(small, run)["read"] == 40
    world.api.clear(small, run, "shard")
    world.api.finished(small, run)
    assert world.ark.calls == before


def test_a_restarted_scheduler_finishes_what_was_begun(world: World, small: str) -> None:
    world.sql("update small set title = 'restarted ' || id")
    before = world.ark.calls
    run = world.api.trigger(small, {"full_refresh": True})
    world.api.until(lambda: "the plan", lambda: world.api.states(small, run).get("plan") in ("running", "success"))
    world.airflow.stop("scheduler", signal.SIGKILL)
    world.airflow.start("scheduler")
    world.api.finished(small, run, seconds=120)
    assert world.ark.calls - before == 40
    in_step(world, "small")


def test_a_backfill_of_past_dates_brings_the_present_and_pays_nothing(world: World) -> None:
    """Its runs overlap: each waits for the other, and none is lost."""
    table(world, "dated", 30)
    dag = declared(world, "dated", shards=1, more='airflow.schedule = "@daily"')
    first = world.api.until(lambda: "the scheduled run", lambda: world.api.runs(dag))[0]["dag_run_id"]
    world.api.finished(dag, first)
    before = world.ark.calls
    body = {"dag_id": dag, "from_date": "2026-01-01T00:00:00Z", "to_date": "2026-01-02T00:00:00Z"}
    world.api.call("POST", "/backfills", {**body, "reprocess_behavior": "none", "max_active_runs": 2})

    def done() -> bool:
        runs = [run for run in world.api.runs(dag) if run["run_type"] == "backfill"]
        return len(runs) == 2 and all(run["state"] == "success" for run in runs)

    world.api.until(lambda: f"the backfill: {world.api.runs(dag)}", done, 120)
    assert world.ark.calls == before == len(world.ark.texts)


# --- states of their own ----------------------------------------------------------------------------


def test_a_dry_run_tells_its_cost_and_writes_nothing(world: World, small: str) -> None:
    world.sql("insert into small values (1000, 'a row that is only planned')")
    before = world.ark.calls
    run = world.run(small, {"dry_run": True})
    assert world.api.states(small, run) == {"plan": "success", "shard": "skipped", "finish": "skipped"}
    plan = world.api.xcom(small, run, "plan", "plan")
    assert counts(plan, "new", "unchanged") == (1, 40)
    assert plan["cost"] > 0
    assert world.ark.calls == before
    world.sql("delete from small where id = 1000")


def test_a_brake_fails_without_retry_and_a_param_lets_it_go(world: World, small: str) -> None:
    world.sql("delete from small where id <= 20")
    run = world.run(small, state="failed")
    finish = next(one for one in world.api.tasks(small, run) if one["task_id"] == "finish")
    assert (finish["state"], finish["try_number"]) == ("failed", 1)
    assert "20 of 40 rows are gone" in world.airflow.task_log(small, "finish")
    assert world.told(small, world.run(small, {"allow_deletes": True}))["deleted"] == 20


def test_rows_that_fail_are_a_success_with_a_warning(world: World) -> None:
    table(world, "holes", 10)
    world.sql("update holes set title = '' where id = 3")
    dag = declared(world, "holes", more='content.empty = "fail"\nairflow.deadline = "1s"')
    run = world.run(dag)
    assert counts(world.told(dag, run), "embedded", "failed", "dead") == (9, 1, 1)
    assert "1 rows newly failed and keep their old vectors; the first: row 3" in world.airflow.task_log(dag, "finish")
    late = f"{run} of the pipeline holes is not done within 1s"
    world.api.until(lambda: "the deadline's alert", lambda: late in world.airflow.tails())


def test_a_budget_of_one_run_stops_it_and_the_next_goes_on(world: World) -> None:
    table(world, "dear", 100)
    dag = declared(world, "dear")
    run = world.run(dag, {"tokens": 500}, state="failed")
    log = world.airflow.task_log(dag, "finish") + world.airflow.task_log(dag, "shard")
    assert "the budget of 500 tokens is spent" in log
    assert {one["try_number"] for one in world.api.tasks(dag, run)} == {1}
    world.run(dag)
    paid = [text for text in world.ark.texts if text.startswith("dear")]
    assert len(paid) == len(set(paid)) == 100


# --- bad input --------------------------------------------------------------------------------------


def test_a_broken_file_is_an_import_error_of_its_own(world: World, small: str) -> None:
    text = PIPELINE.format(name="broken", shards=1, more='[airflwo]\nschedule = "@daily"\n')
    (world.pipelines / "broken.toml").write_text(text, encoding="utf-8")
    world.parse()
    line = text[: text.index("[airflwo]")].count("\n") + 1

    def found() -> str | None:
        errors: dict[str, str] = world.api.import_errors()
        return next((trace for name, trace in errors.items() if name.endswith("broken.toml")), None)

    trace = world.api.until(lambda: f"the import error, {world.api.import_errors()}", found)
    assert f"broken.toml:{line}: unknown setting 'airflwo'" in trace
    assert not world.api.dag(small)["has_import_errors"]
    (world.pipelines / "broken.toml").unlink()
    world.run(small)


def test_a_wrong_schedule_costs_its_own_dag_alone(world: World, small: str) -> None:
    text = PIPELINE.format(name="never", shards=1, more='airflow.schedule = "61 * * * *"\n')
    (world.pipelines / "never.toml").write_text(text, encoding="utf-8")
    world.parse()

    def found() -> str | None:
        errors: dict[str, str] = world.api.import_errors()
        return next((trace for name, trace in errors.items() if name.endswith("never.toml")), None)

    trace = world.api.until(lambda: f"the import error, {world.api.import_errors()}", found)
    line = text[: text.index("airflow.schedule")].count("\n") + 1
    assert f"never.toml:{line}: [61 * * * *] is not acceptable" in trace
    assert not world.api.dag(small)["has_import_errors"]
    (world.pipelines / "never.toml").unlink()


@pytest.mark.parametrize(
    "conf", [{"tokens": 0}, {"money": -1}, {"tokens": "many"}, {"full_refresh": "perhaps"}], ids=str
)
def test_a_param_out_of_its_range_is_refused(world: World, small: str, conf: dict[str, Any]) -> None:
    with pytest.raises(pytest.fail.Exception, match=f"400 .*Invalid input for param {next(iter(conf))}"):
        world.api.trigger(small, conf)


def test_a_missing_connection_is_told_before_a_row_is_read(world: World) -> None:
    table(world, "unconnected", 5)
    text = PIPELINE.format(name="unconnected", shards=1, more="").replace(
        'source.url = "${SHOP_URL}"', 'source.conn_id = "nowhere"'
    )
    dag = world.declare("unconnected", text)
    run = world.run(dag, state="failed")
    assert "Airflow has no connection 'nowhere'" in world.airflow.task_log(dag, "plan")
    assert world.api.tasks(dag, run)[1]["try_number"] == 1


def test_connections_stand_in_for_urls(world: World) -> None:
    table(world, "connected", 5)
    info = psycopg.conninfo.conninfo_to_dict(world.shop)
    extra = f'{{"host": "{info["host"]}"}}'
    world.api.connection("shop", "seedbed_postgres", schema=info["dbname"], login=info["user"], extra=extra)
    endpoint = world.airflow.env["ARK_URL"].partition("endpoint=")[2]
    world.api.connection("ark", "seedbed_ark", host=endpoint, password="k")
    dag = world.declare(
        "connected",
        """
        name = "connected"
        source = { conn_id = "shop", table = "connected" }
        content.text = "{title}"
        embedder = { url = "ark:doubao-embedding-vision-250615", conn_id = "ark", dimensions = 1024 }
        sink = [{ conn_id = "shop", collection = "connected_vectors" }]
        ledger.conn_id = "shop"
        """,
    )
    assert world.told(dag, world.run(dag))["embedded"] == 5
    assert world.sql("select count(*) from connected_vectors") == [(5,)]


# --- woken by changes, and what a provider declares -------------------------------------------------


def test_queued_changes_wake_their_dag(world: World) -> None:
    assert world.told("seedbed_watched", world.run("seedbed_watched"))["embedded"] == 5
    dag = "seedbed_watched_on_change"
    world.sql("update watched set title = 'changed ' || id where id < 3")
    run = world.api.until(lambda: "a run by changes", lambda: world.api.runs(dag))[0]["dag_run_id"]
    world.api.finished(dag, run)
    assert counts(world.told(dag, run), "read", "embedded") == (2, 2)


def test_the_provider_and_its_forms_are_there(world: World) -> None:
    assert "seedbed" in world.api.providers()
    forms = world.api.hook_meta()
    assert {kind for kind in forms if kind.startswith("seedbed")} == {
        *(f"seedbed_{kind}" for kind in ("ark", "server", "qdrant", "milvus", "postgres"))
    }
