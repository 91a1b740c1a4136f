"""The embedding server's HTTP side: OpenAI's `/v1/embeddings`, or raw float32 for who asks by `Accept`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from seedbed.content import Content, Kind
from seedbed.errors import ConfigError, RowError, SeedbedError, Transient
from seedbed.protocols import CanCountTokens, Embedder, Vectors
from seedbed.server.batching import Batcher, Busy

RAW = "application/octet-stream"
MOST_BYTES = 16 * 1024 * 1024
MOST_INPUTS = 2048
"""OpenAI's own limit of inputs a request."""


class _Invalid(ConfigError):
    code = "invalid_request"


class _TooLarge(_Invalid):
    code = "request_too_large"


def create_app(batcher: Batcher, model: str) -> Starlette:
    """The application around a started batcher, which ends with it. `model` is what answers name where the
    request names none."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.stop)

    async def embeddings(request: Request) -> Response:
        try:
            texts, kind, encoding, asked, named = _read(await _body(request))
            if not batcher.ready.is_set() or batcher.embedder is None:
                return _error(503, "the model is being loaded", "not_ready", headers={"Retry-After": "1"})
            dimensions = batcher.embedder.space.dimensions
            if asked not in (None, dimensions):
                raise _Invalid(f"this server gives {dimensions} dimensions, not {asked}", setting="dimensions")
            contents = [Content.of(text) for text in texts]
            vectors = await asyncio.wrap_future(batcher.submit(contents, kind))
            if RAW in request.headers.get("accept", ""):
                return _raw(vectors)
            tokens = await asyncio.to_thread(_tokens, batcher.embedder, contents, kind)
            return _openai(vectors, named or model, encoding, tokens)
        except SeedbedError as error:
            return _refusal(error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        if not batcher.ready.is_set() or batcher.embedder is None:
            return JSONResponse({"status": "loading"}, status_code=503)
        return JSONResponse({"status": "ready", "space": orjson.loads(batcher.embedder.space.to_json())})

    routes = [
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_such_place})


async def _no_such_place(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return _error(error.status_code, message, "not_found", headers=dict(error.headers or {}))


async def _body(request: Request) -> bytes:
    """Raises _TooLarge as soon as more than MOST_BYTES have come, whatever Content-Length says."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise _TooLarge(f"the request is larger than {MOST_BYTES:,} bytes", hint="send fewer inputs at once")
    return bytes(body)


def _read(body: bytes) -> tuple[list[str], Kind, str, int | None, str | None]:
    try:
        asked: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _Invalid(f"the request is no JSON: {error}") from None
    if not isinstance(asked, dict):
        raise _Invalid("the request is no JSON object")
    given = asked.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise _Invalid("`input` must be a string or a list of strings", setting="input")
    if len(texts) > MOST_INPUTS:
        raise _Invalid(f"{len(texts)} inputs are more than {MOST_INPUTS}", setting="input")
    if any(not text.strip() for text in texts):
        raise _Invalid("an input is empty", setting="input", hint="leave it out")
    kind = asked.get("kind", "document")
    if kind not in ("document", "query"):
        raise _Invalid("`kind` must be document or query", setting="kind")
    encoding = asked.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise _Invalid("`encoding_format` must be float or base64", setting="encoding_format")
    named = asked.get("model")
    return texts, kind, encoding, asked.get("dimensions"), named if isinstance(named, str) else None


def _raw(vectors: Vectors) -> Response:
    """Little-endian float32, row after row; the shape stands in the headers."""
    count, dimensions = vectors.shape
    shape = {"X-Seedbed-Count": str(count), "X-Seedbed-Dimensions": str(dimensions)}
    return Response(vectors.astype("<f4", copy=False).tobytes(), media_type=RAW, headers=shape)


def _tokens(embedder: Embedder, contents: list[Content], kind: Kind) -> int:
    """The model's own tokens; 0 where the embedder cannot count."""
    return int(embedder.count_tokens(contents, kind).sum()) if isinstance(embedder, CanCountTokens) else 0


def _openai(vectors: Vectors, model: str, encoding: str, tokens: int) -> Response:
    rows: list[Any] = (
        [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode() for row in vectors]
        if encoding == "base64"
        else list(vectors)
    )
    answer = {
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _refusal(error: SeedbedError) -> Response:
    match error:
        case _TooLarge():
            return _error(413, error.message, error.code)
        case _Invalid():
            return _error(400, error.message, error.code, error.setting)
        case RowError():
            return _error(422, error.message, "input_refused", "input")
        case Busy():
            return _error(429, error.message, error.code, headers={"Retry-After": "1"})
        case Transient():
            return _error(503, error.message, error.code, headers={"Retry-After": "1"})
        case _:
            return _error(502, error.message, error.code)


def _error(
    status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """OpenAI's form of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)
