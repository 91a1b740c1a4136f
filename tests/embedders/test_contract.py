"""One suite over every embedder: what each must do, whichever model is behind it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from seedbed import registry
from seedbed.content import Content
from seedbed.errors import ConfigError, ContentsRefused
from seedbed.identity import Space
from seedbed.protocols import CanCountTokens, CanTellProvenance, Embedder

URLS = ["hash:384", "local:minilm?dtype=float32"]
TEXTS = [
    "A cat sleeps on the warm windowsill.",
    "",
    "向量与行保持同步。",
    "naïve café — ﬁne 🙂 ελληνικά العربية",
    "row " * 120,
    "one",
    "A quarterly report of revenue and cost,\nwith a second line.\x00",
    "A cat sleeps on the warm windowsill.",
]
CONTENTS = [Content.of(text) for text in TEXTS]
REFUSED = Content.of("a lone surrogate \ud800 is no character")


@pytest.fixture(scope="module", params=URLS)
def embedder(request: pytest.FixtureRequest) -> Iterator[Embedder]:
    made = registry.embedder(request.param)
    yield made
    made.close()


def test_vectors_are_unit_float32_rows(embedder: Embedder) -> None:
    vectors = embedder.embed(CONTENTS)
    assert vectors.shape == (len(CONTENTS), embedder.space.dimensions)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_same_text_gives_the_same_vector(embedder: Embedder) -> None:
    vectors = embedder.embed(CONTENTS)
    np.testing.assert_array_equal(vectors, embedder.embed(CONTENTS))
    np.testing.assert_allclose(vectors[0], vectors[-1], atol=1e-5)


def test_order_and_batch_do_not_matter(embedder: Embedder) -> None:
    vectors = embedder.embed(CONTENTS)
    order = np.random.default_rng(7).permutation(len(CONTENTS))
    np.testing.assert_allclose(embedder.embed([CONTENTS[n] for n in order]), vectors[order], atol=1e-5)
    singles = np.concatenate([embedder.embed([content]) for content in CONTENTS])
    np.testing.assert_allclose(singles, vectors, atol=1e-5)


def test_nothing_in_nothing_out(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.space.dimensions)
    assert embedder.embed([]).dtype == np.float32


def test_parts_of_one_content_are_one_vector(embedder: Embedder) -> None:
    parts, whole = Content.of("first", "second"), Content.of("first\nsecond")
    np.testing.assert_allclose(embedder.embed([parts]), embedder.embed([whole]), atol=1e-5)


def test_refused_contents_leave_the_others_their_vectors(embedder: Embedder) -> None:
    expected = embedder.embed(CONTENTS[:3])
    with pytest.raises(ContentsRefused) as raised:
        embedder.embed([CONTENTS[0], REFUSED, *CONTENTS[1:3], REFUSED])
    assert set(raised.value.refused) == {1, 4}
    assert "surrogate" in raised.value.refused[1]
    np.testing.assert_allclose(raised.value.vectors[[0, 2, 3]], expected, atol=1e-5)


def test_usage_counts_what_was_embedded(embedder: Embedder) -> None:
    assert isinstance(embedder, CanCountTokens)
    before = (embedder.usage.calls, embedder.usage.contents, embedder.usage.tokens)
    embedder.embed(CONTENTS)
    with pytest.raises(ContentsRefused):
        embedder.embed([CONTENTS[0], REFUSED])
    tokens = embedder.count_tokens([*CONTENTS, CONTENTS[0]])
    assert tokens.dtype == np.int64
    assert embedder.usage.calls == before[0] + 2
    assert embedder.usage.contents == before[1] + len(CONTENTS) + 1
    assert embedder.usage.tokens == before[2] + tokens.sum()


def test_kinds_have_their_own_instructions() -> None:
    for url in URLS:
        made = registry.embedder(url, instruction="stored: ", query_instruction="find {text}, please")
        document, query = made.embed([Content.of("x")]), made.embed([Content.of("x")], "query")
        plain = registry.embedder(url)
        np.testing.assert_allclose(document, plain.embed([Content.of("stored: x")]), atol=1e-5)
        np.testing.assert_allclose(query, plain.embed([Content.of("find x, please")], "query"), atol=1e-5)
        assert made.space.instruction == "stored: "
        assert made.space != plain.space


def test_dimensions_are_cut_before_the_length_is_made_one() -> None:
    for url in URLS:
        whole = registry.embedder(url).embed(CONTENTS[:3])[:, :64]
        made = registry.embedder(url, dimensions=64)
        assert made.space.dimensions == 64
        cut = whole / np.linalg.norm(whole, axis=1, keepdims=True)
        np.testing.assert_allclose(made.embed(CONTENTS[:3]), cut, atol=1e-5)


def test_more_dimensions_than_the_model_has_are_refused_with_both_numbers() -> None:
    for url in URLS:
        with pytest.raises(ConfigError, match=r"500.*384") as raised:
            _ = registry.embedder(url, dimensions=500).space
        assert raised.value.setting == "embedder.dimensions"


@pytest.mark.parametrize("settings", [{"dimension": 3}, {"dimensions": "3"}, {"dimensions": 0}, {"instruction": 3}])
def test_wrong_settings_are_named(settings: dict[str, object]) -> None:
    for url in URLS:
        with pytest.raises(ConfigError) as raised:
            registry.embedder(url, **settings)
        assert raised.value.setting == f"embedder.{next(iter(settings))}"


def test_provenance_names_format_and_device(embedder: Embedder) -> None:
    assert isinstance(embedder, CanTellProvenance)
    told = embedder.provenance()
    assert told["dtype"] == "float32"
    assert told["device"] == "cpu"


def test_space_and_token_counts_are_known_without_a_model(embedder: Embedder) -> None:
    """In a fresh process: the same space, and neither torch nor transformers imported."""
    url = next(url for url in URLS if url.split(":")[0] in type(embedder).__module__)
    code = (
        "import sys; from seedbed import registry; from seedbed.content import Content\n"
        f"made = registry.embedder({url!r})\n"
        "print(made.space.to_json()); print(made.count_tokens([Content.of('a cat')])[0])\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    space, tokens, heavy = done.stdout.splitlines()
    assert Space.from_json(space) == embedder.space
    assert int(tokens) in (2, 4)
    assert heavy == "[]"
