"""The functions of the Postgres extension `seedbed`. Standard library only: it runs in the server's own Python.

A function's first argument is `plpy`. What is kept between calls stands in GD, which all roles of a session share, so
nothing secret does: a connection an endpoint, and the vectors of the last texts.
"""

from __future__ import annotations

import base64
import json
import struct
import time
from collections import OrderedDict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

MOST_DIMENSIONS = 16000
"""pgvector's own limit of a vector."""
MOST_INPUTS = 2048
"""The server's limit of one request."""
MOST_KEPT = 8_000_000
"""Bytes of texts and vectors of a session's last calls."""
KEPT_SECONDS = 60
"""So that a server that serves another model is noticed."""

REFUSALS = {
    400: ("22023", "give a text that is not empty"),
    413: ("54000", "give a shorter text"),
    422: ("22000", "give a shorter or another text"),
    429: ("53000", "try again in a second"),
    503: ("57P03", "try again when the model is loaded"),
}
UNKNOWN = ("58000", "look at the output of `seedbed serve`")
ANOTHER_SERVER = "is it `seedbed serve` that listens there?"


@cache
def sibling(name: str) -> ModuleType:
    """The file beside this one with `name` at its end; read from there and nowhere else."""
    here = Path(__file__)
    file, module = here.with_name(f"{here.stem}-{name}.py"), ModuleType(f"seedbed_{name}")
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), module.__dict__)
    return module


if TYPE_CHECKING:
    from exchange import Connection, Patience, Response, Stale
else:
    Connection, Patience, Stale = (getattr(sibling("exchange"), name) for name in ("Connection", "Patience", "Stale"))


class Place(NamedTuple):
    """An endpoint: its name, where it listens, and a file of certificates to trust instead of the system's."""

    name: str
    address: str | None
    ca: str | None


class Answered(NamedTuple):
    """Vectors of one space (a digest in hex): little-endian float32, row after row."""

    space: str
    dimensions: int
    payload: bytes


# --- what SQL calls ---------------------------------------------------------------------------------


def embed(plpy: Any, GD: dict[str, Any], place: Place, text: str, kind: str) -> bytes:
    """A vector's image of one text, or of one that was asked for a moment ago."""
    kept = GD.get("seedbed_kept")
    if kept is None:
        kept = GD["seedbed_kept"] = Kept()
    found = kept.get(place.address, kind, text)
    if found is None:
        answered = ask(plpy, GD, place, [text], kind)
        found = image(answered)
        kept.put(place.address, kind, text, answered.space, found)
    return found


def embed_all(plpy: Any, GD: dict[str, Any], place: Place, texts: list[str | None], kind: str) -> bytes:
    """The vectors of all texts but the NULLs, one behind another."""
    if any(isinstance(text, list) for text in texts):
        plpy.error("the array has several dimensions", hint="give an array of texts", sqlstate="2202E")
    asked = [text for text in texts if text is not None]
    if "" in asked:
        plpy.error(
            f"text number {texts.index('') + 1} is empty", hint="leave it out, or make it NULL", sqlstate="22023"
        )
    payloads: list[bytes] = []
    space = None
    for start in range(0, len(asked), MOST_INPUTS):
        answered = ask(plpy, GD, place, asked[start : start + MOST_INPUTS], kind, space)
        payloads.append(answered.payload)
        space = answered.space
    return b"".join(payloads)


def embed_content(
    plpy: Any, GD: dict[str, Any], place: Place, content: str, kind: str, space: str | None = None
) -> bytes:
    """An image of a JSON string, of parts, or of an object of several."""
    given = json.loads(content)
    asked = given if isinstance(given, str) else parts_of(plpy, given)
    return image(ask(plpy, GD, place, [asked], kind, space))


def embed_image(plpy: Any, GD: dict[str, Any], place: Place, data: bytes, kind: str) -> bytes:
    if not data:
        plpy.error("the picture has no bytes", hint="give a picture's file as it is", sqlstate="22023")
    return image(ask(plpy, GD, place, [parts_of(plpy, {"image": data_url(data)})], kind))


def probe(plpy: Any, GD: dict[str, Any], name: str) -> tuple[str, int]:
    """The space and dimensions of what an endpoint serves."""
    answered = ask(plpy, GD, endpoint(plpy, name), ["seedbed"], "document")
    return answered.space, answered.dimensions


def endpoint(plpy: Any, name: str) -> Place:
    plan = plpy.prepare("SELECT address, ca FROM seedbed.endpoint WHERE name = $1", ["text"])
    found = plpy.execute(plan, [name])
    return Place(name, found[0]["address"], found[0]["ca"]) if found else Place(name, None, None)


def parts_of(plpy: Any, given: Any) -> list[dict[str, Any]]:
    """Parts as the server takes them, of an array of objects or of one object: text, image and video in this order."""
    objects = given if isinstance(given, list) else [given]
    parts = [_part(plpy, kind, value) for one in objects for kind, value in _members(plpy, one)]
    if not parts:
        _no_content(plpy, "there are no parts")
    return parts


def _members(plpy: Any, one: Any) -> list[tuple[str, Any]]:
    if not isinstance(one, dict) or not one or not one.keys() <= {"text", "image", "video"}:
        _no_content(plpy, "a part is no object with text, image or video")
    return [(kind, one[kind]) for kind in ("text", "image", "video") if kind in one]


def _part(plpy: Any, kind: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, str) or not value:
        _no_content(plpy, f"the {kind} is no text")
    return {"type": "text", "text": value} if kind == "text" else {"type": f"{kind}_url", f"{kind}_url": {"url": value}}


def _no_content(plpy: Any, reason: str) -> None:
    hint = 'write [{"text": "…"}, {"image": "https://… or data:…"}, {"video": "…"}]'
    plpy.error(f"this is no content: {reason}", hint=hint, sqlstate="22023")


def data_url(data: bytes) -> str:
    """Of a picture's file; what kind it is the server sees for itself."""
    return "data:image/*;base64," + base64.b64encode(data).decode()


def image(answered: Answered) -> bytes:
    """vector.h of pgvector: int16 dimensions, int16 zero, float4 each. Whether they are finite is seen in SQL."""
    return struct.pack("<hh", answered.dimensions, 0) + answered.payload


class Kept:
    """The vectors of the last texts, by endpoint, kind and text; all go when the endpoint's space is another."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str | None, str, str], tuple[float, bytes]] = OrderedDict()
        self._spaces: dict[str | None, str] = {}
        self._size = 0

    def get(self, address: str | None, kind: str, text: str) -> bytes | None:
        key = (address, kind, text)
        found = self._found.get(key)
        if found is None or time.monotonic() - found[0] > KEPT_SECONDS:
            return None
        self._found.move_to_end(key)
        return found[1]

    def put(self, address: str | None, kind: str, text: str, space: str, image: bytes) -> None:
        if self._spaces.get(address, space) != space:
            self._found.clear()
            self._size = 0
        self._spaces[address] = space
        key = (address, kind, text)
        before = self._found.pop(key, None)
        self._size += len(image) + len(text) - (len(before[1]) + len(text) if before else 0)
        self._found[key] = (time.monotonic(), image)
        while self._size > MOST_KEPT:
            (_, _, old), (_, vector) = self._found.popitem(last=False)
            self._size -= len(vector) + len(old)


# --- asking -----------------------------------------------------------------------------------------


def ask(
    plpy: Any, GD: dict[str, Any], place: Place, inputs: list[Any], kind: str, space: str | None = None
) -> Answered:
    """The server's vectors of texts or lists of parts. Runs no query unless it is cancelled. Raises by plpy.error where
    there is no such endpoint, no server, no vectors in the answer, or another space than `space`."""
    if place.address is None:
        plpy.error(
            f'there is no endpoint "{place.name}"',
            hint="an administrator adds it: INSERT INTO seedbed.endpoint VALUES ('default', 'unix:/path/to/socket')",
            sqlstate="22023",
        )
    if kind not in ("query", "document"):
        plpy.error(f'kind is "{kind}"', hint="it is query or document", sqlstate="22023")
    body = json.dumps({"input": inputs, "kind": kind}).encode()
    try:
        response = _exchanged(GD, place, Patience(plpy), body, 4 * MOST_DIMENSIONS * len(inputs))
    except OSError as error:
        plpy.error(
            f'the embedding server of endpoint "{place.name}" cannot be reached: {error or type(error).__name__}',
            hint="start it with `seedbed serve`, or correct its row in seedbed.endpoint",
            sqlstate="08006",
        )
    except ValueError as error:
        plpy.error(f"the embedding server answered {error}", hint=ANOTHER_SERVER, sqlstate="58000")
    if response.status != 200:
        sqlstate, hint = REFUSALS.get(response.status, UNKNOWN)
        reason = _reason(response, inputs)
        plpy.error(f"the embedding server refuses: {reason}", hint=hint, sqlstate=sqlstate)
    answered = _answered(plpy, response, len(inputs))
    if space is not None and answered.space != space:
        plpy.error(
            f'endpoint "{place.name}" serves another model than these vectors were made with',
            hint="serve the model of before, or make a new column beside it: seedbed.embed_column(..., name => ...)",
            sqlstate="55000",
        )
    return answered


def _reason(response: Response, inputs: list[Any]) -> str:
    """The server's words, without what it was asked, as errors go into the database's log."""
    try:
        words = str(json.loads(response.body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status}"
    for text in inputs:
        if isinstance(text, str) and text:
            words = words.replace(text, "…")
    return words[:500]


def _answered(plpy: Any, response: Response, wanted: int) -> Answered:
    headers, body = response.headers, response.body
    count, told = headers.get("x-seedbed-count", "no"), headers.get("x-seedbed-dimensions", "no")
    dimensions, rest = divmod(len(body), 4 * wanted)
    if rest or not 1 <= dimensions <= MOST_DIMENSIONS or (count, told) != (str(wanted), str(dimensions)):
        plpy.error(
            f"the embedding server answered {len(body)} bytes as {count} vectors of {told} numbers: not {wanted} of "
            f"1 to {MOST_DIMENSIONS}",
            hint=ANOTHER_SERVER,
            sqlstate="58000",
        )
    return Answered(headers.get("x-seedbed-space", ""), dimensions, body)


def _exchanged(GD: dict[str, Any], place: Place, patience: Patience, body: bytes, most: int) -> Response:
    """Over the connection that is kept; one that went stale meanwhile is made again, once."""
    kept = GD.setdefault("seedbed_connections", {})
    connection = kept.pop((place.address, place.ca), None)
    if connection is not None:
        try:
            return _exchange(kept, place, connection, patience, body, most)
        except Stale:
            pass  # by design: the server closes what was idle for some seconds
    return _exchange(kept, place, Connection(place.address or "", place.ca, patience), patience, body, most)


def _exchange(
    kept: dict[Any, Connection], place: Place, connection: Connection, patience: Patience, body: bytes, most: int
) -> Response:
    connection.patience = patience
    try:
        response = connection.exchange(body, most)
    except BaseException:
        connection.close()
        raise
    if response.headers.get("connection", "").lower() == "close":
        connection.close()
    else:
        kept[place.address, place.ca] = connection
    return response
