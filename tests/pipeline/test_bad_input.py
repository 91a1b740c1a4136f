"""Bad rows are recorded and counted, the others land; what breaks a run is named and marks nothing done."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest

from seedbed import Pipeline
from seedbed.errors import ConfigError, Fatal, Refused
from seedbed.ledger import open_ledger
from seedbed.ledger.sqlite import SqliteLedger


def pipeline(base: Path, source: dict[str, Any], **changes: Any) -> Pipeline:
    declared: dict[str, Any] = {
        "name": "p",
        "source": source,
        "content": {"text": "{title}"},
        "embedder": {"url": "hash:16"},
        "sink": [{"url": "memory:"}],
        "base": base,
    }
    return Pipeline(**{**declared, **changes})


@pytest.fixture
def db(pg_url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(pg_url, autocommit=True)


def test_null_and_duplicate_keys_fail_alone(db: psycopg.Connection[Any], pg_url: str, tmp_path: Path) -> None:
    db.execute("create table item (id int, title text)")
    db.execute("insert into item values (1, 'a'), (2, 'b'), (2, 'c'), (null, 'd'), (3, 'e')")
    report = pipeline(tmp_path, {"url": pg_url, "table": "item", "key": ["id"]}, name="keys").sync()
    assert (report.upserted, report.failed, report.exit_code) == (2, 2, 3)
    shown = pipeline(tmp_path, {"url": pg_url, "table": "item", "key": ["id"]}, name="keys").status()["failed"]
    assert [row["key"] for row in shown] == ["2"]
    assert "several rows have this key" in shown[0]["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"table": "itme"}, "item"),
        ({"table": "item", "key": ["di"]}, "di"),
        ({"table": "item", "where": "nope = 1"}, "nope"),
    ],
)
def test_what_is_not_there_is_named(
    change: dict[str, Any], words: str, db: psycopg.Connection[Any], pg_url: str, tmp_path: Path
) -> None:
    db.execute("create table item (id int primary key, title text)")
    with pytest.raises(ConfigError) as caught:
        pipeline(tmp_path, {"url": pg_url, **change}, name="absent").sync()
    assert words in str(caught.value)


def test_invalid_utf8_fails_its_row_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"id,title\n1,fine\n2,\xff\xfe broken\n3,fine too\n")
    made = pipeline(tmp_path, {"url": "rows.csv", "key": ["id"]}, name="utf8")
    report = made.sync()
    assert (report.upserted, report.failed, report.exit_code) == (2, 1, 3)


def test_a_text_over_the_models_limit_fails_with_the_way_out(tmp_path: Path) -> None:
    words = "word " * 400
    (tmp_path / "rows.csv").write_text(f"id,title\n1,short\n2,{words}\n", encoding="utf-8")
    local = {"embedder": {"url": "local:minilm"}, "name": "long"}
    made = pipeline(tmp_path, {"url": "rows.csv", "key": ["id"]}, **local)
    report = made.sync()
    assert (report.embedded, report.failed, report.exit_code) == (1, 1, 3)
    assert "[chunk]" in made.status()["failed"][0]["error"]
    chunked = pipeline(tmp_path, {"url": "rows.csv", "key": ["id"]}, chunk={"tokens": 200}, **local)
    assert chunked.sync(allow_reembed=True).exit_code == 0


def test_a_full_disk_is_named_and_nothing_is_marked_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger's file may not grow any more: as a full disk answers."""
    rows = "".join(f"{n},title {n}\n" for n in range(3000))
    (tmp_path / "rows.csv").write_text("id,title\n" + rows, encoding="utf-8")
    made = pipeline(tmp_path, {"url": "rows.csv", "key": ["id"]}, name="full")
    create = SqliteLedger._create

    def small(self: SqliteLedger) -> None:
        create(self)
        self._connection.execute("pragma max_page_count = 20")

    monkeypatch.setattr(SqliteLedger, "_create", small)
    with pytest.raises(Fatal) as caught:
        made.sync()
    assert "disk is full" in (caught.value.hint or "")
    monkeypatch.undo()
    report = made.sync()
    assert (report.upserted, report.exit_code) == (3000, 0)


def test_a_collection_that_is_not_ours(db: psycopg.Connection[Any], pg_url: str, tmp_path: Path) -> None:
    db.execute("create table item (id int primary key, title text)")
    db.execute("create table taken (n int)")
    source = {"url": pg_url, "table": "item"}
    with pytest.raises(Refused, match="taken"):
        pipeline(tmp_path, source, sink=[{"url": pg_url, "collection": "taken"}]).sync()
    mine = [{"url": pg_url, "collection": "shared"}]
    pipeline(tmp_path, source, name="one", sink=mine).sync()
    with pytest.raises(Refused) as caught:
        pipeline(tmp_path, source, name="two", sink=mine).sync()
    assert "one" in str(caught.value)
    assert "two" in str(caught.value)


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    open_ledger(f"sqlite:{tmp_path}/p.ledger").close()
    with sqlite3.connect(tmp_path / "p.ledger") as ledger:
        ledger.execute("drop table target")
    (tmp_path / "rows.csv").write_text("id,title\n1,a\n", encoding="utf-8")
    with pytest.raises(Fatal, match=r"p\.ledger"):
        pipeline(tmp_path, {"url": "rows.csv", "key": ["id"]}).sync()
