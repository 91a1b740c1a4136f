"""One Airflow for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.airflow_world import World, opened


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with opened() as made:
        yield made
