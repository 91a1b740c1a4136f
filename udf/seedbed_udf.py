"""The logic of the Postgres extension `seedbed`. Standard library only: it runs in the server's own Python.

A function's first argument is `plpy`. A kept-alive connection to each endpoint stands in GD, which all roles of a
session share, so nothing secret does. A blocking call would keep `statement_timeout` and Ctrl-C out until it returns:
so connecting, sending and reading wait in slices, with a query between them, as only that lets them in.
"""

from __future__ import annotations

import errno
import http.client
import io
import json
import math
import os
import socket
import struct
import sys
import time
from array import array
from contextlib import suppress
from typing import Any

SLICE = 0.05
ANSWER_SECONDS = 60
MOST_DIMENSIONS = 16000
"""pgvector's own limit of a vector."""
RAW = "application/octet-stream"
UNDER_WAY = (errno.EAGAIN, errno.EINPROGRESS, errno.EALREADY)

REFUSALS = {
    400: ("22023", "give a text that is not empty"),
    413: ("54000", "give a shorter text"),
    422: ("22000", "give a shorter or another text"),
    429: ("53000", "try again in a second"),
    503: ("57P03", "try again when the model is loaded"),
}
UNKNOWN = ("58000", "look at the output of `seedbed serve`")


def embed(plpy: Any, GD: dict[str, Any], address: str | None, endpoint: str, text: str, kind: str) -> bytes:
    """The image of a vector (vector.h of pgvector): int16 dimensions, int16 zero, float4 each, in the machine's byte
    order. What the server answered, in little-endian, is checked before: length, shape, and that it is finite."""
    if address is None:
        plpy.error(
            f'there is no endpoint "{endpoint}"',
            hint="an administrator adds it: INSERT INTO seedbed.endpoint VALUES ('default', 'unix:/path/to/socket')",
            sqlstate="22023",
        )
        raise AssertionError
    if kind not in ("query", "document"):
        plpy.error(f'kind is "{kind}"', hint="it is query or document", sqlstate="22023")
    body = json.dumps({"input": text, "kind": kind}).encode()
    try:
        status, shape, answer = _ask(plpy, GD, address, body)
    except (OSError, http.client.HTTPException) as error:
        plpy.error(
            f'the embedding server of endpoint "{endpoint}" cannot be reached: {error or type(error).__name__}',
            hint="start it with `seedbed serve`, or correct its row in seedbed.endpoint",
            sqlstate="08006",
        )
    if status != 200:
        sqlstate, hint = REFUSALS.get(status, UNKNOWN)
        plpy.error(f"the embedding server refuses: {_reason(status, answer)}", hint=hint, sqlstate=sqlstate)
    return _image(plpy, shape, answer)


# --- the exchange -----------------------------------------------------------------------------------

Answer = tuple[int, tuple[str, str], bytes]
"""Status, (count, dimensions) as the headers tell, body."""


def _ask(plpy: Any, GD: dict[str, Any], address: str, body: bytes) -> Answer:
    """A connection that went stale while it was kept is made again, once."""
    kept = GD.setdefault("seedbed_connections", {})
    patience = _Patience(plpy)
    connection = kept.pop(address, None)
    if connection is not None:
        try:
            return _exchange(kept, address, connection, patience, body)
        except ConnectionError:
            pass  # by design: the server closes what was idle for some seconds
    return _exchange(kept, address, _Connection(address), patience, body)


def _exchange(
    kept: dict[str, _Connection], address: str, connection: _Connection, patience: _Patience, body: bytes
) -> Answer:
    connection.patience = patience
    try:
        connection.request("POST", "/v1/embeddings", body, {"Accept": RAW, "Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read(4 * MOST_DIMENSIONS + 1)
    except BaseException:
        connection.close()
        raise
    if response.isclosed() and not response.will_close:
        kept[address] = connection
    else:
        connection.close()
    shape = (response.getheader("X-Seedbed-Count", ""), response.getheader("X-Seedbed-Dimensions", ""))
    return response.status, shape, answer


class _Patience:
    """One call's. `look` is called whenever a wait or a piece of work is over, and lets cancellation in."""

    def __init__(self, plpy: Any) -> None:
        self._plpy = plpy
        self._looked = time.monotonic()
        self._end = self._looked + ANSWER_SECONDS

    def look(self) -> None:
        """At most once a slice, so that a server that sends byte after byte is looked up from as well."""
        now = time.monotonic()
        if now - self._looked < SLICE:
            return
        self._looked = now
        self._plpy.execute("select 1")
        if now > self._end:
            raise TimeoutError(f"no answer in {ANSWER_SECONDS} seconds")


class _Connection(http.client.HTTPConnection):
    """To `unix:/path` or `http://host:port`. `patience` is the present call's."""

    patience: _Patience

    def __init__(self, address: str) -> None:
        self._path = address[len("unix:") :] if address.startswith("unix:") else None
        super().__init__("localhost" if self._path else address[len("http://") :].rstrip("/"))

    def connect(self) -> None:
        if self._path:
            self.sock = self._reach(socket.AF_UNIX, self._path)
            return
        failure = OSError(f"{self.host} is no known host")
        # Only the resolver blocks: an IP address needs none.
        for family, _, _, _, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            try:
                self.sock = self._reach(family, address)
                return
            except OSError as error:
                failure = error
        raise failure

    def _reach(self, family: socket.AddressFamily, address: Any) -> Any:
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.settimeout(SLICE)
            while (failed := made.connect_ex(address)) not in (0, errno.EISCONN):
                if failed not in UNDER_WAY:
                    raise OSError(failed, os.strerror(failed))
                time.sleep(SLICE)
                self.patience.look()
            if family != socket.AF_UNIX:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            made.close()
            raise
        return _Socket(made, self)


class _Socket:
    """What http.client uses of a socket, never blocking for longer than a slice."""

    def __init__(self, sock: socket.socket, connection: _Connection) -> None:
        self._sock = sock
        self._connection = connection

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            with suppress(TimeoutError):
                rest = rest[self._sock.send(rest) :]
            self._connection.patience.look()

    def receive(self, buffer: Any) -> int:
        while True:
            try:
                count = self._sock.recv_into(buffer)
            except TimeoutError:
                count = None
            self._connection.patience.look()
            if count is not None:
                return count

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        self._sock.close()


class _Reader(io.RawIOBase):
    """Closed with each response, while the socket stays open."""

    def __init__(self, sock: _Socket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._sock.receive(buffer)


# --- the answer -------------------------------------------------------------------------------------


def _reason(status: int, answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {status}"


def _image(plpy: Any, shape: tuple[str, str], answer: bytes) -> bytes:
    dimensions, rest = divmod(len(answer), 4)
    if rest or not 1 <= dimensions <= MOST_DIMENSIONS or shape != ("1", str(dimensions)):
        plpy.error(
            f"the embedding server answered {len(answer)} bytes as {shape[0] or 'no'} vectors of {shape[1] or 'no'} "
            f"numbers: not one of 1 to {MOST_DIMENSIONS}",
            hint="is it `seedbed serve` that listens there?",
            sqlstate="58000",
        )
    numbers = array("f", answer)
    if sys.byteorder == "big":
        numbers.byteswap()
    if not all(map(math.isfinite, numbers)):
        plpy.error("the embedding server answered with NaN or infinite numbers", hint=UNKNOWN[1], sqlstate="58000")
    return struct.pack("=hh", dimensions, 0) + numbers.tobytes()
