"""`sync --runner ray`: the shards of a run worked on by Ray's actors, each with a model of its own.

What travels is the pipeline file's text, whose secrets each worker fills in for itself, and a few numbers a shard: no
row or vector passes the driver. An actor that dies is made anew and takes its shard up where the ledger says it stood.
"""

from __future__ import annotations

import json
import logging
import pickle
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.errors import ConfigError, MissingDependency, SeedbedError
from seedbed.pipeline import Pipeline
from seedbed.report import RunReport, SyncReport
from seedbed.session import Session
from seedbed.sharing import Shard, run_shard


@dataclass(frozen=True, slots=True)
class Factory:
    """A pipeline file as it travels: its text, with secrets by name alone."""

    path: str
    text: str

    @classmethod
    def of(cls, path: Path) -> Factory:
        return cls(str(path.resolve()), path.read_text(encoding="utf-8"))

    def make(self) -> Pipeline:
        """Raises ConfigError, also for a secret that is not set here."""
        return Pipeline.from_text(self.text, self.path)


class ShardWorker:
    """One of Ray's actors: a session that is kept, so that a model is loaded once for all of its shards."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Of columns, as Ray passes them: each shard's counts as JSON, or what stopped it, pickled, in hex."""
        given = zip(batch["pipeline"], batch["shard"], strict=True)
        done = [self._work(Factory(*json.loads(file)), Shard.from_dict(json.loads(shard))) for file, shard in given]
        return {"counts": [json.dumps(counts) for counts, _ in done], "error": [error for _, error in done]}

    def _work(self, factory: Factory, shard: Shard) -> tuple[dict[str, Any], str]:
        try:
            if self._session is None:
                self._session = factory.make().open(writes=True)
            return run_shard(self._session, shard).as_attempt(), ""
        except SeedbedError as error:
            # What is wrong with one of its parts may be wrong with the next shard too.
            if self._session is not None:
                self._session.__exit__(None, None, None)
                self._session = None
            return {}, pickle.dumps(error).hex()


def run(
    path: Path,
    *,
    workers: int = 2,
    gpus: float = 0.0,
    shards: int | None = None,
    address: str | None = None,
    progress: Callable[[SyncReport], None] = lambda report: None,
    stop: threading.Event | None = None,
    **options: Any,
) -> RunReport:
    """A whole run by `workers` actors, each with `gpus` GPUs; `address` is a cluster's, None starts Ray here unless it
    runs already. `options` as Pipeline.begin_run's. Needs a ledger in Postgres. Raises as begin_run and finish_run
    do."""
    ray = _imported()
    factory = Factory.of(path)
    pipeline = factory.make()
    if workers < 1 or gpus < 0:
        raise ConfigError(f"{workers} workers with {gpus:g} GPUs each cannot be", hint="--workers 2 --gpus 1")
    pieces = pipeline.begin_run(label=f"ray {uuid.uuid4().hex[:12]}", shards=shards or min(256, 4 * workers), **options)
    started = not ray.is_initialized()
    # Ray says on stdout what becomes of actors; there stands the report alone.
    with redirect_stdout(sys.stderr):
        if started:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            _work(ray, factory, pieces, min(workers, len(pieces)), gpus, progress, stop or threading.Event())
        finally:
            if started:
                ray.shutdown()
    return pipeline.finish_run(pieces[0], progress=progress, stop=stop)


def _work(
    ray: Any,
    factory: Factory,
    pieces: Sequence[Shard],
    workers: int,
    gpus: float,
    progress: Callable[[SyncReport], None],
    stop: threading.Event,
) -> None:
    ray.data.DataContext.get_current().enable_progress_bars = False
    # With each shard: what an actor is made from stands where Ray may lose it before the actor is made anew.
    file = json.dumps([factory.path, factory.text])
    given = [{"pipeline": file, "shard": json.dumps(piece.as_dict())} for piece in pieces]
    made = ray.data.from_items(given, override_num_blocks=len(pieces)).map_batches(
        ShardWorker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=gpus,
    )
    total, errors = SyncReport(), list[str]()
    for row in made.iter_rows():
        errors += [row["error"]] if row["error"] else []
        total.add(SyncReport.of_attempt(json.loads(row["counts"])), reading=True)
        progress(total)
        if stop.is_set():
            break
    if errors:
        raise pickle.loads(bytes.fromhex(errors[0]))


def _imported() -> Any:
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as missing:
        raise MissingDependency(
            "--runner ray needs the package 'ray', which is not installed", hint="pip install 'seedbed[ray]'"
        ) from missing
    return ray
