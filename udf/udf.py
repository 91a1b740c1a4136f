"""The functions of the Postgres extension `seedbed`. Standard library only: it runs in the server's own Python.

A function's first argument is `plpy`. What is kept between calls stands in GD, which all roles of a session share, so
nothing secret does: a connection an endpoint, and the vectors of the last texts. A blocking call would keep
`statement_timeout` and Ctrl-C out until it returns, so all waiting is in slices, with a look at the backend's own flags
between them. That needs no query, and so no snapshot, and is allowed in parallel mode.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import os
import socket
import ssl
import struct
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

SLICE = 0.05
ANSWER_SECONDS = 60
MOST_DIMENSIONS = 16000
"""pgvector's own limit of a vector."""
MOST_INPUTS = 2048
"""The server's limit of one request."""
MOST_HEADERS = 16384
MOST_KEPT = 8_000_000
"""Bytes of texts and vectors of a session's last calls."""
KEPT_SECONDS = 60
"""So that a server that serves another model is noticed."""
UNDER_WAY = (errno.EAGAIN, errno.EINPROGRESS, errno.EALREADY)

REFUSALS = {
    400: ("22023", "give a text that is not empty"),
    413: ("54000", "give a shorter text"),
    422: ("22000", "give a shorter or another text"),
    429: ("53000", "try again in a second"),
    503: ("57P03", "try again when the model is loaded"),
}
UNKNOWN = ("58000", "look at the output of `seedbed serve`")
ANOTHER_SERVER = "is it `seedbed serve` that listens there?"


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


def sibling(GD: dict[str, Any], name: str) -> ModuleType:
    """The file beside this one with `name` at its end; read from there and nowhere else."""
    path = Path(__file__)
    key = f"{path.name} {name}"
    if key not in GD:
        module = ModuleType(name)
        file = path.with_name(f"{path.stem}-{name}.py")
        exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), module.__dict__)
        GD[key] = module
    found: ModuleType = GD[key]
    return found


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
    return _exchange(kept, place, Connection(place, patience), patience, body, most)


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


# --- waiting ----------------------------------------------------------------------------------------

_BACKEND = ctypes.CDLL(None)
_CANCELLED = ctypes.c_int.in_dll(_BACKEND, "QueryCancelPending")
_DYING = ctypes.c_int.in_dll(_BACKEND, "ProcDiePending")
_in_parallel_mode = _BACKEND.IsInParallelMode
_in_parallel_mode.restype = ctypes.c_bool


class Patience:
    """One call's. `look` is called whenever a wait or a piece of work is over, and lets cancellation in."""

    def __init__(self, plpy: Any) -> None:
        self._plpy = plpy
        self._end = time.monotonic() + ANSWER_SECONDS

    def look(self) -> None:
        if _CANCELLED.value or _DYING.value:
            if _in_parallel_mode():
                # No query may begin here before PostgreSQL 17.
                self._plpy.error("canceling statement while it waits for the embedding server", sqlstate="57014")
            self._plpy.execute("select 1")
        if time.monotonic() > self._end:
            raise TimeoutError(f"no answer in {ANSWER_SECONDS} seconds")


# --- HTTP -------------------------------------------------------------------------------------------


class Stale(ConnectionError):
    """The connection was closed before anything of an answer came."""


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """To `unix:/path`, `http://host:port` or `https://host:port`; what little of HTTP/1.1 `seedbed serve` speaks."""

    def __init__(self, place: Place, patience: Patience) -> None:
        address = place.address or ""
        self.patience = patience
        scheme, _, rest = address.partition(":")
        host, port = ("", 0) if scheme == "unix" else _host_and_port(rest.strip("/"), 443 if scheme == "https" else 80)
        self._head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: {host or 'localhost'}\r\nAccept: application/octet-stream\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        if scheme == "unix":
            self._socket = self._reach(socket.AF_UNIX, rest)
        else:
            self._socket = self._reach_host(host, port)
        if scheme == "https":
            self._socket = self._secured(host, place.ca)

    def _reach_host(self, host: str, port: int) -> socket.socket:
        failure = OSError(f"{host} is no known host")
        # Only the resolver blocks: an IP address needs none.
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                made = self._reach(family, address)
            except OSError as error:
                failure = error
                continue
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        raise failure

    def _reach(self, family: socket.AddressFamily, address: Any) -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.settimeout(SLICE)
            while (failed := made.connect_ex(address)) not in (0, errno.EISCONN):
                if failed not in UNDER_WAY:
                    raise OSError(failed, os.strerror(failed))
                time.sleep(SLICE)
                self.patience.look()
        except BaseException:
            made.close()
            raise
        return made

    def _secured(self, host: str, ca: str | None) -> socket.socket:
        plain = self._socket
        try:
            context = ssl.create_default_context(cafile=ca)
            made = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
            while True:
                with suppress(TimeoutError):
                    made.do_handshake()
                    return made
                self.patience.look()
        except BaseException:
            plain.close()
            raise

    def exchange(self, body: bytes, most: int) -> Response:
        """Raises OSError, and ValueError for an answer that is none; no more than `most` bytes of a body are read."""
        try:
            self._send(self._head + str(len(body)).encode() + b"\r\n\r\n" + body)
            first = self._receive(65536)
        except ConnectionError as error:
            raise Stale(*error.args) from error
        if not first:
            raise Stale("it closed the connection")
        head, rest = self._headers(first)
        status, headers = _parsed(head)
        length = headers.get("content-length", "")
        if not length.isdigit() or "transfer-encoding" in headers:
            raise ValueError("without a length")
        if int(length) > (most if status == 200 else MOST_HEADERS):
            raise ValueError(f"{length} bytes, more than were asked for")
        return Response(status, headers, self._body(rest, int(length)))

    def _headers(self, received: bytes) -> tuple[bytes, bytes]:
        while (end := received.find(b"\r\n\r\n")) < 0:
            if len(received) > MOST_HEADERS:
                raise ValueError("headers without an end")
            received += self._some(65536)
        return received[:end], received[end + 4 :]

    def _body(self, begun: bytes, length: int) -> bytes:
        if len(begun) > length:
            raise ValueError("more than it announced")
        pieces, missing = [begun], length - len(begun)
        while missing:
            pieces.append(self._some(min(missing, 1 << 20)))
            missing -= len(pieces[-1])
        return b"".join(pieces) if len(pieces) > 1 else begun

    def _some(self, most: int) -> bytes:
        if not (received := self._receive(most)):
            raise ConnectionError("it closed the connection in the middle of an answer")
        return received

    def _receive(self, most: int) -> bytes:
        while True:
            received = None
            with suppress(TimeoutError):
                received = self._socket.recv(most)
            self.patience.look()
            if received is not None:
                return received

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            with suppress(TimeoutError):
                rest = rest[self._socket.send(rest) :]
            self.patience.look()

    def close(self) -> None:
        self._socket.close()


def _host_and_port(text: str, usual: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    return host, int(port) if port else usual


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("no HTTP")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(rest[:3]), headers


if sys.byteorder != "little":
    raise SystemError("the extension needs a little-endian machine")
