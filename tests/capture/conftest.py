"""A watched table in a server of each release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from capture.looking import Connection, Make
from seedbed import Pipeline
from services.postgres import RELEASES, fresh_database


@pytest.fixture(params=RELEASES)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with fresh_database(request.param) as made:
        yield made


@pytest.fixture
def table(url: str) -> Iterator[Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table item (id bigint primary key, title text, price int, stock int, gone boolean)")
        connection.execute("insert into item select n, 'title ' || n, n, 0 from generate_series(1, 100) n")
        yield connection


@pytest.fixture
def make(url: str, tmp_path: Path, table: Connection) -> Make:
    def build(**changes: Any) -> Pipeline:
        declared: dict[str, Any] = {
            "name": "items",
            "source": {"url": url, "table": "item", "changes": "queue", **changes.pop("source", {})},
            "content": {"text": "{title}"},
            "embedder": {"url": "hash:16"},
            "sink": [{"url": url, "collection": "item_vectors", "payload": ["price"]}],
            "base": tmp_path,
        }
        return Pipeline(**{**declared, **changes})

    return build


@pytest.fixture
def watched(make: Make) -> Pipeline:
    pipeline = make()
    pipeline.watch()
    assert pipeline.sync().embedded == 100
    return pipeline
