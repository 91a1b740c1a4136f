"""A cursor over `updated_at` must not lose what an older transaction commits later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from seedbed import registry
from seedbed.errors import ConfigError
from seedbed.protocols import Page, Source
from services.postgres import RELEASES
from sources.backends import keys_of, read

Connection = psycopg.Connection[Any]


@pytest.fixture
def db(pg_url: str) -> Iterator[Connection]:
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz DEFAULT now(), gone boolean)")
        yield connection


def by_watermark(url: str, **settings: Any) -> Source:
    return registry.source(url, table="t", changes="watermark", watermark="at", **settings)


def changed(source: Source, since: str | None, page_rows: int = 2) -> tuple[list[Page], str]:
    pages = read(source, page_rows=page_rows, watermark=True, since=since)
    assert [page.covers for page in pages] == [None] * len(pages)
    assert all(page.watermark is None for page in pages[:-1])
    assert pages[-1].watermark is not None
    return pages, pages[-1].watermark


@pytest.mark.parametrize("pg_url", RELEASES, indirect=True)
def test_a_late_commit_is_not_lost(db: Connection, pg_url: str) -> None:
    source = by_watermark(pg_url)
    with psycopg.connect(pg_url) as late:
        late.execute("INSERT INTO t (id) VALUES (1)")
        db.execute("INSERT INTO t (id) VALUES (2), (3), (4)")
        pages, cursor = changed(source, None)
        assert keys_of(pages) == ['["2"]', '["3"]', '["4"]']
        naive = db.execute("SELECT max(at) FROM t").fetchone()
    # Committed now, with a time older than the newest one seen: the naive cursor loses it.
    assert db.execute("SELECT count(*) FROM t WHERE id = 1 AND at > %s", naive).fetchone() == (0,)
    pages, cursor = changed(source, cursor)
    assert '["1"]' in keys_of(pages)
    pages, _ = changed(source, cursor)
    assert keys_of(pages) == ['["2"]', '["3"]', '["4"]'], "the newest value is read again, the older one not"


def test_only_what_changed_is_read(db: Connection, pg_url: str) -> None:
    source = by_watermark(pg_url)
    db.execute("INSERT INTO t SELECT g, now() - interval '1 day' FROM generate_series(1, 100) g")
    _, cursor = changed(source, None)
    db.execute("UPDATE t SET at = now() WHERE id IN (7, 9)")
    pages, after = changed(source, cursor)
    assert len(keys_of(pages)) == 100, "all have the newest value seen"
    assert after > cursor
    assert keys_of(changed(source, after)[0]) == ['["7"]', '["9"]']


def test_lag_holds_the_cursor_back(db: Connection, pg_url: str) -> None:
    db.execute("INSERT INTO t VALUES (1, now() - interval '3 hours'), (2, now() - interval '30 minutes'), (3, now())")
    _, cursor = changed(by_watermark(pg_url, lag="1h"), None)
    assert keys_of(changed(by_watermark(pg_url, lag="1h"), cursor)[0]) == ['["2"]', '["3"]']


def test_a_role_that_sees_no_others_stays_an_hour_behind(db: Connection, pg_url: str) -> None:
    db.execute("INSERT INTO t VALUES (1, now() - interval '3 hours'), (2, now() - interval '30 minutes'), (3, now())")
    role = "blind_" + pg_url.rpartition("test_")[2][:8]
    db.execute(f"CREATE ROLE {role}; GRANT SELECT ON t TO {role}".encode())
    try:
        source = by_watermark(f"{pg_url}&options=-c%20role%3D{role}")
        _, cursor = changed(source, None)
        assert keys_of(changed(source, cursor)[0]) == ['["2"]', '["3"]']
        source.close()
    finally:
        db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_values_from_the_future_and_none(db: Connection, pg_url: str) -> None:
    db.execute("INSERT INTO t VALUES (1, now() + interval '1 year'), (2, NULL), (3, now() - interval '1 day')")
    source = by_watermark(pg_url)
    _, cursor = changed(source, None)
    db.execute("UPDATE t SET at = now() WHERE id = 3")
    assert keys_of(changed(source, cursor)[0]) == ['["1"]', '["2"]', '["3"]']


def test_soft_deletes_and_an_empty_table(db: Connection, pg_url: str) -> None:
    source = by_watermark(pg_url, deleted="gone")
    (page,) = read(source, watermark=True)
    assert (page.keys, page.watermark) == ([], None)
    db.execute("INSERT INTO t VALUES (1, now(), false), (2, now(), true), (3, now(), NULL)")
    pages, _ = changed(source, None)
    assert keys_of(pages) == ['["1"]', '["3"]']
    assert [key for page in pages for key, _ in page.deleted] == ['["2"]']


def test_a_timestamp_without_zone(db: Connection, pg_url: str) -> None:
    db.execute("ALTER TABLE t ALTER at TYPE timestamp; ALTER TABLE t ALTER at SET DEFAULT localtimestamp")
    with psycopg.connect(pg_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET TimeZone = 'America/New_York'".encode())
    source = by_watermark(pg_url)
    with psycopg.connect(pg_url) as late, psycopg.connect(pg_url, autocommit=True) as other:
        late.execute("INSERT INTO t (id) VALUES (1)")
        other.execute("INSERT INTO t (id) VALUES (2)")
        _, cursor = changed(source, None)
    assert keys_of(changed(source, cursor)[0]) == ['["1"]', '["2"]']


def test_other_columns_are_no_watermark(db: Connection, pg_url: str) -> None:
    source = registry.source(pg_url, table="t", changes="watermark", watermark="id")
    with pytest.raises(ConfigError, match="int4"):
        source.schema()
    with pytest.raises(ConfigError, match="no watermark column"):
        read(registry.source(pg_url, table="t"), watermark=True)
