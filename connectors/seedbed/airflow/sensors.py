"""A task that waits for queued changes and holds no worker while it does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowFailException

from seedbed.airflow.triggers import SeedbedChangesTrigger, payload, watched
from seedbed.errors import SeedbedError, Transient

if TYPE_CHECKING:
    from airflow.sdk import Context


class SeedbedChangesSensor(BaseSensorOperator):
    """Done when changes wait in the queue of a pipeline with `changes = "queue"`: at once where some do, else deferred
    to the triggerer. Its result is `{"pipeline": name, "changes": waiting, "oldest": seconds}`.

    `pipeline` is the file's path, on the workers' and the triggerer's machines alike. What nobody but the user
    can mend fails the task without a retry; a database that is away is waited for. `timeout` and `soft_fail` are as
    with every sensor.
    """

    template_fields: Sequence[str] = ("pipeline",)

    def __init__(self, *, pipeline: str, poll: float = 5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline
        self.poll = poll

    def execute(self, context: Context) -> dict[str, Any]:
        try:
            found = asyncio.run(_waiting(self.pipeline))
        except Transient as error:
            self.log.warning("%s", error)
            found = None
        except SeedbedError as error:
            raise AirflowFailException(str(error)) from error
        if found is None:
            self.defer(
                trigger=SeedbedChangesTrigger(self.pipeline, self.poll, once=True),
                method_name="resumed",
                timeout=timedelta(seconds=self.timeout),
            )
        return found

    def resumed(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """After the trigger's event."""
        if "error" in event:
            raise AirflowFailException(event["error"])
        return event


async def _waiting(path: str) -> dict[str, Any] | None:
    async with watched(path) as (name, lookout):
        seen = await lookout.look()
    return payload(name, seen) if seen.free else None
