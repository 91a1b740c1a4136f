"""Requests and answers as bytes: what services of different dialects have in common."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import orjson

from seedbed.content import Image, Video
from seedbed.errors import Fatal, RowError, Transient
from seedbed.media.kinds import beginning, picture_type, video_type
from seedbed.protocols import Vectors

NO_UNICODE = "the text holds a lone surrogate, which is no Unicode character"


def body_of(asked: dict[str, Any]) -> bytes:
    """A request as JSON. Raises RowError for text that is no Unicode."""
    try:
        return orjson.dumps(asked)
    except orjson.JSONEncodeError:
        raise RowError(NO_UNICODE) from None


def media_part(part: Image | Video) -> dict[str, Any]:
    """A picture or video as a part of a request: a data URL of what its bytes are. Raises RowError for other bytes."""
    kind = part.modality
    mime = picture_type(part.data) if kind == "image" else video_type(part.data)
    if mime is None:
        raise RowError(f"this is no {kind}: it begins with {beginning(part.data)}")
    url = f"data:{mime};base64,{base64.b64encode(part.data).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def decoded(made: Any) -> Vectors:
    """A vector as base64 of little-endian float32, or as numbers. Raises ValueError, TypeError."""
    if isinstance(made, str):
        return np.frombuffer(base64.b64decode(made, validate=True), "<f4")
    vector = np.asarray(made, np.float32)
    if vector.ndim != 1:
        raise ValueError("no vector")
    return vector


def checked(vectors: Vectors, dimensions: int) -> Vectors:
    """Raises Fatal for another size."""
    if vectors.shape[1] != dimensions:
        raise Fatal(
            f"the service answered with {vectors.shape[1]} dimensions, {dimensions} were asked for",
            setting="embedder.dimensions",
            hint="set `dimensions` to what the model gives",
        )
    return vectors


def said(body: bytes) -> tuple[str, str, str]:
    """(code, message, param) of OpenAI's `{"error": {…}}`; TEI and others say `{"message": …}` or `{"detail": …}`."""
    try:
        found = orjson.loads(body)
        error = found.get("error") or found
        if isinstance(error, str):
            return str(found.get("error_type") or ""), error, ""
        message = error.get("message") or error.get("detail") or ""
        return str(error.get("code") or ""), str(message), str(error.get("param") or "")
    except (ValueError, AttributeError, TypeError):
        return "", "", ""


def start_of(body: bytes) -> str:
    """What an answer begins with, on one line, for an error."""
    return " ".join(body[:200].decode(errors="replace").split())


def no_answer(url: str, body: bytes) -> Transient:
    """The error of a body that holds no embeddings."""
    return Transient(
        f"{url}: what answered is no embedding: {start_of(body)!r}",
        setting="embedder.url",
        hint="look whether that address is the service's, and no proxy answers in its place",
    )
