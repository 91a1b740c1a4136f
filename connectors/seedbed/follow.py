"""`sync --follow`: passes over what the source queues, woken as changes come, until it is told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from seedbed.errors import AlreadyRunning, ConfigError, SeedbedError, Transient
from seedbed.report import SyncReport
from seedbed.session import Session
from seedbed.sync import SyncOptions, sync

POLL = 5.0
"""Seconds between looks at a queue of which nothing was heard."""
RETRY_FAILED = 3600.0
"""Seconds after which rows that failed are tried again."""
_MOST_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass did, and what waits behind it: changes, and the age of the oldest in seconds."""

    report: SyncReport
    waiting: int
    lag: float

    def as_dict(self) -> dict[str, Any]:
        return {**self.report.as_dict(), "waiting": self.waiting, "lag": round(self.lag, 3)}


def follow(
    open_session: Callable[[], Session],
    options: SyncOptions,
    each: Callable[[Pass], None],
    troubled: Callable[[SeedbedError], None],
    stop: threading.Event,
) -> SyncReport:
    """The last pass's report, once `stop` is set or a brake has held a pass back. A service that fails is told to
    `troubled` and tried again, after longer and longer. Raises ConfigError where nothing is queued."""
    return _Follower(open_session, options, each, troubled, stop).run()


@dataclass(slots=True)
class _Follower:
    open_session: Callable[[], Session]
    options: SyncOptions
    each: Callable[[Pass], None]
    troubled: Callable[[SeedbedError], None]
    stop: threading.Event
    patience: float = 1.0
    retried: float = float("-inf")
    last: SyncReport = field(default_factory=SyncReport)

    def run(self) -> SyncReport:
        while not self.stop.is_set():
            try:
                with ExitStack() as stack:
                    self._passes(stack.enter_context(self.open_session()))
            except (Transient, AlreadyRunning) as error:
                self.troubled(error)
            if self.last.refused is not None:
                break
            if not self.stop.is_set():
                self._pause()
        return self.last

    def _passes(self, session: Session) -> None:
        """Passes of one session, until one of them met something that is better opened anew."""
        if session.declaration.source.changes != "queue":
            raise ConfigError(
                "only a queue of changes can be followed",
                setting="source.changes",
                hint='set changes = "queue" and run `seedbed watch`, or run `seedbed sync` by a schedule',
            )
        while not self.stop.is_set():
            retry = time.monotonic() - self.retried > RETRY_FAILED
            self.last = sync(session, replace(self.options, retry=retry), stop=self.stop)
            self.retried = time.monotonic() if retry else self.retried
            waiting = session.feed.waiting()
            self.each(Pass(self.last, waiting.changes, waiting.oldest))
            if self.last.refused is not None or any(sink.error for sink in self.last.sinks.values()):
                return
            self.patience = 1.0
            # What was asked for once is done by the first pass.
            self.options = replace(self.options, full=False)
            if not self.last.read and session.feed.waiting().free:
                self.stop.wait(POLL)  # rows that writers hold locked: looking again at once would not help
            while not self.stop.is_set() and not session.feed.waiting().free:
                session.feed.wait(POLL, self.stop)

    def _pause(self) -> None:
        self.stop.wait(self.patience)
        self.patience = min(2 * self.patience, _MOST_PATIENCE)
