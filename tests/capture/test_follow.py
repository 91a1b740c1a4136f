"""`sync --follow`, and the commands about queues."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from capture.looking import Connection, Make, wait_for
from seedbed import Pipeline
from seedbed.errors import ConfigError, SeedbedError


def test_follow_is_woken_and_shows_its_lag(
    watched: Pipeline, table: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seedbed.follow.POLL", 60.0)
    passes: list[Any] = []
    stop = threading.Event()
    thread = threading.Thread(target=lambda: watched.follow(each=passes.append, stop=stop))
    thread.start()
    try:
        wait_for(lambda: len(passes) == 1)
        time.sleep(0.5)
        for number, title in enumerate(("a", "b"), 2):
            began = time.monotonic()
            table.execute("update item set title = %s where id = 1", [title])
            wait_for(partial(reached, passes, number))
            assert time.monotonic() - began < 5
        assert passes[-1].as_dict()["embedded"] == 1
        assert passes[-1].as_dict()["waiting"] == 0
    finally:
        stop.set()
        thread.join()
    assert passes[-1].lag == 0


def test_follow_goes_on_after_trouble(watched: Pipeline, table: Connection, url: str) -> None:
    passes: list[Any] = []
    troubles: list[SeedbedError] = []
    stop = threading.Event()
    thread = threading.Thread(target=lambda: watched.follow(each=passes.append, troubled=troubles.append, stop=stop))
    thread.start()
    try:
        wait_for(lambda: len(passes) == 1)
        table.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'seedbed' and datname = current_database()"
        )
        table.execute("update item set title = 'z' where id = 1")
        wait_for(lambda: sum(done.report.embedded for done in passes) == 1, seconds=30)
    finally:
        stop.set()
        thread.join()


def test_following_a_scan_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="queue"):
        make(source={"changes": "scan"}).follow()


def reached(passes: list[Any], wanted: int) -> bool:
    return len(passes) == wanted


def test_the_commands_watch_follow_and_unwatch(url: str, table: Connection, tmp_path: Path) -> None:
    file = tmp_path / "items.toml"
    file.write_text(FILE.format(url=url), encoding="utf-8")

    def seedbed(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "seedbed", *words, str(file), "--json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    refused = seedbed("sync")
    assert "seedbed watch" in refused.communicate()[0]
    assert refused.returncode == 2
    assert json.loads(seedbed("watch").communicate()[0]) == {"watched": "items"}
    following = seedbed("sync", "--follow")
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["embedded"] == 100
    table.execute("update item set title = 'new' where id = 1")
    done = json.loads(following.stdout.readline())
    assert [done[name] for name in ("read", "embedded", "waiting", "lag")] == [1, 1, 0, 0]
    following.terminate()
    assert following.wait(20) == 0
    assert json.loads(seedbed("status").communicate()[0])["queue"]["changes"] == 0
    assert json.loads(seedbed("unwatch").communicate()[0]) == {"unwatched": True}


FILE = """
name = "items"
[source]
url = "{url}"
table = "item"
changes = "queue"
[content]
text = "{{title}}"
[embedder]
url = "hash:16"
[[sink]]
url = "{url}"
"""
