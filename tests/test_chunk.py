"""The chunker's spans: bounds, cover, overlap, determinism, and golden spans that pin the algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedbed.chunk import Chunker, count_words
from seedbed.content import Content, Kind
from seedbed.errors import ConfigError

TEXT = (
    "Vectors are kept in step with rows. A row that changes is embedded again; a row that goes is removed.\n\n"
    "Nothing is lost, and nothing is marked done that is not. Runs may be killed at any instant."
)
WORDS = st.text(st.sampled_from("ab c.,;!?\n\t。，、漢字かな🙂é'\"()-"), max_size=400)


class Bytes:
    """A counter of UTF-8 bytes with a frame of two, as special tokens make one."""

    def count_tokens(self, contents: Sequence[Content], kind: Kind = "document") -> npt.NDArray[np.int64]:
        return np.array([len(content.text.encode()) + 2 for content in contents], np.int64)


def pieces(text: str, chunker: Chunker) -> list[str]:
    return [text[start:end] for start, end in chunker.spans(text)]


@settings(max_examples=150, deadline=None)
@given(st.one_of(WORDS, st.text(max_size=300)), st.integers(3, 40), st.integers(0, 12))
def test_spans_are_bounded_cover_the_text_and_never_empty(text: str, tokens: int, overlap: int) -> None:
    spans = Chunker(tokens, min(overlap, tokens - 1)).spans(text)
    assert spans == Chunker(tokens, min(overlap, tokens - 1)).spans(text)
    if count_words(text) <= tokens:
        assert spans == [(0, len(text))]
        return
    covered: set[int] = set()
    for start, end in spans:
        assert 0 <= start < end <= len(text)
        assert count_words(text[start:end]) <= tokens
        assert text[start:end].strip() == text[start:end]
        covered.update(range(start, end))
    assert all(text[gap].isspace() for gap in set(range(len(text))) - covered)
    for (start, end), (following, further) in pairwise(spans):
        assert start < following
        assert end < further
        assert count_words(text[following:end]) <= overlap


@settings(max_examples=80, deadline=None)
@given(WORDS, st.integers(6, 60), st.integers(0, 30))
def test_spans_keep_the_bound_of_a_counter_with_a_frame(text: str, tokens: int, overlap: int) -> None:
    for piece in pieces(text, Chunker(tokens, min(overlap, tokens - 1), Bytes())):
        assert len(piece.encode()) + 2 <= tokens or len(piece) == 1 or piece == text


def test_golden_spans() -> None:
    assert Chunker(16, 0).spans(TEXT) == [(0, 35), (36, 101), (103, 159), (160, 194)]
    assert Chunker(16, 6).spans(TEXT) == [(0, 73), (67, 119), (93, 159), (152, 194)]


def test_breaks_at_east_asian_marks() -> None:
    text = "向量与行保持同步。改变的行会重新嵌入，删除的行会被移除。没有任何数据会丢失。"
    assert pieces(text, Chunker(20)) == [
        "向量与行保持同步。",
        "改变的行会重新嵌入，删除的行会被移除。",
        "没有任何数据会丢失。",
    ]


def test_overlap_repeats_the_end_of_the_piece_before() -> None:
    text = " ".join(f"word{number}" for number in range(200))
    spans = Chunker(50, 10).spans(text)
    shared = [count_words(text[after[0] : before[1]]) for before, after in pairwise(spans)]
    assert set(shared) == {10}


def test_text_without_breaks_and_repeats_is_divided_exactly() -> None:
    assert "".join(pieces("x" * 2000, Chunker(10))) == "x" * 2000
    text = "same words here. " * 50
    assert " ".join(pieces(text, Chunker(12))).split() == text.split()


def test_digest_tells_settings_apart() -> None:
    digests = {Chunker(10).digest, Chunker(11).digest, Chunker(10, 2).digest, Chunker(10, 0, Bytes()).digest}
    assert len(digests) == 4
    assert Chunker(10).digest == Chunker(10).digest


@pytest.mark.parametrize(("tokens", "overlap"), [(0, 0), (10, 10), (10, -1)])
def test_settings_without_room_are_refused(tokens: int, overlap: int) -> None:
    with pytest.raises(ConfigError) as raised:
        Chunker(tokens, overlap)
    assert raised.value.setting in ("chunk.tokens", "chunk.overlap")


def test_a_frame_that_fills_the_chunk_is_refused() -> None:
    with pytest.raises(ConfigError, match="take 2"):
        Chunker(2, 0, Bytes()).spans("words and more")
