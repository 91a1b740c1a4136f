"""`local:` — models on this machine, by transformers: a folder, a hub id, or `local:minilm`, the packaged one. Here
those of text; vision has those that take pictures too.

Options: `dtype=auto|float32|bfloat16|float16`, `truncate=true` (cut texts over the model's limit instead of
refusing them), `device=auto|cpu|cuda`, `threads=N`, `batch_tokens=N` (padded tokens a forward pass).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tokenizers

from seedbed.content import Content, Kind
from seedbed.embedders.card import Card, model_type, read_card
from seedbed.embedders.folder import find
from seedbed.embedders.options import Options, Settings
from seedbed.embedders.tokens import Tokens, batches
from seedbed.embedders.unicode import unreadable
from seedbed.errors import ContentsRefused, MissingDependency
from seedbed.identity import Space
from seedbed.protocols import Usage, Vectors

if TYPE_CHECKING:
    from seedbed.embedders.runner import Runner
    from seedbed.embedders.vision import VisionEmbedder

PROFILE = 1
"""Instruction before the text, tokenizer.json as it is, right padding: raised when any of that changes."""
_OPTIONS = ("dtype", "truncate", "device", "threads", "batch_tokens")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_SLICE = 256
"""Texts tokenised at once, while the model works on those before: some milliseconds of one core."""


def local(url: str, settings: Mapping[str, Any]) -> LocalEmbedder | VisionEmbedder:
    """The embedder of a `local:` URL, by what the folder's config.json says it is. Raises MissingDependency where it
    takes pictures and nothing that decodes them is installed: text alone needs none of that."""
    folder = find(Options.target_of(url))
    if model_type(folder.path) != "qwen3_vl":
        return LocalEmbedder(url, settings)
    try:
        from seedbed.embedders.vision import OPTIONS, VisionEmbedder
    except ModuleNotFoundError as missing:
        raise MissingDependency(
            f"this model takes pictures, which needs the package {missing.name!r}, which is not installed",
            setting="embedder.url",
            hint="pip install 'seedbed[local,media]'",
        ) from missing
    return VisionEmbedder(folder, Options.parse(url, OPTIONS), settings)


class LocalEmbedder:
    """Text contents to unit vectors. Space and token counts come from the folder's files alone; torch is imported
    and the weights are loaded with the first `embed`. One thread embeds at a time, others wait.

    Errors: ConfigError (no such model, dimensions beyond the model's), MissingDependency, ContentsRefused (over
    the model's limit, lone surrogates, a vector that is not finite).
    """

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        options = Options.parse(url, _OPTIONS)
        self._settings = Settings.read(settings)
        self._folder = find(options.target)
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
            revision=self._folder.revision,
            dimensions=self._settings.cut(self._folder.name, self._card.dimensions),
            instruction=self._settings.instruction,
            profile=PROFILE,
        )

    @property
    def usage(self) -> Usage:
        return self._usage

    def embed(self, contents: Sequence[Content], kind: Kind = "document") -> Vectors:
        """float32 (n, dimensions), unit length. Without `truncate`, a text over the model's limit is refused."""
        vectors = np.zeros((len(contents), self.space.dimensions), np.float32)
        if not contents:
            return vectors
        prompts = self._settings.prompts(contents, kind)
        refused = unreadable(prompts)
        refused |= {n: f"{self._folder.name} takes text alone" for n, content in enumerate(contents) if content.media}
        wanted = sorted((n for n in range(len(prompts)) if n not in refused), key=lambda n: -len(prompts[n]))
        with self._lock, ThreadPoolExecutor(1, "tokenise") as ahead:
            for part, ids in self._tokenised(prompts, wanted, ahead):
                refused |= self._run(part, ids, vectors)
        self._usage.calls += 1
        self._usage.contents += len(contents) - len(refused)
        if refused:
            raise ContentsRefused(dict(sorted(refused.items())), vectors)
        return vectors

    def count_tokens(self, contents: Sequence[Content], kind: Kind = "document") -> npt.NDArray[np.int64]:
        """With instruction and special tokens, before truncation. A text that is no Unicode counts 0."""
        prompts = self._settings.prompts(contents, kind)
        for number in unreadable(prompts):
            prompts[number] = ""
        return self._tokens.count(prompts)

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

    @cached_property
    def _card(self) -> Card:
        return read_card(self._folder.path)

    @cached_property
    def _tokens(self) -> Tokens:
        return Tokens(self._folder.path, self._card, truncate=self._truncate)

    @cached_property
    def _runner(self) -> Runner:
        try:
            from seedbed.embedders.runner import PROBES, Runner
        except ModuleNotFoundError as missing:
            raise MissingDependency(
                f"local: needs the package {missing.name!r}, which is not installed",
                setting="embedder.url",
                hint="pip install 'seedbed[local]'",
            ) from missing
        return Runner(
            self._folder.complete(),
            self._card,
            [row[: self._card.limit] for row in self._tokens.ids(PROBES)],
            device=self._device,
            dtype=self._dtype,
            threads=self._threads,
            budget=self._budget,
        )

    def _tokenised(
        self, prompts: list[str], wanted: list[int], ahead: ThreadPoolExecutor
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Slices of texts of about the same length, each tokenised while the model works on the one before."""
        parts = [wanted[start : start + _SLICE] for start in range(0, len(wanted), _SLICE)]
        jobs = [ahead.submit(self._tokens.ids, [prompts[n] for n in part]) for part in parts]
        for part, job in zip(parts, jobs, strict=True):
            yield part, job.result()

    def _run(self, part: list[int], ids: list[list[int]], vectors: Vectors) -> dict[int, str]:
        """Fills the vectors of one slice; answers what is refused, by position in the call."""
        limit = self._card.limit
        refused = {
            n: f"{len(row)} tokens, but the model takes {limit}: add [chunk], or `?truncate=true` to the embedder's URL"
            for n, row in zip(part, ids, strict=True)
            if limit is not None and len(row) > limit
        }
        fits = [place for place, n in enumerate(part) if n not in refused]
        self._usage.tokens += sum(len(ids[place]) for place in fits)
        if not fits:
            return refused
        rows = [ids[place] for place in fits]
        runner = self._runner
        places = batches([len(row) for row in rows], runner.share(sum(map(len, rows))))
        found = runner.run([[rows[b] for b in batch] for batch in places], self.space.dimensions)
        for batch, made in zip(places, found, strict=True):
            vectors[[part[fits[b]] for b in batch]] = made
        for place in fits:
            if not np.isfinite(vectors[part[place]]).all():
                refused[part[place]] = "the model answered with NaN or infinite numbers"
        return refused
