"""One suite for both ledgers."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedbed.errors import AlreadyRunning, ConfigError, Fatal, Refused
from seedbed.identity import KeyRange, Space, point_id, position
from seedbed.ledger import Destination, Entry, Ledger, RowFailure, State, open_ledger

SPACE = Space("m", "r", 4)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'l.ledger'}"
    return str(request.getfixturevalue("pg_url"))


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    made = open_ledger(url)
    yield made
    made.close()


@pytest.fixture
def destination(ledger: Ledger) -> Destination:
    return ledger.add_destination(ledger.register("p"), "s", "v1", SPACE)


def entry(number: int, content: bytes = b"c" * 32, points: int = 1) -> Entry:
    return Entry(position([str(number)], ["int"]), f'["{number}"]', content, b"p" * 32, points)


def test_a_stretch_is_read_in_order(ledger: Ledger, destination: Destination) -> None:
    rows = [entry(number) for number in (-5, 0, 7, 300)]
    ledger.commit(destination, 1, None, rows[::-1])
    found = ledger.standing(destination, KeyRange(rows[0].position, rows[2].position))
    assert found.positions == [rows[1].position, rows[2].position]
    assert (found.content, found.payload, found.points) == ([b"c" * 32] * 2, [b"p" * 32] * 2, [1, 1])
    assert ledger.standing_of(destination, [rows[3].position]).positions == [rows[3].position]
    assert ledger.keys(destination, [rows[3].position]) == {rows[3].position: '["300"]'}
    assert ledger.count(destination) == 4
    assert ledger.standing(None, KeyRange()).positions == []
    assert ledger.standing(destination, KeyRange(rows[3].position)).positions == []


def test_what_was_in_flight_is_in_doubt(ledger: Ledger, destination: Destination) -> None:
    ledger.commit(destination, 1, None, [entry(1, points=5), entry(2)])
    ledger.intend(destination, [entry(1, b"n" * 32, points=2), entry(3, b"n" * 32, points=3)])
    assert ledger.recover(destination) == 1
    found = ledger.unknown(destination)
    assert sorted((row.key, row.points) for row in found) == [('["1"]', 5), ('["3"]', 3)]
    assert ledger.recover(destination) == 0


def test_a_commit_ends_its_intent(ledger: Ledger, destination: Destination) -> None:
    intent = ledger.intend(destination, [entry(1)])
    ledger.commit(destination, 1, intent, [entry(1)])
    assert ledger.recover(destination) == 0
    gone = ledger.intend(destination, [entry(1)])
    ledger.forget(destination, gone, [entry(1).position])
    assert ledger.recover(destination) == 0
    assert ledger.count(destination) == 0


def test_failures_are_new_once_a_content(ledger: Ledger) -> None:
    pipeline = ledger.register("p")
    row = entry(1)
    failure = RowFailure(row.position, row.key, b"1", "too long")
    assert ledger.record_failures(pipeline, [failure]) == 1
    assert ledger.record_failures(pipeline, [failure]) == 0
    assert ledger.record_failures(pipeline, [failure._replace(content=b"2")]) == 1
    assert [f.error for f in ledger.failures(pipeline)] == ["too long"]
    ledger.forget_failures(pipeline, [row.position])
    assert ledger.failures(pipeline) == []


def test_state_and_runs(ledger: Ledger) -> None:
    pipeline = ledger.register("p")
    assert ledger.state(pipeline) == State(None, None)
    ledger.set_state(pipeline, State("r", "w"))
    assert ledger.state(pipeline) == State("r", "w")
    first = ledger.begin(pipeline, "me")
    ledger.end(first, "done", {"read": 3}, {"dtype": "float32"})
    ledger.begin(pipeline, "me again")
    runs = ledger.runs(pipeline)
    assert [(run.who, run.outcome, run.counts) for run in runs] == [("me again", None, {}), ("me", "done", {"read": 3})]


def test_a_second_run_is_told_who_runs(url: str, ledger: Ledger) -> None:
    ledger.lock("p")
    ledger.begin(ledger.register("p"), "process 7 on host")
    other = open_ledger(url)
    other.lock("q")
    with pytest.raises(AlreadyRunning, match="process 7 on host"):
        other.lock("p")
    other.close()


def test_a_dead_run_holds_nothing(url: str) -> None:
    program = f"""
        import os
        from seedbed.ledger import open_ledger
        ledger = open_ledger({url!r})
        ledger.lock("p")
        os.kill(os.getpid(), 9)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False).returncode == -9
    ledger = open_ledger(url)
    ledger.lock("p")
    ledger.close()


def test_nothing_is_created_unasked(url: str, tmp_path: Path) -> None:
    for _ in range(2):
        reader = open_ledger(url, create=False)
        assert reader.pipeline_id("p") is None
        reader.close()
    assert list(tmp_path.glob("l.ledger*")) == []


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.ledger"
    open_ledger(f"sqlite:{path}").close()
    with sqlite3.connect(path) as db:
        db.execute("update ledger_version set version = 99")
    with pytest.raises(Refused, match="99"):
        open_ledger(f"sqlite:{path}")


def test_what_is_no_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "l.ledger"
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(Fatal, match=r"l\.ledger"):
        open_ledger(f"sqlite:{path}")
    with pytest.raises(ConfigError):
        open_ledger("mysql://h/d")
    with pytest.raises(ConfigError, match="folder"):
        open_ledger(f"sqlite:{tmp_path}/none/l")


def test_errors_survive_pickling() -> None:
    error = Refused("no", key=point_id("k"), setting="s", hint="h")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.hint) == (str(error), "h")
