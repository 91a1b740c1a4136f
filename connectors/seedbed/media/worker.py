"""The worker's process: tasks and files in, results out.

A process of its own command and not of multiprocessing, which would run the caller's main module again.
"""

from __future__ import annotations

import pickle
import resource
import sys
from multiprocessing.connection import Connection
from typing import Any

from seedbed.errors import RowError
from seedbed.media.shared_memory import Slot

READY = b"ready"
MEMORY = 6 << 30
"""Bytes of address space: a file that wants more is refused, and nobody else suffers."""


def main(socket: int, *slots: int) -> None:
    """Answers until the other side closes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection, memory = Connection(socket), [Slot(number) for number in slots]
    connection.send_bytes(READY)
    while True:
        try:
            number, task, size = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        (data,) = memory[number].read([size])
        result = _done(task, data.tobytes())
        arrays: list[pickle.PickleBuffer] = []
        head = pickle.dumps(result, protocol=5, buffer_callback=arrays.append)
        sizes = memory[number].write([head, *(array.raw() for array in arrays)])
        connection.send_bytes(pickle.dumps(sizes))


def _done(task: Any, data: bytes) -> Any:
    try:
        return task(data)
    except RowError as error:
        return error
    except MemoryError:
        return RowError("decoding takes more memory than a file may have")
    except Exception as error:  # noqa: BLE001 - a decoder's failure stays with its row
        return RowError(f"decoding failed: {type(error).__name__}: {error}")


if __name__ == "__main__":
    try:
        main(*map(int, sys.argv[1:]))
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)
