"""The library's front door: a declared pipeline and its verbs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.content import Content
from seedbed.declaration import Declaration, declare, from_text, read
from seedbed.report import PlanReport, RunReport, SyncReport
from seedbed.session import Session

if TYPE_CHECKING:
    from seedbed.errors import SeedbedError
    from seedbed.follow import Pass
    from seedbed.sharing import Shard


class Pipeline:
    """A pipeline by the names of the pipeline file:

        Pipeline(name="products", source={"url": …}, content={"text": …}, embedder={"url": …}, sink=[{"url": …}])

    Relative paths are relative to `base`. Raises ConfigError. Every verb opens what it needs and closes it.
    """

    def __init__(self, *, base: str | Path = ".", **declared: Any) -> None:
        self.declaration: Declaration = declare(declared, base=Path(base).resolve())

    @classmethod
    def load(cls, path: str | Path) -> Pipeline:
        """From a TOML file."""
        made = cls.__new__(cls)
        made.declaration = read(path)
        return made

    @classmethod
    def from_text(cls, text: str, path: str | Path) -> Pipeline:
        """From what a TOML file says that would stand at `path`."""
        made = cls.__new__(cls)
        made.declaration = from_text(text, Path(path))
        return made

    @property
    def name(self) -> str:
        return self.declaration.name

    def open(self, *, writes: bool = False) -> Session:
        """The parts themselves: source, embedder, sinks, ledger, cache. Use it in a `with`."""
        return Session(self.declaration, writes=writes)

    def sync(
        self,
        *,
        progress: Callable[[SyncReport], None] = lambda report: None,
        stop: threading.Event | None = None,
        **options: Any,
    ) -> SyncReport:
        """Brings every sink in step with the source; `options` are those of sync.SyncOptions."""
        from seedbed.sync import SyncOptions, sync

        with self.open(writes=True) as session:
            return sync(session, SyncOptions(**options), progress, stop)

    def begin_run(
        self,
        *,
        label: str,
        shards: int = 8,
        tokens: int | None = None,
        money: float | None = None,
        lives: Callable[[str], bool] = lambda label: False,
        **options: Any,
    ) -> list[Shard]:
        """Opens a run that several processes share, and divides it: `run_shard` for each piece, in any process and
        order, then `finish_run`. `label` names the run: an unfinished one of that name goes on; `lives` says whether
        the scheduler of another one has still to come back to it. Needs a ledger in Postgres to be more than one piece.
        `tokens` and `money` are other budgets than `[limits]`; `options`: `full`, `allow_deletes`, `allow_reembed`."""
        from seedbed.sharing import begin_run
        from seedbed.sync import SyncOptions

        with self.open(writes=True) as session:
            limits = self.declaration.limits
            session.limit(limits.tokens if tokens is None else tokens, limits.money if money is None else money)
            return begin_run(session, SyncOptions(**options), label=label, shards=shards, lives=lives)

    def run_shard(
        self,
        shard: Shard,
        *,
        progress: Callable[[SyncReport], None] = lambda report: None,
        stop: threading.Event | None = None,
    ) -> SyncReport:
        """Works on one piece. As often as need be: what is done costs no more than to be read."""
        from seedbed.sharing import run_shard

        with self.open(writes=True) as session:
            return run_shard(session, shard, progress, stop)

    def finish_run(
        self,
        shard: Shard,
        *,
        progress: Callable[[SyncReport], None] = lambda report: None,
        stop: threading.Event | None = None,
    ) -> RunReport:
        """Once all shards are done: deletes what is gone, and tells what the run did. `shard` is any of the run's."""
        from seedbed.sharing import finish_run

        with self.open(writes=True) as session:
            return finish_run(session, shard, progress, stop)

    def follow(
        self,
        *,
        each: Callable[[Pass], None] = lambda done: None,
        troubled: Callable[[SeedbedError], None] = lambda error: None,
        stop: threading.Event | None = None,
        **options: Any,
    ) -> SyncReport:
        """As `sync`, again and again as changes are queued, until `stop` is set; `each` is called with every pass,
        `troubled` with what failed and will be tried again. Needs `watch`."""
        from seedbed.follow import follow
        from seedbed.sync import SyncOptions

        return follow(lambda: self.open(writes=True), SyncOptions(**options), each, troubled, stop or threading.Event())

    def watch(self) -> None:
        """Has the source queue its changes from now on, by triggers. Raises ConfigError where that cannot be, Fatal
        without the rights."""
        with self.open() as session:
            session.queueing.watch(self.name, session.columns)

    def unwatch(self) -> bool:
        """Ends what `watch` began, and drops what is queued; whether there was something to end."""
        with self.open() as session:
            return session.queueing.unwatch(self.name)

    def plan(self) -> PlanReport:
        """What `sync` would do and cost; writes nothing."""
        from seedbed.plan import plan

        with self.open() as session:
            return plan(session)

    def search(
        self,
        query: str | Content,
        k: int = 10,
        *,
        filter: Mapping[str, object] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """The k nearest rows to words, a picture, a video or a mixture, best first: `id` (the key), `score`, `payload`,
        `chunk`. `options` are those of search.search: `tenant`, `sink`, `vector`, `modality`, `calibrated`."""
        from seedbed.search import search

        with self.open() as session:
            return search(session, query, k, filter=filter, **options)

    def status(self) -> dict[str, Any]:
        """What stands, what failed, what the last runs did."""
        from seedbed.status import status

        with self.open() as session:
            return status(session)

    def adopt(self) -> dict[str, int]:
        """Rebuilds an empty ledger from the collections; rows adopted, a sink."""
        from seedbed.adopt import adopt

        with self.open(writes=True) as session:
            return adopt(session)


def load(path: str | Path) -> Pipeline:
    """A pipeline from its TOML file. Raises ConfigError."""
    return Pipeline.load(path)
