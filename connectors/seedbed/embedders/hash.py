"""`hash:N`: unit vectors from hashed character 4-grams, for tests and benchmarks. No model, no meaning:
texts that share spelling are near. The same on every machine and in every version, pinned by golden vectors. Pictures
and video are not looked into: the same bytes are the same vector.

Options, for fault tests: `refuse=WORD` refuses contents that hold WORD, `nan=WORD` gives them NaN vectors,
`fail=WORD` raises Transient (at most `failures=N` times), `latency=SECONDS` is slept once a call.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from seedbed.content import MODALITIES, Content, Kind
from seedbed.embedders.options import Options, Settings
from seedbed.errors import ConfigError, ContentsRefused, Transient
from seedbed.identity import Space
from seedbed.protocols import Usage, Vectors

_OPTIONS = ("refuse", "nan", "fail", "failures", "latency")
_GRAM = 4
_AT_ONCE = 512
"""Texts hashed at once: about 150 kB of UTF-8 and its intermediate arrays stay in the second-level cache."""


class HashEmbedder:
    """`hash:384`. Setting `dimensions` cuts to the first ones. Errors: ConfigError, ContentsRefused, Transient."""

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        options = Options.parse(url, _OPTIONS)
        if not options.target.isascii() or not options.target.isdigit() or int(options.target) < 1:
            raise ConfigError(
                f"{url!r} does not say how many dimensions",
                setting="embedder.url",
                hint="write `hash:N` with a whole number, such as hash:384",
            )
        self._full = int(options.target)
        self._settings = Settings.read(settings)
        dimensions = self._settings.cut(f"hash:{self._full}", self._full)
        self._space = Space(f"hash-{self._full}", "1", dimensions, self._settings.instruction)
        self._usage = Usage()
        self._refuse, self._nan, self._fail = (options.text(name) for name in ("refuse", "nan", "fail"))
        self._failures = options.whole("failures")
        self._latency = options.seconds("latency")

    @property
    def space(self) -> Space:
        return self._space

    @property
    def takes(self) -> frozenset[str]:
        return frozenset(MODALITIES)

    @property
    def usage(self) -> Usage:
        return self._usage

    def embed(self, contents: Sequence[Content], kind: Kind = "document") -> Vectors:
        """float32 (n, dimensions), unit length. Raises ContentsRefused for lone surrogates."""
        if not contents:
            return np.zeros((0, self._space.dimensions), np.float32)
        prompts = [
            " ".join([prompt, *(part.digest.hex() for part in content.media)])
            for prompt, content in zip(self._settings.prompts(contents, kind), contents, strict=True)
        ]
        self._fault(prompts)
        encoded, refused = self._encode(prompts)
        vectors = hashed(encoded, self._full)[:, : self._space.dimensions]
        vectors = _unit(vectors)
        if self._nan:
            vectors[[self._nan in prompt for prompt in prompts]] = np.nan
        self._usage.calls += 1
        self._usage.contents += len(contents) - len(refused)
        self._usage.tokens += sum(len(prompt.split()) for n, prompt in enumerate(prompts) if n not in refused)
        if refused:
            raise ContentsRefused(refused, vectors)
        return vectors

    def count_tokens(self, contents: Sequence[Content], kind: Kind = "document") -> npt.NDArray[np.int64]:
        """Words, divided by white space."""
        return np.array([len(prompt.split()) for prompt in self._settings.prompts(contents, kind)], np.int64)

    def provenance(self) -> Mapping[str, str]:
        return {"dtype": "float32", "device": "cpu", "numpy": np.__version__}

    def close(self) -> None:
        pass

    def _fault(self, prompts: Sequence[str]) -> None:
        if self._latency:
            time.sleep(self._latency)
        if self._fail and self._failures != 0 and any(self._fail in prompt for prompt in prompts):
            self._failures = None if self._failures is None else self._failures - 1
            raise Transient(f"a content holds {self._fail!r}, as the option `fail` asks", setting="embedder.url")

    def _encode(self, prompts: Sequence[str]) -> tuple[list[bytes], dict[int, str]]:
        encoded, refused = [], {}
        for number, prompt in enumerate(prompts):
            try:
                encoded.append(prompt.encode())
            except UnicodeEncodeError:
                encoded.append(b"")
                refused[number] = "the text holds a lone surrogate, which is no Unicode character"
            if self._refuse and self._refuse in prompt:
                refused[number] = f"the text holds {self._refuse!r}, as the option `refuse` asks"
        return encoded, refused


def hashed(texts: Sequence[bytes], dimensions: int) -> Vectors:
    """Signed counts of hashed 4-grams of UTF-8 bytes, ASCII in lower case: float32 (n, dimensions).

    Feature hashing after Weinberger et al., 2009 (arXiv:0902.2206). Each text is framed by three zero bytes, so
    that a text of L bytes has L + 3 windows and no window sees a neighbour.
    """
    vectors = np.empty((len(texts), dimensions), np.float32)
    for start in range(0, len(texts), _AT_ONCE):
        part = texts[start : start + _AT_ONCE]
        frame = bytes(_GRAM - 1)
        joined = (frame + frame.join(part) + frame).lower()
        grams = np.ndarray(len(joined) - _GRAM + 1, "<u4", joined, strides=(1,))
        codes = _mix(grams)
        lengths = np.fromiter(map(len, part), np.int64, len(part)) + _GRAM - 1
        cells = (codes >> np.uint32(1)) % np.uint32(dimensions) + np.repeat(
            np.arange(0, len(part) * dimensions, dimensions, dtype=np.int64), lengths
        )
        signs = (codes & np.uint32(1)).astype(np.float64) * 2 - 1
        counts = np.bincount(cells, signs, len(part) * dimensions)
        vectors[start : start + len(part)] = counts.reshape(len(part), dimensions)
    return vectors


def _mix(grams: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The 32-bit finaliser of MurmurHash3 (fmix32, Appleby): every bit of the gram reaches every bit of the code."""
    codes = grams ^ (grams >> np.uint32(16))
    codes *= np.uint32(0x85EBCA6B)
    codes ^= codes >> np.uint32(13)
    codes *= np.uint32(0xC2B2AE35)
    codes ^= codes >> np.uint32(16)
    return codes


def _unit(vectors: Vectors) -> Vectors:
    """Copies to unit length; a vector of zeros becomes the first axis."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    units = vectors / np.where(lengths == 0, 1, lengths)[:, None]
    units[lengths == 0, 0] = 1
    return np.ascontiguousarray(units)
