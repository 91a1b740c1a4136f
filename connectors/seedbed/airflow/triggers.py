"""Waiting for queued changes in the triggerer, which holds no worker: for assets that schedule DAGs, for sensors."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from seedbed.airflow.pace import Pace
from seedbed.errors import ConfigError, SeedbedError, Transient

if TYPE_CHECKING:
    from seedbed.postgres import Database
    from seedbed.sources.pg_lookout import Lookout, Seen

log = logging.getLogger(__name__)

# What reads files and databases is imported by those who wait, and beside the event loop: whoever parses DAG files
# imports this module.

SLOW = 60.0
"""Seconds between tries of what somebody has to mend first."""
_MOST_PATIENCE = 60.0
_SHARE = 20.0
"""A look at a queue of a million changes takes a tenth of a second: looks are this many times as far apart as long."""


class SeedbedChangesTrigger(BaseEventTrigger):
    """Fires when changes wait in the queue of a pipeline with `changes = "queue"`, and again when those have been taken
    and others wait, or when nobody takes them for a minute.

    An event's payload is `{"pipeline": name, "changes": waiting, "oldest": seconds}`. With `once` it ends with the
    first; then what nobody but the user can mend (a broken file, `seedbed watch` not run) is an event too, with the
    words as `error`. Without, that is logged and tried again each minute. A database that is away is waited for.

    `pipeline` is the file's path on the triggerer's machine, where it is read, again when it changes.
    """

    def __init__(self, pipeline: str, poll: float = 5.0, once: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pipeline = pipeline
        self.poll = poll
        self.once = once
        self._open: Lookout | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "seedbed.airflow.triggers.SeedbedChangesTrigger",
            {"pipeline": self.pipeline, "poll": self.poll, "once": self.once},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        pace, trouble = Pace(), _Trouble(self.pipeline)
        while True:
            try:
                async with aclosing(self._due(pace, trouble)) as found:
                    async for name, seen in found:
                        yield _event(payload(name, seen))
                        if self.once:
                            return
            except Transient as error:
                pause = trouble.away(error)
            except SeedbedError as error:
                if self.once:
                    yield _event({"pipeline": Path(self.pipeline).stem, "error": str(error)})
                    return
                pause = trouble.broken(error)
            else:
                continue  # the file has changed
            await asyncio.sleep(pause)

    async def _due(self, pace: Pace, trouble: _Trouble) -> AsyncGenerator[tuple[str, Seen]]:
        """What is to be told of, by one connection, until the pipeline file changes."""
        clock = asyncio.get_running_loop().time
        stamp = await asyncio.to_thread(_stamp, self.pipeline)
        async with watched(self.pipeline) as (name, lookout):
            self._open = lookout
            while await asyncio.to_thread(_stamp, self.pipeline) == stamp:
                began = clock()
                seen = await lookout.look(pace.told)
                took = clock() - began
                trouble.over()
                if pace.due(seen, began):
                    yield name, seen
                await lookout.wait(max(self.poll, _SHARE * took))

    async def cleanup(self) -> None:
        """Of a trigger that was cancelled while its event was being handed on."""
        if self._open is not None:
            await self._open.close()


class _Trouble:
    """What keeps a trigger from looking, logged once until it is over."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._said: set[str] = set()
        self._patience = 1.0

    def away(self, error: Exception) -> float:
        """Seconds to wait before the next try, longer and longer."""
        self._say("no look at the changes of %s, trying again: %s", error)
        pause, self._patience = self._patience, min(2 * self._patience, _MOST_PATIENCE)
        return pause

    def broken(self, error: Exception) -> float:
        self._say("the changes of %s cannot be waited for: %s", error)
        return SLOW

    def _say(self, words: str, error: Exception) -> None:
        if str(error) not in self._said:
            log.error(words, self._path, error)
        self._said.add(str(error))

    def over(self) -> None:
        if self._said:
            log.info("the changes of %s are being waited for again", self._path)
        self._said.clear()
        self._patience = 1.0


def payload(name: str, seen: Seen) -> dict[str, Any]:
    """What an event says of a pipeline's waiting changes."""
    return {"pipeline": name, "changes": seen.free, "oldest": round(seen.oldest, 3)}


def _event(said: dict[str, Any]) -> TriggerEvent:
    return TriggerEvent(said)  # type: ignore[no-untyped-call]


@asynccontextmanager
async def watched(path: str) -> AsyncIterator[tuple[str, Lookout]]:
    """A pipeline's name, and a look at its queue. Raises ConfigError for a pipeline that queues nothing, and as
    declaration.read and pg_lookout.Lookout do."""
    name, database, lookout = await asyncio.to_thread(_source, path)
    try:
        async with lookout:
            yield name, lookout
    finally:
        await asyncio.to_thread(database.close)


def _source(path: str) -> tuple[str, Database, Lookout]:
    """Not for the event loop: it imports, reads files, may ask for an Airflow connection and may start the embedded
    server."""
    from seedbed.declaration import read
    from seedbed.postgres import Database
    from seedbed.sources.pg_lookout import Lookout

    declaration = read(path)
    if declaration.source.changes != "queue":
        raise ConfigError(
            f"{path}: only a queue of changes can be waited for",
            setting="source.changes",
            hint='set changes = "queue" and run `seedbed watch`, or give the DAG a schedule',
        )
    database = Database(declaration.source.url, setting="source.url")
    return declaration.name, database, Lookout(database.options, declaration.name)


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
