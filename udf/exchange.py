"""One exchange with `seedbed serve`, and the waiting for it. Standard library only; read by udf.py.

A blocking call would keep `statement_timeout` and Ctrl-C out until it returns, so all waiting is in slices, with a look
at the backend's own flags between them. That needs no query, and so no snapshot, and is allowed in parallel mode.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import ssl
import time
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

SLICE = 0.05
ANSWER_SECONDS = 60
MOST_HEADERS = 16384
UNDER_WAY = (errno.EAGAIN, errno.EINPROGRESS, errno.EALREADY)

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


class Stale(ConnectionError):
    """The connection was closed before anything of an answer came."""


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """To `unix:/path`, `http://host:port` or `https://host:port`; what little of HTTP/1.1 `seedbed serve` speaks.
    http.client takes a tenth of a millisecond a call by itself, as much as all the rest."""

    def __init__(self, address: str, ca: str | None, patience: Patience) -> None:
        self.patience = patience
        scheme, _, path = address.partition(":")
        host, port = ("", 0) if scheme == "unix" else _host_and_port(address)
        self._head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: {host or 'localhost'}\r\nAccept: application/octet-stream\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        if scheme == "unix":
            self._socket = self._reach(socket.AF_UNIX, path)
        else:
            self._socket = self._reach_host(host, port)
        if scheme == "https":
            self._socket = self._secured(host, ca)

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


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    try:
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise OSError(f"its address is wrong: {error}") from error
