"""`local:` — models on this machine, by transformers: a folder, a hub id, or `local:minilm`, the packaged one. Here
those of text; vision has those that take pictures too.

Options: `dtype=auto|float32|bfloat16|float16`, `truncate=true` (cut texts over the model's limit instead of
refusing them), `device=auto|cpu|cuda`, `threads=N`, `batch_tokens=N` (padded tokens a forward pass).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seedbed.content import Content, Kind
from seedbed.embedders.card import model_type
from seedbed.embedders.folder import find
from seedbed.embedders.loaded import OPTIONS, Loaded
from seedbed.embedders.options import Options
from seedbed.embedders.tokens import Tokens, batches
from seedbed.embedders.unicode import unreadable
from seedbed.errors import ContentsRefused, MissingDependency
from seedbed.protocols import Vectors

if TYPE_CHECKING:
    from seedbed.embedders.runner import Runner
    from seedbed.embedders.vision import VisionEmbedder

PROFILE = 1
"""Instruction before the text, tokenizer.json as it is, right padding: raised when any of that changes."""
_SLICE = 256
"""Texts tokenised at once, while the model works on those before: some milliseconds of one core."""


def local(url: str, settings: Mapping[str, Any]) -> LocalEmbedder | VisionEmbedder:
    """The embedder of a `local:` URL, by what the folder's config.json says it is. Raises MissingDependency where it
    takes pictures and nothing that decodes them is installed: text alone needs none of that."""
    folder = find(Options.target_of(url))
    if model_type(folder.path) != "qwen3_vl":
        return LocalEmbedder(url, settings)
    try:
        from seedbed.embedders.vision import OPTIONS as MORE
        from seedbed.embedders.vision import VisionEmbedder
    except ModuleNotFoundError as missing:
        raise MissingDependency(
            f"this model takes pictures, which needs the package {missing.name!r}, which is not installed",
            setting="embedder.url",
            hint="pip install 'seedbed[local,media]'",
        ) from missing
    return VisionEmbedder(folder, Options.parse(url, MORE), settings)


class LocalEmbedder(Loaded):
    """Text contents to unit vectors. One thread embeds at a time, others wait.

    Errors: ConfigError (no such model, dimensions beyond the model's), MissingDependency, ContentsRefused (over
    the model's limit, lone surrogates, a vector that is not finite).
    """

    profile = PROFILE
    too_long = "add [chunk], or `?truncate=true` to the embedder's URL"

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        options = Options.parse(url, OPTIONS)
        super().__init__(find(options.target), options, settings)

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
                refused |= self._run(part, ids, vectors, batches)
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

    @cached_property
    def _tokens(self) -> Tokens:
        return Tokens(self._folder.path, self._card, truncate=self._truncate)

    def _made(self) -> Runner:
        from seedbed.embedders.runner import PROBES, Runner

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
