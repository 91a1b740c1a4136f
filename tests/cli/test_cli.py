"""The command line as people and cron use it: words, JSON, exit statuses, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def seedbed(tmp_path: Path) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "seedbed", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def table(pg_url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(pg_url, autocommit=True)
    connection.execute("create table item (id int primary key, title text, price float8, at timestamptz default now())")
    connection.execute("insert into item select n, 'title number ' || n, n from generate_series(1, 50) n")
    return connection


def write(tmp_path: Path, pg_url: str, **changes: str) -> Path:
    lines = {
        "name": '"items"',
        "source.url": f'"{pg_url}"',
        "source.table": '"item"',
        "content.text": '"{title}"',
        "embedder.url": '"hash:16"',
        "sink": f'[{{ url = "{pg_url}", collection = "vectors", payload = ["title", "price"] }}]',
        **changes,
    }
    file = tmp_path / "items.toml"
    file.write_text("\n".join(f"{name} = {value}" for name, value in lines.items()), encoding="utf-8")
    return file


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """The one object on stdout."""
    return json.loads(done.stdout)


def test_a_first_pipeline_from_init_to_search(
    seedbed: Run, table: psycopg.Connection[Any], pg_url: str, tmp_path: Path
) -> None:
    assert seedbed("init", pg_url, "item").returncode == 0
    file = tmp_path / "item.toml"
    text = file.read_text(encoding="utf-8")
    assert 'text = "{title}"' in text
    file.write_text(text.replace("local:minilm", "hash:16"), encoding="utf-8")
    assert "exists already" in seedbed("init", pg_url, "item").stderr
    doctor = seedbed("doctor", "item.toml")
    assert (doctor.returncode, doctor.stdout.count("ok ")) == (0, 6), doctor.stdout
    assert "50 new" in seedbed("plan", "item.toml").stdout
    done = seedbed("sync", "item.toml")
    assert done.returncode == 0, done.stderr
    assert "50 read, 50 embedded" in done.stdout
    assert seedbed("search", "item.toml", "title number 7", "-k", "1").stdout.split()[1] == "7"
    assert "50 rows in item_vectors" in seedbed("status", "item.toml").stdout


def test_json_is_one_object(seedbed: Run, table: psycopg.Connection[Any], pg_url: str, tmp_path: Path) -> None:
    write(tmp_path, pg_url)
    plan = answer(seedbed("plan", "items.toml", "--json"))
    assert plan.keys() >= {"new", "changed", "payload_changed", "unchanged", "deleted", "skipped", "tokens", "cost"}
    synced = answer(seedbed("sync", "items.toml", "--json"))
    assert synced["sinks"]["postgresql"] == {"upserted": 50, "deleted": 0, "behind": 0, "error": None}
    names = ("read", "embedded", "cached", "upserted", "deleted", "skipped", "failed", "tokens")
    assert [synced[name] for name in names] == [50, 50, 0, 50, 0, 0, 0, 150]
    found = answer(
        seedbed("search", "items.toml", "title number 7", "--json", "--filter", "price>=10", "--filter", "price<12")
    )
    assert sorted(hit["id"] for hit in found["hits"]) == ["10", "11"]
    assert found["hits"][0].keys() == {"id", "score", "payload", "chunk"}
    assert answer(seedbed("status", "items.toml", "--json"))["sinks"]["postgresql"]["rows"] == 50


def test_exit_statuses(seedbed: Run, table: psycopg.Connection[Any], pg_url: str, tmp_path: Path) -> None:
    file = write(tmp_path, pg_url, **{"embedder.url": '"hash:16?refuse=poison"'})
    assert seedbed("sync", "items.toml").returncode == 0
    table.execute("update item set title = 'poison' where id = 1")
    assert seedbed("sync", "items.toml").returncode == 3
    assert seedbed("sync", "items.toml").returncode == 0
    table.execute("delete from item where id <= 25")
    stopped = seedbed("sync", "items.toml", "--json")
    assert (stopped.returncode, answer(stopped)["error"]["setting"]) == (5, "limits.max_delete")
    assert seedbed("sync", "items.toml", "--allow-deletes").returncode == 0
    usage = seedbed("sync", "items.toml", "--ful")
    assert usage.returncode == 2
    file.write_text(file.read_text(encoding="utf-8") + "\n[lmits]\n", encoding="utf-8")
    typo = seedbed("sync", "items.toml", "--json")
    assert (typo.returncode, answer(typo)["error"]["code"]) == (2, "config")
    assert "limits" in answer(typo)["error"]["hint"]


def test_one_failure_says_what_to_do(seedbed: Run, tmp_path: Path) -> None:
    write(tmp_path, "postgresql://u:verysecret@127.0.0.1:9/none")
    failed = seedbed("plan", "items.toml", "--json")
    assert failed.returncode == 1
    assert answer(failed)["error"]["setting"] == "source.url"
    assert "verysecret" not in failed.stdout + failed.stderr
    assert seedbed("doctor", "items.toml").returncode == 1


def test_keys_follow_one_another(seedbed: Run, table: psycopg.Connection[Any], pg_url: str, tmp_path: Path) -> None:
    write(tmp_path, pg_url)
    assert answer(seedbed("sync", "items.toml", "--json", "--keys", "3", "5", "7"))["upserted"] == 3
    assert answer(seedbed("sync", "items.toml", "--json", "--limit", "2"))["upserted"] == 2
    assert seedbed("sync", "items.toml", "3").returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_the_next_batch(
    number: signal.Signals, table: psycopg.Connection[Any], pg_url: str, tmp_path: Path
) -> None:
    table.execute("insert into item select n, 'title number ' || n, n from generate_series(51, 40000) n")
    write(tmp_path, pg_url, **{"embedder.url": '"hash:16?latency=0.3"'})
    with subprocess.Popen(
        [sys.executable, "-m", "seedbed", "sync", "items.toml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        while table.execute("select to_regclass('vectors')").fetchone() == (None,):
            assert run.poll() is None
        os.kill(run.pid, number)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 1, err
    assert "run again to go on" in err
    stands = table.execute("select count(*) from vectors").fetchone()
    assert stands is not None
    assert stands[0] < 40000


def test_parsing_and_help_load_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys, seedbed.cli; print({'torch', 'transformers', 'psycopg', 'duckdb', 'airflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_embed_prints_vectors_as_the_library_makes_them(
    seedbed: Run, table: psycopg.Connection[Any], pg_url: str, tmp_path: Path
) -> None:
    lines = seedbed("embed", "red shoes", "a coat", "--embedder", "hash:16").stdout.splitlines()
    vectors = [json.loads(line) for line in lines]
    assert [len(vector) for vector in vectors] == [16, 16]
    told = answer(seedbed("embed", "red shoes", "--query", "--json", "-p", str(write(tmp_path, pg_url))))
    assert told["space"]["model"] == "hash-16"
    assert told["tokens"] == 2
    assert told["vectors"][0] == pytest.approx(vectors[0])
    refused = seedbed("embed", "x", "--embedder", "ark:no-such-model", "--json")
    assert refused.returncode == 2
    assert answer(refused)["error"]["setting"] == "embedder.url"


def test_an_emulated_service_is_served_and_named(seedbed: Run) -> None:
    wrong = seedbed("serve", "emulator:?rmp=3")
    assert wrong.returncode == 2
    assert "did you mean 'rpm'" in wrong.stderr
