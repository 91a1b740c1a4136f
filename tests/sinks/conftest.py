"""An empty store of each kind, and sinks that are closed behind a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from seedbed import registry
from seedbed.protocols import Sink
from services import stores
from services.stores import STORES, Open, spec


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty store."""
    yield from stores.opened(str(request.param), tmp_path, monkeypatch)


@pytest.fixture
def open_sink(store: str) -> Iterator[Open]:
    opened: list[Sink] = []

    def make(collection: str = "things") -> Sink:
        opened.append(registry.sink(store, collection=collection))
        return opened[-1]

    yield make
    for sink in opened:
        sink.close()


@pytest.fixture
def sink(open_sink: Open) -> Sink:
    made = open_sink()
    made.ensure(spec())
    return made
