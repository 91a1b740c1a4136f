"""Servers with the extension installed, and `seedbed serve` where their account reaches it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from seedbed.sql import extension
from services.postgres import RELEASES, fresh_database, server

UDF = Path(__file__).parents[2] / "udf"
Connection = psycopg.Connection[Any]
Serving = Callable[[Path, str], AbstractContextManager[subprocess.Popen[bytes]]]


@cache
def install(release: str) -> None:
    if release == "18":
        extension.install_embedded(server("18").folder)
        return
    with one_at_a_time("install"), tempfile.TemporaryDirectory() as folder:
        shutil.copytree(UDF, Path(folder) / "udf", ignore=shutil.ignore_patterns("built"))
        shutil.copy(UDF.parent / "connectors/seedbed/sql/queue.sql", folder)
        config = f"PG_CONFIG=/usr/lib/postgresql/{release}/bin/pg_config"
        subprocess.run(["make", "-s", "-C", f"{folder}/udf", "install", config], check=True, capture_output=True)


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Among a run's workers: `install` of one file by two of them at once fails."""
    with (Path(os.environ["SEEDBED_TEST_RUN"]) / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def installed() -> Callable[[str], None]:
    return install


@pytest.fixture(scope="session")
def sockets() -> Iterator[Path]:
    """A folder that the servers' account may enter."""
    folder = Path(tempfile.mkdtemp(dir=os.environ["SEEDBED_TEST_RUN"]))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def serve() -> Serving:
    return serving


@contextmanager
def serving(path: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "seedbed", "serve", url, "--uds", str(path)], stderr=subprocess.DEVNULL
    )
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
            while True:
                assert process.poll() is None
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def address(sockets: Path) -> Iterator[str]:
    with serving(sockets / "embed", "hash:32?refuse=poison"):
        yield f"unix:{sockets / 'embed'}"


@pytest.fixture(params=RELEASES)
def db(request: pytest.FixtureRequest, address: str) -> Iterator[Connection]:
    install(request.param)
    with fresh_database(request.param) as url, psycopg.connect(url, autocommit=True) as connection:
        extension.create(connection, address)
        yield connection
