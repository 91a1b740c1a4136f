"""What only pgvector has: the view, HNSW, rights, the store's own refusals, and its errors."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest

from seedbed import registry
from seedbed.errors import ConfigError, Fatal, Refused, RowError, SeedbedError, Transient
from seedbed.protocols import Sink
from seedbed.sinks.pgvector import PgvectorSink
from services.postgres import PASSWORD, RELEASES
from services.stores import AXES, PAYLOAD, everything, found, points, random_vectors, spec

on_both = pytest.mark.parametrize("pg_url", RELEASES, indirect=True)


def opened(url: str, collection: str = "things") -> PgvectorSink:
    return PgvectorSink(url, {"collection": collection})


@pytest.fixture
def admin(pg_url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(pg_url, autocommit=True)


def rows(admin: psycopg.Connection[Any], query: str) -> list[tuple[Any, ...]]:
    return admin.execute(query.encode()).fetchall()


def indexes(admin: psycopg.Connection[Any]) -> list[str]:
    return [
        name for (name,) in rows(admin, "select indexname from pg_indexes where tablename = 'things__v1' order by 1")
    ]


@on_both
@pytest.mark.parametrize("dimensions", [8, 2048])
def test_finish_builds_the_index_that_searches_use(
    pg_url: str, admin: psycopg.Connection[Any], dimensions: int
) -> None:
    sink = opened(pg_url)
    sink.ensure(spec(dimensions=dimensions))
    sink.upsert(points(random_vectors(2000 if dimensions == 8 else 300, dimensions)))
    assert indexes(admin) == ["things__v1_pkey"]
    sink.finish()
    assert indexes(admin) == ["things__v1_key_idx", "things__v1_pkey", "things__v1_vector_idx"]
    vector = str(random_vectors(1, dimensions, seed=9)[0].tolist())
    kind = "halfvec" if dimensions > 2000 else "vector"
    admin.execute("set enable_seqscan = off")
    plan = rows(admin, f"explain select _key from things order by vector <=> '{vector}'::{kind} limit 5")
    assert any("things__v1_vector_idx" in line for (line,) in plan)


def test_index_none_builds_no_hnsw(pg_url: str, admin: psycopg.Connection[Any]) -> None:
    sink = opened(f"{pg_url}&index=none")
    sink.ensure(spec())
    sink.upsert(points(AXES))
    sink.finish()
    assert indexes(admin) == ["things__v1_key_idx", "things__v1_pkey"]
    with pytest.raises(ConfigError, match="index=hnsw or index=none"):
        opened(f"{pg_url}&index=annoy")


@on_both
def test_filtered_searches_of_the_index_give_k_hits(pg_url: str) -> None:
    """Of 3,000 points the 30 that fit are the farthest from the query: the index alone would give none."""
    # The planner is kept from a sequential scan, which it may well choose for so few.
    sink = opened(f"{pg_url}&options=-c%20enable_seqscan%3Doff")
    sink.ensure(spec())
    angles = np.linspace(0, np.pi * 0.9, 3000)
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros(3000)], axis=1)
    sink.upsert(points(circle, price=[float(number >= 2970) for number in range(3000)]))
    sink.finish()
    assert found(sink, [1, 0, 0], 20, {"price": 1}) == [f'["{number}"]' for number in range(2970, 2990)]


@on_both
def test_readers_search_the_view_with_rights_on_it_alone(pg_url: str, admin: psycopg.Connection[Any]) -> None:
    sink = opened(pg_url)
    sink.ensure(spec())
    sink.upsert(points(AXES, title=["a", "b", "c"]))
    admin.execute("grant select on things to keyed")
    sink.ensure(spec(payload=pa.schema([*PAYLOAD, pa.field("stock", pa.int64())])))
    with admin.transaction():
        admin.execute("set local role keyed")
        nearest = "select title, stock from things order by vector <=> '[0,1,0]' limit 1"
        assert rows(admin, nearest) == [("b", None)]


def test_a_collection_in_a_schema_and_an_extension_in_another(pg_url: str, admin: psycopg.Connection[Any]) -> None:
    admin.execute('create schema extensions; create extension vector schema extensions; create schema "Search"')
    sink = opened(pg_url, "Search.Mixed Case")
    sink.ensure(spec())
    sink.upsert(points(AXES))
    sink.finish()
    assert found(sink, [0, 0, 1], 1) == ['["2"]']
    assert rows(admin, 'select count(*) from "Search"."Mixed Case"') == [(3,)]
    with pytest.raises(ConfigError, match="schema 'nowhere' does not exist"):
        opened(pg_url, "nowhere.things").ensure(spec())


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("create table things (id int)", '"public"."things" is a table that Seedbed did not make'),
        ("create view things as select 1", "is a view that"),
        ("create table things__v1 (id int)", '"public"."things__v1" is a table'),
    ],
)
def test_what_is_not_ours_is_left_alone(
    pg_url: str, admin: psycopg.Connection[Any], statement: str, words: str
) -> None:
    admin.execute(statement.encode())
    sink = opened(pg_url)
    assert sink.describe() is None
    with pytest.raises(Refused, match=words):
        sink.ensure(spec())


def test_a_dropped_collection_is_made_anew(pg_url: str, admin: psycopg.Connection[Any]) -> None:
    sink = opened(pg_url)
    sink.ensure(spec())
    sink.upsert(points(AXES))
    admin.execute("drop table things__v1 cascade")
    with pytest.raises(ConfigError, match=r"things__v1.* does not exist"):
        sink.upsert(points(AXES))
    sink.ensure(spec(pipeline="another"))
    assert sink.count() == 0


@on_both
def test_an_unchanged_point_is_not_written_again(pg_url: str, admin: psycopg.Connection[Any]) -> None:
    sink = opened(pg_url)
    sink.ensure(spec())
    sink.upsert(points(AXES, title=["a", "b", None]))
    places = rows(admin, "select ctid, xmin from things__v1 order by id")
    sink.upsert(points(AXES, title=["a", "b", None]))
    sink.set_payload(points(AXES, title=["a", "b", None]).drop_columns(["vector"]))
    assert rows(admin, "select ctid, xmin from things__v1 order by id") == places


@on_both
def test_a_nul_character_is_refused_by_its_row(pg_url: str) -> None:
    sink = opened(pg_url)
    payload = pa.schema([*PAYLOAD, pa.field("tags", pa.list_(pa.string()))])
    sink.ensure(spec(payload=payload))
    for columns in ({"title": ["a", "b\0", "c"]}, {"tags": [["x"], ["y", "\0"], None]}):
        with pytest.raises(RowError, match="NUL") as refused:
            sink.upsert(points(AXES, None, payload, **columns))
        assert refused.value.key == '["1"]'
    assert sink.count() == 0


@on_both
def test_what_the_server_refuses_is_told_by_its_row(pg_url: str, admin: psycopg.Connection[Any]) -> None:
    """A rule of the user's own, which only the server knows."""
    sink = opened(pg_url)
    sink.ensure(spec())
    admin.execute("alter table things__v1 add check (price < 100)")
    prices = [float(number) for number in range(60)]
    prices[37] = 100.0
    with pytest.raises(RowError, match="violates check constraint") as refused:
        sink.upsert(points(random_vectors(60, 3), price=prices))
    assert refused.value.key == '["37"]'
    assert sink.count() == 0


def test_a_lost_connection_is_transient_and_the_next_call_makes_a_new_one(
    pg_url: str, admin: psycopg.Connection[Any]
) -> None:
    sink = opened(pg_url)
    sink.ensure(spec())
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid()"
    )
    with pytest.raises(Transient):
        sink.upsert(points(AXES))
    sink.upsert(points(AXES))
    assert sink.count() == 3


def test_no_transaction_stays_open(pg_url: str, admin: psycopg.Connection[Any]) -> None:
    sink = opened(pg_url)
    sink.ensure(spec())
    calls: list[Callable[[], object]] = [
        lambda: sink.upsert(points(AXES)),
        lambda: sink.search(np.ones(3, np.float32), 2),
        lambda: next(sink.scan(1)),
        sink.finish,
    ]
    for call in calls:
        call()
        state = "select state from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        assert rows(admin, state) == [("idle",)]


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _keyed(url: str, password: str) -> str:
    return url.replace("postgres@", f"keyed:{password}@", 1)


def _told(call: Callable[[], object]) -> tuple[SeedbedError, str]:
    with pytest.raises(SeedbedError) as caught:
        call()
    return caught.value, "".join(traceback.format_exception(caught.value))


def test_an_unreachable_server_is_transient_and_tells_no_secret() -> None:
    url = f"postgresql://u:{PASSWORD.replace('%', '%25').replace('@', '%40')}@127.0.0.1:{_closed_port()}/d"
    error, shown = _told(lambda: registry.sink(url, collection="c").count())
    assert isinstance(error, Transient)
    assert error.setting == "sink.url"
    assert "127.0.0.1" in error.message
    assert PASSWORD not in shown


@on_both
def test_a_wrong_password_is_fatal_and_tells_no_secret(pg_url: str) -> None:
    guess = "wrong-" + "guess"
    error, shown = _told(lambda: opened(_keyed(pg_url, guess)).count())
    assert isinstance(error, Fatal)
    assert "password" in error.message
    assert guess not in shown


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:hidden-word@h:port/d", "'port' is no port"),
        ("postgresql://u:hidden-word@h/d?colour=red", "colour"),
        ("postgresql://u:hidden-word@[::1/d", "cannot be read"),
        ("postgresql://u:hidden-word%zz@h/d", "cannot be read"),
    ],
)
def test_a_url_that_cannot_be_read_tells_no_secret(url: str, words: str) -> None:
    error, shown = _told(lambda: opened(url).count())
    assert isinstance(error, ConfigError)
    assert words in error.message
    assert "hidden-word" not in shown


@on_both
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace("/test_", "/absent_"), "database does not exist"),
        (lambda url: url.replace("postgres@", "nobody_here@"), "refuses this login"),
    ],
)
def test_what_is_not_there_is_fatal(pg_url: str, change: Callable[[str], str], words: str) -> None:
    error, _ = _told(lambda: opened(change(pg_url)).count())
    assert isinstance(error, Fatal)
    assert words in error.message


def test_a_user_without_rights_is_told_what_is_missing(pg_url: str, admin: psycopg.Connection[Any]) -> None:
    url = _keyed(pg_url, PASSWORD.replace("%", "%25").replace("@", "%40"))
    error, _ = _told(lambda: opened(url).ensure(spec()))
    assert isinstance(error, Fatal)
    assert error.hint is not None
    assert "superuser" in error.hint
    admin.execute("create extension vector")
    error, _ = _told(lambda: opened(url).ensure(spec()))
    assert isinstance(error, Fatal)
    assert "schema public" in error.message


def test_two_makers_at_once_make_one_collection(pg_url: str) -> None:
    sinks: list[Sink] = [opened(pg_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda sink: sink.ensure(spec()), sinks)) == ["v1"] * 4
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda sink: sink.upsert(points(AXES)), sinks))
    assert len(everything(sinks[0])) == 3
