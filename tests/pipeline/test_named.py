"""Rows that become several named vectors of one point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from seedbed import Pipeline
from seedbed.errors import ConfigError, Refused

Make = Callable[..., Pipeline]


@pytest.fixture
def table(pg_url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(pg_url, autocommit=True)
    connection.execute("create table film (id bigint primary key, title text, plot text)")
    connection.execute(
        "insert into film values (1, 'red wool scarf', 'engine oil filter'), (2, 'engine oil filter', null),"
        " (3, null, 'red wool scarf'), (4, ' ', '')"
    )
    return connection


@pytest.fixture
def make(pg_url: str, tmp_path: Path, table: psycopg.Connection[Any]) -> Make:
    def build(**changes: Any) -> Pipeline:
        declared: dict[str, Any] = {
            "name": "films",
            "source": {"url": pg_url, "table": "film"},
            "content": {"title": {"text": "{title}"}, "plot": {"text": "{plot}"}},
            "embedder": {"url": "hash:32"},
            "sink": [
                {"url": pg_url, "collection": "film_vectors", "payload": ["title"], "store_text": True},
                {"name": "edge", "url": "qdrant+embedded:edge"},
            ],
            "base": tmp_path,
        }
        return Pipeline(**{**declared, **changes})

    return build


def counts(report: Any, *names: str) -> list[int]:
    return [getattr(report, name) for name in names]


def held(table: psycopg.Connection[Any]) -> dict[str, tuple[bool, bool]]:
    query = "select _key, vector_plot is not null, vector_title is not null from film_vectors"
    return {key: (plot, title) for key, plot, title in table.execute(query)}


def test_each_content_is_a_vector_and_an_equal_text_is_embedded_once(
    make: Make, table: psycopg.Connection[Any]
) -> None:
    pipeline = make()
    assert pipeline.plan().new == 3
    # Two texts in all: the rows 2 and 3 find theirs among those of row 1.
    assert counts(pipeline.sync(), "read", "embedded", "cached", "upserted", "skipped") == [4, 1, 2, 3, 1]
    assert held(table) == {'["1"]': (True, True), '["2"]': (False, True), '["3"]': (True, False)}
    assert counts(pipeline.sync(), "embedded", "upserted") == [0, 0]
    (text,) = table.execute("select _text from film_vectors where _key = '[\"1\"]'").fetchall()
    assert text == ("engine oil filter\nred wool scarf",)


@pytest.mark.parametrize("sink", ["postgresql", "edge"])
def test_search_by_one_name_or_by_all(make: Make, table: psycopg.Connection[Any], sink: str) -> None:
    make().sync()

    def ids(words: str, **options: Any) -> list[str]:
        return [hit["id"] for hit in make().search(words, sink=sink, **options)]

    assert ids("red wool scarf", vector="title") == ["1", "2"]
    assert ids("red wool scarf", vector="plot") == ["3", "1"]
    assert sorted(ids("red wool scarf", k=3)) == ["1", "2", "3"]
    fused = make().search("red wool scarf", k=1, sink=sink)[0]
    # Rank 1 by its title and 2 by its plot.
    assert (fused["id"], fused["score"]) == ("1", pytest.approx(1 / 61 + 1 / 62))
    with pytest.raises(ConfigError, match="has the vectors plot, title, not 'cover'"):
        ids("x", vector="cover")


def test_a_content_that_goes_takes_its_vector_along(make: Make, table: psycopg.Connection[Any]) -> None:
    make().sync()
    table.execute("update film set plot = null where id = 1")
    table.execute("update film set title = null where id = 2")
    table.execute("update film set title = 'cat' where id = 4")
    assert counts(make().sync(), "embedded", "cached", "upserted", "deleted") == [1, 1, 2, 0]
    report = make(limits={"max_delete": 1.0}).sync()
    assert report.deleted == 1
    assert held(table) == {'["1"]': (False, True), '["3"]': (True, False), '["4"]': (False, True)}


def test_a_content_that_must_be_there_fails_its_row(make: Make, table: psycopg.Connection[Any]) -> None:
    contents = {"title": {"text": "{title}", "empty": "fail"}, "plot": {"text": "{plot}"}}
    report = make(content=contents).sync()
    assert counts(report, "upserted", "failed", "skipped") == [2, 2, 0]
    assert report.first_failure == "row 3: its content 'title' is empty"


def test_other_names_are_refused_before_anything_is_written(make: Make, table: psycopg.Connection[Any]) -> None:
    make().sync()
    with pytest.raises(Refused, match="made for the vectors plot, title, the pipeline makes one vector without a name"):
        make(content={"text": "{title}"}).sync()
    assert len(held(table)) == 3


def test_the_ledger_is_rebuilt_from_the_collection(make: Make, table: psycopg.Connection[Any], tmp_path: Path) -> None:
    make().sync()
    (tmp_path / "films.ledger").unlink()
    assert make().adopt() == {"postgresql": 3, "edge": 3}
    assert counts(make().sync(), "embedded", "cached", "upserted") == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "setting", "words"),
    [
        ({"content": {"text": "{title}", "plot": {"text": "{plot}"}}}, "content.text", "itself and names vectors too"),
        ({"content": {"Plot!": {"text": "{plot}"}}}, "content.Plot!", "no vector's name"),
        ({"content": {"plot": {"texts": "{plot}"}}}, "content.plot.texts", "unknown setting"),
        ({"content": {"plot": {}}}, "content.plot", "a content needs text"),
        ({"chunk": {"tokens": 10}}, "chunk", "cannot be cut into chunks"),
    ],
)
def test_what_cannot_be_declared_is_named(make: Make, changes: dict[str, Any], setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        make(**changes)
    assert raised.value.setting == setting


def test_a_column_that_is_not_there_is_named_with_its_content(make: Make) -> None:
    with pytest.raises(ConfigError, match="no column 'plott'") as raised:
        make(content={"plot": {"text": "{plott}"}}).sync()
    assert raised.value.setting == "content.plot.text"
