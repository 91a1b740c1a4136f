"""An account's limits, shared by all that use it: requests and tokens a second, leased in slices.

The state stands with a keeper: in this process, or in a ledger for many. Each lease reports what became of earlier
requests, brings the buckets up to the present and takes from them; whoever leases moves the common pace.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from seedbed.embedders.pace import NO_LIMIT, Pace

T = TypeVar("T")
S = TypeVar("S")
Change = Callable[[S | None, float], tuple[S, T]]
"""From the state (None at first) and the keeper's clock, in seconds, to the next state and an answer."""


class Keeper(Protocol):
    """Where states are kept by name."""

    shared: bool
    """Whether other processes see them, so that asking costs a round trip."""

    def update(self, name: str, kind: type[S], change: Change[S, T]) -> T:
        """Carries out a change of a state, a dataclass of plain values, with nobody between. Raises Transient,
        Fatal."""
        ...

    def close(self) -> None: ...


class LocalKeeper:
    """In this process. As Keeper."""

    shared = False

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}
        self._guard = threading.Lock()

    def update(self, name: str, kind: type[S], change: Change[S, T]) -> T:
        with self._guard:
            self._states[name], answer = change(self._states.get(name), time.monotonic())
        return answer

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Answers:
    """How many requests of one epoch were accepted, and how many refused for their rate."""

    accepted: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """`requests` and `tokens` that may be used now; or none, and when to ask again: after `wait` seconds."""

    requests: int
    tokens: float
    epoch: int
    wait: float


@dataclass(slots=True)
class Account:
    """`requests` and `tokens` are those a minute; 0 is no limit. `name` tells accounts apart and holds no secret."""

    name: str
    keeper: Keeper
    requests: int
    tokens: int
    answers: dict[int, Answers] = field(default_factory=dict)
    """By epoch, not yet reported."""

    @property
    def slice_seconds(self) -> float:
        """A lease from a database costs a millisecond, and is worth a quarter of a second."""
        return 0.25 if self.keeper.shared else 0.1

    def accepted(self, epoch: int) -> None:
        self.answers.setdefault(epoch, Answers()).accepted += 1

    def refused(self, epoch: int) -> None:
        self.answers.setdefault(epoch, Answers()).refused += 1

    def lease(self, waiting: int, tokens: float) -> Lease:
        """For so many waiting requests (0: for tokens alone), the first of which needs `tokens`. Raises what the
        keeper raises."""
        answers, self.answers = self.answers, {}

        def change(state: Buckets | None, now: float) -> tuple[Buckets, Lease]:
            buckets = state or Buckets.full(now, self.requests, self.tokens)
            for epoch, found in answers.items():
                buckets.pace.note(epoch, now, found.accepted, found.refused)
            lease = buckets.take(now, waiting, tokens, self.slice_seconds)
            return buckets, lease

        return self.keeper.update(f"account {self.name}", Buckets, change)


@dataclass(slots=True)
class Buckets:
    """The state: what may be asked now, as of `at`. A bucket holds a tenth of a second's requests (not a burst that a
    service would refuse) and a second's tokens."""

    pace: Pace
    token_rate: float
    requests: float
    tokens: float
    at: float

    @classmethod
    def full(cls, now: float, rpm: int, tpm: int) -> Buckets:
        return cls(Pace(ceiling=rpm / 60 if rpm else NO_LIMIT), tpm / 60, 1.0, tpm / 60, now)

    def take(self, now: float, waiting: int, tokens: float, seconds: float) -> Lease:
        passed = max(0.0, now - self.at)
        self.at = now
        rate = self.pace.rate
        self.requests = min(max(1.0, rate * seconds), self.requests + passed * rate)
        self.tokens = min(self.token_rate, self.tokens + passed * self.token_rate)
        # A request of more than a second's tokens goes when the bucket is full, and leaves it in debt.
        needed = min(tokens, self.token_rate)
        if (waiting and self.requests < 1) or (self.token_rate and self.tokens < needed):
            waits = [(1 - self.requests) / rate] if waiting else []
            if self.token_rate:
                waits.append((needed - self.tokens) / self.token_rate)
            return Lease(0, 0.0, self.pace.epoch, max(waits) + 1e-4)
        count = min(waiting, int(self.requests))
        given = max(tokens, min(self.tokens, tokens * count)) if self.token_rate else float("inf")
        self.requests -= count
        if self.token_rate:
            self.tokens -= given
        if count:
            self.pace.send(now, count)
        return Lease(count, given, self.pace.epoch, 0.0)
