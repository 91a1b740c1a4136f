"""A real Milvus server for the tests: 2.3.5 from its wheel, one a test run, on a free port of this machine.

The package wants an old setuptools, so it lives in a venv of its own below `.cache`, made by the first run.
Workers share the server: each holds a lock, and the server ends with the last one (milvus_process).
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from pymilvus.grpc_gen import milvus_pb2

from seedbed.sinks.milvus_url import read_target
from seedbed.sinks.milvus_wire import ServerWire

_CACHE = Path(__file__).parents[2] / ".cache" / "milvus-2.3.5"
_PACKAGES = ["milvus==2.3.5", "setuptools<81"]
_SCRIPT = Path(__file__).with_name("milvus_process.py")
_RUNNING: dict[str, str] = {}
_LOCKS: list[int] = []


def server() -> str:
    """The URL of the run's server, started on first need. Skips the test where the package cannot be installed."""
    if "url" not in _RUNNING:
        folder = Path(os.environ["SEEDBED_TEST_RUN"]) / "milvus"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / "turn"):
            _LOCKS.append(_use(folder))
            _RUNNING["url"] = f"milvus://root:Milvus@127.0.0.1:{_port(folder)}"
    return _RUNNING["url"]


@contextmanager
def fresh_database(url: str) -> Iterator[str]:
    """The URL of an empty database on a server, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    head, mark, query = url.partition("?")
    made = f"{head}/{name}{mark}{query}"
    with connected(url) as wire:
        wire.call("CreateDatabase", milvus_pb2.CreateDatabaseRequest(db_name=name))
    try:
        yield made
    finally:
        with connected(made) as wire:
            drop_all(wire)
            wire.call("DropDatabase", milvus_pb2.DropDatabaseRequest(db_name=name))


@contextmanager
def connected(url: str) -> Iterator[ServerWire]:
    target = read_target(url, {})
    wire = ServerWire(target.address, token=target.token, database=target.database, tls=target.tls)
    try:
        yield wire
    finally:
        wire.close()


def drop_all(wire: ServerWire) -> None:
    """The collections of a database, and first their aliases."""
    for name in wire.call("ShowCollections", milvus_pb2.ShowCollectionsRequest()).collection_names:
        found = wire.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name=name))
        for alias in found.aliases:
            wire.call("DropAlias", milvus_pb2.DropAliasRequest(alias=alias))
        wire.call("DropCollection", milvus_pb2.DropCollectionRequest(collection_name=name))


def _use(folder: Path) -> int:
    users = os.open(folder / "users", os.O_RDWR | os.O_CREAT)
    fcntl.flock(users, fcntl.LOCK_SH)
    return users


def _port(folder: Path) -> int:
    port = folder / "port"
    if not port.exists():
        _install()
        with (folder / "log").open("wb") as log:
            command = [_CACHE / "bin" / "python", "-I", _SCRIPT, folder, _CACHE / "unpacked"]
            process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 180
        while not port.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        if not port.exists():
            pytest.fail(f"Milvus 2.3.5 did not start: {(folder / 'log').read_text()}", pytrace=False)
    return int(port.read_text())


def _install() -> None:
    done = _CACHE / "installed"
    _CACHE.parent.mkdir(exist_ok=True)
    with FileLock(_CACHE.with_suffix(".lock")):
        if done.exists():
            return
        for command in (
            [sys.executable, "-m", "venv", "--clear", _CACHE],
            [_CACHE / "bin" / "python", "-m", "pip", "install", "-q", *_PACKAGES],
        ):
            tried = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
            if tried.returncode:
                pytest.skip(f"milvus==2.3.5 cannot be installed: {(tried.stderr or tried.stdout)[-300:]}")
        done.touch()
