"""Processes that decode: a file whose decoder crashes or hangs is one bad row, and the others go on."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

from seedbed.errors import RowError, SeedbedError
from seedbed.media.process import Crashed, Process
from seedbed.media.shared_memory import SLOTS
from seedbed.media.tasks import Task

R = TypeVar("R")
_AHEAD = 2
"""Files asked for beside those that the workers hold."""

__all__ = ["Crashed", "Workers", "outcome", "shared"]


@dataclass(slots=True)
class _Job:
    task: Task[Any]
    data: bytes
    answer: Future[Any] = field(default_factory=Future)


class Workers:
    """At most `count` processes (one a processor), started when needed. Used by any number of threads."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._guard = threading.Lock()
        self._lanes: list[_Lane] = []
        self._closed = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, task: Task[R], data: bytes) -> Future[R]:
        """The future raises RowError for what is wrong with the file."""
        job = _Job(task, data)
        with self._guard:
            if self._closed:
                raise RuntimeError("these workers were closed")
            if len(self._lanes) < self.count and not any(lane.idle for lane in self._lanes):
                self._lanes.append(_Lane(self))
            self._jobs.put(job)
        return job.answer

    def map(self, task: Task[R], files: Iterable[bytes]) -> Iterator[R | RowError]:
        """Of each file in order what the task made of it, or what is wrong with it. No more files are taken than are
        being worked at, and a few."""
        held: deque[Future[R]] = deque()
        try:
            for data in files:
                held.append(self.submit(task, data))
                if len(held) >= self.count * SLOTS + _AHEAD:
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
        with self._guard:
            self._closed = True
            lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.give_up()
            self._jobs.put(None)
        for lane in lanes:
            lane.end()
        with suppress(Empty):
            while (job := self._jobs.get_nowait()) is not None:
                job.answer.cancel()

    def take(self, lane: _Lane, *, wait: bool) -> _Job | None:
        """The next job; None at the end, or where none is there and nobody waits for one. A lane that has work leaves
        a job to one that has none."""
        if not wait and any(other.idle for other in self._lanes if other is not lane):
            return None
        with suppress(Empty):
            while (job := self._jobs.get(block=wait)) is not None:
                if job.answer.set_running_or_notify_cancel():
                    return job
        return None


class _Lane:
    """A thread and its process."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._process: Process | None = None
        self._ended = False
        self.idle = True
        self._thread = threading.Thread(target=self._work, name="seedbed-media", daemon=True)
        self._thread.start()

    def give_up(self) -> None:
        """What is being worked at."""
        self._ended = True
        if (process := self._process) is not None:
            process.kill()

    def end(self) -> None:
        self._thread.join()
        if self._process is not None:
            self._process.end()

    def _work(self) -> None:
        held: deque[tuple[int, _Job]] = deque()
        slot = 0
        while not self._ended:
            self.idle = not held
            job = self._workers.take(self, wait=not held) if len(held) < SLOTS else None
            if job is not None:
                self.idle = False
                held.append((slot, job))
                slot = (slot + 1) % SLOTS
                if self._sent(held, [held[-1]]):
                    continue
            if held:
                self._receive(held)
        for _, job in held:
            job.answer.set_exception(Crashed("the decoding was given up"))

    def _sent(self, held: deque[tuple[int, _Job]], jobs: Iterable[tuple[int, _Job]]) -> bool:
        try:
            for slot, job in jobs:
                self._process = self._process or Process()
                self._process.send(slot, job.task, job.data)
        except (SeedbedError, OSError) as error:
            # It does not start, for none of them.
            for _, job in held:
                job.answer.set_exception(error)
            held.clear()
            return False
        return len(held) < SLOTS

    def _receive(self, held: deque[tuple[int, _Job]]) -> None:
        assert self._process is not None
        slot, job = held.popleft()
        try:
            result = self._process.receive(slot, job.task.limits.patience)
        except Crashed as error:
            self._process = None
            job.answer.set_exception(error)
            if not self._ended:
                # The file behind it is not at fault.
                self._sent(held, list(held))
            return
        if isinstance(result, RowError):
            job.answer.set_exception(result)
        else:
            job.answer.set_result(result)


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
