"""Airflow's connections in place of URLs with secrets: where their fields go, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from seedbed import registry
from seedbed.airflow import connections
from seedbed.airflow.provider_info import get_provider_info
from seedbed.declaration import Declaration, declare, headline, settings
from seedbed.embedders.remote import RemoteEmbedder
from seedbed.errors import ConfigError, MissingDependency
from seedbed.sinks.milvus_url import read_target

SECRET = "p@s:s/w?r#d%20${X}"
WRITTEN = "p%40s%3As%2Fw%3Fr%23d%2520%24%7BX%7D"
ARK = "doubao-embedding-vision-250615"


@dataclass(frozen=True)
class Kept:
    conn_type: str
    host: str | None = None
    login: str | None = None
    password: str | None = None
    schema: str | None = None
    port: int | None = None
    extra: str | None = None
    conn_id: str = "shop"


def kept(kind: str, extra: Any = None, **fields: Any) -> Kept:
    return Kept(kind, extra=extra if isinstance(extra, str) else json.dumps(extra) if extra else None, **fields)


def role_of(kind: str) -> str:
    return next(role for role in ("embedder", "sink") if kind in connections.FITTING[role])


def said(connection: Kept) -> dict[str, Any]:
    return connections.mapped(connection, role_of(connection.conn_type), where="it")


# --- fields to URLs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connection", "given"),
    [
        (kept("seedbed_ark", password="k"), {"url": "ark:", "api_key": "k"}),
        (
            kept("seedbed_ark", {"model": "ep-1", "family": ARK, "rpm": 60, "tpm": "7", "in_flight": 4}, password="k"),
            {"url": "ark:ep-1?in_flight=4", "api_key": "k", "family": ARK, "rpm": 60, "tpm": 7},
        ),
        (
            kept("seedbed_ark", host="http://127.0.0.1:9/api/v3"),
            {"url": "ark:?endpoint=http%3A%2F%2F127.0.0.1%3A9%2Fapi%2Fv3"},
        ),
        (kept("seedbed_ark", host="ark.example"), {"url": "ark:?endpoint=https%3A%2F%2Fark.example%2Fapi%2Fv3"}),
        (kept("seedbed_server", host="http://e:8000/v1"), {"url": "http://e:8000/v1"}),
        (kept("seedbed_server", host="http://e", port=8000, schema="v1"), {"url": "http://e:8000/v1"}),
        (kept("seedbed_server", host="e", port=8000), {"url": "http://e:8000/v1"}),
        (kept("seedbed_server", host="e", schema="https"), {"url": "https://e/v1"}),
        (kept("seedbed_server", {"tls": True}, host="e/api"), {"url": "https://e/api"}),
        (
            kept("seedbed_server", {"model": "a/b", "batch": 8, "rpm": 5, "in_flight": None, "tpm": ""}, host="::1"),
            {"url": "http://[::1]/v1?model=a%2Fb&batch=8", "rpm": 5},
        ),
        (kept("seedbed_qdrant", host="q"), {"url": "qdrant://q"}),
        (
            kept("seedbed_qdrant", {"tls": "true"}, host="q", port=6334, password=SECRET),
            {"url": "qdrant://q:6334", "api_key": SECRET, "tls": True},
        ),
        (kept("seedbed_qdrant", host="https://q.io:6334"), {"url": "qdrant://q.io:6334", "tls": True}),
        (kept("seedbed_qdrant", {"tls": False}, host="::1", port=1), {"url": "qdrant://[::1]:1", "tls": False}),
        (kept("seedbed_milvus", host="m", port=19530), {"url": "milvus://m:19530"}),
        (kept("seedbed_milvus", host="m", password="k"), {"url": "milvus://m", "api_key": "k"}),
        (
            kept("seedbed_milvus", {"tls": True}, host="m", login="root", password=SECRET, schema="shop"),
            {"url": f"milvus://root:{WRITTEN}@m/shop", "tls": True},
        ),
        (kept("postgres"), {"url": "postgresql:///"}),
        (
            kept("seedbed_postgres", host="db", port=5433, login="me@home", password=SECRET, schema="a/b"),
            {"url": f"postgresql://me%40home:{WRITTEN}@db:5433/a%2Fb"},
        ),
        (
            kept(
                "postgres", {"sslmode": "require", "options": "-c a=b", "cursor": "dictcursor", "iam": False}, host="d"
            ),
            {"url": "postgresql://d/?sslmode=require&options=-c%20a%3Db"},
        ),
    ],
)
def test_where_a_connections_fields_go(connection: Kept, given: dict[str, Any]) -> None:
    assert said(connection) == given


@pytest.mark.parametrize(
    ("fields", "extra", "read"),
    [
        ({"host": "db", "port": 5433, "schema": "a b"}, {}, {"host": "db", "port": "5433", "dbname": "a b"}),
        ({"host": "2001:db8::1", "port": 1}, {}, {"host": "2001:db8::1", "port": "1"}),
        ({"host": "fe80::1%eth0"}, {}, {"host": "fe80::1%eth0"}),
        ({"host": "/var/run/postgresql", "port": 5433}, {}, {"host": "/var/run/postgresql", "port": "5433"}),
        ({"host": "a, b:7", "port": 5}, {}, {"host": "a,b", "port": "5,7"}),
        ({"port": 5433}, {}, {"port": "5433"}),
        ({}, {"sslrootcert": "/c a/+.crt", "keepalives": True}, {"sslrootcert": "/c a/+.crt", "keepalives": "1"}),
    ],
)
def test_libpq_reads_what_was_meant(fields: dict[str, Any], extra: dict[str, Any], read: dict[str, Any]) -> None:
    connection = kept("seedbed_postgres", extra, login="Jörg@x", password=SECRET, **fields)
    assert conninfo_to_dict(said(connection)["url"]) == {"user": "Jörg@x", "password": SECRET, **read}


def test_the_other_services_are_reached_as_meant() -> None:
    given = said(kept("seedbed_milvus", host="::1", port=7, login="a:b", password=SECRET, schema="d"))
    target = read_target(given["url"], given)
    assert (target.address, target.token, target.database) == ("[::1]:7", f"a:b:{SECRET}", "d")
    for connection, model, service in (
        (kept("seedbed_server", host="::1", port=8), "", "[::1]:8"),
        (kept("seedbed_ark", host="http://[::1]:9"), f"ark:{ARK}?target=image", "[::1]:9"),
    ):
        table = connections.joined({"url": model}, said(connection), "shop", where="embedder")
        embedder = registry.embedder(**table)
        assert isinstance(embedder, RemoteEmbedder)
        assert embedder.provenance()["service"] == service
        embedder.close()
    qdrant = said(kept("seedbed_qdrant", host="::1", port=7, password="k"))
    registry.sink(collection="c", **qdrant).close()


@pytest.mark.parametrize("kind", get_provider_info()["connection-types"], ids=lambda kind: kind["connection-type"])
def test_every_field_of_a_form_is_read(kind: dict[str, Any]) -> None:
    values = {"string": "x", "integer": 3, "boolean": True}
    fields = {name: values[field["schema"]["type"][0]] for name, field in kind["conn-fields"].items()}
    bare = kept(kind["connection-type"], host="h")
    for name, value in fields.items():
        filled_in = kept(kind["connection-type"], {name: value}, host="h")
        assert said(filled_in) != said(bare), name


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        (kept("seedbed_qdrant", {"tls": "perhaps"}, host="q"), "tls = 'perhaps'.*\n.*true or false"),
        (kept("seedbed_qdrant", {"prefer_grpc": True}, host="q"), "extra 'prefer_grpc'.*\n.*known: tls"),
        (kept("seedbed_qdrant", "{", host="q"), "no JSON object"),
        (kept("seedbed_qdrant", "[1]", host="q"), "no JSON object"),
        (kept("seedbed_qdrant"), "names no host"),
        (kept("seedbed_qdrant", host="q", schema="d"), "path or schema"),
        (kept("seedbed_qdrant", host="q", login="me"), "has a login"),
        (kept("seedbed_qdrant", host="q:1", port=2), "port or path twice"),
        (kept("seedbed_qdrant", host="q:port"), "no host that can be read"),
        (kept("seedbed_milvus", host=f"root:{SECRET}@m"), "no host that can be read"),
        (kept("seedbed_milvus", host="root:s3cret@m"), "no host that can be read"),
        (kept("postgres", host="me:s3cret@db"), "no host that can be read"),
        (kept("seedbed_qdrant", host="q?api_key=s3cret"), "no host that can be read"),
        (kept("seedbed_qdrant", host="two words"), "no host that can be read"),
        (kept("seedbed_server", host="ftp://e"), "names no server"),
        (kept("seedbed_server", {"tls": True}, host="http://e"), "names no server"),
        (kept("seedbed_ark", {"rpm": -1}), "rpm = -1.*\n.*a whole number"),
        (kept("postgres", {"iam": True}, host="d"), "logs in by iam"),
        (kept("postgres", {"options": {"a": 1}}, host="d"), "'options' of several values"),
        (kept("postgres", host=f"postgresql://me:{SECRET}@d/x"), "no host that can be read"),
        (kept("postgres", host="d/x"), "no host that can be read"),
    ],
)
def test_a_connection_that_cannot_be_used_says_why(connection: Kept, words: str) -> None:
    connection = Kept(**{**connection.__dict__, "password": SECRET})
    with pytest.raises(ConfigError, match=words) as refused:
        said(connection)
    assert "'shop'" in refused.value.message
    assert refused.value.setting == "it.conn_id"
    assert SECRET not in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("role", connections.FITTING)
@pytest.mark.parametrize(
    "kind", ["seedbed_ark", "seedbed_server", "seedbed_qdrant", "seedbed_milvus", "postgres", "ssh"]
)
def test_only_what_fits_a_table_is_taken(role: str, kind: str) -> None:
    connection = kept(kind, host="h", password=SECRET)
    if kind in connections.FITTING[role]:
        assert connections.mapped(connection, role, where=role)["url"]
        return
    with pytest.raises(ConfigError, match=f"'shop' is of the type '{kind}'") as refused:
        connections.mapped(connection, role, where=role)
    assert refused.value.setting == f"{role}.conn_id"
    hint = refused.value.hint or ""
    assert all(fitting in hint for fitting in connections.FITTING[role])
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"url": "postgresql://me:s3cret@h/d"}, "both say where it is"),
        ({"url": "ark:another"}, "both say where it is"),
        ({"url": "?sslmode=disable"}, "sslmode stands here and in the connection 'shop'"),
        ({"api_key": "s3cret"}, "api_key stands here and in the connection 'shop'"),
    ],
)
def test_what_both_say_is_refused(table: dict[str, Any], words: str) -> None:
    given = {"url": "postgresql://h/d?sslmode=require", "api_key": "k3y"}
    with pytest.raises(ConfigError, match=words) as refused:
        connections.joined(table, given, "shop", where="it")
    assert (refused.value.setting or "").startswith("it.")
    assert "s3cret" not in str(refused.value)
    assert "k3y" not in str(refused.value)


def test_the_model_is_said_once() -> None:
    assert (
        connections.joined({"url": "ark:m"}, {"url": "ark:?in_flight=2"}, "c", where="e")["url"] == "ark:m?in_flight=2"
    )
    assert connections.joined({"url": "?target=image"}, {"url": "ark:m"}, "c", where="e")["url"] == "ark:m?target=image"
    with pytest.raises(ConfigError, match="the model stands here and in"):
        connections.joined({"url": "ark:m"}, {"url": "ark:m"}, "c", where="e")
    with pytest.raises(ConfigError, match="neither url nor"):
        connections.joined({}, {"url": "ark:"}, "c", where="e")


# --- a pipeline -------------------------------------------------------------------------------------

STORED = {
    "shop": kept("postgres", {"sslmode": "prefer"}, host="db", login="me", password=SECRET, schema="shop"),
    "ark": kept("seedbed_ark", {"rpm": 60}, password="k3y"),
    "vectors": kept("seedbed_qdrant", {"tls": True}, host="q", password="k3y"),
}
PIPELINE: dict[str, Any] = {
    "name": "products",
    "source": {"conn_id": "shop", "table": "products"},
    "content": {"text": "{title}"},
    "embedder": {"conn_id": "ark", "url": f"ark:{ARK}"},
    "sink": [{"conn_id": "vectors", "url": "?quantization=int8"}, {"conn_id": "shop", "url": "?index=none"}],
    "ledger": {"conn_id": "shop"},
    "cache": {"conn_id": "shop"},
}


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "fetched", lambda conn_id, setting: STORED[conn_id])


def filled_in(tmp_path: Path, **change: Any) -> Declaration:
    return declare({**PIPELINE, **change}, base=tmp_path)


@pytest.mark.usefixtures("stored")
def test_a_pipeline_takes_its_places_from_connections(tmp_path: Path) -> None:
    made = filled_in(tmp_path)
    url = f"postgresql://me:{WRITTEN}@db/shop?sslmode=prefer"
    assert (made.source.url, made.ledger.url, made.cache.url) == (url, url, url)
    assert (made.embedder.url, made.embedder.api_key, made.embedder.rpm) == (f"ark:{ARK}", "k3y", 60)
    assert (made.sink[0].url, made.sink[0].api_key, made.sink[0].tls) == ("qdrant://q?quantization=int8", "k3y", True)
    assert made.sink[1].url == f"{url}&index=none"
    assert [sink.name for sink in made.sink] == ["qdrant", "postgresql"]
    for sink in made.sink:
        registry.sink(sink.url, collection="c", **({"api_key": "k"} if sink.api_key else {})).close()
    # What names a connection is nothing to those who get what it says.
    assert "conn_id" not in {**settings(made.source), **settings(made.embedder), **settings(made.sink[0])}


@pytest.mark.usefixtures("stored")
def test_what_a_declaration_shows_holds_no_secret(tmp_path: Path) -> None:
    made = filled_in(tmp_path)
    written = declare({**PIPELINE, "ledger": {"url": "postgresql:///d?user=me&password=s3cret"}}, base=tmp_path)
    for shown in (repr(made), str(made), repr(made.sink), f"{written}"):
        assert all(secret not in shown for secret in (SECRET, WRITTEN, "k3y", "s3cret"))
    assert "postgresql://me:***@db/shop?sslmode=prefer" in repr(made)
    assert "password=***" in repr(written)
    assert "conn_id='ark'" in repr(made)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"source": {"conn_id": "ark", "table": "t"}}, "source.conn_id"),
        ({"sink": [{"url": "memory:"}, {"conn_id": "ark"}]}, "sink[1].conn_id"),
        ({"ledger": {"conn_id": "shop", "url": "sqlite:./x"}}, "ledger.url"),
        ({"embedder": {"conn_id": "ark", "url": f"ark:{ARK}", "rpm": 5}}, "embedder.rpm"),
        ({"cache": {"conn_id": "vectors"}}, "cache.conn_id"),
        ({"source": {"table": "t"}}, "source.url"),
        ({"sink": [{"collection": "c"}]}, "sink[0].url"),
        ({"embedder": {}}, "embedder.url"),
    ],
)
def test_a_table_that_does_not_fit_its_connection_is_named(change: Any, setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        filled_in(tmp_path, **change)
    assert refused.value.setting == setting
    assert SECRET not in str(refused.value)


def test_a_headline_asks_for_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "fetched", lambda *_: pytest.fail("asked"))
    file = tmp_path / "p.toml"
    rest = 'content.text = "{t}"\nembedder.url = "hash:8"\nsink = [{ url = "memory:" }]\n'
    file.write_text(f'name = "p"\n{rest}[source]\nconn_id = "shop"\nurl = "${{NOT_SET}}"\n', encoding="utf-8")
    assert headline(file).name == "p"


def test_without_airflow_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow", None)
    monkeypatch.setitem(sys.modules, "airflow.sdk", None)
    with pytest.raises(MissingDependency, match="not installed") as missing:
        filled_in(tmp_path)
    assert missing.value.setting == "source.conn_id"
    assert "seedbed[airflow]" in (missing.value.hint or "")
