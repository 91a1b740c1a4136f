"""`seedbed serve` for many callers: Ark's route, keys, the shared cache, metrics, logs; and as a gateway to Ark."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

import seedbed
from seedbed import Content
from seedbed.errors import ConfigError, Fatal
from seedbed.server.callers import Callers
from seedbed.server.dialect import Unauthorized
from seedbed.testing.ark import ArkEmulator, Settings
from services import ark_sdk

MODEL = "doubao-embedding-vision-250615"
KEYS = "# who may ask\nanna anna-key-1\nbert bert-key-2  # nightly\n"
ARK = "/api/v3/embeddings/multimodal"


@contextmanager
def serving(*arguments: str, log: Path | None = None, **environment: str) -> Iterator[str]:
    """The address of a `seedbed serve` of its own, ready."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "seedbed", "serve", *arguments, "--port", str(port)]
    with log.open("wb") if log else open(os.devnull, "wb") as errors:
        process = subprocess.Popen(command, stderr=errors, env={**os.environ, **environment})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            try:
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gateway")
    (made / "keys").write_text(KEYS)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    told = ("--api-keys", str(folder / "keys"), "--log", "json")
    with serving("hash:64?refuse=poison&latency=0.05", *told, log=folder / "log") as address:
        yield address


def post(
    address: str, text: Any = "red shoes", key: str = "anna-key-1", path: str = ARK, **more: Any
) -> httpx.Response:
    parts = [{"type": "text", "text": text}] if isinstance(text, str) else text
    body = {"model": "any", "input": parts if path == ARK else text, **more}
    return httpx.post(f"{address}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def metrics(address: str) -> dict[tuple[str, ...], float]:
    """By name and the values of its labels."""
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_official_sdk_is_answered_by_any_model(server: str) -> None:
    text = {"type": "text", "text": "red shoes"}
    good, short, wrong, picture = ark_sdk.ask(
        f"{server}/api/v3",
        {"model": "any", "input": [text]},
        {"model": "any", "input": [text], "dimensions": 1024},
        {"model": "any", "input": []},
        {"model": "any", "input": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}]},
        key="anna-key-1",
    )
    (stranger,) = ark_sdk.ask(f"{server}/api/v3", {"model": "any", "input": [text]}, key="no-key")
    expected = seedbed.embedder("hash:64").embed([Content.of("red shoes")])[0]
    np.testing.assert_allclose(good["answer"]["data"]["embedding"], expected, atol=1e-6)
    assert good["answer"]["model"] == "hash:64"
    assert good["answer"]["usage"]["total_tokens"] == 2
    assert short == {"error": "ArkBadRequestError", "code": "InvalidParameter", "status": 400}
    assert wrong["status"] == picture["status"] == 400
    assert stranger == {"error": "ArkAuthenticationError", "code": "AuthenticationError", "status": 401}


def test_parts_are_one_content_and_queries_have_their_kind(server: str) -> None:
    parts = [{"type": "text", "text": "red"}, {"type": "text", "text": "shoes"}]
    nulls: dict[str, Any] = dict.fromkeys(("dimensions", "instructions", "sparse_embedding", "encoding_format"))
    fused = post(server, parts, kind="query", **nulls).json()["data"]["embedding"]
    expected = seedbed.embedder("hash:64").embed([Content.of("red", "shoes")], "query")[0]
    np.testing.assert_allclose(fused, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "more", "status", "code"),
    [
        ("poison", {}, 400, "InvalidParameter"),
        ("", {}, 400, "InvalidParameter"),
        ([{"type": "sound"}], {}, 400, "InvalidParameter"),
        ("x", {"kind": "other"}, 400, "InvalidParameter"),
        ("x", {"instructions": "Find"}, 400, "InvalidParameter"),
        ("x", {"encoding_format": "int8"}, 400, "InvalidParameter"),
    ],
)
def test_errors_of_arks_route_are_arks(server: str, text: Any, more: dict[str, Any], status: int, code: str) -> None:
    answer = post(server, text, **more)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("path", [ARK, "/v1/embeddings"])
def test_a_caller_with_100_megabytes_is_stopped(server: str, path: str) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"input": "'
        for _ in range(100):
            yield b"x" * 1_000_000

    try:
        answer = httpx.post(
            f"{server}{path}", content=body(), headers={"Authorization": "Bearer anna-key-1"}, timeout=30
        )
    except httpx.TransportError:
        pass  # The server has answered and closed before all was sent.
    else:
        assert answer.status_code == (400 if path == ARK else 413)
    assert post(server).status_code == 200


@pytest.mark.parametrize("key", ["-", "wrong", "anna-key", "anna-key-11", "ключ".encode().decode("latin-1")])
def test_who_has_no_key_is_not_answered(server: str, key: str) -> None:
    for path in (ARK, "/v1/embeddings"):
        headers = {b"Authorization": f"Bearer {key}".encode("latin-1")}
        assert httpx.post(f"{server}{path}", json={}, headers=headers).status_code == 401
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server}/v1", api_key="wrong", max_retries=0).embeddings.create(model="m", input="x")


def test_metrics_and_logs_tell_who_asked_and_hold_no_key_and_no_content(server: str, folder: Path) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="bert-key-2")
    client.embeddings.create(model="m", input=["a secret content", "another"])
    client.embeddings.create(model="m", input=["a secret content"])
    found = metrics(server)
    assert found["seedbed_inputs_total", "bert", "openai"] == 3
    assert found["seedbed_requests_total", "bert", "openai", "200"] == 2
    assert found["seedbed_cache_hits_total",] >= 1
    assert found["seedbed_ready",] == 1
    assert found["seedbed_cache_bytes",] > 256
    assert found["seedbed_batch_size_count",] >= 1
    log = (folder / "log").read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {"route", "status", "caller", "inputs", "tokens", "milliseconds", "time"} == set(lines[-1])
    assert lines[-1]["caller"] == "bert"
    for hidden in ("secret", "anna-key", "bert-key"):
        assert hidden not in log + httpx.get(f"{server}/metrics").text


def test_equal_contents_are_embedded_once(server: str) -> None:
    before = metrics(server)["seedbed_cache_misses_total",]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: post(server, "asked by many").json()["data"]["embedding"], range(16)))
    assert all(answer == answers[0] for answer in answers)
    assert metrics(server)["seedbed_cache_misses_total",] == before + 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("anna one two\n", "line 1: a line is"),
        ("a key1\n\na key2\n", "line 3: 'a' comes twice"),
        ("a key1\nb key1\n", "line 2: another caller"),
        ("# nothing\n", "holds no API key"),
    ],
)
def test_a_wrong_file_of_keys_is_named_by_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match=words) as raised:
        Callers.read(tmp_path / "keys")
    assert "key1" not in str(raised.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        Callers.read(tmp_path / "absent")
    with pytest.raises(Unauthorized):
        Callers({"a": "key"}).name("Basic key")


# --- a gateway to Ark -------------------------------------------------------------------------------


def test_a_gateway_holds_key_cache_and_budget(tmp_path: Path) -> None:
    emulator = ArkEmulator(Settings(keys=frozenset({"the-real-key"}), latency=0.02))
    (tmp_path / "keys").write_text(KEYS)
    told = ("--api-keys", str(tmp_path / "keys"), "--tokens", "3000", "--rpm", "100000", "--tpm", "0")
    with emulator.serving() as url:
        ark = f"ark:{MODEL}?endpoint={url}"
        with serving(ark, *told, ARK_API_KEY="the-real-key") as address:
            answer = post(address, "row 0").json()
            assert answer["model"] == MODEL
            with closing(seedbed.embedder(ark, api_key="the-real-key")) as direct:
                expected = direct.embed([Content.of("row 0")])[0]
            np.testing.assert_allclose(answer["data"]["embedding"], expected, atol=1e-6)
            calls = emulator.calls
            with ThreadPoolExecutor(16) as pool:
                statuses = list(pool.map(lambda number: post(address, f"row {number % 40}").status_code, range(120)))
            assert statuses == [200] * 120
            assert emulator.calls == calls + 39
            with closing(seedbed.embedder(f"{address}/v1", api_key="bert-key-2")) as client:
                assert client.space.model == f"ark:{MODEL}"
                np.testing.assert_allclose(client.embed([Content.of("row 0")])[0], expected, atol=1e-6)
                with pytest.raises(Fatal, match="budget of 3,000 tokens is spent"):
                    client.embed([Content.of(f"new {number}") for number in range(400)])
            spent = post(address, "not seen before")
            assert (spent.status_code, spent.json()["error"]["code"]) == (429, "QuotaExceeded")
            assert post(address, "row 7").status_code == 200
            assert emulator.tokens <= 3000 + 60


def test_gateways_share_a_days_budget_through_a_ledger(pg_url: str) -> None:
    emulator = ArkEmulator()
    told = ("--tokens", "1000", "--ledger", pg_url, "--cache", "0B")
    with emulator.serving() as url:
        ark = f"ark:{MODEL}?endpoint={url}"
        statuses = []
        for _ in range(2):
            with serving(ark, *told, ARK_API_KEY="k") as address:
                statuses.append([post(address, f"row {number}").status_code for number in range(30)])
        # The second one's day began with what the first had left.
        assert statuses[0].count(200) + statuses[1].count(200) == emulator.calls
        assert 900 <= emulator.tokens <= 1000
        assert statuses[1][-1] == 429


def test_what_goes_wrong_behind_a_gateway_has_its_status(tmp_path: Path) -> None:
    emulator = ArkEmulator(Settings(keys=frozenset({"the-real-key"})))
    emulator.settings.faults.texts.update({"bad": "InputTextSensitiveContentDetected", "poor": "QuotaExceeded"})
    with emulator.serving() as url:
        with serving(f"ark:{MODEL}?endpoint={url}", ARK_API_KEY="the-real-key") as address:
            answers = {word: post(address, f"a {word} text") for word in ("bad", "poor", "good")}
            assert {word: answer.status_code for word, answer in answers.items()} == {
                "bad": 400,
                "poor": 502,
                "good": 200,
            }
            both = post(address, ["a good text", "a bad text"], path="/v1/embeddings")
            assert both.status_code == 422
        with serving(f"ark:{MODEL}?endpoint={url}", ARK_API_KEY="wrong") as address:
            answer = post(address, "a text")
            assert answer.status_code == 502
            assert "wrong" not in answer.text.replace("it is wrong", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hash:8", "--cache", "many"], "'many' is no size"),
        (["hash:8", "--money", "3"], "needs a price"),
        (["hash:8", "--api-keys", "/nowhere/keys"], "cannot be read"),
    ],
)
def test_wrong_options_end_the_command(arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", "seedbed", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
