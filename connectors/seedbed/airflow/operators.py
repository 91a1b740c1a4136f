"""Operators over a pipeline file: plan, shard, finish, or all of it in one task.

What state there is stands in the ledger; between tasks travel shards (a few numbers) and counts. Cancelling a task
stops its work at the next batch; Airflow kills it five seconds later, which costs nothing but that batch's time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, BaseOperator, XComArg
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRuntimeError,
    AirflowSkipException,
)

from seedbed.airflow import telling
from seedbed.airflow.links import ReportLink
from seedbed.errors import AlreadyRunning, ConfigError, Fatal, Refused, Transient
from seedbed.expansion import in_folder

if TYPE_CHECKING:
    from airflow.sdk import Context

    from seedbed import Pipeline
    from seedbed.report import SyncReport

SHARD_NAME = "{{ seedbed_shard }}"
_WAIT = timedelta(seconds=15)
_MOST_WAITS = 4 * 60 * 12
"""Of a quarter of a minute each: a run that waits for another gives up after twelve hours."""


@contextmanager
def _told() -> Iterator[None]:
    """What trying again cannot help fails the task for good; the rest is left to its retries."""
    try:
        yield
    except (AlreadyRunning, Transient) as error:
        raise AirflowException(str(error)) from error
    except (ConfigError, Refused, Fatal) as error:
        raise AirflowFailException(str(error)) from error


def settle(report: SyncReport, what: str) -> None:
    """A brake fails without retry, a sink that is down or a stop with one; rows that failed are a warning."""
    if report.refused is not None:
        raise AirflowFailException(f"{what}: {report.refused}")
    down = [f"sink {name}: {sink.error}" for name, sink in report.sinks.items() if sink.error]
    if down:
        raise AirflowException(f"{what}: {'; '.join(down)}")
    if report.stopped:
        raise AirflowException(f"{what} was stopped before its end; run again to go on")
    telling.warn(report)


class _PipelineOperator(BaseOperator):
    """`pipeline` is the path of a pipeline file."""

    template_fields: Sequence[str] = ("pipeline",)
    ui_color = "#dcecd8"

    def __init__(self, *, pipeline: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pipeline = str(pipeline)
        self._stop: threading.Event | None = None

    def on_kill(self) -> None:
        """Called from a signal's handler, within `execute`, which goes on: so it only says so."""
        if self._stop is not None:
            self._stop.set()

    def _loaded(self) -> Pipeline:
        from seedbed import load

        # Not made in __init__: a DAG's operators are copied, and an event is not.
        self._stop = threading.Event()
        return load(self.pipeline)

    def _asked(self, context: Context, **own: Any) -> dict[str, Any]:
        """Options: the operator's own, else the run's params of that name."""
        params = context["params"]
        asked = {name: params.get(name) if value is None else value for name, value in own.items()}
        return {name: value for name, value in asked.items() if value is not None}


class SeedbedSyncOperator(_PipelineOperator):
    """A whole run in one task: every sink brought in step. Its counts are its result. Options that are None come from
    the run's params of that name."""

    operator_extra_links = (ReportLink(),)

    def __init__(
        self,
        *,
        pipeline: str,
        full_refresh: bool | None = None,
        allow_deletes: bool | None = None,
        allow_reembed: bool | None = None,
        asset: Asset | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(pipeline=pipeline, **{"outlets": [asset] if asset else [], **kwargs})
        self.options = {
            "full_refresh": full_refresh,
            "allow_deletes": allow_deletes,
            "allow_reembed": allow_reembed,
        }
        self.asset = asset

    def execute(self, context: Context) -> dict[str, Any]:
        options = self._asked(context, **self.options)
        with _told():
            loaded = self._loaded()
            full = options.pop("full_refresh", False)
            report = loaded.sync(full=full, stop=self._stop, progress=telling.progress(self.log), **options)
        told = report.as_dict()
        telling.tell(self.log, loaded.name, told)
        settle(report, loaded.name)
        if self.asset is not None:
            context["outlet_events"][self.asset].extra = told
        return told


class SeedbedPlanOperator(_PipelineOperator):
    """Opens a run and divides it into shards, its result: `SeedbedShardOperator.partial(…).expand(shard=plan.output)`.
    What can stop a run stops it here, before a row is paid for. While another run of the pipeline is at work it waits,
    in the triggerer. With `dry_run` it tells what a run would do and cost, and there are no shards. Options that are
    None come from the run's params of that name; `tokens` and `money` are a budget for this run."""

    def __init__(
        self,
        *,
        pipeline: str,
        shards: int = 8,
        full_refresh: bool | None = None,
        dry_run: bool | None = None,
        allow_deletes: bool | None = None,
        allow_reembed: bool | None = None,
        tokens: int | None = None,
        money: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(pipeline=pipeline, **kwargs)
        self.shards = shards
        self.options = {
            "full_refresh": full_refresh,
            "dry_run": dry_run,
            "allow_deletes": allow_deletes,
            "allow_reembed": allow_reembed,
            "tokens": tokens,
            "money": money,
        }

    def execute(self, context: Context) -> list[dict[str, Any]]:
        return self.execute_again(context)

    def execute_again(self, context: Context, event: Any = None, waited: int = 0) -> list[dict[str, Any]]:
        """After `waited` times of waiting for another run."""
        options = self._asked(context, **self.options)
        try:
            with _told():
                return self._plan(context, options)
        except AirflowException as error:
            if not isinstance(error.__cause__, AlreadyRunning) or waited >= _MOST_WAITS:
                raise
            self.log.info("%s; looking again in %d s", error.__cause__.message, _WAIT.seconds)
        from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger

        # Raises: the task goes on from there, in the triggerer.
        self.defer(trigger=TimeDeltaTrigger(_WAIT), method_name="execute_again", kwargs={"waited": waited + 1})
        return []

    def _plan(self, context: Context, options: dict[str, Any]) -> list[dict[str, Any]]:
        loaded = self._loaded()
        _check_ledger(loaded)
        if options.pop("dry_run", False):
            told = loaded.plan().as_dict()
            telling.tell_plan(self.log, loaded.name, told)
            context["ti"].xcom_push(key="plan", value=told)
            return []
        run = context["dag_run"]
        pieces = loaded.begin_run(
            label=label(run.dag_id, run.run_id),
            shards=self.shards,
            full=options.pop("full_refresh", False),
            lives=lambda other: _unfinished(context, other),
            **options,
        )
        self.log.info("run %d of %s: %d shards", pieces[0].run, loaded.name, len(pieces))
        return [piece.as_dict() for piece in pieces]


class SeedbedShardOperator(_PipelineOperator):
    """Works on one shard of a planned run. As often as need be: what is done costs no more than to be read.
    `map_index_template=SHARD_NAME` in `partial` has Airflow show mapped tasks as "1 of 8"."""

    template_fields: Sequence[str] = ("pipeline", "shard")

    def __init__(self, *, pipeline: str, shard: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(pipeline=pipeline, **kwargs)
        self.shard = shard

    def execute(self, context: Context) -> dict[str, Any]:
        from seedbed.sharing import Shard

        with _told():
            shard = Shard.from_dict(self.shard)
            context["seedbed_shard"] = f"{shard.number + 1} of {shard.of}"  # type: ignore[typeddict-unknown-key]
            loaded = self._loaded()
            report = loaded.run_shard(shard, stop=self._stop, progress=telling.progress(self.log))
        telling.measure_shard(loaded.name, report)
        settle(report, f"shard {shard.number + 1} of {shard.of}")
        return report.as_dict()


class SeedbedFinishOperator(_PipelineOperator):
    """Ends a planned run: deletes what is gone, records how far it has come, and tells what it did, its result.
    `shards` is the plan's result; the asset's event carries the counts and the watermark."""

    template_fields: Sequence[str] = ("pipeline", "shards")
    operator_extra_links = (ReportLink(),)

    def __init__(
        self,
        *,
        pipeline: str,
        shards: Sequence[Mapping[str, Any]] | XComArg,
        asset: Asset | None = None,
        **kwargs: Any,
    ) -> None:
        # Also after a shard that failed: a sink that is down keeps the others from nothing.
        outlets = [asset] if asset is not None else []
        super().__init__(pipeline=pipeline, **{"outlets": outlets, "trigger_rule": "all_done", **kwargs})
        self.shards = shards
        self.asset = asset

    def execute(self, context: Context) -> dict[str, Any]:
        from seedbed.sharing import Shard

        if self.shards is None or isinstance(self.shards, XComArg):
            raise AirflowFailException("the run was not planned: see the plan's log")
        if not self.shards:
            raise AirflowSkipException("a dry run: see the plan's log")
        with _told():
            loaded, shard = self._loaded(), Shard.from_dict(self.shards[0])
            found = loaded.finish_run(shard, stop=self._stop, progress=telling.progress(self.log))
        told = found.as_dict()
        telling.tell(self.log, loaded.name, told)
        context["ti"].xcom_push(key="report", value=told)
        settle(found.report, loaded.name)
        if self.asset is not None:
            context["outlet_events"][self.asset].extra = {"pipeline": loaded.name, **told}
        return told


# --- what the plan asks of Airflow ------------------------------------------------------------------

_LABEL = "airflow"
_ON_ONE_MACHINE = ("LocalExecutor", "SequentialExecutor")


def label(dag_id: str, run_id: str) -> str:
    """The name of a DAG run in the ledger."""
    return f"{_LABEL} {dag_id} {run_id}"


def _unfinished(context: Context, other: str) -> bool:
    """Whether a run's label is of a DAG run that Airflow has not ended; one that it does not know has."""
    words = other.split(" ", 2)
    if len(words) != 3 or words[0] != _LABEL:
        return False
    state: Callable[..., str] = type(context["ti"]).get_dagrun_state
    try:
        # By value: it may be an enumeration, whose str() is another.
        return state(words[1], words[2]) in ("running", "queued")
    except AirflowRuntimeError as error:
        if (error.error.detail or {}).get("status_code") == 404:
            return False  # it was deleted
        raise Transient(f"Airflow does not say whether {other} is done: {error}") from error


def _check_ledger(loaded: Pipeline) -> None:
    """Raises ConfigError for a ledger in a file where tasks run on several machines."""
    from airflow.sdk.configuration import conf

    executor = str(conf.get("core", "executor"))
    names = [name.rpartition(".")[2].rpartition(":")[2] for name in executor.replace(";", ",").split(",")]
    spread = [name for name in names if name not in _ON_ONE_MACHINE]
    if spread and in_folder(loaded.declaration.ledger.url):
        raise ConfigError(
            f"the ledger stands in a folder, and {spread[0]} runs tasks on several machines",
            setting="ledger.url",
            hint='let them share one in Postgres: url = "postgresql://…", or conn_id = "…"',
        )
