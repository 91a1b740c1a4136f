"""Pictures and video by the embedding server: both dialects, what it fetches, and what it does not."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import seedbed
from media.samples import picture, video
from seedbed import Content
from seedbed.content import Image, Video
from seedbed.errors import ContentsRefused
from seedbed.testing.ark import ArkEmulator
from server.test_server import connect, free_port, start, wait
from services.web import Web, serving


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    process = start("hash:32", "--port", port, "--allow-host", "127.0.0.1", "--max-media", "100KB")
    wait(port, process)
    yield port
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def part(kind: str, url: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def asked(port: str, path: str, given: Any, **headers: str) -> tuple[int, Any]:
    with closing(connect(port)) as connection:
        connection.request("POST", path, json.dumps({"model": "m", "input": given}), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def expected(*contents: Content) -> Any:
    return seedbed.embedder("hash:32").embed(contents)


def test_an_input_of_parts_is_one_vector(server: str, web: Web) -> None:
    photo, clip = picture(seed=1), video()
    url = web.put("/a.png", photo)
    parts = [{"type": "text", "text": "words"}, part("image", url), part("video", data_url(clip, "video/mp4"))]
    status, answer = asked(server, "/v1/embeddings", ["plain", parts, [part("image", data_url(photo))]])
    assert status == 200
    wanted = expected(Content.of("plain"), Content.of("words", Image(photo), Video(clip)), Content.of(Image(photo)))
    np.testing.assert_allclose([row["embedding"] for row in answer["data"]], wanted, atol=1e-6)
    status, answer = asked(server, "/api/v3/embeddings/multimodal", parts)
    assert status == 200
    np.testing.assert_allclose(answer["data"]["embedding"], wanted[1], atol=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (part("image", "http://169.254.169.254/latest"), "no public address"),
        (part("image", "http://localhost:1/a"), "no public address"),
        (part("image", "file:///etc/passwd"), "must be a data URL, or begin with http"),
        (part("image", "/etc/passwd"), "must be a data URL"),
        (part("image", "s3://bucket/a.png"), "must be a data URL"),
        (part("image", "data:image/png;base64,###"), "no base64"),
        (part("image", ""), "a url is required"),
        ({"type": "audio_url"}, "must be of type text, image_url or video_url"),
        ({"type": "text"}, "must have one"),
    ],
)
def test_what_is_not_fetched(server: str, given: Any, words: str) -> None:
    for path, inputs in (("/v1/embeddings", [[given]]), ("/api/v3/embeddings/multimodal", [given])):
        status, answer = asked(server, path, inputs)
        assert status == 400
        assert words in answer["error"]["message"]


def test_what_the_web_does_not_give_is_the_callers_error(server: str, web: Web) -> None:
    for url, words in ((web.url + "/none", "status 404"), (web.put("/large", bytes(200_000)), "larger than 100,000")):
        status, answer = asked(server, "/v1/embeddings", [[part("image", url)]])
        assert status == 400
        assert words in answer["error"]["message"]


def test_seedbeds_own_client_sends_contents_of_all_kinds(server: str) -> None:
    contents = [Content.of("a"), Content.of("b", Image(picture())), Content.of(Video(video()))]
    with closing(seedbed.embedder(f"http://127.0.0.1:{server}/v1")) as embedder:
        assert set(getattr(embedder, "takes", ())) == {"text", "image", "video"}
        np.testing.assert_allclose(embedder.embed(contents), expected(*contents), atol=1e-6)
        with pytest.raises(ContentsRefused, match="no image"):
            embedder.embed([Content.of(Image(b"<html>"))])


def test_a_gateway_takes_pictures_and_tells_what_they_took(monkeypatch: pytest.MonkeyPatch, web: Web) -> None:
    emulator, port = ArkEmulator(), free_port()
    url = web.put("/b.png", picture(400, 300))
    monkeypatch.setenv("ARK_API_KEY", "any")
    with emulator.serving() as endpoint:
        model = f"ark:doubao-embedding-vision-250615?endpoint={endpoint}"
        process = start(model, "--port", port, "--allow-host", "127.0.0.1")
        try:
            wait(port, process)
            given = [{"type": "text", "text": "words"}, part("image", url)]
            for _ in range(2):
                status, answer = asked(port, "/api/v3/embeddings/multimodal", given)
                assert status == 200
                assert len(answer["data"]["embedding"]) == 2048
                assert answer["usage"]["prompt_tokens_details"]["image_tokens"] > 0
            assert emulator.calls == 1
            status, answer = asked(port, "/api/v3/embeddings/multimodal", [part("image", data_url(b"<html>"))])
            assert status == 400
            assert "no picture" in answer["error"]["message"]
            assert emulator.calls == 1
        finally:
            process.terminate()
            process.wait(20)


def test_a_model_of_text_says_so() -> None:
    port = free_port()
    process = start("local:minilm", "--port", port)
    try:
        wait(port, process)
        status, answer = asked(port, "/v1/embeddings", [[part("image", data_url(picture()))]])
        assert status == 400
        assert "takes text alone" in answer["error"]["message"]
    finally:
        process.terminate()
        process.wait(20)
