"""What embedders of weights on this machine have in common: one thread at a time, batches, refusals, letting go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers

from seedbed.embedders.card import Card, read_card
from seedbed.embedders.folder import Folder
from seedbed.embedders.options import Options, Settings
from seedbed.errors import MissingDependency
from seedbed.identity import Space
from seedbed.protocols import Usage, Vectors

if TYPE_CHECKING:
    from seedbed.embedders.runner import Runner

OPTIONS = ("dtype", "truncate", "device", "threads", "batch_tokens")
_DTYPES = ("auto", "float32", "bfloat16", "float16")


class Loaded:
    """A folder's embedder. Space and token counts come from its files alone; torch is imported and the weights are
    loaded with the first text. A subclass says its `profile`, how a Runner is `made`, and what `limit` of tokens."""

    profile: int
    extra = "local"
    """What `pip install 'seedbed[…]'` brings."""
    too_long: str
    """What to do about a content over the limit."""

    def __init__(self, folder: Folder, options: Options, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._settings = Settings.read(settings)
        self._dtype = options.choice("dtype", _DTYPES)
        self._device = options.choice("device", ("auto", "cpu", "cuda"))
        self._threads = options.whole("threads")
        self._budget = options.whole("batch_tokens")
        self._truncate = options.flag("truncate")
        self._usage = Usage()
        self._lock = threading.Lock()

    @cached_property
    def space(self) -> Space:
        return Space(
            model=self._folder.name,
            revision=self._revision,
            dimensions=self._settings.cut(self._folder.name, self._card.dimensions),
            instruction=self._settings.instruction,
            profile=self.profile,
        )

    @property
    def usage(self) -> Usage:
        return self._usage

    def provenance(self) -> Mapping[str, str]:
        """Loads the model: which format it runs in is known only then."""
        with self._lock:
            return {**self._runner.provenance(), "tokenizers": tokenizers.__version__}

    def close(self) -> None:
        """Lets the weights go; a later `embed` loads them again."""
        with self._lock:
            runner = self.__dict__.pop("_runner", None)
            if runner is not None:
                runner.close()

    @property
    def _revision(self) -> str:
        return self._folder.revision

    @cached_property
    def _card(self) -> Card:
        return read_card(self._folder.path)

    @property
    def _limit(self) -> int | None:
        return self._card.limit

    def _made(self) -> Runner:
        raise NotImplementedError

    @cached_property
    def _runner(self) -> Runner:
        try:
            return self._made()
        except ModuleNotFoundError as missing:
            raise MissingDependency(
                f"local: needs the package {missing.name!r}, which is not installed",
                setting="embedder.url",
                hint=f"pip install 'seedbed[{self.extra}]'",
            ) from missing

    def _run(
        self,
        part: Sequence[int],
        samples: Sequence[Any],
        vectors: Vectors,
        cut: Callable[[Sequence[int], int], list[list[int]]],
    ) -> dict[int, str]:
        """Fills the vectors of the contents numbered `part`, in batches as `cut` makes them of lengths and a budget of
        tokens; answers what is refused, by number. Samples have a length in tokens."""
        limit = self._limit
        refused = {
            n: f"{len(sample)} tokens, but the model takes {limit}: {self.too_long}"
            for n, sample in zip(part, samples, strict=True)
            if limit is not None and len(sample) > limit
        }
        fits = [place for place, n in enumerate(part) if n not in refused]
        kept = [samples[place] for place in fits]
        if not kept:
            return refused
        self._usage.tokens += sum(map(len, kept))
        runner = self._runner
        places = cut([len(sample) for sample in kept], runner.share(sum(map(len, kept))))
        found = runner.run([[kept[b] for b in batch] for batch in places], self.space.dimensions)
        for batch, made in zip(places, found, strict=True):
            vectors[[part[fits[b]] for b in batch]] = made
        for place in fits:
            if not np.isfinite(vectors[part[place]]).all():
                refused[part[place]] = "the model answered with NaN or infinite numbers, or has no memory for this one"
        return refused
