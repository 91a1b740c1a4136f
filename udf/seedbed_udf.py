"""The logic of the Postgres extension `seedbed`. Standard library only: it runs in the server's own Python.

A function's first argument is `plpy`. A kept-alive connection to each endpoint stands in GD, which all roles of a
session share, so nothing secret does. Each wait is in slices, with a query between them, as only that lets
`statement_timeout` and Ctrl-C in.
"""

import http.client
import json
import math
import select
import socket
import struct
from array import array

SLICE = 0.05
ANSWER_SECONDS = 60
MOST_DIMENSIONS = 16000
RAW = "application/octet-stream"


class _Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def embed(plpy, GD, address, endpoint, text, kind):
    """The image of a vector (vector.h of pgvector): int16 dimensions, int16 zero, float4 each, in the server's
    byte order, which the protocol has as little-endian."""
    if address is None:
        plpy.error(
            f'there is no endpoint "{endpoint}"',
            hint="an administrator adds it: INSERT INTO seedbed.endpoint VALUES ('default', 'unix:/path/to/socket')",
            sqlstate="22023",
        )
    if kind not in ("query", "document"):
        plpy.error(f'kind is "{kind}"', hint="it is query or document", sqlstate="22023")
    body = json.dumps({"model": "", "input": text, "kind": kind}).encode()
    try:
        status, answer = _ask(plpy, GD, address, body)
    except (OSError, http.client.HTTPException) as error:
        plpy.error(
            f'the embedding server of endpoint "{endpoint}" cannot be reached: {error}',
            hint="start it with `seedbed serve`, or correct its row in seedbed.endpoint",
            sqlstate="08006",
        )
    if status != 200:
        plpy.error(f"the embedding server refuses: {_reason(status, answer)}", sqlstate=_sqlstate(status))
    return _image(plpy, answer)


def _ask(plpy, GD, address, body):
    """Status and bytes of the answer. A connection that went stale while it was kept is made again, once."""
    kept = GD.setdefault("seedbed_connections", {})
    connection = kept.pop(address, None)
    if connection is not None:
        try:
            return _exchange(plpy, kept, address, connection, body)
        except (http.client.RemoteDisconnected, ConnectionError):
            connection.close()
    return _exchange(plpy, kept, address, _connection(address), body)


def _connection(address):
    if address.startswith("unix:"):
        return _Unix(address[len("unix:") :])
    host, _, port = address[len("http://") :].rstrip("/").partition(":")
    return http.client.HTTPConnection(host, int(port or 80), timeout=5)


def _exchange(plpy, kept, address, connection, body):
    try:
        connection.request("POST", "/v1/embeddings", body, {"Accept": RAW, "Content-Type": "application/json"})
        _wait(plpy, connection.sock)
        response = connection.getresponse()
        answer = response.read(8 + 4 * MOST_DIMENSIONS)
    except BaseException:
        connection.close()
        raise
    if response.isclosed() and not response.will_close:
        kept[address] = connection
    else:
        connection.close()
    return response.status, answer


def _wait(plpy, sock):
    for _ in range(round(ANSWER_SECONDS / SLICE)):
        if select.select([sock], [], [], SLICE)[0]:
            return
        plpy.execute("select 1")
    raise TimeoutError(f"no answer in {ANSWER_SECONDS} seconds")


def _reason(status, answer):
    try:
        return json.loads(answer)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"status {status}"


def _sqlstate(status):
    return {400: "22023", 422: "22000", 429: "53000", 503: "57P03"}.get(status, "58000")


def _image(plpy, answer):
    dimensions, rest = divmod(len(answer), 4)
    if rest or not 1 <= dimensions <= MOST_DIMENSIONS:
        plpy.error(
            f"the embedding server answered {len(answer)} bytes, no vector of 1 to {MOST_DIMENSIONS} numbers",
            sqlstate="58000",
        )
    if not all(map(math.isfinite, array("f", answer))):
        plpy.error("the embedding server answered with NaN or infinite numbers", sqlstate="58000")
    return struct.pack("=hh", dimensions, 0) + answer
