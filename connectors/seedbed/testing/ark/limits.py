"""The account's limits: token buckets that hold one second's worth, and requests in flight."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from seedbed.testing.ark.errors import ArkError
from seedbed.testing.ark.settings import Limits


@dataclass(slots=True)
class _Bucket:
    per_minute: float
    level: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.at = self._size(), time.monotonic()

    def _size(self) -> float:
        return max(1.0, self.per_minute / 60)

    def has(self, amount: float) -> bool:
        now = time.monotonic()
        self.level = min(self._size(), self.level + (now - self.at) * self.per_minute / 60)
        self.at = now
        # One request of more than a second's tokens is taken by a full bucket.
        return self.level >= min(amount, self._size())


class Admission:
    """Raises ArkError for a request too many. `leave` after each that was admitted."""

    def __init__(self, limits: Limits) -> None:
        self._requests = _Bucket(limits.rpm) if limits.rpm is not None else None
        self._tokens = _Bucket(limits.tpm) if limits.tpm is not None else None
        self._most = limits.in_flight
        self._burst = limits.burst
        self._lately: deque[float] = deque()
        self.in_flight = 0

    def enter(self, tokens: int) -> None:
        if self._most is not None and self.in_flight >= self._most:
            raise ArkError("InflightBatchsizeExceeded", f"more than {self._most} requests are in flight")
        self._check_burst()
        if self._requests and not self._requests.has(1):
            raise ArkError("ModelAccountRpmRateLimitExceeded", "the account's requests per minute are used up")
        if self._tokens and not self._tokens.has(tokens):
            raise ArkError("ModelAccountTpmRateLimitExceeded", "the account's tokens per minute are used up")
        if self._requests:
            self._requests.level -= 1
        if self._tokens:
            self._tokens.level -= tokens
        self._lately.append(time.monotonic())
        self.in_flight += 1

    def _check_burst(self) -> None:
        while self._lately and self._lately[0] < time.monotonic() - 0.1:
            self._lately.popleft()
        if self._burst is not None and len(self._lately) >= self._burst:
            raise ArkError("RequestBurstTooFast", f"more than {self._burst} requests in a tenth of a second")

    def leave(self) -> None:
        self.in_flight -= 1
