"""What two ways of asking for embeddings have in common: what is asked for, and what may be wrong with it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import orjson
from starlette.responses import Response

from seedbed.content import Content, Image, Kind, Modality, Part, Reference, Text, Video
from seedbed.errors import BudgetSpent, ConfigError, RowError, SeedbedError, Transient
from seedbed.media.dataurl import of_data_url
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


class Tokens(NamedTuple):
    """What a request took; `image` of them are pictures' and video frames'."""

    total: int = 0
    image: int = 0


class Dialect(Protocol):
    """One way of asking over HTTP."""

    name: str
    path: str
    most_bytes: int

    def read(self, body: bytes) -> Asked:
        """Raises Invalid."""
        ...

    def answer(self, asked: Asked, vectors: Vectors, tokens: Tokens, headers: Mapping[str, str]) -> Response: ...

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


def content_of(parts: Sequence[Any], where: str) -> Content:
    """Ark's parts `{"type": "text", "text": …}`, `{"type": "image_url", "image_url": {"url": …}}`, `video_url` too,
    as one content; what lies at an address of the web is not yet here. Raises Invalid."""
    return Content(tuple(_part(part, f"{where}[{number}]") for number, part in enumerate(parts)))


def _part(part: Any, where: str) -> Part:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise Invalid("a part of type text must have one", setting=where)
        return Text(text)
    if kind not in ("image_url", "video_url"):
        raise Invalid("a part must be of type text, image_url or video_url", setting=where)
    given = part.get(kind)
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or not url:
        raise Invalid("a url is required", setting=f"{where}.{kind}")
    try:
        data = of_data_url(url)
    except RowError as error:
        raise Invalid(error.message, setting=f"{where}.{kind}") from None
    modality: Modality = "image" if kind == "image_url" else "video"
    if data is not None:
        return Image(data) if modality == "image" else Video(data)
    if not url.lower().startswith(("http://", "https://")):
        raise Invalid("a url must be a data URL, or begin with http:// or https://", setting=f"{where}.{kind}")
    return Reference(modality, url, url.encode())


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
