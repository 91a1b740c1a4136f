"""Fixtures for all tests: real servers of this run, in folders that their account may enter."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

RUN = "SEEDBED_TEST_RUN"


def pytest_configure(config: pytest.Config) -> None:
    if RUN not in os.environ:
        # Workers inherit it. Not below pytest's own folder, which a server's account may not enter when we are root.
        os.environ[RUN] = tempfile.mkdtemp(prefix="seedbed-tests-")
        os.chmod(os.environ[RUN], 0o755)


def pytest_unconfigure(config: pytest.Config) -> None:
    from services.postgres import leave_servers

    leave_servers()
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(RUN), ignore_errors=True)


@pytest.fixture
def pg_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh database on the embedded 18, or on the release that an indirect parametrisation names:
    `@pytest.mark.parametrize("pg_url", RELEASES, indirect=True)`."""
    from services.postgres import fresh_database

    with fresh_database(getattr(request, "param", "18")) as url:
        yield url


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """An empty folder that a server's account may enter, for servers of a test's own."""
    folder = Path(tempfile.mkdtemp(dir=os.environ[RUN]))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
