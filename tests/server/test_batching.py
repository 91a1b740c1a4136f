"""The batcher alone: what shares a call, what stays apart, and what becomes of callers that leave."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from seedbed import Content
from seedbed.content import Kind
from seedbed.embedders.hash import HashEmbedder
from seedbed.errors import Fatal, SeedbedError
from seedbed.protocols import Vectors
from seedbed.server.batching import Batcher
from seedbed.server.dialect import Busy


class Held(HashEmbedder):
    """`hash:4` that notes its calls, and works only while `go` is set."""

    def __init__(self) -> None:
        super().__init__("hash:4", {})
        self.calls: list[tuple[int, Kind]] = []
        self.go = threading.Event()

    def embed(self, contents: Sequence[Content], kind: Kind = "document") -> Vectors:
        if contents[0].text != "warm":
            self.calls.append((len(contents), kind))
            self.go.wait(10)
            if any(content.text == "bug" for content in contents):
                raise ZeroDivisionError("of its own")
        return super().embed(contents, kind)


def started(embedder: Held, contents: int = 512, waiting: int = 1024) -> Batcher:
    batcher = Batcher(lambda: embedder, contents=contents, waiting=waiting)
    batcher.start()
    assert batcher.ready.wait(10)
    return batcher


def texts(*words: str) -> list[Content]:
    return [Content.of(word) for word in words]


def test_what_waits_goes_together_by_kind_and_up_to_the_most() -> None:
    embedder = Held()
    batcher = started(embedder, contents=4)
    first = batcher.submit(texts("first"), "document")
    while not embedder.calls:
        pass
    waiting: list[tuple[list[Content], Kind]] = [
        (texts("a", "b"), "document"),
        (texts("c"), "document"),
        (texts("d", "e"), "document"),
        (texts("f"), "query"),
    ]
    rest = [batcher.submit(contents, kind) for contents, kind in waiting]
    embedder.go.set()
    batcher.stop()
    assert embedder.calls == [(1, "document"), (3, "document"), (2, "document"), (1, "query")]
    np.testing.assert_array_equal(rest[2].result(0), HashEmbedder("hash:4", {}).embed(texts("d", "e")))
    assert first.result(0).shape == (1, 4)


def test_a_caller_that_left_harms_nobody() -> None:
    embedder = Held()
    batcher = started(embedder)
    batcher.submit(texts("first"), "document")
    while not embedder.calls:
        pass
    gone, kept = batcher.submit(texts("gone"), "document"), batcher.submit(texts("kept"), "document")
    assert gone.cancel()
    embedder.go.set()
    assert kept.result(10).shape == (1, 4)
    batcher.stop()
    assert embedder.calls == [(1, "document"), (1, "document")]


def test_an_embedders_bug_reaches_its_caller_and_the_next_is_served() -> None:
    embedder = Held()
    embedder.go.set()
    batcher = started(embedder)
    with pytest.raises(Fatal, match="ZeroDivisionError: of its own"):
        batcher.submit(texts("bug"), "document").result(10)
    assert batcher.submit(texts("fine"), "document").result(10).shape == (1, 4)
    batcher.stop()


def test_one_callers_bug_is_his_alone() -> None:
    embedder = Held()
    batcher = started(embedder)
    batcher.submit(texts("first"), "document")
    while not embedder.calls:
        pass
    bug, fine = batcher.submit(texts("bug"), "document"), batcher.submit(texts("fine"), "document")
    embedder.go.set()
    assert fine.result(10).shape == (1, 4)
    assert isinstance(bug.exception(10), Fatal)
    batcher.stop()


def test_too_many_are_told_at_once() -> None:
    embedder = Held()
    batcher = started(embedder, waiting=1)
    batcher.submit(texts("works"), "document")
    while not embedder.calls:
        pass
    batcher.submit(texts("waits"), "document")
    with pytest.raises(Busy):
        batcher.submit(texts("one too many"), "document")
    embedder.go.set()
    batcher.stop()


def test_whatever_keeps_a_model_from_loading_is_told() -> None:
    told = threading.Event()

    def make() -> Held:
        raise MemoryError("no room")

    batcher = Batcher(make)
    batcher.start(on_failure=told.set)
    assert told.wait(10)
    assert isinstance(batcher.failure, SeedbedError)
    assert "no room" in batcher.failure.message
    batcher.stop()
