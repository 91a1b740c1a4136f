"""`seedbed serve` as a process of its own, over TCP and a unix socket, and OpenAI's client against it."""

from __future__ import annotations

import base64
import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import seedbed
from seedbed import Content


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def connect(address: str) -> http.client.HTTPConnection:
    if address.startswith("unix:"):
        return UnixConnection(address.removeprefix("unix:"))
    return http.client.HTTPConnection("127.0.0.1", int(address), timeout=30)


def ask(address: str, body: Any, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = connect(address)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", "/v1/embeddings", raw, headers)
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, answer, dict(response.getheaders())


def wait(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        try:
            connection = connect(address)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "seedbed", "serve", *arguments], stderr=subprocess.DEVNULL)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return str(listening.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    process = start("hash:32?refuse=poison&nan=notfinite&latency=0.05", "--port", port)
    wait(port, process)
    yield port
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def expected(*texts: str) -> Any:
    return seedbed.embedder("hash:32").embed([Content.of(text) for text in texts])


def test_openais_client_reads_it(server: str) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server}/v1", api_key="none")
    for encoding in ("float", "base64"):
        answer = client.embeddings.create(model="any", input=["one", "two"], encoding_format=encoding)
        vectors = [
            np.frombuffer(base64.b64decode(row.embedding), "<f4")
            if isinstance(row.embedding, str)
            else np.asarray(row.embedding)
            for row in answer.data
        ]
        np.testing.assert_allclose(vectors, expected("one", "two"), atol=1e-7)
    assert answer.usage.total_tokens == 2
    assert answer.model == "any"


def test_raw_float32_by_accept(server: str) -> None:
    status, body, headers = ask(server, {"input": ["one", "two"]}, Accept="application/octet-stream")
    assert status == 200
    shape = int(headers["x-seedbed-count"]), int(headers["x-seedbed-dimensions"])
    np.testing.assert_array_equal(np.frombuffer(body, "<f4").reshape(shape), expected("one", "two"))


def test_callers_share_calls(server: str) -> None:
    """20 callers at 50 ms a call take far less than a second one after another."""
    started = time.perf_counter()
    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(lambda n: ask(server, {"input": f"text {n}"}, Accept="application/octet-stream"), range(20))
        )
    assert time.perf_counter() - started < 0.8
    got = np.stack([np.frombuffer(body, "<f4") for _, body, _ in answers])
    np.testing.assert_array_equal(got, expected(*(f"text {n}" for n in range(20))))


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        ({}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": [1]}, 400, "input"),
        ({"input": ["a", " \n"]}, 400, "input"),
        ({"input": "a", "dimensions": 7}, 400, "dimensions"),
        ({"input": "a", "kind": "both"}, 400, "kind"),
        ({"input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": ["fine", "poison"]}, 422, "input"),
        ({"input": ["fine", "notfinite"]}, 422, "input"),
        (b'"' + b"x" * (65 << 20) + b'"', 413, None),
    ],
)
def test_bad_requests_are_named(server: str, body: Any, status: int, param: str | None) -> None:
    answered, text, _ = ask(server, body)
    assert answered == status
    assert json.loads(text)["error"]["param"] == param


def test_other_places_and_methods_answer_in_the_same_form(server: str) -> None:
    for method, path, status in (("GET", "/v1/embeddings", 405), ("POST", "/v1/chat", 404)):
        connection = connect(server)
        connection.request(method, path)
        response = connection.getresponse()
        assert response.status == status
        assert path in json.loads(response.read())["error"]["message"]
        connection.close()


def test_one_callers_poison_is_his_alone(server: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = [f"text {n}" if n % 2 else f"poison {n}" for n in range(8)]
        statuses = [answer[0] for answer in pool.map(lambda text: ask(server, {"input": text}), texts)]
    assert statuses == [422, 200] * 4


def test_a_unix_socket_and_a_graceful_stop() -> None:
    with tempfile.TemporaryDirectory(prefix="seedbed-") as folder:
        address = f"unix:{folder}/s"
        process = start("hash:32?latency=0.5", "--uds", f"{folder}/s")
        wait(address, process)
        second = refused("hash:32", "--uds", f"{folder}/s")
        assert "listens on" in second
        assert Path(folder, "s").stat().st_mode & 0o777 == 0o666
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, address, {"input": "late"})
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert asked.result()[0] == 200
        assert process.wait(20) == 0


def refused(*arguments: str) -> str:
    """What a server says that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "seedbed", "serve", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_a_stop_does_not_wait_for_a_model_that_is_being_loaded() -> None:
    port = free_port()
    process = start("hash:8?latency=30", "--port", port)
    for _ in range(200):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", int(port))) == 0:
                break
        time.sleep(0.05)
    assert ask(port, {"input": "early"})[0] == 503
    process.terminate()
    assert process.wait(10) == 0


def test_a_model_that_cannot_load_ends_the_server(tmp_path: Path) -> None:
    assert "none" in refused(f"local:{tmp_path}/none", "--port", free_port())


def test_an_address_that_cannot_be_had_is_named(server: str, tmp_path: Path) -> None:
    assert "--port" in refused("hash:8", "--port", server)
    assert "--uds" in refused("hash:8", "--uds", str(tmp_path / "none" / "s"))
    (tmp_path / "file").write_text("kept")
    assert "no socket" in refused("hash:8", "--uds", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept"


def test_the_socket_of_a_server_that_was_killed_is_taken_over() -> None:
    with tempfile.TemporaryDirectory(prefix="seedbed-") as folder:
        path = Path(folder, "s")
        for end in (signal.SIGKILL, signal.SIGINT):
            process = start("hash:8", "--uds", str(path))
            wait(f"unix:{path}", process)
            process.send_signal(end)
            assert process.wait(20) == (-end if end == signal.SIGKILL else 0)
        assert not path.exists()
