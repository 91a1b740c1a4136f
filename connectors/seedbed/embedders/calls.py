"""Requests to a service, many beside one another: admission, trying again, single flight.

One batch of a pipeline is a thousand requests, so a request that fails is sent again by itself; what a run raises is
what no second try mends.
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from seedbed.content import Content, Kind
from seedbed.embedders.account import Account
from seedbed.embedders.budget import Budget
from seedbed.embedders.reply import Reply
from seedbed.embedders.wire import NO_UNICODE
from seedbed.errors import RowError, SeedbedError, Transient
from seedbed.loop import LoopThread
from seedbed.protocols import Usage, Vectors

_TRIES = 5
_FIRST_WAIT, _MOST_WAIT = 0.5, 30.0
_GATHERED_SECONDS = 0.2
DEADLINE_SECONDS = 600.0
"""A request that was refused for its rate all this time is given up."""


class Again(Transient):
    """The same request may be answered later: not before `retry_after` seconds, where the service says so."""

    retry_after: float = 0.0


class RateLimited(Again):
    """More requests or tokens than the account may send."""

    code = "rate_limited"


class Overloaded(Again):
    """The service itself has too much to do, or more is in flight than it takes."""

    code = "overloaded"


@dataclass(frozen=True, slots=True)
class Answer:
    """float32 (n, dimensions), not yet of unit length, and the tokens that were paid for."""

    vectors: Vectors
    text_tokens: int
    image_tokens: int = 0


class Api(Protocol):
    """One service's way of speaking."""

    url: str
    takes: frozenset[str]

    def groups(self, contents: Sequence[Content]) -> list[list[int]]:
        """Which contents go into one request."""
        ...

    async def prepared(self, content: Content) -> Content:
        """As the service takes it. Raises RowError for what it does not."""
        ...

    def request(self, contents: Sequence[Content], kind: Kind) -> bytes:
        """Of prepared contents. Raises RowError for what JSON cannot say."""
        ...

    def answer(self, body: bytes, count: int) -> Answer:
        """Raises Transient for what is no answer, Fatal for vectors of another model or size."""
        ...

    def fault(self, reply: Reply) -> SeedbedError:
        """The error that a status other than 200 means: RowError (these contents), RateLimited, Overloaded,
        Transient, Fatal."""
        ...

    def estimate(self, content: Content, kind: Kind) -> float:
        """About how many tokens."""
        ...

    def most(self, content: Content, kind: Kind) -> tuple[float, float]:
        """Text and image tokens that it cannot exceed."""
        ...


class Window:
    """How many requests are in flight. Halves where the service has too much to do (once a second, and for a minute it
    does not grow again), grows by one a round."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.limit = float(most)
        self._used = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._overloaded = 0.0
        self._hold = self._quiet = 0.0

    async def __aenter__(self) -> None:
        while self._used >= int(self.limit):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._used += 1

    async def __aexit__(self, *_: object) -> None:
        self._used -= 1
        self._wake()

    def good(self, now: float) -> None:
        self._overloaded *= 0.98
        if now >= self._hold:
            self.limit = min(float(self._most), self.limit + 1 / self.limit)
            self._wake()

    def overload(self, now: float) -> None:
        # One in a hundred is no reason to slow down; one in ten is.
        self._overloaded = self._overloaded * 0.98 + 0.02
        if self._overloaded > 0.1 and now >= self._quiet:
            self.limit = max(1.0, self.limit / 2)
            self._hold, self._quiet = now + 60, now + 1

    def _wake(self) -> None:
        for _ in range(max(0, int(self.limit) - self._used)):
            while self._waiting:
                turn = self._waiting.pop(0)
                if not turn.done():
                    turn.set_result(None)
                    break


@dataclass(slots=True)
class Outcome:
    """What became of some contents: their vectors, or why they were refused."""

    positions: list[int]
    vectors: Vectors | None = None
    refused: dict[int, str] = field(default_factory=dict)


class Calls:
    """The event loop of one embedder, in a thread of its own that starts with the first call."""

    def __init__(
        self,
        api: Api,
        headers: dict[str, str],
        account: Account,
        usage: Usage,
        *,
        in_flight: int,
        seconds: float,
    ) -> None:
        self._api, self._headers, self._seconds = api, headers, seconds
        self.account = account
        self.budget: Budget | None = None
        self._usage = usage
        self._most = in_flight
        self._loop: LoopThread | None = None
        self._guard = threading.Lock()
        self._flying: dict[tuple[str, bytes], asyncio.Future[Answer]] = {}
        self._requests = 0
        self._tokens = 0.0
        self._epoch = 0
        self._queued = 0

    # --- from other threads -------------------------------------------------------------------------

    def each(self, contents: Sequence[Content], kind: Kind) -> Generator[list[Outcome], None, None]:
        """Outcomes as they come, in any order, those of a fifth of a second together. What stops a run is raised after
        those that were in flight came in. Closing the iterator gives up what was not yet sent."""
        found: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        halt = threading.Event()
        job = self._running().run(self._job(contents, kind, found.put, halt))
        job.add_done_callback(lambda done: found.put(None if done.cancelled() else done.exception()))
        try:
            yield from _gathered(found)
        finally:
            halt.set()

    def submit(self, content: Content, kind: Kind) -> Future[Answer]:
        """One content's answer; raises RowError, Transient, Fatal, Refused from the future."""
        return self._running().run(self._shared([content], kind))

    def get(self, url: str) -> Reply:
        """A plain question to the same server. Raises Transient."""
        return self._running().run(self._get(url)).result()

    def close(self) -> None:
        """Ends the loop; what is in flight is given up."""
        with self._guard:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.close(self._transport.close())
        if self.budget is not None:
            self.budget.close()
        self.account.keeper.close()

    def _running(self) -> LoopThread:
        with self._guard:
            if self._loop is None:
                loop = LoopThread("seedbed-calls")
                loop.run(self._begin()).result()
                self._loop = loop
            return self._loop

    # --- in the loop --------------------------------------------------------------------------------

    async def _begin(self) -> None:
        from seedbed.embedders.transport import Transport

        self._transport = Transport(self._headers, self._seconds)
        self._window = Window(self._most)
        self._turn = asyncio.Lock()

    async def _get(self, url: str) -> Reply:
        for number in range(_TRIES - 1):
            try:
                return await self._transport.get(url)
            except Transient:
                await asyncio.sleep(random.uniform(0, _FIRST_WAIT * 2**number))
        return await self._transport.get(url)

    async def _job(
        self, contents: Sequence[Content], kind: Kind, put: Callable[[Outcome], None], halt: threading.Event
    ) -> None:
        groups = iter(self._api.groups(contents))
        failed: list[SeedbedError] = []

        async def work() -> None:
            for group in groups:
                if failed or halt.is_set():
                    return
                try:
                    await self._group([contents[n] for n in group], group, kind, put)
                except SeedbedError as error:
                    failed.append(error)

        # Some wait before they try again, and others take their place meanwhile.
        await asyncio.gather(*(work() for _ in range(min(len(contents), 2 * self._most))))
        if failed:
            raise failed[0]

    async def _group(
        self, contents: list[Content], positions: list[int], kind: Kind, put: Callable[[Outcome], None]
    ) -> None:
        """Of a group that is refused each half is tried, down to the contents whose fault it is."""
        try:
            answer = await self._shared(contents, kind)
        except RowError as error:
            if len(contents) == 1:
                put(Outcome(positions, refused={positions[0]: error.message}))
                return
            half = len(contents) // 2
            await self._group(contents[:half], positions[:half], kind, put)
            await self._group(contents[half:], positions[half:], kind, put)
        else:
            put(Outcome(positions, answer.vectors))

    async def _shared(self, contents: list[Content], kind: Kind) -> Answer:
        """Single flight: who asks for what is just being asked for waits for that answer."""
        if len(contents) > 1:
            return await self._ask(contents, kind)
        try:
            name = (kind, contents[0].canonical())
        except UnicodeEncodeError:
            raise RowError(NO_UNICODE) from None
        flying = self._flying.get(name)
        if flying is None:
            flying = asyncio.ensure_future(self._ask(contents, kind))
            self._flying[name] = flying
            flying.add_done_callback(lambda _: self._flying.pop(name, None))
        return await asyncio.shield(flying)

    async def _ask(self, given: list[Content], kind: Kind) -> Answer:
        contents = [await self._api.prepared(content) for content in given]
        estimate = sum(self._api.estimate(content, kind) for content in contents)
        reserved = _sum(self._api.most(content, kind) for content in contents)
        # It may be another's turn by the time of the answer: a gateway has one a day.
        budget = self.budget
        if budget is None:
            return await self._until_answered(contents, kind, estimate)
        await budget.reserve(*reserved)
        used = (0.0, 0.0)
        try:
            answer = await self._until_answered(contents, kind, estimate)
            used = (answer.text_tokens, answer.image_tokens)
        finally:
            budget.settle(reserved, used)
        return answer

    async def _until_answered(self, contents: list[Content], kind: Kind, estimate: float) -> Answer:
        clock = asyncio.get_running_loop().time
        until, tries, refusals = clock() + DEADLINE_SECONDS, 0, 0
        while True:
            # Each time anew: what the service refused may be how it was asked.
            body = self._api.request(contents, kind)
            try:
                async with self._window:
                    epoch = await self._admitted(estimate)
                    return await self._once(body, len(contents), estimate, epoch)
            except Transient as error:
                limited = isinstance(error, (RateLimited, Overloaded))
                tries, refusals = tries + (not limited), refusals + limited
                if tries >= _TRIES or clock() > until:
                    raise
                longest = min(_MOST_WAIT, _FIRST_WAIT * 2 ** (tries + min(refusals, 3) - 1))
                least = error.retry_after if isinstance(error, Again) else 0.0
                await asyncio.sleep(max(random.uniform(0, longest), least))

    async def _once(self, body: bytes, count: int, estimate: float, epoch: int) -> Answer:
        reply = await self._transport.post(self._api.url, body)
        now = asyncio.get_running_loop().time()
        if reply.status != 200:
            error = self._api.fault(reply)
            if isinstance(error, RateLimited):
                self.account.refused(epoch)
            elif isinstance(error, Overloaded):
                self._window.overload(now)
            if isinstance(error, Again):
                error.retry_after = _retry_after(reply)
            raise error
        self.account.accepted(epoch)
        self._window.good(now)
        answer = self._api.answer(reply.body, count)
        used = answer.text_tokens + answer.image_tokens
        self._tokens += estimate - used
        self._usage.calls += 1
        self._usage.contents += count
        self._usage.tokens += used
        self._usage.image_tokens += answer.image_tokens
        self._usage.estimated += estimate
        return answer

    async def _admitted(self, tokens: float) -> int:
        """Waits for a request's turn and its tokens; the epoch of the pace that it goes in."""
        self._queued += 1
        try:
            async with self._turn:
                while self._requests < 1 or self._tokens < tokens:
                    await self._lease(tokens)
                self._requests -= 1
                self._tokens -= tokens
                return self._epoch
        finally:
            self._queued -= 1

    async def _lease(self, tokens: float) -> None:
        account, wanted = self.account, max(0.0, tokens - self._tokens)
        queued = self._queued if self._requests < 1 else 0
        if account.keeper.shared:
            lease = await asyncio.to_thread(account.lease, queued, wanted)
        else:
            lease = account.lease(queued, wanted)
        if not lease.wait:
            self._requests += lease.requests
            self._tokens += lease.tokens
            self._epoch = lease.epoch
        else:
            await asyncio.sleep(lease.wait)


def _gathered(found: queue.SimpleQueue[Outcome | BaseException | None]) -> Iterator[list[Outcome]]:
    """What the queue holds until its end, which may be an error to raise."""
    while True:
        outcomes: list[Outcome] = []
        until = time.monotonic() + _GATHERED_SECONDS
        item = found.get()
        while isinstance(item, Outcome):
            outcomes.append(item)
            try:
                item = found.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
        if outcomes:
            yield outcomes
        if isinstance(item, BaseException):
            raise item
        if item is None:
            return


def _sum(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    text = image = 0.0
    for one, other in pairs:
        text, image = text + one, image + other
    return text, image


def _retry_after(reply: Reply) -> float:
    """Seconds; a date, which clocks may read differently, counts as none."""
    try:
        return min(_MOST_WAIT, max(0.0, float(reply.headers.get("Retry-After", "0"))))
    except ValueError:
        return 0.0


def unit(vectors: Vectors) -> tuple[Vectors, dict[int, str]]:
    """Rows of length 1 (L2), and those that have no direction, with the reason."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    wrong = {int(n): "the model answered with NaN or infinite numbers" for n in np.flatnonzero(~np.isfinite(lengths))}
    wrong |= {int(n): "the model answered with zeros alone" for n in np.flatnonzero(lengths == 0)}
    lengths[list(wrong)] = 1
    return np.ascontiguousarray(vectors / lengths[:, None], np.float32), wrong
