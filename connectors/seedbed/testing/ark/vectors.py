"""Tokens and vectors of the emulated models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

OVERHEAD = 20
"""Tokens of a text beside its own: what users of the service report."""

_TOKEN = re.compile(r"[a-z]{1,5}|[0-9]{1,3}|[^\W\d_a-z]|[^\w\s]|_", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_FEATURES, _GRAINS = 8, 64


def text_tokens(text: str) -> int:
    """Words in pieces of at most five letters, numbers of three digits, all else by the character."""
    return sum(1 for _ in _TOKEN.finditer(text))


def vector(model: str, texts: Sequence[str], media: Sequence[bytes], dimensions: int) -> npt.NDArray[np.float32]:
    """Signed feature hashing of words and media, shape (dimensions,). Not of unit length, and each number exact in
    bfloat16, as the samples in the service's documentation are. Another number of dimensions is another vector."""
    made = np.zeros(dimensions, np.float32)
    salt = f"{model}/{dimensions}/".encode()
    for text in texts:
        for word in _WORD.findall(text.lower()):
            _add(made, salt + word.encode(errors="replace"), 1.7)
        digest = hashlib.blake2b(salt + b"\0" + text.encode(errors="replace"), digest_size=8).digest()
        made += _grain(dimensions)[int.from_bytes(digest, "little") % _GRAINS]
    for data in media:
        for part in range(8):
            _add(made, salt + bytes([1, part]) + hashlib.sha256(data).digest(), 1.7)
    return bfloat16(made)


@cache
def _grain(dimensions: int) -> npt.NDArray[np.float32]:
    """Small numbers everywhere, as a model's vectors have them: shape (_GRAINS, dimensions)."""
    return np.random.default_rng(dimensions).standard_normal((_GRAINS, dimensions), np.float32) * np.float32(0.02)


def _add(made: npt.NDArray[np.float32], feature: bytes, weight: float) -> None:
    digest = np.frombuffer(hashlib.blake2b(feature, digest_size=4 * _FEATURES).digest(), "<u4")
    signs = np.where(digest & 1, np.float32(weight), np.float32(-weight))
    np.add.at(made, (digest >> 1) % len(made), signs)


def bfloat16(made: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cut to the upper 16 bits."""
    return (made.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
