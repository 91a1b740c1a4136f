"""The connections' hooks by Airflow's own SDK, against real services; in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from seedbed.testing.ark import ArkEmulator, Settings
from services import milvus
from services.airflow_program import ran
from services.postgres import PASSWORD
from services.qdrant_double import QdrantDouble

KEY = "sk-never-shown"
ARK = "doubao-embedding-vision-250615"

ASKED = """
import json, sys
from airflow.sdk import Connection
from seedbed.airflow import hooks
seconds, given = json.load(sys.stdin)
hooks.TEST_SECONDS = seconds
answers = {name: Connection(conn_id=name, **fields).test_connection() for name, fields in given.items()}
print("RESULT " + json.dumps(answers))
"""


def asked(home: Path, seconds: float = 20.0, **given: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """What `test_connection` answers of each connection. Nobody says their secrets."""
    stored = {name: {**fields, "extra": json.dumps(fields.get("extra", {}))} for name, fields in given.items()}
    answers, said = ran(ASKED, home, given=[seconds, stored])
    secrets = {fields.get("password", "") for fields in given.values()} - {"", "Milvus"}
    for written in (*secrets, *(quote(secret, safe="") for secret in secrets)):
        assert written not in json.dumps(answers) + said
    return {name: (ok, words) for name, (ok, words) in answers.items()}


def postgres(url: str, kind: str = "seedbed_postgres", **other: Any) -> dict[str, Any]:
    found = conninfo_to_dict(url)
    return {"conn_type": kind, "host": found["host"], "login": found["user"], "schema": found["dbname"], **other}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a `seedbed serve` that wants KEY."""
    (folder / "keys").write_text(f"tests {KEY}\n", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "seedbed", "serve", "hash:32", "--port", str(port)]
    process = subprocess.Popen([*command, "--api-keys", str(folder / "keys")], stderr=subprocess.DEVNULL)
    with ExitStack() as stack:
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"


def test_each_service_says_whether_it_takes_the_connection(tmp_path: Path, pg_url: str) -> None:
    with ExitStack() as stack:
        api = stack.enter_context(ArkEmulator(Settings(keys=frozenset({KEY}))).serving())
        server = stack.enter_context(serving(tmp_path))
        double = QdrantDouble(key=KEY)
        stack.callback(double.stop)
        with psycopg.connect(pg_url, autocommit=True) as connection:
            connection.execute("create extension vector")
        ark, embeddings = {"conn_type": "seedbed_ark", "host": api}, {"conn_type": "seedbed_server", "host": server}
        qdrant = {"conn_type": "seedbed_qdrant", "host": "127.0.0.1", "port": double.port}
        answers = asked(
            tmp_path,
            ark={**ark, "password": KEY},
            ark_of_a_model={**ark, "password": KEY, "extra": {"model": ARK}},
            ark_key={**ark, "password": "sk-of-nobody"},
            ark_model={**ark, "password": KEY, "extra": {"model": "ep-1", "family": ARK}},
            server={**embeddings, "password": KEY},
            server_key={**embeddings, "password": "sk-of-nobody"},
            server_path={**embeddings, "host": server.removesuffix("/v1") + "/v2", "password": KEY},
            qdrant={**qdrant, "password": KEY},
            qdrant_key={**qdrant, "password": "sk-of-nobody"},
            qdrant_away={**qdrant, "port": 1, "password": KEY},
            postgres=postgres(pg_url),
            keyed=postgres(pg_url, login="keyed", password=PASSWORD),
            postgres_key=postgres(pg_url, login="keyed", password="wrong%40of:nobody"),
            postgres_database=postgres(pg_url, schema="nowhere", password=PASSWORD),
            postgres_field=postgres(pg_url, password=PASSWORD, extra={"tabel": "x"}),
            milvus_away={"conn_type": "seedbed_milvus", "host": "127.0.0.1", "port": 1, "password": KEY},
        )
    good = {name: words for name, (ok, words) in answers.items() if ok}
    wrong = {name: words for name, (ok, words) in answers.items() if not ok}
    assert good["ark"] == good["ark_of_a_model"] == f"ark:{ARK} answers with 2048 dimensions"
    assert good["server"] == "hash-32 answers with 32 dimensions"
    assert good["qdrant"] == "Qdrant answers and lets collections be read"
    assert good["postgres"].startswith("Postgres 18.")
    assert " with pgvector 0." in good["postgres"]
    assert good["keyed"] == good["postgres"]
    assert set(good) == {"ark", "ark_of_a_model", "server", "qdrant", "postgres", "keyed"}
    for name, words in {
        "ark_key": "the API key is missing or invalid (AuthenticationError) (check the key",
        "ark_model": "activate ep-1 for this account",
        "server_key": "check the key",
        "server_path": "check the path (often /v1)",
        "qdrant_key": "refuses the API key",
        "qdrant_away": "Qdrant cannot be reached at 127.0.0.1:1",
        "postgres_key": "wrong password",
        "postgres_database": "the database does not exist",
        "postgres_field": "tabel",
        "milvus_away": "127.0.0.1:1",
    }.items():
        assert words in wrong[name]


def test_a_service_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fields = {"host": "127.0.0.1", "port": silent.getsockname()[1], "password": KEY}
        answers = asked(tmp_path, 1.0, server={"conn_type": "seedbed_server", **fields})
    ok, words = answers["server"]
    assert not ok
    assert words.startswith("no answer within 1 s")


def test_a_milvus_server_says_whether_it_takes_the_connection(tmp_path: Path) -> None:
    where = urlsplit(milvus.server())
    fields = {"conn_type": "seedbed_milvus", "host": where.hostname, "port": where.port, "login": "root"}
    answers = asked(
        tmp_path,
        milvus={**fields, "password": "Milvus"},
        milvus_key={**fields, "password": "sk-of-nobody"},
        database={**fields, "password": "Milvus", "schema": "nowhere"},
    )
    assert answers["milvus"] == (True, "Milvus answers and lets collections be read")
    assert "wrong password or API key" in answers["milvus_key"][1]
    assert "nowhere" in answers["database"][1]


PARTS = """
import json, logging, os, sys, tempfile
from pathlib import Path
from contextlib import closing
from airflow.sdk import BaseHook
from airflow.sdk.log import redact
from seedbed.airflow.hooks import SeedbedArkHook, SeedbedPostgresHook
from seedbed.declaration import declare
from seedbed.errors import ConfigError
given = json.load(sys.stdin)
made = declare(given["pipeline"], base=Path(tempfile.mkdtemp()))
answer = {"url": made.source.url, "key": made.embedder.api_key, "redacted": redact(repr([made.source.url]))}
try:
    declare({**given["pipeline"], "ledger": {"conn_id": "nowhere"}}, base=Path("."))
except ConfigError as error:
    answer["missing"] = [error.message, error.setting, error.hint]
answer["hook"] = type(BaseHook.get_hook("shop")).__name__
hook = SeedbedPostgresHook("shop")
with closing(hook.source("item")) as source:
    answer["columns"] = source.schema().names
with closing(hook.sink("things", "?index=none")) as sink:
    answer["sink"] = sink.describe()
with closing(hook.ledger()) as ledger:
    answer["ledger"] = type(ledger).__name__
with closing(SeedbedArkHook("ark").embedder("ark:MODEL", dimensions=1024)) as embedder:
    from seedbed.content import Content
    answer["shape"] = embedder.embed([Content.of("red shoes")]).shape
print("RESULT " + json.dumps(answer))
""".replace("MODEL", ARK)


def test_a_task_reads_connections_by_name(tmp_path: Path, pg_url: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as connection:
        connection.execute("create table item (id int primary key, title text)")
        connection.execute("grant all on database {} to keyed".format(conninfo_to_dict(pg_url)["dbname"]))
        connection.execute("grant all on item to keyed; create schema keyed authorization keyed")
    shop = postgres(pg_url, login="keyed", password=PASSWORD)
    uri = f"seedbed-postgres://keyed:{quote(PASSWORD, safe='')}@{quote(shop['host'], safe='')}/{shop['schema']}"
    with ArkEmulator(Settings(keys=frozenset({"${PATH}"}))).serving() as api:
        pipeline = {
            "name": "items",
            "source": {"conn_id": "shop", "table": "item"},
            "content": {"text": "{title}"},
            "embedder": {"conn_id": "ark", "url": f"ark:{ARK}"},
            "sink": [{"conn_id": "shop"}],
        }
        env = {
            "AIRFLOW_CONN_SHOP": uri,
            "AIRFLOW_CONN_ARK": json.dumps({"conn_type": "seedbed_ark", "host": api, "password": "${PATH}"}),
        }
        answer, said = ran(PARTS, tmp_path, given={"pipeline": pipeline}, env=env)
    assert conninfo_to_dict(answer["url"])["password"] == PASSWORD
    assert answer["key"] == "${PATH}"
    assert answer["redacted"] == f"['postgresql://keyed:***@{quote(shop['host'], safe='')}/{shop['schema']}']"
    assert PASSWORD not in said
    message, setting, hint = answer["missing"]
    assert (message, setting) == ("Airflow has no connection 'nowhere'", "ledger.conn_id")
    assert "AIRFLOW_CONN_NOWHERE" in hint
    assert answer["hook"] == "SeedbedPostgresHook"
    assert answer["columns"] == ["id", "title"]
    assert answer["sink"] is None
    assert answer["ledger"] == "PostgresLedger"
    assert answer["shape"] == [1, 1024]


def test_the_command_line_reads_them_too_and_reports_alone(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        'name = "p"\nsource = { conn_id = "shop", table = "t" }\ncontent.text = "{t}"\n'
        'embedder.url = "hash:8"\nsink = [{ url = "memory:" }]\n',
        encoding="utf-8",
    )
    # Airflow warns of a password that is too short to be masked.
    env = {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW_CONN_SHOP": "seedbed-postgres://me:pw@127.0.0.1:1/d"}
    done = subprocess.run(
        [sys.executable, "-m", "seedbed", "plan", str(file), "--json"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)["error"]["code"] == "transient"
    assert "too short" in done.stderr
