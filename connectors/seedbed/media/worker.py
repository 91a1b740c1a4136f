"""The worker's process: tasks in, results out, over a socket; arrays by a memory that both map.

A process of its own command and not of multiprocessing, which would run the caller's main module again.
"""

from __future__ import annotations

import mmap
import os
import pickle
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

from seedbed.errors import RowError

MEMORY = 6 << 30
"""Bytes of address space: a file that wants more is refused, and nobody else suffers."""


def main(socket: int, shared: int) -> None:
    """Answers until the other side closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(socket)
    while True:
        try:
            task, data = pickle.loads(connection.recv_bytes()), connection.recv_bytes()
        except EOFError:
            return
        _send(connection, shared, _done(task, data))


def _done(task: Any, data: bytes) -> Any:
    try:
        return task(data)
    except RowError as error:
        return error
    except MemoryError:
        return RowError("decoding takes more memory than a file may have")
    except Exception as error:  # noqa: BLE001 - a decoder's failure stays with its row
        return RowError(f"decoding failed: {type(error).__name__}: {error}")


def _send(connection: Connection, shared: int, result: Any) -> None:
    """The pickle by the socket, and how long each array in the shared memory is."""
    arrays: list[pickle.PickleBuffer] = []
    head = pickle.dumps(result, protocol=5, buffer_callback=arrays.append)
    raws = [array.raw() for array in arrays]
    sizes = [raw.nbytes for raw in raws]
    if sum(sizes):
        os.ftruncate(shared, sum(sizes))
        with mmap.mmap(shared, sum(sizes)) as memory:
            start = 0
            for raw in raws:
                memory[start : start + raw.nbytes] = raw
                start += raw.nbytes
    connection.send_bytes(pickle.dumps(sizes))
    connection.send_bytes(head)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)
