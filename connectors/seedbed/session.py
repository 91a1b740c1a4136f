"""A pipeline's parts, opened for one command: source, embedder, sinks, ledger, cache, recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from seedbed import registry
from seedbed.cache import Cache, open_cache
from seedbed.declaration import Declaration, SinkConfig, settings
from seedbed.diff import Fetch
from seedbed.errors import ConfigError, RowError
from seedbed.ledger import Ledger, open_ledger
from seedbed.prices import Prices
from seedbed.protocols import (
    UNNAMED,
    CanCountTokens,
    CanFetch,
    CanQueue,
    CanSpend,
    CollectionSpec,
    DecodesMedia,
    Embedder,
    Feed,
    Selection,
    Sink,
    Source,
    Usage,
    modalities,
)
from seedbed.recipe import PayloadRecipe, Recipe, is_bytes

if TYPE_CHECKING:
    from seedbed.chunk import Chunker
    from seedbed.embedders.account import Keeper
    from seedbed.embedders.budget import Allowance
    from seedbed.media.library import Library
    from seedbed.media.loading import Loading


PAGE_ROWS_OF_BYTES = 128
"""Of a page whose rows hold pictures or video themselves."""


@dataclass(slots=True)
class Outlet:
    """One sink of the pipeline, as declared and as its collection must be. Opening it is `Session.open_sink`."""

    number: int
    config: SinkConfig
    payload: PayloadRecipe
    spec: CollectionSpec


class Session:
    """Each part is opened when it is first asked for and closed with the session."""

    def __init__(self, declaration: Declaration, *, writes: bool) -> None:
        self.declaration = declaration
        self.writes = writes
        self.allowance: Allowance | None = None
        """What a run may spend, where the embedder does not see to that itself."""
        self._stack = ExitStack()
        self._sinks: dict[str, Sink] = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def source(self) -> Source:
        config = self.declaration.source
        source = registry.source(config.url, **settings(config, "tenant"))
        self._stack.callback(source.close)
        return source

    @cached_property
    def feed(self) -> Feed:
        """What the source queues for this pipeline. Raises ConfigError where it queues nothing."""
        feed = self.queueing.feed(self.declaration.name, self.columns)
        self._stack.callback(feed.close)
        return feed

    @property
    def queueing(self) -> CanQueue:
        """The source, which can have its changes queued. Raises ConfigError for one that cannot."""
        if not isinstance(self.source, CanQueue):
            raise ConfigError(
                "only the changes of a Postgres table can be queued",
                setting="source.changes",
                hint='set changes = "scan"',
            )
        return self.source

    @property
    def fetch(self) -> Fetch | None:
        """How rows are read whole, where the source's pages do not hold them so."""
        return self.source.fetch if isinstance(self.source, CanFetch) else None

    @cached_property
    def embedder(self) -> Embedder:
        config = self.declaration.embedder
        embedder = registry.embedder(config.url, **settings(config))
        self._stack.callback(embedder.close)
        if isinstance(embedder, DecodesMedia):
            from seedbed.media.settings import limits

            embedder.limits = limits(self.declaration.media)
        return embedder

    def limit(self, tokens: int, money: float) -> None:
        """Other budgets than the declared ones, from now on; before `govern`."""
        limits = msgspec.structs.replace(self.declaration.limits, tokens=tokens, money=money)
        self.declaration = msgspec.structs.replace(self.declaration, limits=limits)

    @property
    def opened_embedder(self) -> Embedder | None:
        """None where none was asked for, or could be made."""
        return self.__dict__.get("embedder")

    @property
    def usage(self) -> Usage:
        """The embedder's so far, by all runs of this session."""
        return replace(self.opened_embedder.usage) if self.opened_embedder is not None else Usage()

    @cached_property
    def _keeper(self) -> Keeper | None:
        keeper = self.ledger.keeper()
        if keeper is not None:
            self._stack.callback(keeper.close)
        return keeper

    def govern(self, run: str) -> None:
        """Puts an embedder that costs money under the account's limits, shared by all that use this ledger, and under
        the budget of `[limits]`, shared by all of one run. Raises ConfigError for a budget in money where none is
        spent."""
        from seedbed.embedders.account import LocalKeeper
        from seedbed.embedders.budget import Allowance, Budget

        limits, embedder = self.declaration.limits, self.embedder
        if not isinstance(embedder, CanSpend):
            if limits.money:
                raise ConfigError(
                    f"{self.declaration.embedder.url} costs no money",
                    setting="limits.money",
                    hint="leave it out, or limit its `tokens`",
                )
            self.allowance = None
            if limits.tokens:
                self.allowance = Allowance(run, self._keeper or LocalKeeper(), limits.tokens)
            return
        keeper = self._keeper
        budget = None
        if limits.tokens or limits.money:
            budget = Budget(run, keeper or LocalKeeper(), limits.tokens, limits.money, self.prices)
        embedder.govern(keeper, budget)

    @property
    def prices(self) -> Prices:
        return Prices(self.declaration.prices.text, self.declaration.prices.image, self.declaration.prices.currency)

    def cost(self, usage: Usage) -> float | None:
        """In the currency of `[prices]`, None where there are none."""
        if not self.declaration.prices.text:
            return None
        return self.prices.cost(usage.tokens - usage.image_tokens, usage.image_tokens)

    @cached_property
    def ledger(self) -> Ledger:
        ledger = open_ledger(self.declaration.ledger.url, create=self.writes)
        self._stack.callback(ledger.close)
        return ledger

    @cached_property
    def cache(self) -> Cache | None:
        config = self.declaration.cache
        cache = open_cache(config.url, config.max_size, create=self.writes)
        if cache is not None:
            self._stack.callback(cache.close)
        return cache

    @cached_property
    def chunker(self) -> Chunker | None:
        config = self.declaration.chunk
        if config is None:
            return None
        from seedbed.chunk import Chunker

        counter = self.embedder if isinstance(self.embedder, CanCountTokens) else None
        return Chunker(config.tokens, config.overlap, counter)

    @cached_property
    def recipe(self) -> Recipe:
        digest = self.chunker.digest if self.chunker else b""
        recipe = Recipe(self.declaration.content, self.source.schema(), digest, self._stamps)
        takes = modalities(self.embedder)
        for column in recipe.media:
            if column.modality not in takes:
                known = " and ".join(sorted(takes))
                raise ConfigError(
                    f"{self.declaration.embedder.url} takes {known}, but {column.name!r} is declared as "
                    f"{column.modality}",
                    setting="embedder.url",
                    hint="name an embedder of several kinds: local:Qwen/Qwen3-VL-Embedding-2B, ark:…, conse:minilm",
                )
        return recipe

    def _stamps(self, places: Sequence[str]) -> Mapping[str, bytes | RowError]:
        return self.library.stamps(places)

    @cached_property
    def library(self) -> Library:
        """Where the rows' media are read and fetched from."""
        from seedbed.media.library import Library
        from seedbed.media.settings import whence

        library = Library(whence(self.declaration.media))
        self._stack.callback(library.close)
        return library

    @cached_property
    def loading(self) -> Loading | None:
        """How works' media are brought here; None where there are none."""
        if not self.recipe.media:
            return None
        from seedbed.media.loading import Loading

        return Loading(self.library.load, self.cache, self.embedder.space.digest, self.recipe.missing_fails)

    @cached_property
    def outlets(self) -> list[Outlet]:
        return [self._outlet(number, config) for number, config in enumerate(self.declaration.sink)]

    def _outlet(self, number: int, config: SinkConfig) -> Outlet:
        media = UNNAMED in self.recipe.names and bool(self.recipe.media)
        payload = PayloadRecipe(config.payload, self.source.schema(), store_text=config.store_text, modality=media)
        spec = CollectionSpec(
            name=config.collection,
            pipeline=self.declaration.name,
            space=self.embedder.space,
            metric=config.metric,
            payload=payload.schema,
            info={"query_instruction": self.declaration.embedder.query_instruction},
            vectors=self.recipe.names,
        )
        return Outlet(number, config, payload, spec)

    def open_sink(self, config: SinkConfig) -> Sink:
        """Once a session: several passes share it."""
        if config.name not in self._sinks:
            sink = registry.sink(config.url, **settings(config, "payload", "metric", "store_text"))
            self._stack.callback(sink.close)
            self._sinks[config.name] = sink
        return self._sinks[config.name]

    def selection(self, **narrowed: Any) -> Selection:
        """Of the columns that contents and payloads need, in pages that the memory holds; `narrowed` as Selection."""
        dear = any(is_bytes(self.source.schema().field(column.name).type) for column in self.recipe.media)
        rows = {"page_rows": PAGE_ROWS_OF_BYTES} if dear else {}
        return Selection(columns=self.columns, **{**rows, **narrowed})

    @property
    def columns(self) -> list[str]:
        """The source columns that contents and payloads need."""
        names = [*self.recipe.columns, *(name for sink in self.declaration.sink for name in sink.payload)]
        return list(dict.fromkeys(names))
