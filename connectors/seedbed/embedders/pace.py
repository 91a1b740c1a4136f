"""How many requests a second a service takes: found out from what it refuses.

A service may allow less than its documentation says, and may refuse a share of requests for reasons that have nothing
to do with their rate. So the rate follows what is let through: it doubles at the start, and climbs by a hundredth a
window after that (additive increase, multiplicative decrease, with the decrease measured in place of guessed). Where
more is refused than usual, a window at a clearly lower rate tells why: what is refused there is the service's own
share, and what is not was the rate's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NO_LIMIT = 1e9
"""JSON has no infinity."""
_START = 50.0
_START_WINDOW, _WINDOW, _LONGEST = 0.25, 1.0, 4.0
_ENOUGH = 100
_HEAVY = 0.25
_CLIMB = 0.01
_LOWER, _BELOW = 0.8, 0.98
_MEMORY = 500
"""So many answers, about, tell of the share that is refused at any rate."""


@dataclass(slots=True)
class Pace:
    """Requests a second, at most `ceiling`. Plain numbers, so that many processes can share one through a database."""

    ceiling: float = NO_LIMIT
    rate: float = _START
    epoch: int = 0
    """Counts the changes of the rate; what was sent at an earlier rate tells nothing of this one."""
    starting: bool = True
    checking: bool = False
    sent: int = 0
    accepted: int = 0
    refused: int = 0
    clean: int = 0
    """Windows in a row in which nothing was wrong."""
    since: float = 0.0
    """When the first of this epoch was sent, and when the first was answered."""
    first: float = 0.0
    usual_refused: float = 0.0
    usual_count: float = 0.0
    """Answers at rates that are no cause of refusals."""
    suspect_rate: float = 0.0
    suspect_share: float = 0.0
    suspect_count: int = 0
    suspect_passed: float = 0.0

    def __post_init__(self) -> None:
        self.rate = min(self.rate, self.ceiling)

    @property
    def background(self) -> float:
        """The share that is refused at any rate."""
        return self.usual_refused / self.usual_count if self.usual_count else 0.0

    def send(self, now: float, count: int) -> None:
        """So many requests leave, `now` in seconds of one clock."""
        if not self.sent:
            self.since = now
        self.sent += count

    def note(self, epoch: int, now: float, accepted: int = 0, refused: int = 0) -> None:
        """Answers to requests that were sent in `epoch`, `now` as in `send`."""
        if epoch != self.epoch or not accepted + refused:
            return
        if not self.accepted + self.refused:
            self.first = now
        self.accepted += accepted
        self.refused += refused
        if self._whole(now):
            self._close(now)

    def _whole(self, now: float) -> bool:
        count, elapsed = self.accepted + self.refused, now - self.first
        if self.starting and not self.checking:
            return elapsed >= _START_WINDOW and count >= min(_ENOUGH, self.rate * _START_WINDOW / 2)
        return (elapsed >= _WINDOW and count >= _ENOUGH) or (elapsed >= _LONGEST and count > 1)

    def _close(self, now: float) -> None:
        count = self.accepted + self.refused
        share = self.refused / count
        sent = min(self.rate, self.sent / max(now - self.since, 1e-3))
        passed = sent * (1 - share)
        if share > _HEAVY:
            self.clean = 0
            self.starting = self.checking = False
            self._go(passed)
        elif self.checking:
            self._learn()
            self.checking = False
            explained = self.suspect_share <= max(2 * share, share + _noise(share, self.suspect_count))
            self.starting = self.starting and explained
            self._go(self.suspect_rate if explained else self.suspect_passed * _BELOW / (1 - self.background))
        elif self._suspicious(share, count):
            self.checking, self.clean = True, 0
            self.suspect_rate, self.suspect_passed = self.rate, passed
            self.suspect_share, self.suspect_count = share, count
            self._go(_LOWER * passed)
        else:
            if self.background or not self.refused:
                self._learn()
            # A rate that nobody asked for is not proved.
            self.clean += 1
            climb = 1.0 if self.starting else _CLIMB * (1 + self.clean // 8)
            self._go(self.rate * (1 + climb) if sent > 0.7 * self.rate else self.rate)

    def _suspicious(self, share: float, count: int) -> bool:
        return self.refused > 1 and share > self.background + _noise(self.background, count)

    def _learn(self) -> None:
        count = self.accepted + self.refused
        keep = max(0.0, 1 - count / _MEMORY)
        self.usual_refused = self.usual_refused * keep + self.refused
        self.usual_count = self.usual_count * keep + count

    def _go(self, rate: float) -> None:
        self.rate = max(1.0, min(self.ceiling, rate))
        self.epoch += 1
        self.sent = self.accepted = self.refused = 0


def _noise(share: float, count: int) -> float:
    """Two standard deviations of a share among so many answers."""
    usual = max(share, 0.005)
    return 2 * math.sqrt(usual * (1 - usual) / count)
