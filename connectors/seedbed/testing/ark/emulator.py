"""The emulated service: an ASGI application, and a server for it in a thread."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import uvicorn

from seedbed.testing.ark import request as requests
from seedbed.testing.ark.errors import ArkError
from seedbed.testing.ark.limits import Admission
from seedbed.testing.ark.settings import Settings, settings_of
from seedbed.testing.ark.vectors import vector

PATH = "/api/v3/embeddings/multimodal"
_MOST_BYTES = 64_000_000
_HANG_SECONDS = 600.0

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class ArkEmulator:
    """`calls` that were answered with a vector, `refused` by code, `tokens` that were paid for, `recent` requests as
    JSON; `settings.faults` may be changed while it serves."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._admission = Admission(self.settings.limits)
        self.calls = 0
        self.tokens = 0
        self.refused: dict[str, int] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=1000)
        self.texts: list[str] = []
        """The texts that were embedded, in order: what a client paid for."""
        self.answered_at: list[float] = []
        """time.monotonic() of each answer, and of each refusal."""
        self.refused_at: list[float] = []

    @classmethod
    def from_url(cls, url: str) -> ArkEmulator:
        """`emulator:?rpm=3000&latency_ms=50`. Raises ConfigError."""
        return cls(settings_of(url))

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The base URL, `http://127.0.0.1:PORT/api/v3`, as long as the context lasts."""
        config = uvicorn.Config(self, log_level="critical", access_log=False, lifespan="off", backlog=2048)
        server = uvicorn.Server(config)
        # A thread has no signals to take.
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as door:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{door.getsockname()[1]}/api/v3"
            finally:
                server.should_exit = server.force_exit = True
                thread.join()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await self._embed(scope, receive, send)
        except ArkError as error:
            self.refused[error.code] = self.refused.get(error.code, 0) + 1
            self.refused_at.append(time.monotonic())
            headers = {}
            if error.status == 429 and self.settings.retry_after is not None:
                headers["retry-after"] = str(self.settings.retry_after)
            await _answer(send, error.status, orjson.dumps(error.body()), headers=headers)

    async def _embed(self, scope: Message, receive: Receive, send: Send) -> None:
        self._check_key(dict(scope["headers"]).get(b"authorization", b"").decode("latin-1"))
        body = await _body(receive)
        asked = self._read(scope, body)
        self._admission.enter(asked.text_tokens + asked.image_tokens)
        try:
            if self.settings.latency:
                await asyncio.sleep(self.settings.latency)
            fault = self.settings.faults.of("\n".join(asked.texts), self.calls)
            await self._respond(asked, fault, send)
        finally:
            self._admission.leave()

    def _check_key(self, given: str) -> None:
        key = given.removeprefix("Bearer ").strip()
        if not given.startswith("Bearer ") or not key or (self.settings.keys and key not in self.settings.keys):
            raise ArkError("AuthenticationError", "the API key is missing or invalid")

    def _read(self, scope: Message, body: bytes) -> requests.Asked:
        path = str(scope["path"])
        if scope["method"] != "POST" or path not in (PATH, PATH.removesuffix("/multimodal")):
            raise ArkError("InvalidEndpointOrModel.NotFound", f"{scope['method']} {path} is nothing here")
        try:
            given = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise ArkError("InvalidParameter", "the request is no JSON") from None
        if path != PATH:
            raise ArkError("InvalidParameter.model", "the model does not support this api", "model")
        asked = requests.read(given, self.settings)
        self.recent.append(given)
        return asked

    async def _respond(self, asked: requests.Asked, fault: str | None, send: Send) -> None:
        if fault in _PAGES:
            return await _PAGES[fault](send)
        made = self._vector(asked)
        if fault == "wrong_dimension":
            made = made[:-24]
        elif fault == "nan":
            made[3] = np.nan
        elif fault == "zeros":
            made[:] = 0
        whole = _body_of(self._answer(asked, made))
        if fault == "drip":
            return await _drip(send, whole)
        if fault == "truncated":
            whole = whole[: len(whole) // 2]
        if fault is None:
            self.calls += 1
            self.tokens += asked.text_tokens + asked.image_tokens
            self.texts.append("\n".join(asked.texts))
            self.answered_at.append(time.monotonic())
        await _answer(send, 200, whole)
        return None

    def _vector(self, asked: requests.Asked) -> npt.NDArray[np.float32]:
        texts = [asked.instructions + text if asked.instructions else text for text in asked.texts]
        full = 2048 if self.settings.prefix_1024 else asked.dimensions
        return vector(asked.model, texts, asked.media, full)[: asked.dimensions]

    def _answer(self, asked: requests.Asked, made: npt.NDArray[np.float32]) -> dict[str, Any]:
        numbers: Any = made
        if asked.encoding == "base64":
            numbers = base64.b64encode(made.astype("<f4", copy=False).tobytes()).decode()
        elif not np.isfinite(made).all():
            numbers = made.tolist()
        data: dict[str, Any] = {"object": "embedding", "embedding": numbers}
        if asked.sparse:
            data["sparse_embedding"] = [{"index": n, "value": float(abs(made[n]))} for n in np.flatnonzero(made)[:16]]
        tokens = asked.text_tokens + asked.image_tokens
        return {
            "id": uuid.uuid4().hex,
            "created": int(time.time()),
            "object": "list",
            "model": asked.model,
            "data": [data] if self.settings.data_as_list else data,
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "prompt_tokens_details": {"text_tokens": asked.text_tokens, "image_tokens": asked.image_tokens},
            },
        }


def _body_of(answer: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:
        return json.dumps(answer).encode()


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MOST_BYTES:
            raise ArkError("InvalidParameter", "the request is larger than 64 MB")
        if not message.get("more_body"):
            return bytes(body)


async def _answer(
    send: Send, status: int, body: bytes, kind: str = "application/json", headers: Mapping[str, str] | None = None
) -> None:
    given = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    await _start(send, status, given)
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


_PAGE = b"<html><body><h1>Bad gateway</h1></body></html>"


async def _hang(send: Send) -> None:
    await asyncio.sleep(_HANG_SECONDS)


async def _oversized(send: Send) -> None:
    await _start(send, 200, {"content-type": "application/json"})
    for _ in range(100):
        await send({"type": "http.response.body", "body": b" " * 1_000_000, "more_body": True})
    await send({"type": "http.response.body", "body": b"{}"})


async def _drop(send: Send) -> None:
    """Fewer bytes than were promised: the server closes the connection."""
    await _start(send, 200, {"content-type": "application/json", "content-length": "1000"})
    await send({"type": "http.response.body", "body": b'{"id":'})


async def _drip(send: Send, whole: bytes) -> None:
    await _start(send, 200, {"content-type": "application/json", "content-length": str(len(whole))})
    for number in range(len(whole)):
        await send({"type": "http.response.body", "body": whole[number : number + 1], "more_body": True})
        await asyncio.sleep(0.05)
    await send({"type": "http.response.body", "body": b""})


_PAGES: dict[str, Callable[[Send], Awaitable[None]]] = {
    "hang": _hang,
    "oversized": _oversized,
    "drop": _drop,
    "html": lambda send: _answer(send, 502, _PAGE, "text/html"),
    "html_200": lambda send: _answer(send, 200, _PAGE, "text/html"),
}
