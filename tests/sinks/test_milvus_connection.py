"""How a Milvus is reached, and what is said where it cannot be; the embedded engine's folder."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

from seedbed import registry
from seedbed.errors import ConfigError, Fatal, MissingDependency, SeedbedError, Transient
from seedbed.sinks.milvus_index import REFUSED
from seedbed.sinks.milvus_url import read_target
from services import milvus
from services.milvus_sinks import client, keys, opened, points, some, spec


@pytest.fixture
def lite(tmp_path: Path) -> str:
    return f"milvus+embedded:{tmp_path}"


# --- URLs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "settings", "words"),
    [
        ("milvus://h?indx=FLAT", {}, "'indx' is no option.*\n.*known: index, vectors, consistency, tls"),
        ("milvus://h?index=DISKANN", {}, f"index=DISKANN cannot be used: {REFUSED['DISKANN']}"),
        ("milvus://h?index=FAISS", {}, "index=FAISS cannot be used .*\n.*one of HNSW, FLAT"),
        ("milvus://h?vectors=int8", {}, "vectors=int8"),
        ("milvus://h?consistency=weak", {}, "one of strong, session, bounded, eventually"),
        ("milvus://h?tls=maybe", {}, "true or false, not 'maybe'"),
        ("milvus://", {}, "cannot be read"),
        ("milvus://u:s3cret@h:port", {}, "cannot be read"),
        ("milvus://h/a/b", {}, "cannot be read"),
        ("milvus://u:s3cret@h", {"api_key": "k3y"}, "a user and the sink an api_key"),
        ("milvus+embedded:./d", {"api_key": "k3y"}, "api_key is for servers"),
        ("milvus+embedded:./d?tls=true", {}, "tls is for servers"),
        ("milvus+embedded:./d?vectors=float16", {}, "no float16"),
        ("milvus+embedded:./d?index=AUTOINDEX", {}, "index=AUTOINDEX is a server's own choice"),
        ("milvus://h", {"collection": "50% off"}, "'50% off' cannot be a collection of Milvus"),
        ("milvus://h", {"collection": "1st"}, "no digit first"),
        ("milvus://h", {"collection": "x" * 250}, "longer than 248"),
    ],
)
def test_what_cannot_be_used_is_said_at_once(given: str, settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        registry.sink(given, **{"collection": "things", **settings})
    assert "s3cret" not in str(refused.value)
    assert "k3y" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "settings", "address", "token", "tls"),
    [
        ("milvus://h", {}, "h:19530", "", False),
        ("milvus://u:a%40b@h:1/db?tls=true", {}, "h:1", "u:a@b", True),
        ("milvus://h", {"tls": True, "api_key": "k"}, "h:19530", "k", True),
        ("milvus://in01.vectordb.zillizcloud.com", {"api_key": "k"}, "in01.vectordb.zillizcloud.com:443", "k", True),
        ("milvus://[::1]:7", {}, "[::1]:7", "", False),
    ],
)
def test_where_a_url_leads(given: str, settings: dict[str, Any], address: str, token: str, tls: bool) -> None:
    target = read_target(given, settings)
    assert (target.address, target.token, target.tls) == (address, token, tls)


# --- errors -----------------------------------------------------------------------------------------


class _Server(milvus_pb2_grpc.MilvusServiceServicer):  # type: ignore[misc]
    """Knows its version, and no other call."""

    def __init__(self, version: str) -> None:
        self.version = version

    def GetVersion(self, request: Any, context: Any) -> Any:
        return milvus_pb2.GetVersionResponse(version=self.version)


@contextmanager
def serving(servicer: Any, port: int = 0) -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def failure(url: str, **settings: Any) -> SeedbedError:
    started = time.monotonic()
    with opened(url, **settings) as sink, pytest.raises(SeedbedError) as failed:
        sink.describe()
    assert time.monotonic() - started < 15
    assert failed.value.setting in ("sink.url", "sink.collection")
    assert failed.value.hint
    return failed.value


def test_a_wrong_password_or_key_is_fatal() -> None:
    place = milvus.server().partition("@")[2]
    for tried in (
        failure(f"milvus://root:wrong@{place}"),
        failure(f"milvus://{place}"),
        failure(f"milvus://{place}", api_key="no such key"),
    ):
        assert isinstance(tried, Fatal)
        assert "wrong password or API key" in tried.message


def test_who_cannot_be_reached_is_told_apart() -> None:
    url = milvus.server()
    gone = failure("milvus://127.0.0.1:1")
    assert isinstance(gone, Transient)
    assert "cannot be reached" in gone.message
    secured = failure(f"{url}?tls=true")
    assert isinstance(secured, Fatal)
    assert "no TLS connection" in secured.message
    absent = failure(f"{url}/nowhere")
    assert isinstance(absent, ConfigError)
    assert "database not found" in absent.message


def test_an_old_server_is_refused_naming_both_versions() -> None:
    with serving(_Server("v2.2.16")) as port:
        old = failure(f"milvus://127.0.0.1:{port}")
    assert isinstance(old, ConfigError)
    assert "Milvus 2.2.16: 2.3 or newer" in old.message


def test_what_is_no_milvus_is_said() -> None:
    with serving(milvus_pb2_grpc.MilvusServiceServicer()) as port:
        other = failure(f"milvus://127.0.0.1:{port}")
    assert isinstance(other, ConfigError)
    assert "no Milvus server" in other.message
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        plain = failure(f"milvus://127.0.0.1:{web.server_port}")
        web.shutdown()
        thread.join()
    assert isinstance(plain, ConfigError)
    assert "no Milvus server" in plain.message


def test_a_lost_connection_is_transient_and_comes_back(tmp_path: Path) -> None:
    from milvus_lite import MilvusLite
    from milvus_lite.adapter.grpc.servicer import MilvusServicer

    class Versioned(MilvusServicer):  # type: ignore[misc]
        def GetVersion(self, request: Any, context: Any) -> Any:
            return milvus_pb2.GetVersionResponse(version="2.6.0")

    engine = MilvusLite(str(tmp_path))
    with serving(Versioned(engine)) as port:
        sink = registry.sink(f"milvus://127.0.0.1:{port}", collection="things")
        sink.ensure(spec())
        sink.upsert(points(some(3)))
    with pytest.raises(Transient, match="cannot be reached"):
        sink.upsert(points(some(3)))
    with serving(Versioned(engine), port):
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                sink.upsert(points(some(4)))
                break
            except Transient:
                time.sleep(0.2)
        assert sink.count() == 4
        # This server gives no timestamps, so each page is read with strong consistency of its own.
        assert [page.num_rows for page in sink.scan(3)] == [3, 1]
    sink.close()
    engine.close()


# --- the embedded folder ----------------------------------------------------------------------------

WRITER = """
import os, signal, sys
import numpy as np
from seedbed import batch, registry
from seedbed.identity import Space
from seedbed.protocols import CollectionSpec
import pyarrow as pa
sink = registry.sink(sys.argv[1], collection="things")
sink.ensure(CollectionSpec("things", "shop", Space("m", "1", 3), "cosine", pa.schema([])))
sink.upsert(batch.points(["a", "b"], np.eye(2, 3, dtype=np.float32)))
print("written", flush=True)
sys.stdin.read()
"""


@contextmanager
def writing(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has written and keeps the folder open."""
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def test_a_folder_that_another_process_has_open_names_it(lite: str) -> None:
    with writing(lite) as process:
        busy = failure(lite)
    assert isinstance(busy, Transient)
    assert f"is open in process {process.pid}" in busy.message


def test_what_was_written_outlives_a_killed_process(lite: str) -> None:
    with writing(lite) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with opened(lite) as sink:
            assert sink.count() == 2
            assert sink.ensure(spec()) == "v1"
            sink.finish()
            assert keys(sink, [1, 0, 0], 1) == ["a"]


def test_sinks_of_one_folder_share_it_until_the_last_closes(lite: str) -> None:
    with opened(lite) as first:
        with opened(lite) as second:
            second.ensure(spec())
            second.upsert(points(some(3)))
        assert first.count() == 3
        first.close()
        assert first.count() == 3
    with writing(lite):
        pass


def test_threads_write_and_search_one_folder(lite: str) -> None:
    vectors = some(800)
    given = points(vectors)
    with opened(lite) as sink, futures.ThreadPoolExecutor(4) as pool:
        sink.ensure(spec())
        writes = [pool.submit(sink.upsert, given.slice(start, 100)) for start in range(0, 800, 100)]
        settled = pool.submit(sink.finish)
        searches = [pool.submit(keys, sink, vector, 1) for vector in vectors[:50]]
        started: list[futures.Future[Any]] = [*writes, settled, *searches]
        assert [done.exception() for done in started] == [None] * len(started)
        assert sink.count() == 800


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        opened(f"milvus+embedded:{tmp_path}/file") as sink,
        pytest.raises(ConfigError, match="cannot be used") as refused,
    ):
        sink.ensure(spec())
    assert refused.value.hint


def test_a_missing_engine_is_named(lite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "seedbed.sinks.milvus_lite", raising=False)
    monkeypatch.setitem(sys.modules, "milvus_lite", None)
    with opened(lite) as sink, pytest.raises(MissingDependency, match="needs the package 'milvus_lite'"):
        sink.ensure(spec())


def test_to_describe_a_folder_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with opened(f"milvus+embedded:{tmp_path}/new") as sink:
        assert sink.describe() is None
    assert not list(tmp_path.iterdir())


def test_a_client_in_this_process_is_told_of_too(lite: str) -> None:
    with opened(lite) as sink:
        sink.ensure(spec())
    with client(lite):
        assert "this process by other means" in failure(lite).message
