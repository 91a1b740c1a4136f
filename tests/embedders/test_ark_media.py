"""Pictures and video by the Ark API: prepared within its rules, in their order, and paid for by kind."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image as Pillow

from embedders.test_ark import LATER, Make, make
from media.samples import encoded, picture, video
from seedbed import Content
from seedbed.content import Image, Video
from seedbed.errors import ContentsRefused
from seedbed.media.clips import Same, Sampling, sample
from seedbed.media.fits import Within
from seedbed.testing.ark import ArkEmulator

__all__ = ["make"]


def sent(emulator: ArkEmulator) -> list[tuple[str, str, bytes]]:
    """Of the last request's parts the type, MIME type and bytes."""
    found = []
    for part in emulator.recent[-1]["input"]:
        if part["type"] == "text":
            found.append(("text", "", part["text"].encode()))
        else:
            head, _, data = part[part["type"]]["url"].partition(",")
            found.append((part["type"], head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(data)))
    return found


def test_a_mixture_is_one_request_in_the_order_of_its_parts(make: Make) -> None:
    embedder, emulator = make()
    small, clip = picture(kind="JPEG"), video()
    vectors = embedder.embed([Content.of("words", Image(small), Video(clip)), Content.of(Image(small), "words")])
    assert vectors.shape == (2, 2048)
    assert emulator.calls == 2
    orders = {tuple(part["type"] for part in request["input"]) for request in emulator.recent}
    assert orders == {("text", "image_url", "video_url"), ("image_url", "text")}
    assert embedder.usage.image_tokens == 2 * (64 * 48 // 784) + 10_000
    assert embedder.takes == {"text", "image", "video"}


def test_what_fits_is_sent_as_it_is(make: Make) -> None:
    embedder, emulator = make()
    for data, mime in (
        (picture(), "image/png"),
        (picture(kind="JPEG"), "image/jpeg"),
        (picture(kind="WEBP"), "image/webp"),
    ):
        embedder.embed([Content.of(Image(data))])
        assert sent(emulator) == [("image_url", mime, data)]
    clip = video()
    embedder.embed([Content.of(Video(clip))])
    assert sent(emulator) == [("video_url", "video/mp4", clip)]


def test_a_large_picture_is_brought_to_what_is_billed(make: Make) -> None:
    embedder, emulator = make()
    embedder.embed([Content.of(Image(picture(4000, 3000, kind="JPEG")))])
    ((_, mime, data),) = sent(emulator)
    with Pillow.open(io.BytesIO(data)) as image:
        assert mime == "image/jpeg"
        assert image.width * image.height <= 1312 * 784
        assert image.width * image.height > 1300 * 784
    assert embedder.usage.image_tokens in (1310, 1311, 1312)


@pytest.mark.parametrize("how", ["turned", "layered", "deep", "moving", "ink", "bmp"])
def test_what_readers_differ_about_is_made_plain(make: Make, how: str) -> None:
    image = Pillow.new("RGB", (40, 20), (255, 0, 0))
    exif = Pillow.Exif()
    exif[0x0112] = 6
    data = {
        "turned": lambda: encoded(image, "JPEG", exif=exif),
        "layered": lambda: encoded(Pillow.new("RGBA", (40, 20), (255, 0, 0, 100)), "PNG"),
        "deep": lambda: encoded(Pillow.fromarray(np.full((20, 40), 40_000, np.uint16)), "PNG"),
        "moving": lambda: encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        "ink": lambda: encoded(image.convert("CMYK"), "JPEG"),
        "bmp": lambda: encoded(image, "BMP"),
    }[how]()
    embedder, emulator = make()
    embedder.embed([Content.of(Image(data))])
    ((_, mime, given),) = sent(emulator)
    assert mime == "image/jpeg"
    with Pillow.open(io.BytesIO(given)) as made:
        assert made.size == ((20, 40) if how == "turned" else (40, 20))
        assert made.mode == "RGB"


def test_a_container_that_is_not_taken_is_made_anew(make: Make) -> None:
    embedder, emulator = make()
    embedder.embed([Content.of(Video(video(frames=48, rate=8, container="matroska")))])
    ((_, mime, data),) = sent(emulator)
    assert mime == "video/mp4"
    clip = sample(data, Sampling(fps=8.0), Same(Within(10_000)))
    assert clip.seconds[-1] == pytest.approx(5.9, abs=1)


def test_what_ark_would_refuse_is_refused_here_and_costs_nothing(make: Make) -> None:
    embedder, emulator = make()
    bad = [
        Content.of(Image(encoded(Pillow.new("RGB", (1, 1)), "PNG"))),
        Content.of(Image(b"")),
        Content.of(Image(b"<html>not found</html>")),
        Content.of(Image(picture(2000, 15))),
        Content.of(Video(picture())),
        Content.of(Image(picture(200, 200)[:300])),
    ]
    with pytest.raises(ContentsRefused) as caught:
        embedder.embed([Content.of("good"), *bad])
    assert sorted(caught.value.refused) == [1, 2, 3, 4, 5, 6]
    assert "1x1 pixels" in caught.value.refused[1]
    assert "begins with '<html>" in caught.value.refused[3]
    assert np.isfinite(caught.value.vectors[0]).all()
    assert (emulator.calls, emulator.refused) == (1, {})


def test_later_models_are_told_the_kinds(make: Make) -> None:
    embedder, emulator = make(model=LATER, options="&target=text/image")
    embedder.embed([Content.of("a", Image(picture()))])
    assert emulator.recent[-1]["instructions"] == "Instruction:Compress the image and text into one word.\nQuery:"
    embedder.embed([Content.of("a")])
    assert emulator.recent[-1]["instructions"] == "Instruction:Compress the text into one word.\nQuery:"
    embedder.embed([Content.of("a")], "query")
    assert emulator.recent[-1]["instructions"].startswith("Target_modality: text/image.\n")


def test_a_querys_task_stands_before_its_text_alone(make: Make) -> None:
    embedder, emulator = make()
    embedder.embed([Content.of(Image(picture()), "a cat")], "query")
    assert [kind for kind, *_ in sent(emulator)] == ["image_url", "text"]
    assert sent(emulator)[1][2].decode().endswith("文本或图片：a cat")
    embedder.embed([Content.of(Image(picture()))], "query")
    assert [kind for kind, *_ in sent(emulator)] == ["image_url"]


def test_estimates_are_of_both_kinds(make: Make) -> None:
    embedder, _ = make()
    counted = embedder.count_tokens([Content.of("a" * 40), Content.of(Image(b"unseen")), Content.of(Video(b"unseen"))])
    assert counted.tolist() == [30, 1332, 10_020]
