"""The Qdrant client's errors in our tree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from qdrant_client.http.exceptions import ApiException

from seedbed.errors import ConfigError, Fatal, SeedbedError, Transient

_LOGIN = "check api_key, and what the key may do: a read-only key cannot sync"


@contextmanager
def mapped(where: str) -> Iterator[None]:
    """Transient: no answer, a timeout, too many requests. Fatal: a wrong key, missing rights, a full disk.
    ConfigError: an address that is no Qdrant's. `where` is the server, as errors name it."""
    try:
        yield
    except SeedbedError:
        raise
    except grpc.RpcError as error:
        raise _translate(error, where) from error
    except (ApiException, ValueError) as error:
        raise Fatal(f"Qdrant: {error}", setting="sink.url") from error


def _translate(error: grpc.RpcError, where: str) -> SeedbedError:
    code, words = error.code(), error.details() or ""
    status = grpc.StatusCode
    if code == status.UNAVAILABLE:
        return _unreachable(words, where)
    if code in (status.DEADLINE_EXCEEDED, status.CANCELLED, status.ABORTED, status.RESOURCE_EXHAUSTED):
        return Transient(f"Qdrant at {where}: {words or code.name}", setting="sink.url")
    if code == status.UNAUTHENTICATED:
        return Fatal(f"Qdrant at {where} refuses the API key: {words}", setting="sink.api_key", hint=_LOGIN)
    if code == status.PERMISSION_DENIED:
        return Fatal(f"Qdrant at {where} does not allow this: {words}", setting="sink.api_key", hint=_LOGIN)
    if code == status.UNIMPLEMENTED:
        hint = "6334 is Qdrant's gRPC port, 6333 its REST port; a proxy must let gRPC through"
        return ConfigError(f"{where} does not answer as Qdrant's gRPC does: {words}", setting="sink.url", hint=hint)
    room = "free space on the server's disk, then run again" if "no space left" in words.lower() else None
    return Fatal(f"Qdrant at {where}: {words or code.name}", setting="sink.url", hint=room)


def _unreachable(words: str, where: str) -> SeedbedError:
    low = words.lower()
    if "ssl" in low or "tls" in low or "handshake" in low:
        hint = "a plain port wants tls = false; a self-signed certificate must be known to this machine"
        return Fatal(f"no TLS with {where}: {words}", setting="sink.tls", hint=hint)
    if "http1" in low or "parsing http/2" in low:
        hint = "6334 is Qdrant's gRPC port, 6333 its REST port; a port with TLS wants tls = true"
        return ConfigError(f"{where} does not speak gRPC: {words}", setting="sink.url", hint=hint)
    hint = "check the host and port (6334 is gRPC), tls, and that the server runs"
    return Transient(f"Qdrant cannot be reached at {where}: {words}", setting="sink.url", hint=hint)
