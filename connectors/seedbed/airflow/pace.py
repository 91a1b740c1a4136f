"""When a pipeline's waiting changes are told of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seedbed.sources.pg_lookout import Seen

AGAIN = 60.0
"""Seconds after which changes that nobody has begun to take are told of once more: their run has failed."""


@dataclass(slots=True)
class Pace:
    """When waiting changes are told of; seconds are a monotonic clock's."""

    told: datetime | None = None
    """The look whose changes were told of and may wait still."""
    since: float = 0.0
    """When that was, or when somebody was last seen at work."""

    def due(self, seen: Seen, now: float) -> bool:
        if seen.taken:
            self.since = now
        if not seen.free:
            self.told = None
            return False
        if self.told is not None and seen.remain and now - self.since < AGAIN:
            return False
        self.told, self.since = seen.at, now
        return True
