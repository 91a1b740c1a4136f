"""A request's fields by the documentation's rules: what it asks for, or the error that it gets."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Any

from seedbed.testing.ark.errors import ArkError
from seedbed.testing.ark.media import check_image, check_video, image_tokens, video_tokens
from seedbed.testing.ark.settings import MODELS, Settings
from seedbed.testing.ark.vectors import OVERHEAD, text_tokens

MOST_CONTEXT = 128_000
_KNOWN = ("model", "input", "dimensions", "encoding_format", "instructions", "sparse_embedding", "multi_embedding")
_DATA = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_SAMPLING = {
    "fps": (0.2, 5),
    "max_video_tokens": (10240, 204800),
    "min_frame_tokens": (16, 128),
    "max_frame_tokens": (128, 640),
    "min_frames": (5, 16),
}


@dataclass(slots=True)
class Asked:
    """A request that may be answered. `media` are the bytes of pictures and videos in order."""

    model: str
    dimensions: int = 2048
    encoding: str = "float"
    instructions: str | None = None
    sparse: bool = False
    multi: bool = False
    texts: list[str] = field(default_factory=list)
    media: list[bytes] = field(default_factory=list)
    text_tokens: int = 0
    image_tokens: int = 0


def read(body: Any, settings: Settings) -> Asked:
    """Raises ArkError."""
    if not isinstance(body, dict):
        raise ArkError("InvalidParameter", "the request is no JSON object")
    asked = Asked(_model(body, settings))
    late = MODELS[asked.model] >= 251215
    for name in body:
        if name not in _KNOWN:
            raise ArkError(f"InvalidParameter.{name}", f"unknown parameter {name}", name)
    _read_fields(asked, body, late, settings)
    parts = body.get("input")
    if not isinstance(parts, list) or not parts:
        raise ArkError("MissingParameter.input", "input must be a list of at least one part", "input")
    for number, part in enumerate(parts):
        _read_part(asked, part, f"input[{number}]", late)
    if asked.sparse and asked.media:
        raise ArkError("InvalidParameter.sparse_embedding", "sparse_embedding takes text alone", "sparse_embedding")
    if asked.texts:
        asked.text_tokens += OVERHEAD + text_tokens(asked.instructions or "")
    if asked.text_tokens + asked.image_tokens > MOST_CONTEXT:
        raise ArkError("OutofContextError", f"the input is longer than {MOST_CONTEXT} tokens", "input")
    return asked


def _model(body: dict[str, Any], settings: Settings) -> str:
    named = body.get("model")
    if not isinstance(named, str) or not named:
        raise ArkError("MissingParameter.model", "model is required", "model")
    model = settings.endpoints.get(named, named)
    if model not in MODELS:
        raise ArkError(
            "InvalidEndpointOrModel.NotFound", f"the model or endpoint {named} does not exist or is not yours", "model"
        )
    return model


def _read_fields(asked: Asked, body: dict[str, Any], late: bool, settings: Settings) -> None:
    dimensions = body.get("dimensions")
    if dimensions not in (None, 1024, 2048) or isinstance(dimensions, float):
        raise ArkError("InvalidParameter.dimensions", "dimensions must be 1024 or 2048", "dimensions")
    asked.dimensions = dimensions or 2048
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", *(["base64"] if settings.base64 else [])):
        raise ArkError("InvalidParameter.encoding_format", f"encoding_format {encoding!r}", "encoding_format")
    asked.encoding = encoding or "float"
    instructions = body.get("instructions")
    if instructions is not None and (not late or not isinstance(instructions, str)):
        raise ArkError("InvalidParameter.instructions", "instructions are not supported by this model", "instructions")
    asked.instructions = instructions
    sparse = body.get("sparse_embedding")
    if sparse is not None and (not isinstance(sparse, dict) or sparse.get("type") not in ("enabled", "disabled")):
        raise ArkError("InvalidParameter.sparse_embedding", "type must be enabled or disabled", "sparse_embedding")
    asked.sparse = sparse is not None and sparse["type"] == "enabled"
    multi = body.get("multi_embedding")
    if multi is not None and not late:
        raise ArkError("InvalidParameter.multi_embedding", "not supported by this model", "multi_embedding")
    if multi is not None and not (isinstance(multi, dict) and multi.get("type")):
        raise ArkError("MissingParameter.multi_embedding.type", "type is required", "multi_embedding.type")
    asked.multi = bool(multi)


def _read_part(asked: Asked, part: Any, where: str, late: bool) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str) or not text:
            raise ArkError("MissingParameter.text", "a text is required", f"{where}.text")
        asked.texts.append(text)
        asked.text_tokens += text_tokens(text)
    elif kind == "image_url":
        mime, data = _data(part.get("image_url"), f"{where}.image_url", "InvalidImageURL")
        asked.image_tokens += image_tokens(*check_image(mime, data))
        asked.media.append(data)
    elif kind == "video_url":
        given = part.get("video_url")
        mime, data = _data(given, f"{where}.video_url", "InvalidParameter")
        check_video(mime, data)
        _check_sampling(given, f"{where}.video_url", late)
        asked.image_tokens += video_tokens(data)
        asked.media.append(data)
    else:
        raise ArkError("InvalidParameter.type", f"a part of type {kind!r}", f"{where}.type")


def _data(given: Any, where: str, code: str) -> tuple[str, bytes]:
    url = given.get("url") if isinstance(given, dict) else None
    if not isinstance(url, str) or not url:
        raise ArkError("MissingParameter.url", "a url is required", f"{where}.url")
    found = _DATA.match(url)
    if found is None:
        suffix = ".DownloadError" if code == "InvalidImageURL" else ".url"
        raise ArkError(f"{code}{suffix}", "the emulator fetches nothing: send a data URL", f"{where}.url")
    try:
        return found[1].lower(), base64.b64decode(url[found.end() :], validate=True)
    except binascii.Error:
        raise ArkError(f"{code}.InvalidFormat", "the data URL is no base64", f"{where}.url") from None


def _check_sampling(given: dict[str, Any], where: str, late: bool) -> None:
    for name, value in given.items():
        if name == "url" or value is None:
            continue
        if name not in _SAMPLING or not late:
            raise ArkError(f"InvalidParameter.{name}", f"{name} is not supported by this model", f"{where}.{name}")
        least, most = _SAMPLING[name]
        if not isinstance(value, int | float) or not least <= value <= most:
            raise ArkError(f"InvalidParameter.{name}", f"{name} must be {least} to {most}", f"{where}.{name}")
