"""Fixtures for all tests: real servers of this run, in folders that their account may enter."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

RUN = "SEEDBED_TEST_RUN"


TOGETHER = {
    "tests/airflow/test_pipeline.py": "airflow",
    "tests/airflow/test_service.py": "airflow",
    "tests/sharing/test_ray.py": "ray",
    "tests/udf/": "udf",
}
"""Files (or folders) whose tests one worker runs, as they share a server that is dear to start or to have twice."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """By files: pytest 9.2 has no place for the suffix by which pytest-xdist 3.8 passes its marks on."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return next((group for start, group in TOGETHER.items() if nodeid.startswith(start)), nodeid)

    return Together(config, log)


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
