"""Processes that decode: a file whose decoder crashes or hangs is one bad row, and the others go on."""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import LifoQueue
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from seedbed.errors import Fatal, RowError
from seedbed.media.tasks import Task

R = TypeVar("R")
_AHEAD = 2
"""Files asked for beside those at work, so that no worker waits for its caller."""


class Crashed(RowError):
    """The worker's process ended, or was ended, over a file."""


class Workers:
    """At most `count` processes (one a processor), started when needed. Used by any number of threads."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(self.count, "media")
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(self.count):
            self._idle.put(None)
        self._closed = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, task: Task[R], data: bytes) -> Future[R]:
        """The future raises RowError for what is wrong with the file."""
        return self._threads.submit(self._run, task, data)

    def map(self, task: Task[R], files: Iterable[bytes]) -> Iterator[R | RowError]:
        """Of each file in order what the task made of it, or what is wrong with it. No more files are taken than are
        being worked at, and a few."""
        held: deque[Future[R]] = deque()
        try:
            for data in files:
                held.append(self.submit(task, data))
                if len(held) >= self.count + _AHEAD:
                    first = outcome(held.popleft())
                    yield first
            while held:
                last = outcome(held.popleft())
                yield last
        finally:
            for future in held:
                future.cancel()

    def close(self) -> None:
        """Ends the processes; what is being worked at is given up."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        while not self._idle.empty():
            process = self._idle.get()
            if process is not None:
                process.end()

    def _run(self, task: Task[R], data: bytes) -> R:
        process = self._idle.get()
        try:
            if process is None:
                process = _Process()
            result = process.ask(task, data)
        except Crashed:
            process = None
            raise
        finally:
            if self._closed and process is not None:
                process.end()
                process = None
            self._idle.put(process)
        if isinstance(result, RowError):
            raise result
        made: R = result
        return made


class _Process:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._shared = os.memfd_create("seedbed-media")
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "seedbed.media.worker", str(theirs.fileno()), str(self._shared)],
                pass_fds=(theirs.fileno(), self._shared),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())

    def ask(self, task: Task[Any], data: bytes) -> Any:
        """Raises Crashed; the process is gone then."""
        overdue = threading.Event()

        def give_up() -> None:
            overdue.set()
            self._process.kill()

        timer = threading.Timer(task.limits.patience, give_up)
        timer.start()
        try:
            self._connection.send_bytes(pickle.dumps(task))
            self._connection.send_bytes(data)
            sizes = pickle.loads(self._connection.recv_bytes())
            head = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            self.end()
            if overdue.is_set():
                raise Crashed(f"decoding took more than {task.limits.patience:g} seconds") from error
            raise self._crash() from error
        finally:
            timer.cancel()
        return pickle.loads(head, buffers=self._arrays(sizes))

    def _arrays(self, sizes: list[int]) -> Iterator[Any]:
        if not sum(sizes):
            return
        with mmap.mmap(self._shared, sum(sizes), prot=mmap.PROT_READ) as memory:
            view, start = memoryview(memory), 0
            copies = []
            for size in sizes:
                copies.append(np.frombuffer(view[start : start + size], np.uint8).copy())
                start += size
            del view
        # The next result may be smaller; what a large one took is given back.
        os.ftruncate(self._shared, 0)
        yield from copies

    def _crash(self) -> RowError | Fatal:
        status = self._process.returncode
        if status is not None and status > 0:
            return Fatal(
                f"the decoding process does not start: it ended with status {status}",
                hint="run `python -m seedbed.media.worker` to see why; pip install 'seedbed[media]'",
            )
        return Crashed(f"the decoder crashed over this file (signal {-(status or 0)})")

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._connection.close()
        if self._shared >= 0:
            os.close(self._shared)
            self._shared = -1


def outcome(future: Future[R]) -> R | RowError:
    """What came out, a row's error as a value."""
    try:
        return future.result()
    except RowError as error:
        return error


_shared: Workers | None = None
_shared_lock = threading.Lock()


def shared() -> Workers:
    """This process' workers, for all that decode; they end with it."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Workers()
        return _shared
