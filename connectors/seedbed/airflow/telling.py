"""What a run did, for people: in the task's log, and as Airflow's metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from seedbed.report import SyncReport

log = logging.getLogger(__name__)
_EACH = 10.0
"""Seconds between lines of a task that works."""
_COUNTED = ("read", "embedded", "cached", "upserted", "deleted", "skipped", "failed", "tokens")


class Logger(Protocol):
    def info(self, event: Any, *args: Any, **kw: Any) -> Any: ...


def progress(logger: Logger) -> Callable[[SyncReport], None]:
    last = time.monotonic()

    def show(report: SyncReport) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _EACH:
            last = now
            logger.info("%s", pairs({name: getattr(report, name) for name in _COUNTED}))

    return show


def pairs(values: Mapping[str, Any]) -> str:
    shown = [f"{value:,} {name}" for name, value in values.items() if value]
    return ", ".join(shown) or "nothing to do"


def tell(logger: Logger, pipeline: str, told: Mapping[str, Any]) -> None:
    """The report, line by line, and its metrics."""
    logger.info("%s: %s, in %.1f s", pipeline, pairs({name: told[name] for name in _COUNTED}), told["seconds"])
    if told.get("cost") is not None:
        logger.info("cost: %.4f %s", told["cost"], told["currency"])
    for name, sink in told["sinks"].items():
        problem = f"; {sink['behind']:,} rows behind: {sink['error']}" if sink["error"] else ""
        logger.info("sink %s: %s%s", name, f"{sink['upserted']:,} upserted, {sink['deleted']:,} deleted", problem)
    if "shards" in told:
        slowest = "" if told["slowest"] is None else f", the slowest number {told['slowest'] + 1}"
        logger.info("%d shards%s, %.1f s", told["shards"], slowest, told["slowest_seconds"])
        logger.info("everything up to %s is in the stores: %.1f s behind", told["watermark"], told["lag"])
        logger.info("%d rows fail and keep their old vectors", told["dead"])
    _measure(pipeline, told)


def tell_plan(logger: Logger, pipeline: str, told: Mapping[str, Any]) -> None:
    names = ("new", "changed", "payload_changed", "unchanged", "deleted", "skipped", "failed", "tokens")
    cost = "" if told["cost"] is None else f", about {told['cost']:.2f} {told['currency']}"
    logger.info("%s: a run would find %s%s", pipeline, pairs({name: told[name] for name in names}), cost)


def warn(report: SyncReport) -> None:
    if report.newly_failed:
        log.warning(
            "%d rows newly failed and keep their old vectors; the first: %s", report.newly_failed, report.first_failure
        )


def measure_shard(pipeline: str, report: SyncReport) -> None:
    from airflow.sdk.observability import stats

    stats.timing("seedbed.shard", report.seconds * 1000, tags={"pipeline": pipeline})


def _measure(pipeline: str, told: Mapping[str, Any]) -> None:
    """Through Airflow, to StatsD or OpenTelemetry as it is set up; nothing where it is not."""
    from airflow.sdk.observability import stats

    tags = {"pipeline": pipeline}
    for name in _COUNTED:
        stats.incr(f"seedbed.{name}", told[name], tags=tags)
    stats.timing("seedbed.run", told["seconds"] * 1000, tags=tags)
    for name in ("lag", "dead", "cost"):
        if told.get(name) is not None:
            stats.gauge(f"seedbed.{name}", told[name], tags=tags)
