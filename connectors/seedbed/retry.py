"""Trying again: only the pipeline does so, and only on Transient errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from seedbed.errors import Transient

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """Full jitter from `first` seconds, doubling to `most`; the last error is raised."""

    attempts: int = 5
    first: float = 0.5
    most: float = 30.0

    def run(self, call: Callable[[], T]) -> T:
        return Retrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_attempt(self.attempts),
            wait=wait_random_exponential(multiplier=self.first, max=self.most),
            reraise=True,
        )(call)
