"""Overlap: a stage that runs ahead of its consumer in a thread of its own, through a bounded queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The items in their order, at most `depth` made before they are asked for.

    An error of the producer is raised here, at its place. Closing this iterator stops the producer before
    its next item and waits for it.
    """
    channel: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def offer(message: tuple[T] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                channel.put(message, timeout=0.05)
            except queue.Full:
                continue
            return

    def produce() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                offer((item,))
                if stopped.is_set():
                    break
            offer(None)
        except BaseException as error:  # noqa: BLE001 - carried to the consumer's thread and raised there
            offer(error)
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    thread = threading.Thread(target=produce, name="seedbed-ahead", daemon=True)
    thread.start()
    try:
        while (message := channel.get()) is not None:
            if isinstance(message, BaseException):
                raise message
            yield message[0]
    finally:
        stopped.set()
        thread.join()
