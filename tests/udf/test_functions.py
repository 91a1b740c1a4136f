"""The functions beyond `seedbed.embed(text)`: bulk, contents, what is kept, TLS, many sessions."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image

import seedbed
from seedbed import Content
from seedbed.content import Image as Picture
from seedbed.content import Text
from seedbed.demo.photos import photos
from udf.conftest import Serving

Connection = psycopg.Connection[Any]


def one(db: Connection, query: str, *parameters: object) -> Any:
    found = db.execute(query.encode(), parameters or None).fetchone()
    assert found is not None
    return found[0]


def parsed(text: str) -> Any:
    return np.fromstring(text.strip("[]"), sep=",")


def hashed(text: str) -> Any:
    return seedbed.embedder("hash:32").embed([Content.of(text)])[0]


# --- many texts -----------------------------------------------------------------------------------------


def test_many_texts_are_one_call(db: Connection) -> None:
    found = one(db, "select seedbed.embed(array['a', null, 'naïve \u2603'])::text[]")
    np.testing.assert_allclose(parsed(found[0]), hashed("a"), atol=1e-6)
    assert found[1] is None
    np.testing.assert_allclose(parsed(found[2]), hashed("naïve ☃"), atol=1e-6)
    assert one(db, "select seedbed.embed('{}'::text[])::text[]") == []
    assert one(db, "select seedbed.embed(null::text[]) is null")
    many = "select array_length(seedbed.embed(array(select n::text from generate_series(1, 2500) n)), 1)"
    assert one(db, many) == 2500


def test_a_bare_literal_is_one_text(db: Connection) -> None:
    assert one(db, "select pg_typeof(seedbed.embed('{a,b}'))::text") == "vector"
    assert one(db, "select pg_typeof(seedbed.embed_half('a'))::text") == "halfvec"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("embed(array['a', '', 'b'])", "number 2 is empty"),
        ("embed(array[['a'], ['b']])", "several dimensions"),
        ("embed(array['a'], 'both')", "both"),
        ("embed(array['a', 'poison'])", "refuses"),
        ("embed_content('[]')", "no parts"),
        ('embed_content(\'{"sound": "x"}\')', "no object with text"),
        ("embed_content('[{\"text\": 5}]')", "no text"),
        ('embed_content(\'[{"image": "file:///etc/passwd"}]\')', "refuses"),
        ("embed_image('')", "no bytes"),
        ("to_vector('\\x0000', 1)", "2 bytes for 1"),
        ("to_vector('\\x000000000000', 1)", "6 bytes for 1"),
        ("to_vector('\\x', 0)", "0 dimensions"),
        ("to_vector('\\x0000c07f', 1)", "NaN"),
        ("to_vector('\\x0000807f', 1)", "infinite"),
    ],
)
def test_bad_input_says_what_is_wrong(db: Connection, call: str, words: str) -> None:
    with pytest.raises(psycopg.Error, match=words) as caught:
        db.execute(f"select seedbed.{call}".encode())
    assert caught.value.diag.message_hint
    assert "poison" not in str(caught.value), "no content in errors, which go to the log"


def test_bytes_become_vectors_only_whole(db: Connection) -> None:
    assert one(db, "select seedbed.to_vector('\\x0000803f00000040', 2)::text") == "[1,2]"


def test_halves_are_halves(db: Connection) -> None:
    half = parsed(one(db, "select seedbed.embed_half('words')::text"))
    np.testing.assert_allclose(half, hashed("words"), atol=1e-3)
    assert len(one(db, "select seedbed.embed_half(array['a', 'b'])::text[]")) == 2


# --- pictures -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(sockets: Path, serve: Serving) -> Iterator[str]:
    path = sockets / "pictures"
    with serve(path, "conse:minilm"):
        yield f"unix:{path}"


def test_pictures_and_mixtures(db: Connection, pictures: str, tmp_path: Path) -> None:
    db.execute("update seedbed.endpoint set address = %s", [pictures])
    file = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(file)
    data = file.read_bytes()
    embedder = seedbed.embedder("conse:minilm")
    picture = embedder.embed([Content((Picture(data),))], "query")[0]
    both = embedder.embed([Content((Text("a red square"), Picture(data)))], "query")[0]
    embedder.close()
    np.testing.assert_allclose(parsed(one(db, "select seedbed.embed_image(%s)::text", data)), picture, atol=1e-5)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for content in ([{"text": "a red square"}, {"image": url}], {"image": url, "text": "a red square"}):
        found = one(db, "select seedbed.embed_content(%s)::text", json.dumps(content))
        np.testing.assert_allclose(parsed(found), both, atol=1e-5)


def test_pictures_of_a_table_are_found_by_words(db: Connection, pictures: str) -> None:
    db.execute("update seedbed.endpoint set address = %s", [pictures])
    db.execute("create table photo (name text primary key, file bytea)")
    for photo in photos():
        db.execute("insert into photo values (%s, %s)", [photo.title, photo.data])
    db.execute("select seedbed.embed_column('photo', image => 'file')")
    db.execute("call seedbed.work()")
    query = "select name from photo_embedding order by embedding <=> (select seedbed.embed('a cat')) limit 1"
    assert one(db, query) == "Chelsea"


# --- what is kept ---------------------------------------------------------------------------------------


def test_a_text_asked_for_before_is_kept_until_the_model_changes(
    db: Connection, sockets: Path, serve: Serving, address: str
) -> None:
    path = sockets / f"kept-{time.monotonic_ns()}"
    db.execute("update seedbed.endpoint set address = %s", [f"unix:{path}"])
    with serve(path, "hash:32"):
        first = one(db, "select seedbed.embed('kept')::text")
    assert one(db, "select seedbed.embed('kept')::text") == first, "nobody is asked"
    with pytest.raises(psycopg.OperationalError):
        db.execute("select seedbed.embed('kept', 'document')")
    with serve(path, "hash:16"):
        assert one(db, "select vector_dims(seedbed.embed('other'))") == 16
        assert one(db, "select vector_dims(seedbed.embed('kept'))") == 16
    db.execute("update seedbed.endpoint set address = %s", [address])


# --- TLS ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(sockets: Path) -> Path:
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ["-keyout", str(sockets / "key.pem"), "-out", str(sockets / "cert.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return sockets / "cert.pem"


@contextmanager
def secured(certificate: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "seedbed", "serve", "hash:32", "--port", str(port)]
    command += ["--tls-cert", str(certificate), "--tls-key", str(certificate.with_name("key.pem"))]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(400):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield port
        finally:
            process.kill()  # asked to stop, it would wait for the sessions' kept connections to be closed


def ready(db: Connection, query: str) -> Any:
    """Its answer, once the model is loaded."""
    for _ in range(400):
        try:
            return one(db, query)
        except psycopg.errors.CannotConnectNow:
            time.sleep(0.05)
    return one(db, query)


def test_tls_is_checked(db: Connection, certificate: Path) -> None:
    with secured(certificate) as port:
        set_to = "update seedbed.endpoint set address = %s, ca = %s"
        db.execute(set_to, [f"https://localhost:{port}", str(certificate)])
        found = ready(db, "select seedbed.embed('a')::text")
        np.testing.assert_allclose(parsed(found), hashed("a"), atol=1e-6)
        assert one(db, "select vector_dims(seedbed.embed('again'))") == 32
        for address, ca in (
            (f"https://127.0.0.1:{port}", str(certificate)),
            (f"https://localhost:{port}", None),
            (f"https://localhost:{port}", "/nowhere.pem"),
        ):
            db.execute(set_to, [address, ca])
            with pytest.raises(psycopg.OperationalError, match="cannot be reached"):
                db.execute("select seedbed.embed('b')")
        db.execute(set_to, [f"http://localhost:{port}", None])
        with pytest.raises(psycopg.Error):
            db.execute("select seedbed.embed('c')")
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute(set_to, ["https://localhost", "relative.pem"])


# --- many sessions, and a server that dies -----------------------------------------------------------------


def test_twenty_sessions_at_once(db: Connection) -> None:
    failures: list[BaseException] = []

    def session(number: int) -> None:
        try:
            with psycopg.connect(db.info.dsn, autocommit=True) as connection:
                for turn in range(10):
                    text = f"session {number} turn {turn}"
                    found = parsed(one(connection, "select seedbed.embed(%s)::text", text))
                    np.testing.assert_allclose(found, hashed(text), atol=1e-6)
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=session, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_server_that_dies_in_the_middle_is_an_error_and_then_forgotten(
    db: Connection, sockets: Path, serve: Serving, address: str
) -> None:
    path = sockets / f"dies-{time.monotonic_ns()}"
    db.execute("update seedbed.endpoint set address = %s", [f"unix:{path}"])
    with serve(path, "hash:32?latency=2") as process:
        killing = threading.Timer(0.5, process.kill)
        killing.start()
        with pytest.raises(psycopg.OperationalError, match="cannot be reached"):
            db.execute("select seedbed.embed('a')")
        killing.join()
    path.unlink(missing_ok=True)
    with serve(path, "hash:32"):
        assert one(db, "select vector_dims(seedbed.embed('a'))") == 32
    db.execute("update seedbed.endpoint set address = %s", [address])


def test_rights_of_every_function(db: Connection) -> None:
    """Nothing is PUBLIC's; a plain role gets nothing by any setting; seedbed_user gets what it is for."""
    routines = db.execute(
        "select p.oid::regprocedure::text from pg_proc p where pronamespace = 'seedbed'::regnamespace"
    ).fetchall()
    db.execute("create role nobody_at_all")
    try:
        assert len(routines) > 30
        for (routine,) in routines:
            for role, may in (("nobody_at_all", False), ("seedbed_user", None), ("seedbed_admin", None)):
                has = one(db, "select has_function_privilege(%s, %s, 'execute')", role, routine)
                private = routine.startswith(("seedbed._embed(", "seedbed._embed_", "seedbed._as_vector"))
                if may is False or (private and not routine.startswith("seedbed._embed_query")):
                    assert not has, (role, routine)
                public = routine.startswith(("seedbed.embed(", "seedbed.embed_half", "seedbed.search"))
                assert has or role != "seedbed_user" or not public, routine
        db.execute("set role nobody_at_all")
        for name in ("default", "unix:/etc", "http://169.254.169.254", ""):
            db.execute("select set_config('seedbed.endpoint', %s, false)", [name])
            for call in ("seedbed.embed('a')", "seedbed.embed(array['a'])", "seedbed.embed_image('x')"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    db.execute(f"select {call}".encode())
    finally:
        db.execute("reset role; drop role nobody_at_all")
