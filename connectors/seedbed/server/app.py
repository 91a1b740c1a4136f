"""The embedding server's HTTP side: routes, who may ask, and what is told of each request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from seedbed.errors import SeedbedError
from seedbed.protocols import modalities
from seedbed.server.ark_dialect import Ark
from seedbed.server.callers import Callers
from seedbed.server.dialect import Dialect, NotReady, Tokens, TooLarge
from seedbed.server.openai_dialect import OpenAi
from seedbed.server.service import Service
from seedbed.server.telling import Telling, Told

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(service: Service, model: str, callers: Callers | None = None, *, log: bool = False) -> Starlette:
    """The application around a service whose batcher was started, which ends with it. `model` is what is served, in
    words."""
    telling = Telling(service, log=log)
    dialects: tuple[Dialect, ...] = (OpenAi(model), Ark(model))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.stop)

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        try:
            embedder = service.embedder
            space, takes = embedder.space, sorted(modalities(embedder))
        except NotReady:
            return JSONResponse({"status": "loading"}, status_code=503)
        return JSONResponse({"status": "ready", "space": orjson.loads(space.to_json()), "takes": takes})

    async def metrics(request: Request) -> Response:
        return Response(telling.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [
        *(
            Route(dialect.path, _endpoint(service, dialect, callers or Callers(), telling), methods=["POST"])
            for dialect in dialects
        ),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_such_place})


def _endpoint(service: Service, dialect: Dialect, callers: Callers, telling: Telling) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        started, caller, inputs, tokens = time.perf_counter(), "", 0, Tokens()
        try:
            caller = callers.name(request.headers.get("authorization"))
            asked = dialect.read(await _body(request, dialect.most_bytes))
            contents = await service.whole(asked.contents)
            made = asyncio.ensure_future(service.embed(contents, asked.kind, asked.dimensions))
            # Counted while the model works, or while this waits for its turn.
            await asyncio.sleep(0)
            try:
                inputs, tokens = len(contents), await service.tokens(contents, asked.kind)
            finally:
                vectors = await made
            response = dialect.answer(asked, vectors, tokens, request.headers)
            response.headers["X-Seedbed-Space"] = service.embedder.space.digest.hex()
        except SeedbedError as error:
            response = dialect.refusal(error)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        seconds = time.perf_counter() - started
        telling.note(Told(dialect.name, response.status_code, caller, inputs, tokens.total, seconds))
        return response

    return endpoint


async def _no_such_place(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": "not_found"}}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _body(request: Request, most: int) -> bytes:
    """Raises TooLarge as soon as more has come, whatever Content-Length says."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise TooLarge(f"the request is larger than {most:,} bytes", hint="send fewer inputs at once")
    return bytes(body)
