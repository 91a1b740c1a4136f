"""Ark's `/api/v3/embeddings/multimodal` for any embedder: the official SDK speaks to it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping

from starlette.responses import Response

from seedbed.errors import BudgetSpent, RowError, SeedbedError, Transient
from seedbed.protocols import Vectors
from seedbed.server.dialect import (
    Asked,
    Busy,
    Invalid,
    Tokens,
    Unauthorized,
    as_json,
    common,
    content_of,
    embedding,
    parsed,
    status_of,
)

_OWN = ("instructions", "sparse_embedding", "multi_embedding")


class Ark:
    """As dialect.Dialect. All parts of `input` are one content, so there is one vector. `model` is what every answer
    names: what is served, whatever was asked for."""

    name, path = "ark", "/api/v3/embeddings/multimodal"
    most_bytes = 64 * 1024 * 1024

    def __init__(self, model: str) -> None:
        self._model = model

    def read(self, body: bytes) -> Asked:
        asked = parsed(body)
        for name in _OWN:
            given = asked.get(name)
            if given is not None and given != {"type": "disabled"}:
                raise Invalid(f"`{name}` is not taken here: the server says what a text is for", setting=name)
        parts = asked.get("input")
        if not isinstance(parts, list) or not parts:
            raise Invalid("`input` must be a list of parts", setting="input")
        content = content_of(parts, "input")
        if content.empty:
            raise Invalid("the input is empty", setting="input")
        return Asked([content], **common(asked))

    def answer(self, asked: Asked, vectors: Vectors, tokens: Tokens, headers: Mapping[str, str]) -> Response:
        usage = {
            "prompt_tokens": tokens.total,
            "total_tokens": tokens.total,
            "prompt_tokens_details": {"text_tokens": tokens.total - tokens.image, "image_tokens": tokens.image},
        }
        return as_json(
            {
                "id": uuid.uuid4().hex,
                "created": int(time.time()),
                "object": "list",
                "model": self._model,
                "data": {"object": "embedding", "embedding": embedding(vectors[0], asked.encoding)},
                "usage": usage,
            }
        )

    def refusal(self, error: SeedbedError) -> Response:
        status, headers = status_of(error)
        code, kind = _code(error, status)
        parameter = error.setting if isinstance(error, Invalid) else ""
        body = {"code": code, "message": error.message, "param": parameter or "", "type": kind}
        return as_json({"error": body}, 400 if status in (413, 422) else status, headers)


def _code(error: SeedbedError, status: int) -> tuple[str, str]:
    """The service's own words for it."""
    match error:
        case Unauthorized():
            return "AuthenticationError", "Unauthorized"
        case RowError() if "tokens, but the model takes" in error.message or "OutofContext" in error.message:
            return "OutofContextError", "BadRequest"
        case Busy():
            return "ServerOverloaded", "TooManyRequests"
        case BudgetSpent():
            return "QuotaExceeded", "TooManyRequests"
        case RowError() | Invalid():
            return "InvalidParameter", "BadRequest"
        case Transient():
            return "ServiceUnavailable", "ServiceUnavailable"
    return "InternalServiceError", "InternalServerError"
