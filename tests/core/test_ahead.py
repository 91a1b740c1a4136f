from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from seedbed.ahead import ahead


def test_items_keep_their_order_and_the_error_its_place() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise ValueError("after five")

    items = ahead(numbers())
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="after five"):
        next(items)


def test_closing_stops_the_producer() -> None:
    made, closed = [], threading.Event()

    def numbers() -> Iterator[int]:
        try:
            for number in range(1000):
                made.append(number)
                yield number
        finally:
            closed.set()

    items = ahead(numbers(), depth=2)
    assert next(items) == 0
    items.close()
    assert closed.is_set()
    assert len(made) < 10
