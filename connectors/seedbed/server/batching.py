"""Dynamic batching: one thread owns the embedder, and what waits while it works goes into its next call."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from seedbed.content import Content, Kind
from seedbed.errors import ContentsRefused, Fatal, RowError, SeedbedError
from seedbed.protocols import CanSubmit, Embedder, Vectors
from seedbed.server.dialect import Busy

_ENOUGH = 8
_MEDIUM = 1000


@dataclass(slots=True)
class _Job:
    contents: list[Content]
    kind: Kind
    answer: Future[Vectors] = field(default_factory=Future)


class Batcher:
    """`make` is called in the worker's thread, so that loading a model keeps nobody from listening.

    At most `contents` and about `tokens` in one call of the embedder, so that nobody waits long for others; at most
    `waiting` callers in the queue. `on_batch` hears how many contents each call has.
    """

    def __init__(
        self, make: Callable[[], Embedder], *, contents: int = 512, tokens: int = 32_768, waiting: int = 1024
    ) -> None:
        self._tokens = tokens
        self._last = 0
        self.on_batch: Callable[[int], None] = lambda count: None
        self._make = make
        self._contents = contents
        self._jobs: queue.Queue[_Job | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._work, name="seedbed-embedder", daemon=True)
        self._ending = False
        self.embedder: Embedder | None = None
        self.ready = threading.Event()
        self.failure: SeedbedError | None = None

    def start(self, on_failure: Callable[[], None] = lambda: None) -> None:
        """Begins to load the embedder. `on_failure` is called once `failure` says why that did not work."""
        self._on_failure = on_failure
        self._thread.start()

    def stop(self) -> None:
        """Answers what waits, then ends. A model that is still being loaded is not waited for."""
        self._jobs.put(None)
        self._thread.join(None if self.ready.is_set() else 0.1)

    @property
    def waiting(self) -> int:
        return self._jobs.qsize()

    def submit(self, contents: list[Content], kind: Kind) -> Future[Vectors]:
        """The future raises RowError for contents that the model refuses. Raises Busy at once where too many wait."""
        job = _Job(contents, kind)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy("too many requests wait", hint="try again in a second") from None
        return job.answer

    # --- the worker ---------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self.embedder = self._make()
            # One that takes contents singly is a service, whose calls are paid for.
            if not isinstance(self.embedder, CanSubmit):
                self.embedder.embed([Content.of("warm")])
            else:
                _ = self.embedder.space
        except Exception as error:  # noqa: BLE001 - else nobody would hear of it, and the server wait for ever
            self.failure = _ours(error, "the embedder cannot be loaded")
            self._on_failure()
            return
        self.ready.set()
        held: _Job | None = None
        while not self._ending or held is not None:
            first = held or self._jobs.get()
            if first is None:
                break
            jobs, held = self._gather(first)
            # A caller that has gone meanwhile is left out; from here on its future cannot be cancelled.
            jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if jobs:
                self._last = len(jobs)
                self.on_batch(sum(len(job.contents) for job in jobs))
                self._answer(self.embedder, jobs)
        self.embedder.close()

    def _gather(self, first: _Job) -> tuple[list[_Job], _Job | None]:
        """What waits of the same kind, up to the most for one call; and the first that did not fit.

        Half of those that ask are enough: callers of the last call send their next text while this one works."""
        jobs, count, tokens = [first], len(first.contents), self._count(first)
        enough = min(self._contents, max(_ENOUGH, (self._jobs.qsize() + self._last + 1) // 2))
        while count < enough and tokens < self._tokens:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._ending = True
                break
            count, tokens = count + len(job.contents), tokens + self._count(job)
            if job.kind != first.kind or count > self._contents or tokens > self._tokens:
                return jobs, job
            jobs.append(job)
        return jobs, None

    @staticmethod
    def _count(job: _Job) -> int:
        """Characters tell enough of how long a call takes, and cost no tokenizer; a picture is about a thousand."""
        return sum(len(content.text) // 4 + 2 + _MEDIUM * len(content.media) for content in job.contents)

    @staticmethod
    def _answer(embedder: Embedder, jobs: Sequence[_Job]) -> None:
        contents = [content for job in jobs for content in job.contents]
        refused: dict[int, str] = {}
        try:
            vectors = embedder.embed(contents, jobs[0].kind)
        except ContentsRefused as error:
            vectors, refused = error.vectors, error.refused
        except Exception as error:  # noqa: BLE001 - whatever it is, each caller must hear of it
            if len(jobs) > 1 and not isinstance(error, SeedbedError):
                # One caller's contents, or their sum (no memory left): each gets an answer of his own.
                for job in jobs:
                    Batcher._answer(embedder, [job])
                return
            for job in jobs:
                job.answer.set_exception(_ours(error, "the embedder failed"))
            return
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
        refused = {**dict.fromkeys(broken, "the model answered with NaN or infinite numbers"), **refused}
        start = 0
        for job in jobs:
            end = start + len(job.contents)
            bad = next((number for number in range(start, end) if number in refused), None)
            if bad is None:
                job.answer.set_result(vectors[start:end])
            else:
                job.answer.set_exception(RowError(f"input {bad - start}: {refused[bad]}"))
            start = end


def _ours(error: Exception, words: str) -> SeedbedError:
    if isinstance(error, SeedbedError):
        return error
    found = Fatal(f"{words}: {type(error).__name__}: {error}")
    found.__cause__ = error
    return found
