"""`sync --runner ray` on a local Ray: two workers, one of them killed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from seedbed.errors import ConfigError
from seedbed.ray_runner import Factory

ROWS = 2000
PIPELINE = """
name = "items"
source = { url = "${SHOP_URL}", table = "item" }
content.text = "{title}"
embedder.url = "hash:64"
sink = [{ url = "${SHOP_URL}", collection = "vectors" }]
ledger.url = "${SHOP_URL}"
"""


@pytest.fixture
def pipeline(pg_url: str, tmp_path: Path) -> Path:
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute("create table item (id int primary key, title text)")
        connection.execute(f"insert into item select n, 'title ' || n from generate_series(1, {ROWS}) n".encode())
    path = tmp_path / "items.toml"
    path.write_text(PIPELINE, encoding="utf-8")
    return path


def test_a_killed_actor_is_made_anew_and_no_row_is_lost_or_paid_twice(pg_url: str, pipeline: Path) -> None:
    with psycopg.connect(pg_url, autocommit=True) as connection, psycopg.connect(pg_url) as other:
        subprocess.run(
            [sys.executable, "-m", "seedbed", "sync", str(pipeline), "--limit", "1"],
            env={**os.environ, "SHOP_URL": pg_url},
            check=True,
        )
        other.execute("lock table vectors__v1 in share mode")  # rows are embedded, and wait to be written
        with subprocess.Popen(
            [sys.executable, "-m", "seedbed", "sync", str(pipeline), "--runner", "ray", "--json"],
            env={**os.environ, "SHOP_URL": pg_url},
            stdout=subprocess.PIPE,
            text=True,
        ) as run:
            attempts = "select who from seedbed_ledger.run where parent is not null and finished is null order by id"
            until = time.monotonic() + 90
            while len(at_work := connection.execute(attempts.encode()).fetchall()) < 2 and time.monotonic() < until:
                time.sleep(0.2)
            assert len(at_work) == 2, "two workers"
            os.kill(int(at_work[0][0].split()[1]), signal.SIGKILL)
            time.sleep(1)
            other.commit()
            told = json.loads(run.communicate(timeout=120)[0])
        assert run.returncode == 0
        assert (told["read"], told["upserted"], told["failed"]) == (ROWS, ROWS - 1, 0)
        assert told["shards"] == 8
        assert connection.execute("select count(distinct _key) from vectors").fetchone() == (ROWS,)
        assert connection.execute("select count(*) from seedbed_ledger.intent").fetchone() == (0,)


def test_what_travels_holds_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "items.toml"
    path.write_text(PIPELINE.replace("${SHOP_URL}", "postgresql://me:${WORD}@localhost/shop"), encoding="utf-8")
    monkeypatch.setenv("WORD", "s3cret")
    travelled = pickle.dumps(Factory.of(path))
    assert b"s3cret" not in travelled
    assert "s3cret" in pickle.loads(travelled).make().declaration.source.url
    monkeypatch.delenv("WORD")
    with pytest.raises(ConfigError, match=r"items\.toml:3: \$\{WORD\} is not set"):
        pickle.loads(travelled).make()
