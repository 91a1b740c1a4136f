"""Whether changes wait in a queue that nobody has taken, asked from an event loop by one connection.

For those who wait for many pipelines in one thread. It reads the tables of sql/queue.sql, takes nothing and writes
nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from seedbed.postgres import mapped
from seedbed.sources.pg_queue import CHANNEL, OF_OTHERS, not_watched, of_others

_SETTING = "source.url"
# Of the changes that a run would take: not held by anybody, not given up.
_SEEN = """
SELECT s.id, count(c.key) FILTER (WHERE f.free), count(c.key) FILTER (WHERE c.lease_until > clock_timestamp()),
    coalesce(extract(epoch FROM clock_timestamp() - min(c.enqueued_at) FILTER (WHERE f.free)), 0)::float8,
    coalesce(bool_or(c.enqueued_at <= %s) FILTER (WHERE f.free), false), clock_timestamp()
FROM seedbed_queue.subscription s LEFT JOIN seedbed_queue.change c ON c.subscription_id = s.id
CROSS JOIN LATERAL (
    SELECT c.attempts < 5 AND coalesce(c.lease_until, '-infinity') < clock_timestamp()
) AS f(free)
WHERE s.name = %s GROUP BY s.id"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look found: changes that nobody has taken and the age of the oldest of them in seconds, how many others
    somebody holds, and whether some of the free ones were there at an earlier look. `at` is the server's clock."""

    free: int
    taken: int
    oldest: float
    remain: bool
    at: datetime


class Lookout:
    """On one pipeline's queue. `options` are postgres.Database.options; connects in `async with`.

    Raises ConfigError for a pipeline that is not watched, Refused for a queue of somebody else's, Transient and Fatal
    as seedbed.postgres says.
    """

    def __init__(self, options: dict[str, Any], name: str) -> None:
        self._options = options
        self._name = name
        self._number = 0
        self._connection: AsyncConnection[TupleRow] | None = None

    async def __aenter__(self) -> Lookout:
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Idempotent."""
        if self._connection is not None:
            await self._connection.close()

    async def _open(self) -> None:
        with mapped(_SETTING):
            self._connection = await AsyncConnection.connect(**self._options)
        if (await self._row("SELECT to_regclass('seedbed_queue.change') IS NULL"))[0]:
            raise not_watched()
        if (await self._row(OF_OTHERS))[0]:
            raise of_others()
        with mapped(_SETTING):
            await self._connection.execute(f"LISTEN {CHANNEL}".encode())

    async def look(self, since: datetime | None = None) -> Seen:
        """`since` is the `at` of an earlier look."""
        found = await self._row(_SEEN, since, self._name)
        if found is None:
            raise not_watched()
        self._number, *seen = found
        return Seen(*seen)

    async def wait(self, seconds: float) -> None:
        """Until the queue is said to hold something after it was empty, or the time is over."""
        assert self._connection is not None
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        with mapped(_SETTING):
            while (left := end - clock()) > 0:
                async for notice in self._connection.notifies(timeout=left, stop_after=1):
                    if notice.payload == str(self._number):
                        return

    async def _row(self, statement: str, *parameters: object) -> Any:
        assert self._connection is not None
        with mapped(_SETTING):
            cursor = await self._connection.execute(statement.encode(), parameters or None)
            return await cursor.fetchone()
