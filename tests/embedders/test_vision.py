"""The vision-language path on a tiny random checkpoint: in a batch as alone, and as the reference does it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import seedbed
from media.samples import encoded, picture, video
from seedbed import Content
from seedbed.content import Image, Video
from seedbed.embedders import runner as runners
from seedbed.embedders.local import LocalEmbedder, local
from seedbed.embedders.options import Options
from seedbed.embedders.tokens import packed
from seedbed.embedders.vision import OPTIONS, VisionEmbedder
from seedbed.embedders.vision_model import VisionModel
from seedbed.embedders.vision_prompt import Prompts, Sample, sentence
from seedbed.errors import ConfigError, ContentsRefused
from seedbed.media import pictures
from seedbed.media.fits import Grid
from seedbed.protocols import Vectors
from services import tiny_vlm, vlm_reference

NOTHING = 2
"""Tokens of `NULL`, which stands where a content is empty."""
TEXTS = ["a photo of a cat", "", "numbers 0123456789\n\nand more lines\n", "把文字和图片变成向量。", "fox " * 200]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.build(tmp_path_factory.mktemp("vlm") / "tiny")


@pytest.fixture(scope="module")
def embedder(folder: Path) -> VisionEmbedder:
    made = local(f"local:{folder}?dtype=float32", {})
    assert isinstance(made, VisionEmbedder)
    return made


def made(folder: Path, options: str = "", **settings: Any) -> VisionEmbedder:
    found = local(f"local:{folder}?dtype=float32{options}", settings)
    assert isinstance(found, VisionEmbedder)
    return found


MIXTURES = [
    Content.of("a photo of a cat"),
    Content.of(Image(picture(200, 120, seed=1))),
    Content.of("words", Image(picture(90, 160, seed=2)), Image(picture(64, 64, seed=3))),
    Content.of(Video(video(frames=32, rate=4))),
    Content.of(Image(picture(70, 50, seed=4)), "between", Video(video(frames=20, rate=4)), "and after"),
    Content.of("x" * 700),
]


def test_a_batch_is_each_alone(embedder: VisionEmbedder) -> None:
    together = embedder.embed(MIXTURES)
    alone = np.concatenate([embedder.embed([content]) for content in MIXTURES])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert len({tuple(row.round(3)) for row in together}) == len(MIXTURES)
    assert embedder.takes == {"text", "image", "video"}


def test_padding_on_either_side_changes_nothing(embedder: VisionEmbedder, folder: Path) -> None:
    samples: list[Sample] = []
    for _, found, _ in embedder._prepared(MIXTURES, range(len(MIXTURES)), "document"):
        samples += found
    (model,) = embedder._runner._models
    assert isinstance(model, VisionModel)
    right, left = (model.pooled(samples, 64, left=side) for side in (False, True))
    np.testing.assert_allclose(right, left, atol=1e-5)


@pytest.fixture(scope="module")
def reference(folder: Path) -> tuple[list[bytes], dict[str, Any]]:
    files = [picture(200, 120, seed=1), picture(333, 97, seed=2), picture(40, 30, seed=3)]
    sized = [pictures.pixels(data, Grid(32, 4096, 1_843_200)) for data in files]
    texts = [text or "NULL" for text in TEXTS]
    return files, vlm_reference.ask(
        folder, {"texts": texts, "images": sized, "instruction": "Represent the user's input."}
    )


def nearness(ours: Vectors, theirs: Any) -> float:
    other = np.array(theirs, np.float32)
    return float(np.einsum("ij,ij->i", ours, other / np.linalg.norm(other, axis=1, keepdims=True)).min())


def test_texts_pictures_and_mixtures_are_the_references(embedder: VisionEmbedder, reference: Any) -> None:
    files, found = reference
    images = [Image(data) for data in files]
    assert nearness(embedder.embed([Content.of(text) for text in TEXTS]), found["texts"]) > 0.99999
    assert nearness(embedder.embed([Content.of(image) for image in images]), found["images"]) > 0.99999
    mixed = [Content.of(text or "NULL", image) for text, image in zip(TEXTS, images, strict=False)]
    assert nearness(embedder.embed(mixed), found["mixed"]) > 0.99999


def test_prompts_and_patches_are_the_processors(embedder: VisionEmbedder, folder: Path, reference: Any) -> None:
    files, found = reference
    assert [sample.ids for sample in Prompts(folder, "").worded(TEXTS)] == found["prompts"]
    (model,) = embedder._runner._models
    assert isinstance(model, VisionModel)
    for data, patches in zip(files, found["patches"], strict=True):
        ours = model._patches(pictures.pixels(data, Grid(32, 4096, 1_843_200))[None])
        np.testing.assert_allclose(ours.numpy(), np.array(patches), atol=1e-5)


def test_a_video_is_rendered_pair_by_pair_with_its_times(embedder: VisionEmbedder, folder: Path) -> None:
    ((_, (sample,), _),) = embedder._prepared([Content.of(Video(video(frames=40, rate=4)))], [0], "document")
    from tokenizers import Tokenizer

    said = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(sample.ids, skip_special_tokens=False)
    pads = "<|video_pad|>" * (sample.vision // 5)
    frames = "".join(
        f"<{second} seconds><|vision_start|>{pads}<|vision_end|>" for second in ("0.5", "2.8", "4.9", "7.0", "9.2")
    )
    system = "<|im_start|>system\nRepresent the user's input.<|im_end|>\n"
    assert said == f"{system}<|im_start|>user\n{frames}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"


def test_words_that_look_like_special_tokens_are_words(folder: Path, embedder: VisionEmbedder) -> None:
    (sample,) = Prompts(folder, "").worded(["<|im_end|><|image_pad|><|endoftext|>"])
    plain = Prompts(folder, "").worded(["x"])[0]
    image = tiny_vlm.SPECIAL.index("<|image_pad|>")
    assert image not in sample.ids
    assert sum(token < len(tiny_vlm.SPECIAL) for token in sample.ids) == sum(
        token < len(tiny_vlm.SPECIAL) for token in plain.ids
    )
    assert np.isfinite(embedder.embed([Content.of("<|im_end|><|image_pad|>", Image(picture()))])).all()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", "Represent the user's input."),
        ("Find it", "Find it."),
        (" Find it! ", "Find it!"),
        ("找到它。", "找到它。"),
    ],
)
def test_an_instruction_ends_as_a_sentence(given: str, wanted: str) -> None:
    assert sentence(given) == wanted


def test_instructions_are_of_each_side(folder: Path) -> None:
    one = made(folder, query_instruction="Retrieve images or text relevant to the user's query.")
    document, query = (one.embed([Content.of("cat")], kind) for kind in ("document", "query"))
    assert not np.allclose(document, query, atol=1e-3)
    assert one.space == made(folder).space
    assert one.space != made(folder, instruction="Other").space


def test_fewer_dimensions_are_cut_first_and_then_of_unit_length(folder: Path, embedder: VisionEmbedder) -> None:
    whole, cut = embedder.embed(MIXTURES[:3]), made(folder, dimensions=16).embed(MIXTURES[:3])
    wanted = whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, wanted, atol=1e-5)
    with pytest.raises(ConfigError, match="gives 64"):
        _ = made(folder, dimensions=65).space


def test_a_bad_picture_is_refused_alone(embedder: VisionEmbedder) -> None:
    bad = [
        Content.of(Image(b"")),
        Content.of("x", Image(b"<html>")),
        Content.of(Video(picture())),
        Content.of("\ud800"),
    ]
    with pytest.raises(ContentsRefused) as caught:
        embedder.embed([MIXTURES[1], *bad, MIXTURES[0]])
    assert sorted(caught.value.refused) == [1, 2, 3, 4]
    np.testing.assert_allclose(caught.value.vectors[[0, 5]], embedder.embed([MIXTURES[1], MIXTURES[0]]), atol=1e-5)


def test_too_long_is_refused_or_cut(folder: Path, embedder: VisionEmbedder) -> None:
    long = Content.of("fox " * 9000)
    with pytest.raises(ContentsRefused, match="tokens, but the model takes 8192"):
        embedder.embed([long])
    vectors = made(folder, "&truncate=true").embed([long, Content.of("fox " * 20_000)])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_out_of_memory_halves_the_batch_and_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(folder, "&batch_tokens=4000")
    contents = [Content.of(f"text {number}", Image(picture(64, 64, seed=number))) for number in range(40)]
    wanted = one.embed(contents)
    whole, sizes = VisionModel.pooled, list[int]()

    def small(self: VisionModel, samples: Sequence[Sample], dimensions: int, **more: Any) -> Vectors:
        sizes.append(len(samples))
        if len(samples) > 3:
            raise torch.OutOfMemoryError("no more")
        return whole(self, samples, dimensions, **more)

    monkeypatch.setattr(VisionModel, "pooled", small)
    np.testing.assert_allclose(one.embed(contents), wanted, atol=1e-5)
    assert max(sizes) > 3
    monkeypatch.setattr(VisionModel, "pooled", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(ContentsRefused, match="no memory"):
        one.embed(contents[:1])


def test_several_devices_each_have_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = made(folder).embed(MIXTURES)
    monkeypatch.setattr(runners, "_devices", lambda wanted: [torch.device("cpu")] * 2)
    two = made(folder, "&batch_tokens=300")
    np.testing.assert_allclose(two.embed(MIXTURES), wanted, atol=1e-5)
    assert two.provenance()["device"] == "cpu, cpu"
    assert len(two._runner._models) == 2


def test_usage_and_counts(folder: Path) -> None:
    one = made(folder)
    counted = one.count_tokens([Content.of("a photo of a cat"), Content.of(Image(picture()))])
    one.embed([Content.of("a photo of a cat")])
    assert one.usage.tokens == counted[0]
    one.embed([Content.of(Image(picture(200, 120)))])
    assert one.usage.image_tokens == 6 * 4
    pictures = [content for content in MIXTURES if content.modality in ("image", "image+text")]
    before = one.usage.tokens
    one.embed(pictures)
    assert one.usage.tokens - before == one.count_tokens(pictures).sum()
    assert one.count_tokens([Content.of(Image(b"no picture"))])[0] == one.count_tokens([Content.of("")])[0] - NOTHING
    assert counted[1] < 1800


def test_batches_of_a_mixed_corpus_waste_little() -> None:
    lengths = np.random.default_rng(5).lognormal(4.5, 1.0, 500).astype(int) + 30
    for budget in (1024, 8192, 32768):
        places = packed(lengths.tolist(), budget)
        assert sorted(n for batch in places for n in batch) == list(range(500))
        for batch in places:
            padded = len(batch) * max(lengths[batch])
            assert padded <= budget or len(batch) == 1
            assert lengths[batch].sum() >= 0.9 * padded


def test_a_picture_is_not_taken_for_texts_in_one_row(embedder: VisionEmbedder) -> None:
    """transformers 4.57 reads the first row of positions so where no mask is given, and 5 where there are four."""
    ((_, samples, _),) = embedder._prepared([MIXTURES[2]], [0], "document")
    (model,) = embedder._runner._models
    assert isinstance(model, VisionModel)
    places = model._positions(samples, [0], len(samples[0]))
    np.testing.assert_array_equal(places[0, 0], np.arange(len(samples[0])))
    ids = torch.tensor([samples[0].ids])
    theirs, _ = model._transformer.get_rope_index(
        ids,
        mm_token_type_ids=(ids == model._image).int(),
        image_grid_thw=model._pixels(samples)["image_grid_thw"],
    )
    np.testing.assert_array_equal(places[1:], theirs.numpy())


def test_a_text_model_needs_nothing_that_decodes() -> None:
    code = (
        "import sys; sys.modules['av'] = sys.modules['PIL'] = None\n"
        "import seedbed; print(seedbed.embedder('local:minilm').space.dimensions)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "384", done.stderr


def test_options_that_change_vectors_change_the_space(folder: Path) -> None:
    usual = made(folder).space
    assert usual.profile == 2
    assert made(folder, "&threads=1").space == usual
    for options in ("&fps=2", "&frames=8", "&keyframes=true"):
        assert made(folder, options).space != usual
    clip = Content.of(Video(video(frames=64, rate=4)))
    assert len(made(folder, "&frames=4").embed([clip])) == 1
    with pytest.raises(ConfigError, match="flash attention is for CUDA"):
        made(folder, "&attention=flash").embed([clip])
    with pytest.raises(ConfigError, match="did you mean"):
        Options.parse(f"local:{folder}?frame=8", OPTIONS)


def test_a_text_model_refuses_pictures() -> None:
    minilm = seedbed.embedder("local:minilm")
    assert isinstance(minilm, LocalEmbedder)
    with pytest.raises(ContentsRefused, match="takes text alone") as caught:
        minilm.embed([Content.of("a"), Content.of("a", Image(picture()))])
    assert list(caught.value.refused) == [1]


GOLDEN = [
    [-0.137659, 0.225226, 0.133922, 0.017326],
    [-0.122929, 0.136218, -0.133501, 0.160215],
    [-0.091451, 0.183207, -0.134476, -0.021161],
]


def test_golden_vectors(embedder: VisionEmbedder) -> None:
    """Of pictures without noise, so that decoders of other versions agree: rendering, patches, positions, pooling."""
    flat = Image(encoded(Pillow.new("RGB", (96, 64), (200, 60, 20)), "PNG"))
    found = embedder.embed([Content.of("a photo of a cat"), Content.of(flat), Content.of("two", flat, flat)])
    np.testing.assert_allclose(found[:, :4], GOLDEN, atol=2e-4)
