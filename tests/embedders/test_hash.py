"""`hash:N`: golden vectors, nearness by spelling, and the options for fault tests."""

from __future__ import annotations

import time

import numpy as np
import pytest

from seedbed.content import Content
from seedbed.embedders.hash import HashEmbedder
from seedbed.errors import ConfigError, ContentsRefused, Transient

GOLDEN = [
    [0.0000000, -0.4082483, 0.2041241, -0.6123724, -0.4082483, -0.2041241, 0.2041241, -0.4082483],
    [0.5163978, -0.5163978, 0.5163978, 0.0000000, 0.2581989, 0.0000000, 0.2581989, 0.2581989],
    [-1.0000000, 0.0000000, 0.0000000, 0.0000000, 0.0000000, 0.0000000, 0.0000000, 0.0000000],
]


def contents(*texts: str) -> list[Content]:
    return [Content.of(text) for text in texts]


def test_golden_vectors() -> None:
    found = HashEmbedder("hash:8", {}).embed(contents("The quick brown fox", "向量", ""))
    expected = np.array(GOLDEN, np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_texts_that_share_spelling_are_near() -> None:
    made = HashEmbedder("hash:384", {})
    a, b, c = made.embed(contents("red wool scarf, hand made", "Red wool scarves, handmade", "engine oil filter 12 mm"))
    assert a @ b > 0.4
    assert abs(a @ c) < 0.2


def test_more_texts_than_are_hashed_at_once_keep_their_rows() -> None:
    made = HashEmbedder("hash:32", {})
    texts = contents(*(f"row {number} of many" * (number % 5) for number in range(1300)))
    whole = made.embed(texts)
    for number in (0, 511, 512, 1299):
        np.testing.assert_array_equal(whole[number], made.embed([texts[number]])[0])


def test_refuse_and_nan_mark_just_the_contents_that_hold_the_word() -> None:
    made = HashEmbedder("hash:16?refuse=bad&nan=odd", {})
    with pytest.raises(ContentsRefused) as raised:
        made.embed(contents("good", "bad one", "odd one"))
    assert set(raised.value.refused) == {1}
    assert np.isfinite(raised.value.vectors[0]).all()
    assert np.isnan(raised.value.vectors[2]).all()


def test_fail_is_transient_and_ends_after_its_failures() -> None:
    made = HashEmbedder("hash:16?fail=down&failures=2", {})
    for _ in range(2):
        with pytest.raises(Transient):
            made.embed(contents("it is down"))
    assert made.embed(contents("it is down")).shape == (1, 16)


def test_latency_is_slept_once_a_call() -> None:
    made = HashEmbedder("hash:16?latency=0.05", {})
    start = time.perf_counter()
    made.embed(contents("a", "b", "c"))
    assert 0.05 <= time.perf_counter() - start < 0.14


@pytest.mark.parametrize("url", ["hash:", "hash:x", "hash:0", "hash:-3", "hash:8?refus=x", "hash:8?latency=soon"])
def test_urls_that_say_nothing_usable_are_refused(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        HashEmbedder(url, {})
    assert raised.value.setting == "embedder.url"
    assert raised.value.hint
