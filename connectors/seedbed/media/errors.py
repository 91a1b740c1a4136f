"""What may be wrong with where a picture or video lies."""

from __future__ import annotations

from typing import Any

from tenacity import retry_if_exception_type, stop_after_attempt, wait_random_exponential

from seedbed.errors import RowError


class Missing(RowError):
    """There is nothing there: the pipeline says whether its row goes without."""


class Later(RowError):
    """It could not be had now: another time it may."""


TRIES = 3
FIRST_WAIT = 0.5


def trying() -> dict[str, Any]:
    """How often and when what is Later is tried again, for tenacity."""
    return {
        "retry": retry_if_exception_type(Later),
        "stop": stop_after_attempt(TRIES),
        "wait": wait_random_exponential(multiplier=FIRST_WAIT),
        "reraise": True,
    }
