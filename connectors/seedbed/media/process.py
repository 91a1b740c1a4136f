"""One worker's process, from the side that asks."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any

from seedbed.errors import Fatal, RowError
from seedbed.media.shared_memory import SLOTS, Slot
from seedbed.media.tasks import Task
from seedbed.media.worker import READY

_START_SECONDS = 120.0
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # A photo's memory is kept for the next one: given back and asked for anew it costs as much as the decoding.
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(96 << 20),
}


class Crashed(RowError):
    """The worker's process ended, or was ended, over a file."""


class Process:
    """Raises Fatal where it does not start."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._slots = [Slot(os.memfd_create("seedbed-media")) for _ in range(SLOTS)]
        handed = (theirs.fileno(), *(slot.descriptor for slot in self._slots))
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "seedbed.media.worker", *map(str, handed)],
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
            )
        self._connection = Connection(ours.detach())
        try:
            # Starting is not part of any file's time.
            ready = self._connection.poll(_START_SECONDS) and self._connection.recv_bytes() == READY
        except (EOFError, OSError):
            ready = False
        if not ready:
            self.end()
            raise Fatal(
                f"the decoding process does not start: status {self._process.returncode}",
                hint="run `python -m seedbed.media.worker` to see why; pip install 'seedbed[media]'",
            )

    def send(self, slot: int, task: Task[Any], data: bytes) -> None:
        """A process that has ended is noticed when its answer is taken."""
        (size,) = self._slots[slot].write([data])
        try:
            self._connection.send_bytes(pickle.dumps((slot, task, size)))
        except OSError:
            return

    def receive(self, slot: int, patience: float) -> Any:
        """The answer to what was sent first, within `patience` seconds. Raises Crashed, and has ended then."""
        try:
            if not self._connection.poll(patience):
                self.end()
                raise Crashed(f"decoding took more than {patience:g} seconds")
            sizes = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            self.end()
            status = self._process.returncode or 0
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise Crashed(f"the decoder crashed over this file ({how})") from error
        head, *arrays = self._slots[slot].read(sizes)
        return pickle.loads(head.tobytes(), buffers=arrays)

    def kill(self) -> None:
        """From any thread."""
        self._process.kill()

    def end(self) -> None:
        """Any number of times."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if not self._connection.closed:
            self._connection.close()
            for slot in self._slots:
                slot.close()
