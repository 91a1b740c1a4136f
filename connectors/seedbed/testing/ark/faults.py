"""What goes wrong on demand."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from seedbed.testing.ark.errors import STATUS, ArkError

WIRE = ("hang", "drip", "html", "html_200", "truncated", "oversized", "wrong_dimension", "nan", "zeros", "drop")
"""Faults of the answer itself: none ever comes; a byte at a time; a proxy's page, with status 502 or 200; half of the
JSON; 100 MB; too few numbers; NaN; zeros; the connection is closed. Any code of errors.STATUS is a fault, too."""


@dataclass(slots=True)
class Faults:
    """Shares of requests that are refused whatever their rate, and what is scripted: `next` for the coming requests in
    turn, `texts` for each request whose text holds the word. `expire_after` and `spend_after` so many good answers the
    key is expired, or the quota spent."""

    share_429: float = 0.0
    share_500: float = 0.0
    seed: int = 0
    next: deque[str] = field(default_factory=deque)
    texts: dict[str, str] = field(default_factory=dict)
    expire_after: int | None = None
    spend_after: int | None = None
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def of(self, text: str, answered: int) -> str | None:
        """A name in WIRE to carry out, or None. Raises ArkError for what is an error of the service."""
        name = self.next.popleft() if self.next else None
        name = name or next((fault for word, fault in self.texts.items() if word in text), None)
        if name is None and self.expire_after is not None and answered >= self.expire_after:
            name = "AuthenticationError"
        if name is None and self.spend_after is not None and answered >= self.spend_after:
            name = "QuotaExceeded"
        if name is None:
            drawn = self._random.random()
            if drawn < self.share_429:
                name = "ModelAccountRpmRateLimitExceeded"
            elif drawn < self.share_429 + self.share_500:
                name = "InternalServiceError"
        if name is None or name in WIRE:
            return name
        if name.partition(".")[0] not in STATUS:
            raise ValueError(f"no fault is called {name!r}")
        raise ArkError(name, f"a fault on demand: {name}")
