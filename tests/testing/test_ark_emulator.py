"""The emulator by itself, over real HTTP: the documentation's rules, limits and errors; and with the official SDK."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from seedbed.errors import ConfigError
from seedbed.testing.ark import ArkEmulator, Faults, Limits, Settings
from seedbed.testing.ark.errors import ArkError
from seedbed.testing.ark.limits import Admission
from services import ark_sdk

MODEL, LATER = "doubao-embedding-vision-250615", "doubao-embedding-vision-251215"


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[tuple[ArkEmulator, str]]:
    emulator = ArkEmulator(getattr(request, "param", Settings()))
    with emulator.serving() as url:
        yield emulator, url


def post(url: str, key: str = "a-key", path: str = "/embeddings/multimodal", **body: Any) -> httpx.Response:
    asked = {"model": MODEL, "input": [{"type": "text", "text": "red shoes"}], **body}
    return httpx.post(f"{url}{path}", json=asked, headers={"Authorization": f"Bearer {key}"}, timeout=20)


def vector(answer: httpx.Response) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.asarray(answer.json()["data"]["embedding"], np.float32)


def data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def picture(width: int = 64, height: int = 48, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, kind)
    return file.getvalue()


def image(data: bytes, mime: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data, mime)}}


def video(data: bytes, mime: str = "video/mp4", **more: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_url(data, mime), **more}}


ON = {"type": "enabled"}
AWAY = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
MP4 = b"\0\0\0\x18ftypmp42" + bytes(5000)


def test_the_official_sdk_is_answered() -> None:
    text = {"type": "text", "text": "red shoes"}
    with ArkEmulator(Settings(keys=frozenset({"a-key"}), limits=Limits(rpm=60 * 4))).serving() as url:
        float_, packed, absent, wrong, *_, limited = ark_sdk.ask(
            url,
            {"model": MODEL, "input": [text]},
            {"model": MODEL, "input": [text], "encoding_format": "base64", "dimensions": 1024},
            {"model": "no-such-model", "input": [text]},
            {"model": MODEL, "input": []},
            *({"model": MODEL, "input": [text]},) * 4,
        )
        (stranger,) = ark_sdk.ask(url, {"model": MODEL, "input": [text]}, key="another")
    assert len(float_["answer"]["data"]["embedding"]) == 2048
    assert float_["answer"]["usage"]["total_tokens"] == 22
    assert len(base64.b64decode(packed["answer"]["data"]["embedding"])) == 4096
    assert absent == {"error": "ArkNotFoundError", "code": "InvalidEndpointOrModel.NotFound", "status": 404}
    assert wrong == {"error": "ArkBadRequestError", "code": "MissingParameter.input", "status": 400}
    assert limited == {"error": "ArkRateLimitError", "code": "ModelAccountRpmRateLimitExceeded", "status": 429}
    assert stranger == {"error": "ArkAuthenticationError", "code": "AuthenticationError", "status": 401}


def test_vectors_are_exact_in_bfloat16_and_not_of_unit_length(served: tuple[ArkEmulator, str]) -> None:
    _, url = served
    whole, cut = vector(post(url)), vector(post(url, dimensions=1024))
    assert (whole.shape, cut.shape) == ((2048,), (1024,))
    assert not (whole.view(np.uint32) & 0xFFFF).any()
    assert np.linalg.norm(whole) > 2
    assert np.count_nonzero(whole) > 2000
    assert not np.allclose(whole[:1024] / np.linalg.norm(whole[:1024]), cut / np.linalg.norm(cut), atol=0.01)
    packed = post(url, encoding_format="base64").json()["data"]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), whole)
    near, far = (vector(post(url, input=[{"type": "text", "text": t}])) for t in ("RED boots", "engine oil"))
    cosine = [float(whole @ v / np.linalg.norm(whole) / np.linalg.norm(v)) for v in (near, far)]
    assert cosine[0] > cosine[1] + 0.2


@pytest.mark.parametrize("served", [Settings(prefix_1024=True, data_as_list=True)], indirect=True)
def test_other_shapes_of_the_answer(served: tuple[ArkEmulator, str]) -> None:
    _, url = served
    whole, cut = (post(url, dimensions=n).json()["data"][0]["embedding"] for n in (2048, 1024))
    assert whole[:1024] == cut


def test_explicit_nulls_are_as_nothing_and_usage_is_by_kind(served: tuple[ArkEmulator, str]) -> None:
    emulator, url = served
    nulls: dict[str, Any] = dict.fromkeys(
        ("dimensions", "instructions", "sparse_embedding", "encoding_format", "multi_embedding")
    )
    assert post(url, **nulls).json()["usage"]["total_tokens"] == 22
    parts = [{"type": "text", "text": "a"}, image(picture(2000, 1000)), video(MP4)]
    usage = post(url, input=parts).json()["usage"]
    assert usage["prompt_tokens_details"] == {"text_tokens": 21, "image_tokens": 1312 + 10_000}
    assert emulator.calls == 2
    assert emulator.tokens == 22 + usage["total_tokens"]
    sparse = post(url, sparse_embedding={"type": "enabled"}).json()["data"]["sparse_embedding"]
    assert set(sparse[0]) == {"index", "value"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": None}, 400, "MissingParameter.model"),
        ({"model": "ep-123"}, 404, "InvalidEndpointOrModel.NotFound"),
        ({"input": "text"}, 400, "MissingParameter.input"),
        ({"input": [{"type": "text"}]}, 400, "MissingParameter.text"),
        ({"input": [{"type": "sound"}]}, 400, "InvalidParameter.type"),
        ({"dimensions": 512}, 400, "InvalidParameter.dimensions"),
        ({"encoding_format": "int8"}, 400, "InvalidParameter.encoding_format"),
        ({"instructions": "x"}, 400, "InvalidParameter.instructions"),
        ({"colour": "red"}, 400, "InvalidParameter.colour"),
        ({"multi_embedding": {"type": "enabled"}}, 400, "InvalidParameter.multi_embedding"),
        ({"model": LATER, "multi_embedding": {}}, 400, "MissingParameter.multi_embedding.type"),
        (
            {"sparse_embedding": {"type": "enabled"}, "input": [image(picture())]},
            400,
            "InvalidParameter.sparse_embedding",
        ),
        ({"input": [{"type": "text", "text": "word " * 130_000}]}, 400, "OutofContextError"),
        (
            {"input": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}]},
            400,
            "InvalidImageURL.DownloadError",
        ),
        ({"input": [image(picture(), "image/jpeg")]}, 400, "InvalidImageURL.InvalidFormat"),
        ({"input": [image(picture()[:40])]}, 400, "InvalidImageURL.InvalidFormat"),
        ({"input": [image(picture(14, 14))]}, 400, "InvalidImageURL.TooSmall"),
        ({"input": [image(picture(2000, 19))]}, 400, "InvalidImageURL.AspectRatio"),
        ({"input": [video(MP4, fps=1)]}, 400, "InvalidParameter.fps"),
        ({"model": LATER, "input": [video(MP4, fps=9)]}, 400, "InvalidParameter.fps"),
        ({"input": [video(MP4, "video/avi")]}, 400, "InvalidParameter.video_url"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_code(
    served: tuple[ArkEmulator, str], body: dict[str, Any], status: int, code: str
) -> None:
    emulator, url = served
    answer = post(url, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert emulator.refused == {code: 1}


@pytest.mark.parametrize("served", [Settings(endpoints={"ep-123": LATER})], indirect=True)
def test_an_accounts_endpoint_leads_to_a_model(served: tuple[ArkEmulator, str]) -> None:
    _, url = served
    answer = post(url, model="ep-123", instructions="Target_modality: text.", input=[video(MP4, fps=1)])
    assert answer.json()["model"] == LATER


def test_other_places_and_no_key(served: tuple[ArkEmulator, str]) -> None:
    _, url = served
    assert "does not support this api" in post(url, path="/embeddings").json()["error"]["message"]
    assert post(url, path="/chat").status_code == 404
    assert httpx.post(f"{url}/embeddings/multimodal", json={}).status_code == 401
    headers = {"Authorization": "Bearer k"}
    assert httpx.post(f"{url}/embeddings/multimodal", content=b"{", headers=headers).status_code == 400
    assert httpx.post(f"{url}/embeddings/multimodal", content=b"[]", headers=headers).status_code == 400


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(rpm=60), "ModelAccountRpmRateLimitExceeded"),
        (Limits(tpm=22 * 60), "ModelAccountTpmRateLimitExceeded"),
        (Limits(in_flight=1), "InflightBatchsizeExceeded"),
        (Limits(burst=1), "RequestBurstTooFast"),
    ],
)
def test_a_request_too_many_is_refused_by_its_limits_code(limits: Limits, code: str) -> None:
    emulator = ArkEmulator(Settings(limits=limits, latency=0.3, retry_after=7))
    with emulator.serving() as url, ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: post(url), range(30)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert emulator.refused == {code: len(refused)}
    assert 1 <= emulator.calls == 30 - len(refused) < 30
    assert refused[0].headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("limits", "at_once", "later"),
    [(Limits(rpm=600), 10, 5), (Limits(tpm=6000), 10, 5), (Limits(in_flight=10), 10, 0), (Limits(burst=10), 10, 10)],
)
def test_a_bucket_holds_one_seconds_worth(
    limits: Limits, at_once: int, later: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("seedbed.testing.ark.limits.time.monotonic", lambda: now[0])
    admission = Admission(limits)

    def admitted() -> int:
        count = 0
        for _ in range(50):
            with suppress(ArkError):
                admission.enter(10)
                count += 1
        return count

    assert admitted() == at_once
    now[0] += 0.5
    assert admitted() == later


def test_faults_come_by_turn_by_text_and_by_number() -> None:
    faults = Faults(expire_after=1)
    faults.next.extend(["QuotaExceeded", "html", "html_200", "truncated", "wrong_dimension", "nan", "zeros"])
    faults.texts["bad"] = "InputTextSensitiveContentDetected"
    emulator = ArkEmulator(Settings(faults=faults))
    with emulator.serving() as url:
        assert post(url).json()["error"]["code"] == "QuotaExceeded"
        assert [post(url).status_code for _ in range(2)] == [502, 200]
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            post(url).json()
        assert len(vector(post(url))) == 2024
        assert np.isnan(vector(post(url))).sum() == 1
        assert not vector(post(url)).any()
        bad = post(url, input=[{"type": "text", "text": "a bad word"}])
        assert bad.json()["error"]["code"] == "InputTextSensitiveContentDetected"
        assert post(url).status_code == 200
        assert post(url).status_code == 401
        faults.expire_after = None
        faults.next.append("drop")
        with pytest.raises(httpx.RemoteProtocolError):
            post(url)
        faults.next.append("hang")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{url}/embeddings/multimodal",
                json={"model": MODEL, "input": [{"type": "text", "text": "x"}]},
                headers={"Authorization": "Bearer k"},
                timeout=0.3,
            )
    assert emulator.texts == ["red shoes"]


def test_shares_of_faults_are_drawn_alike_each_time() -> None:
    def refused() -> dict[str, int]:
        emulator = ArkEmulator.from_url("emulator:?share_429=0.2&share_500=0.1&seed=3")
        with emulator.serving() as url:
            for _ in range(40):
                post(url)
        return emulator.refused

    found = refused()
    assert found == refused()
    assert set(found) == {"ModelAccountRpmRateLimitExceeded", "InternalServiceError"}


@pytest.mark.parametrize(
    ("url", "words"), [("emulator:?rmp=3", "'rmp'"), ("emulator:?rpm=fast", "rpm='fast'"), ("emulator:?rpm=-1", "rpm")]
)
def test_wrong_options_are_named(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ArkEmulator.from_url(url)
