"""What is Postgres' own: types, collations, encodings, transactions, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from seedbed import batch, registry
from seedbed.errors import ConfigError
from seedbed.identity import KeyRange, canonical_key, key_parts, position
from seedbed.protocols import CanShard, Selection
from seedbed.sources.postgres import PostgresSource
from services.postgres import RELEASES
from sources.backends import column_of, keys_of, read

Connection = psycopg.Connection[Any]


@pytest.fixture
def db(pg_url: str) -> Iterator[Connection]:
    with psycopg.connect(pg_url, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("pg_url", RELEASES, indirect=True)
def test_every_type_arrives_as_one_arrow_type(db: Connection, pg_url: str) -> None:
    db.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    db.execute(
        """CREATE TABLE t (id uuid PRIMARY KEY, i2 smallint, f4 real, f8 float8, b bool, v varchar(9), c char(5),
        n numeric, d date, ts timestamp, tz timestamptz, j json, jb jsonb, a text[], ai int[], af float8[],
        an numeric[], by bytea, m mood, iv interval, nn text)"""
    )
    db.execute(
        """INSERT INTO t VALUES ('A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', 1, 0.1, 'NaN', true, 'v', 'c', 1.50,
        '2024-02-29', '2024-02-29 12:00', '2024-02-29 12:00+02', '{"b": 1.10, "a" :2}', '{"b":1.10,"a":2}',
        '{"x,y",NULL,"q\\"z"}', '{1,NULL}', '{0.1,NaN}', '{1.50}', '\\x00ff', 'ok', '1 day', NULL)"""
    )
    source = registry.source(pg_url, table="t")
    names = [name for name in source.schema().names if name != "id"]
    (page,) = read(source, "id", *names)
    (row,) = page.rows.to_pylist()
    assert page.keys == ['["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]']
    assert (row["i2"], row["f4"], row["b"], row["v"], row["c"], row["n"]) == (1, 0.1, True, "v", "c", "1.50")
    assert row["f8"] != row["f8"]
    assert (row["d"], row["ts"]) == (date(2024, 2, 29), datetime(2024, 2, 29, 12))
    assert row["tz"] == datetime(2024, 2, 29, 10, tzinfo=UTC)
    assert row["j"] == row["jb"] == '{"a": 2, "b": 1.10}'
    assert (row["a"], row["ai"], row["an"]) == (["x,y", None, 'q"z'], [1, None], ["1.50"])
    assert row["af"][0] == 0.1
    assert (row["by"], row["m"], row["iv"], row["nn"]) == (b"\x00\xff", "ok", "P1D", None)
    batch.payload_schema(source.schema(), [name for name in names if name != "by"])


@pytest.mark.parametrize(
    ("type_name", "values"),
    [
        ("numeric", ["-1.5", "10", "9", "0.50"]),
        ("char(4)", ["b", "a", "ab", "é"]),
        ("timestamptz", ["2024-01-01 00:00+02", "0987-01-01 00:00+00", "2024-01-01 00:00:00.5+00"]),
        ("timestamp", ["2024-01-01 00:00", "1999-12-31 23:59:59.999999"]),
        ("date", ["2024-01-01", "0987-06-05", "9999-12-31"]),
        ("bytea", ["\\x00", "\\xff", "\\x7f00"]),
        ("boolean", ["true", "false"]),
        ("mood", ["sad", "ok", "angry"]),
        ("text", ["ä", "a", "B", "z", "Z", "_"]),
        ("uuid", ["ffffffff-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-9c0b-4ef8-bb6d-6bb9bd380a11"]),
    ],
)
def test_keys_of_each_type_come_in_the_order_of_positions(
    db: Connection, pg_url: str, type_name: str, values: list[str]
) -> None:
    db.execute("CREATE TYPE mood AS ENUM ('sad', 'ok', 'angry')")
    db.execute(f"CREATE TABLE t (id {type_name}, n int, PRIMARY KEY (id, n))".encode())
    for value in values:
        db.execute("INSERT INTO t SELECT %s, n FROM generate_series(1, 3) n", (value,))
    source = registry.source(pg_url, table="t")
    pages = read(source, "n", page_rows=2)
    kinds = source.key_kinds
    positions = [at for page in pages for at in page.positions]
    assert positions == sorted(set(positions))
    assert positions == [position(key_parts(key), kinds) for key in keys_of(pages)]
    assert len(positions) == 3 * len(values)
    if type_name != "char(4)":  # psycopg pads it
        seen = {canonical_key(row) for row in db.execute("SELECT id, n FROM t").fetchall()}
        assert seen == set(keys_of(pages))
    assert keys_of(read(source, keys=keys_of(pages))) == keys_of(pages)
    middle = KeyRange(positions[1], positions[-2])
    assert [at for page in read(source, within=middle) for at in page.positions] == positions[2:-1]


def test_dates_that_have_no_form_fail_alone(db: Connection, pg_url: str) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, d date, tz timestamptz)")
    db.execute(
        "INSERT INTO t VALUES (1, 'infinity', now()), (2, '0044-03-15 BC', now()), (3, '2024-01-01', '-infinity')"
    )
    db.execute("INSERT INTO t VALUES (4, '2024-01-01', '2024-01-01 00:00+00')")
    (page,) = read(registry.source(pg_url, table="t"), "d", "tz")
    assert page.keys == ['["4"]']
    assert {key: "years 1 to 9999" in reason for key, (_, reason) in page.failed.items()} == {
        '["1"]': True,
        '["2"]': True,
        '["3"]': True,
    }
    by_date = registry.source(pg_url, query="SELECT * FROM t", key=["d", "id"])
    (page,) = read(by_date)
    assert keys_of([page]) == ['["2024-01-01","3"]', '["2024-01-01","4"]']
    assert len(page.failed) == 2


def test_invalid_utf8_fails_its_row_alone(pg_url: str) -> None:
    name = "ascii_" + pg_url.rpartition("test_")[2][:8]
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0".encode())
    url = pg_url.replace(pg_url.partition("@/")[2].partition("?")[0], name)
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET client_encoding = 'SQL_ASCII'")
            connection.execute("CREATE TABLE t (id text PRIMARY KEY, body text)")
            connection.execute(
                "INSERT INTO t VALUES ('é', 'grün'), ('b', E'\\xff\\xfe'), (E'\\xfc', 'x'), ('d', NULL)".encode()
            )
        source = registry.source(url, table="t")
        pages = read(source, "body", page_rows=2)
        source.close()
        assert dict(zip(keys_of(pages), column_of(pages, "body"), strict=True)) == {'["d"]': None, '["é"]': "grün"}
        failed = {key: found for page in pages for key, found in page.failed.items()}
        assert failed['["b"]'] == (b"b", "column 'body' holds invalid UTF-8 at byte 0")
        assert len(failed) == 2
    finally:
        with psycopg.connect(pg_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_no_transaction_is_open_under_a_page(db: Connection, pg_url: str) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    db.execute("INSERT INTO t SELECT generate_series(1, 100)")
    for source in (registry.source(pg_url, table="t"), registry.source(pg_url, query="SELECT * FROM t", key=["id"])):
        for _ in source.pages(Selection(columns=[], page_rows=10)):
            open_ = db.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'seedbed' AND xact_start IS NOT NULL "
                "AND datname = current_database()"
            ).fetchone()
            assert open_ == (0,)


def test_rows_that_come_while_pages_are_read_break_nothing(db: Connection, pg_url: str) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    db.execute("INSERT INTO t SELECT generate_series(1, 100)")
    pages = []
    for page in registry.source(pg_url, table="t").pages(Selection(columns=[], page_rows=10)):
        pages.append(page)
        db.execute("UPDATE t SET id = id + 1000 WHERE id = (SELECT min(id) FROM t WHERE id > 0)")
    positions = [at for page in pages for at in page.positions]
    assert positions == sorted(set(positions))


def test_a_session_writes_nothing(db: Connection, pg_url: str) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    db.execute("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING id'")
    with pytest.raises(Exception, match="read-only"):
        read(registry.source(pg_url, query="SELECT f() AS id", key=["id"]))


def test_which_relations_are_read_by_index(db: Connection, pg_url: str) -> None:
    db.execute('CREATE TABLE "Mixed" (id int, "Code" text COLLATE "C" NOT NULL, other text, PRIMARY KEY (id, "Code"))')
    db.execute("CREATE TABLE free (id int, name text)")
    db.execute("CREATE UNIQUE INDEX ON free (id)")
    db.execute("CREATE VIEW seen AS SELECT * FROM free")

    def by_index(table: str, **settings: Any) -> bool:
        source = PostgresSource(pg_url, {"table": table, **settings})
        source.schema()
        return source._relation.ordered

    assert by_index("Mixed")
    assert by_index('public."Mixed"')
    assert not by_index("Mixed", key=["Code", "id"])
    assert not by_index("free", key=["id"])
    assert not by_index("seen", key=["id"])
    db.execute("ALTER TABLE free ALTER id SET NOT NULL")
    assert by_index("free", key=["id"])


def test_missing_things_are_named(db: Connection, pg_url: str) -> None:
    db.execute("CREATE TABLE products (id int, f float8)")

    def refused(match: str, **settings: Any) -> ConfigError:
        with pytest.raises(ConfigError, match=match) as raised:
            registry.source(pg_url, **settings).schema()
        return raised.value

    assert "'products'" in str(refused("'prodcts'", table="prodcts").hint)
    assert refused("no primary key", table="products").setting == "source.key"
    assert refused("float8", table="products", key=["f"]).setting == "source.key"
    assert refused("key columns must be named", query="SELECT 1 AS id").setting == "source.key"
    assert refused("two columns", query="SELECT 1 AS id, 2 AS id", key=["id"]).setting == "source.query"
    assert refused("syntax", query="SELEC 1", key=["id"]).setting == "source.query"
    assert refused("nope", table="products", key=["id"], where="nope = 1").setting == "source.where"
    assert refused("either a table or a query").setting == "source.table"
    assert refused("'updated'", table="products", key=["id"], changes="watermark", watermark="updated").setting
    assert "no length of time" in refused("1 hour", table="products", lag="1 hour").message


def test_shards_cover_each_key_once(db: Connection, pg_url: str) -> None:
    db.execute("CREATE TABLE t (shop text, id int, PRIMARY KEY (shop, id))")
    db.execute("INSERT INTO t SELECT chr(97 + g % 3), g FROM generate_series(1, 100) g")
    source = registry.source(pg_url, table="t")
    assert isinstance(source, CanShard)
    whole = keys_of(read(source))
    for n in (1, 3, 7, 1000):
        shards = source.shards(n)
        sizes = [len(keys_of(read(source, within=shard))) for shard in shards]
        assert [key for shard in shards for key in keys_of(read(source, within=shard))] == whole
        assert len(shards) <= n
        assert max(sizes) - min(sizes) <= 2
    db.execute("DELETE FROM t")
    assert source.shards(4) == [KeyRange()]


def test_estimate_is_about_right(db: Connection, pg_url: str) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY)")
    db.execute("INSERT INTO t SELECT generate_series(1, 1000)")
    db.execute("ANALYZE t")
    assert registry.source(pg_url, table="t").estimate() == 1000
    assert registry.source(pg_url, query="SELECT * FROM t", key=["id"]).estimate() == 1000


def test_wide_rows_make_smaller_pages(db: Connection, pg_url: str) -> None:
    db.execute("CREATE TABLE t (id int PRIMARY KEY, body text)")
    db.execute("INSERT INTO t SELECT g, repeat('x', 1000000) FROM generate_series(1, 60) g")
    pages = read(registry.source(pg_url, query="SELECT * FROM t", key=["id"]), "body")
    assert [len(page.keys) for page in pages] == [17, 17, 17, 9]
    assert pa.types.is_string(pages[0].rows.schema.field("body").type)


def test_other_server_encodings_are_ordered_by_code_points(pg_url: str) -> None:
    name = "koi_" + pg_url.rpartition("test_")[2][:8]
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'KOI8R' LOCALE 'C' TEMPLATE template0".encode())
    url = pg_url.replace(pg_url.partition("@/")[2].partition("?")[0], name)
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE t (id text PRIMARY KEY)")
            connection.execute("INSERT INTO t VALUES ('а'), ('б'), ('в'), ('ц'), ('д'), ('ю')")
        source = registry.source(url, table="t")
        assert [key_parts(key)[0] for key in keys_of(read(source, page_rows=2))] == sorted("абвцдю")
        assert keys_of(read(source, keys=['["ю"]', '["а"]'])) == ['["а"]', '["ю"]']
        source.close()
    finally:
        with psycopg.connect(pg_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.mark.parametrize("pg_url", ["15"], indirect=True)
def test_a_linguistic_collation_does_not_change_the_order(db: Connection, pg_url: str) -> None:
    db.execute('CREATE TABLE t (id text COLLATE "und-x-icu" PRIMARY KEY)')
    words = ["a", "B", "ä", "Z", "_", "zz", "Ab", "aB"]
    db.execute("INSERT INTO t SELECT unnest(%s::text[])", (words,))
    source = registry.source(pg_url, table="t")
    expected = sorted(words, key=str.encode)
    assert [row for (row,) in db.execute("SELECT id FROM t ORDER BY id").fetchall()] != expected
    pages = read(source, page_rows=3)
    assert [key_parts(key)[0] for key in keys_of(pages)] == expected
    within = KeyRange(b"Z", b"aB")
    assert [key_parts(key)[0] for key in keys_of(read(source, within=within))] == ["_", "a", "aB"]
