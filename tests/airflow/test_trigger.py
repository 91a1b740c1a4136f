"""Waiting for queued changes as Airflow's triggerer does it, in a process of its own, against a real Postgres."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

import seedbed
from seedbed.airflow.pace import AGAIN, Pace
from seedbed.sources.pg_lookout import Seen

PIPELINE = """
name = "items"
source = {{ url = "${{ITEMS_URL}}", table = "item", changes = "queue" }}
content.text = "{{title}}"
embedder.url = "hash:16"
sink = [{{ url = "memory:" }}]
{more}
"""

# The trigger goes through its serialised form, as in Airflow. The loop's ticks are measured beside it, as in a process
# that has run another before: imports hold the interpreter's lock for a fifth of a second.
PROGRAM = """
import asyncio, json, logging, sys, threading, time
from airflow.sdk.module_loading import import_string
from seedbed.airflow import pace, triggers
import seedbed.declaration, seedbed.sources.pg_lookout

given = json.loads(sys.stdin.readline())
pace.AGAIN, triggers.SLOW = given.get("again", 60.0), 0.5

def say(**said):
    print(json.dumps(said), flush=True)

class Said(logging.Handler):
    def emit(self, record):
        say(log=record.levelname, words=record.getMessage())

logging.getLogger("seedbed").addHandler(Said())

async def ticks(worst):
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.01)
        worst[0] = max(worst[0], time.monotonic() - began)

async def run(trigger):
    async for event in trigger.run():
        say(event=event.payload)

async def main():
    made = triggers.SeedbedChangesTrigger(**given["trigger"])
    classpath, kwargs = made.serialize()
    trigger = import_string(classpath)(**json.loads(json.dumps(kwargs)))
    worst = [0.0]
    beside = asyncio.create_task(ticks(worst))
    task = asyncio.create_task(run(trigger))
    loop = asyncio.get_running_loop()
    threading.Thread(target=lambda: (sys.stdin.readline(), loop.call_soon_threadsafe(task.cancel)), daemon=True).start()
    say(kwargs=kwargs)
    try:
        await task
    except asyncio.CancelledError:
        pass
    await trigger.cleanup()
    say(worst=worst[0])
    await asyncio.sleep(given.get("linger", 0))

asyncio.run(main())
"""


@dataclass
class Running:
    """A trigger that runs; what it has said so far."""

    process: subprocess.Popen[str]
    said: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.said.append({"at": time.monotonic(), **json.loads(line)})

    def all(self, kind: str) -> list[Any]:
        return [one[kind] for one in self.said if kind in one]

    def wait(self, kind: str, count: int = 1, seconds: float = 20.0) -> list[Any]:
        """Everything of a kind that was said, once it is so many."""
        until = time.monotonic() + seconds
        while len(found := self.all(kind)) < count:
            assert time.monotonic() < until, f"{count} × {kind} did not come: {self.said}"
            assert self.process.poll() is None or kind == "worst", f"it ended: {self.said}"
            time.sleep(0.02)
        return found

    def cancel(self) -> float:
        """The worst tick beside the trigger, in seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.wait("worst")[0])


@dataclass(frozen=True)
class Items:
    """A watched table, and a pipeline over it."""

    pipeline: Path
    url: str
    db: psycopg.Connection[Any]

    def insert(self, number: int) -> None:
        self.db.execute("insert into item values (%s, 'a title')", [number])

    def connections(self) -> int:
        found = self.db.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
            " and application_name = 'seedbed'"
        ).fetchone()
        assert found is not None
        return int(found[0])

    @contextmanager
    def trigger(self, tmp_path: Path, **given: Any) -> Iterator[Running]:
        kwargs = {"pipeline": str(self.pipeline), "poll": 0.5, **given.pop("kwargs", {})}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "AIRFLOW_HOME": str(tmp_path / "airflow"), "ITEMS_URL": self.url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            running = Running(process)
            threading.Thread(target=running.read, daemon=True).start()
            assert process.stdin is not None
            process.stdin.write(json.dumps({"trigger": kwargs, **given}) + "\n")
            process.stdin.flush()
            try:
                yield running
            finally:
                process.kill()


@pytest.fixture
def items(tmp_path: Path, pg_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Items]:
    monkeypatch.setenv("ITEMS_URL", pg_url)
    pipeline = tmp_path / "items.toml"
    pipeline.write_text(PIPELINE.format(more=""), encoding="utf-8")
    with psycopg.connect(pg_url, autocommit=True) as db:
        db.execute("create table item (id int primary key, title text)")
        seedbed.load(pipeline).watch()
        yield Items(pipeline, pg_url, db)


def _started(running: Running, items: Items) -> None:
    """Waits until the trigger looks at the queue."""
    running.wait("kwargs")
    until = time.monotonic() + 20
    while not items.connections():
        assert time.monotonic() < until, running.said
        time.sleep(0.02)
    time.sleep(0.7)


def test_a_change_fires_within_two_seconds_and_nothing_does_not(items: Items, tmp_path: Path) -> None:
    with items.trigger(tmp_path, kwargs={"poll": 30.0}) as running:
        _started(running, items)
        assert running.all("event") == []
        began = time.monotonic()
        items.insert(1)
        (event,) = running.wait("event")
        assert time.monotonic() - began < 2
        assert event["pipeline"] == "items"
        assert event["changes"] == 1
        assert 0 <= event["oldest"] < 2
        worst = running.cancel()
    assert worst < 0.1, f"the loop stood still for {worst:.3f} s"


def test_changes_fire_again_once_taken_and_not_while_they_wait(items: Items, tmp_path: Path) -> None:
    with items.trigger(tmp_path, again=3.0) as running:
        _started(running, items)
        items.insert(1)
        running.wait("event")
        items.insert(2)
        time.sleep(1.5)
        assert len(running.all("event")) == 1, "those that were told of wait still"
        items.db.execute("delete from seedbed_queue.change")  # as a run does
        time.sleep(1.0)
        items.insert(3)
        began = time.monotonic()
        running.wait("event", 2)
        assert time.monotonic() - began < 2
        assert running.wait("event", 3)[2]["changes"] == 1, "nobody has taken it: its run has failed"
        assert time.monotonic() - began > 2.5


def test_a_lost_connection_and_a_database_that_is_away_are_survived(items: Items, tmp_path: Path) -> None:
    with items.trigger(tmp_path) as running, psycopg.connect(items.url, dbname="postgres", autocommit=True) as admin:
        _started(running, items)
        name = items.db.info.dbname
        for allowed in (b"false", b"true"):
            admin.execute(b"alter database " + name.encode() + b" allow_connections " + allowed)
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> %s",
                [name, items.db.info.backend_pid],
            )
            time.sleep(2.5 if allowed == b"false" else 0)
        items.insert(1)
        assert running.wait("event")[0]["changes"] == 1
        logged = [one for one in running.said if one.get("log") == "ERROR"]
        assert 1 <= len(logged) <= 2, "each trouble is logged once"
        assert all("items.toml" in one["words"] for one in logged)


def test_cancelling_closes_the_connection(items: Items, tmp_path: Path) -> None:
    with items.trigger(tmp_path, linger=5) as running:
        _started(running, items)
        assert items.connections() == 1
        running.cancel()
        until = time.monotonic() + 2
        while items.connections() and time.monotonic() < until:
            time.sleep(0.02)
        assert items.connections() == 0
        assert running.process.poll() is None, "it was the trigger that closed it, not the process's end"


def test_what_is_serialised_holds_no_secret(items: Items, tmp_path: Path) -> None:
    text = items.pipeline.read_text(encoding="utf-8").replace('"memory:"', '"memory:", api_key = "hush"')
    items.pipeline.write_text(text, encoding="utf-8")
    with items.trigger(tmp_path) as running:
        (kwargs,) = running.wait("kwargs")
    assert kwargs == {"pipeline": str(items.pipeline), "poll": 0.5, "once": False}


def test_once_ends_with_the_first_event(items: Items, tmp_path: Path) -> None:
    items.insert(1)
    with items.trigger(tmp_path, kwargs={"once": True}) as running:
        running.wait("worst")
        assert [event["changes"] for event in running.all("event")] == [1]
    items.pipeline.write_text("name = 'items'\nsorce = {}\n", encoding="utf-8")
    with items.trigger(tmp_path, kwargs={"once": True}) as running:
        running.wait("worst")
        (event,) = running.all("event")
        assert "items.toml" in event["error"]
        assert "sorce" in event["error"]


def test_what_the_user_has_to_mend_is_logged_once_and_tried_again(items: Items, tmp_path: Path) -> None:
    seedbed.load(items.pipeline).unwatch()
    whole = items.pipeline.read_text(encoding="utf-8")
    with items.trigger(tmp_path) as running:
        running.wait("log")
        time.sleep(1.5)
        (said,) = [one["words"] for one in running.said if "log" in one]
        assert "items.toml" in said
        assert "seedbed watch" in said
        items.pipeline.write_text("name = ", encoding="utf-8")
        assert "items.toml" in running.wait("words", 2)[1]
        items.pipeline.write_text(whole, encoding="utf-8")
        seedbed.load(items.pipeline).watch()
        items.insert(1)
        assert running.wait("event")[0]["changes"] == 1


# --- when waiting changes are told of ---------------------------------------------------------------

SEEN = Seen(free=3, taken=0, oldest=1.0, remain=True, at=datetime(2026, 1, 1, tzinfo=UTC))


def test_the_same_changes_are_told_of_once_a_minute() -> None:
    pace = Pace()
    assert [pace.due(SEEN, second) for second in (0, 5, AGAIN - 1, AGAIN, AGAIN + 5)] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_run_at_work_holds_the_next_event_back() -> None:
    pace = Pace()
    assert pace.due(SEEN, 0)
    working = replace(SEEN, taken=2)
    assert not any(pace.due(working, second) for second in range(5, 300, 5))
    assert not pace.due(SEEN, 300)
    assert pace.due(SEEN, 295 + AGAIN)


def test_changes_that_came_after_the_others_were_taken_are_new() -> None:
    pace = Pace()
    assert pace.due(SEEN, 0)
    assert pace.due(replace(SEEN, taken=3, remain=False), 5)
    assert not pace.due(replace(SEEN, free=0, remain=False), 10)
    assert pace.due(SEEN, 15)
