"""OpenAI's `/v1/embeddings`, or raw float32 for who asks by `Accept`. An input may also be a list of parts, of text,
pictures and video as Ark's API has them, which become one vector.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from seedbed.content import Content
from seedbed.errors import SeedbedError
from seedbed.protocols import Vectors
from seedbed.server.dialect import Asked, Invalid, Tokens, as_json, common, content_of, embedding, parsed, status_of

RAW = "application/octet-stream"
MOST_INPUTS = 2048
"""OpenAI's own limit of inputs a request."""


class OpenAi:
    """As dialect.Dialect. `model` is what answers name where the request names none."""

    name, path = "openai", "/v1/embeddings"
    most_bytes = 64 * 1024 * 1024

    def __init__(self, model: str) -> None:
        self._model = model

    def read(self, body: bytes) -> Asked:
        asked = parsed(body)
        given = asked.get("input")
        inputs = [given] if isinstance(given, str) else given
        if not isinstance(inputs, list) or not inputs or not all(isinstance(one, str | list) for one in inputs):
            raise Invalid("`input` must be a string or a list of strings, or of lists of parts", setting="input")
        if len(inputs) > MOST_INPUTS:
            raise Invalid(f"{len(inputs)} inputs are more than {MOST_INPUTS}", setting="input")
        contents = [
            Content.of(one) if isinstance(one, str) else content_of(one, f"input[{number}]")
            for number, one in enumerate(inputs)
        ]
        if any(content.empty for content in contents):
            raise Invalid("an input is empty", setting="input", hint="leave it out")
        return Asked(contents, **common(asked))

    def answer(self, asked: Asked, vectors: Vectors, tokens: Tokens, headers: Mapping[str, str]) -> Response:
        if RAW in headers.get("accept", ""):
            return _raw(vectors)
        data = [
            {"object": "embedding", "index": number, "embedding": embedding(row, asked.encoding)}
            for number, row in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens.total, "total_tokens": tokens.total}
        return as_json({"object": "list", "model": asked.model or self._model, "data": data, "usage": usage})

    def refusal(self, error: SeedbedError) -> Response:
        status, headers = status_of(error)
        body = {
            "message": error.message,
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": "input" if status == 422 else error.setting if isinstance(error, Invalid) else None,
            "code": "input_refused" if status == 422 else error.code,
        }
        return as_json({"error": body}, status, headers)


def _raw(vectors: Vectors) -> Response:
    """Little-endian float32, row after row; the shape stands in the headers."""
    count, dimensions = vectors.shape
    shape = {"X-Seedbed-Count": str(count), "X-Seedbed-Dimensions": str(dimensions)}
    return Response(vectors.astype("<f4", copy=False).tobytes(), media_type=RAW, headers=shape)
