"""What the tests of captured changes look at."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg

from seedbed import Pipeline

Connection = psycopg.Connection[Any]
Make = Callable[..., Pipeline]


def queued(table: Connection) -> list[str]:
    return [key for (key,) in table.execute("select key from seedbed_queue.change order by key").fetchall()]


def counts(report: Any, *names: str) -> list[int]:
    return [getattr(report, name) for name in names]


def stored(table: Connection) -> set[str]:
    return {key for (key,) in table.execute("select _key from item_vectors").fetchall()}


def stored_keys(table: Connection, collection: str) -> list[str]:
    return [key for (key,) in table.execute(f"select _key from {collection}".encode()).fetchall()]


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
