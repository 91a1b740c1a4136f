"""The client of OpenAI-compatible servers: Seedbed's own for real, and a double that answers as others do."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import orjson
import pytest

from seedbed import Content, registry
from seedbed.errors import ConfigError, ContentsRefused, Fatal, Transient
from seedbed.retry import Patience

KEY = "sk-never-shown"


class OpenAiDouble(BaseHTTPRequestHandler):
    """`/v1/models` and `/v1/embeddings` of a server that is not Seedbed's. A text that holds `bad` is refused, and with
    it its request; `faults` are statuses for the next requests."""

    protocol_version = "HTTP/1.1"
    base64, models = True, True
    faults: list[tuple[int, dict[str, Any]]] = []  # noqa: RUF012 - one for the server
    asked: list[dict[str, Any]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        if self.path == "/v1/models" and self.models:
            self.reply(200, {"data": [{"id": "some-model"}]})
        else:
            self.reply(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        asked = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(asked)
        if self.faults:
            return self.reply(*self.faults.pop(0))
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.reply(401, {"error": {"message": "no such key", "code": "invalid_api_key"}})
        if asked.get("encoding_format") == "base64" and not self.base64:
            return self.reply(400, {"error": {"message": "unknown encoding_format", "param": "encoding_format"}})
        if any("bad" in text for text in asked["input"]):
            return self.reply(422, {"error": "Input validation error: too many tokens", "error_type": "Validation"})
        rows = [np.frombuffer(text.encode().ljust(16, b"\1")[:16], np.uint8).astype("<f4") for text in asked["input"]]
        packed = asked.get("encoding_format") == "base64"
        made = [base64.b64encode(row.tobytes()).decode() if packed else row.tolist() for row in rows]
        data = [{"index": number, "embedding": row} for number, row in enumerate(made)]
        return self.reply(200, {"data": data[::-1], "usage": {"total_tokens": 3 * len(rows)}})

    def reply(self, status: int, body: dict[str, Any]) -> None:
        whole = orjson.dumps(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def doubled(**told: Any) -> Iterator[tuple[str, type[OpenAiDouble]]]:
    kind = type("Told", (OpenAiDouble,), {"faults": [], "asked": [], **told})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", kind
    server.shutdown()
    server.server_close()


def rows(count: int) -> list[Content]:
    return [Content.of(f"row {number}") for number in range(count)]


@pytest.fixture(scope="module")
def seedbed_server() -> Iterator[str]:
    """`seedbed serve hash:64`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as taken:
        port = taken.server_port
    command = [
        sys.executable,
        "-m",
        "seedbed",
        "serve",
        "hash:64",
        "--port",
        str(port),
        "--query-instruction",
        "find: ",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ) as process:
        yield f"http://127.0.0.1:{port}/v1"
        process.terminate()


def test_seedbeds_own_server_is_the_same_space_as_its_model(seedbed_server: str) -> None:
    local = registry.embedder("hash:64", query_instruction="find: ")
    with closing(registry.embedder(seedbed_server)) as served:
        assert Patience(attempts=100, first=0.1, most=0.2).run(lambda: served.space) == local.space
        asked = rows(300)
        for kind in ("document", "query"):
            np.testing.assert_allclose(served.embed(asked, kind), local.embed(asked, kind), atol=1e-6)
        assert served.usage.calls == 10
    with closing(registry.embedder(seedbed_server, dimensions=32)) as other, pytest.raises(ConfigError, match="64 dim"):
        _ = other.space
    told = registry.embedder(seedbed_server, instruction="x: ")
    with closing(told), pytest.raises(ConfigError, match="puts its own instructions"):
        _ = told.space


@pytest.mark.parametrize("packed", [True, False])
def test_another_server_is_asked_for_its_model_and_size(packed: bool) -> None:
    with doubled(base64=packed) as (url, double), closing(registry.embedder(url, api_key=KEY)) as embedder:
        assert embedder.space.model == "http:some-model"
        assert embedder.space.dimensions == 16
        vectors = embedder.embed(rows(200), "query")
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(embedder.embed(rows(200)[150:151])[0], vectors[150], atol=1e-6)
        asked = [request for request in double.asked if len(request["input"]) > 1]
        assert max(len(request["input"]) for request in asked) == 64
        assert all("kind" not in request and request["model"] == "some-model" for request in asked)


def test_instructions_are_put_before_texts_here() -> None:
    with doubled() as (url, double):
        told = {"instruction": "doc: ", "query_instruction": "ask: ", "dimensions": 16, "api_key": KEY}
        with closing(registry.embedder(f"{url}?model=mine", **told)) as embedder:
            embedder.embed(rows(1))
            embedder.embed(rows(1), "query")
        assert [request["input"] for request in double.asked] == [["doc: row 0"], ["ask: row 0"]]
        assert double.asked[0]["model"] == "mine"
        assert double.asked[0]["dimensions"] == 16


def test_of_a_request_that_is_refused_only_the_bad_ones_fail() -> None:
    with doubled() as (url, _), closing(registry.embedder(url, api_key=KEY)) as embedder:
        asked = rows(100)
        asked[17] = asked[60] = Content.of("a bad one")
        asked[80] = Content.of("lone \ud800")
        with pytest.raises(ContentsRefused) as raised:
            embedder.embed(asked)
        assert set(raised.value.refused) == {17, 60, 80}
        assert "too many tokens" in raised.value.refused[17]
        assert "surrogate" in raised.value.refused[80]
        good = [number for number in range(100) if number not in (17, 60, 80)]
        np.testing.assert_allclose(np.linalg.norm(raised.value.vectors[good], axis=1), 1, atol=1e-6)


def test_what_passes_is_sent_again() -> None:
    with doubled() as (url, double), closing(registry.embedder(f"{url}?model=m", api_key=KEY)) as embedder:
        double.faults += [(503, {}), (429, {"error": {"message": "slow down"}}), (500, {}), (408, {})]
        assert embedder.embed(rows(10)).shape == (10, 16)


@pytest.mark.parametrize(
    ("status", "error", "setting"),
    [
        (429, {"message": "no money", "code": "insufficient_quota"}, "embedder.api_key"),
        (403, {"message": "not yours"}, "embedder.api_key"),
        (404, {"message": "no such model"}, "embedder.url"),
        (400, {"message": "no such size", "param": "dimensions"}, "embedder.dimensions"),
    ],
)
def test_what_no_second_try_mends_stops(status: int, error: dict[str, str], setting: str) -> None:
    with doubled() as (url, double), closing(registry.embedder(f"{url}?model=m", api_key=KEY)) as embedder:
        double.faults += [(status, {"error": error})] * 3
        with pytest.raises(Fatal, match=error["message"]) as raised:
            embedder.embed(rows(3))
        assert raised.value.setting == setting
        assert KEY not in str(raised.value)


def test_a_wrong_key_is_named_and_not_shown() -> None:
    with doubled() as (url, _), closing(registry.embedder(url, api_key="another")) as embedder:
        with pytest.raises(Fatal, match="no such key") as raised:
            _ = embedder.space
        assert raised.value.setting == "embedder.api_key"
        assert "another" not in str(raised.value) + repr(embedder)


def test_a_server_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seedbed.embedders.calls._TRIES", 2)
    with doubled(models=False) as (url, _), closing(registry.embedder(url, api_key=KEY)) as embedder:
        with pytest.raises(ConfigError, match="does not list its models") as raised:
            _ = embedder.space
        assert "?model=NAME" in (raised.value.hint or "")
    with closing(registry.embedder("http://127.0.0.1:9/v1")) as embedder, pytest.raises(Transient, match="onnect"):
        _ = embedder.space
    for wrong in ("http:", "http://user:secret@host/v1"):
        with pytest.raises(ConfigError) as refused:
            registry.embedder(wrong)
        assert "secret" not in str(refused.value)
