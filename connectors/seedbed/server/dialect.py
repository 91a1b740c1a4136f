"""What two ways of asking for embeddings have in common: what is asked for, and what may be wrong with it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from starlette.responses import Response

from seedbed.content import Content, Kind
from seedbed.errors import BudgetSpent, ConfigError, RowError, SeedbedError, Transient
from seedbed.protocols import Vectors


class Invalid(ConfigError):
    """The request is wrong; `setting` is the field."""

    code = "invalid_request"


class TooLarge(Invalid):
    code = "request_too_large"


class Unauthorized(SeedbedError):
    code = "invalid_api_key"


class NotReady(Transient):
    code = "not_ready"


class Busy(Transient):
    """The queue is full: the caller should try again."""

    code = "busy"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that may be answered."""

    contents: list[Content]
    kind: Kind = "document"
    encoding: str = "float"
    dimensions: int | None = None
    model: str | None = None


class Dialect(Protocol):
    """One way of asking over HTTP."""

    name: str
    path: str
    most_bytes: int

    def read(self, body: bytes) -> Asked:
        """Raises Invalid."""
        ...

    def answer(self, asked: Asked, vectors: Vectors, tokens: int, headers: Mapping[str, str]) -> Response: ...

    def refusal(self, error: SeedbedError) -> Response: ...


def parsed(body: bytes) -> dict[str, Any]:
    """Raises Invalid."""
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"the request is no JSON: {error}") from None
    if not isinstance(asked, dict):
        raise Invalid("the request is no JSON object")
    return asked


def common(asked: Mapping[str, Any]) -> dict[str, Any]:
    """`kind`, `encoding_format`, `dimensions` and `model`, as Asked has them. Raises Invalid."""
    kind = asked.get("kind") or "document"
    if kind not in ("document", "query"):
        raise Invalid("`kind` must be document or query", setting="kind")
    encoding = asked.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise Invalid("`encoding_format` must be float or base64", setting="encoding_format")
    named = asked.get("model")
    return {
        "kind": kind,
        "encoding": encoding,
        "dimensions": asked.get("dimensions"),
        "model": named if isinstance(named, str) else None,
    }


def embedding(vector: Vectors, encoding: str) -> Any:
    """One vector of shape (dimensions,) as JSON takes it: numbers, or base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
    return vector


def status_of(error: SeedbedError) -> tuple[int, dict[str, str]]:
    """The status that an error is answered with, and headers."""
    match error:
        case Unauthorized():
            return 401, {}
        case TooLarge():
            return 413, {}
        case Invalid():
            return 400, {}
        case RowError():
            return 422, {}
        case Busy():
            return 429, {"Retry-After": "1"}
        case BudgetSpent():
            return 429, {}
        case Transient():
            return 503, {"Retry-After": "1"}
        case _:
            return 502, {}


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    raw = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(raw, status_code=status, media_type="application/json", headers=headers)
