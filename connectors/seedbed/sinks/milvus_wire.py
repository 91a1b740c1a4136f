"""Calls to Milvus: one door for a server (gRPC) and for milvus-lite (its servicer, in this process).

Not through MilvusClient: it repeats a failed call up to 75 times, walks vectors number by number and opens
milvus-lite to every user of the machine on a TCP port. Its protobuf messages are Milvus' public protocol.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import grpc
from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc

from seedbed.errors import ConfigError, Fatal, SeedbedError, Transient

MESSAGE_LIMIT = 64 * 1024 * 1024
OLDEST = (2, 3)
CALL_SECONDS = 60.0
_FIRST_CALL_SECONDS = 10.0
"""A host that never answers is told from a slow one by the first call, which asks for the version alone."""

_CHANNEL = [
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", 256 * 1024 * 1024),
    # A peer that vanished without a word is noticed in a minute.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_retries", 0),
    # By default a channel waits up to two minutes before it tries a server again that was away.
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class Fault(Exception):
    """A status that is not success, as Milvus gives it: two code systems, of which old servers have the first."""

    def __init__(self, call: str, status: Any) -> None:
        super().__init__(status.reason)
        self.call = call
        self.old: int = status.error_code
        self.code: int = status.code
        self.reason: str = status.reason
        self.retriable: bool = status.retriable

    @property
    def not_found(self) -> bool:
        """The collection or alias that was asked for is not there."""
        return self.code in (100, 1600) or self.old == 4

    @property
    def not_loaded(self) -> bool:
        """The collection is there and not in memory."""
        return 101 in (self.code, self.old)

    @property
    def limited(self) -> bool:
        """Asked too often."""
        return self.code == 8 or self.old == 49

    @property
    def already(self) -> bool:
        """What was to be made is there."""
        return self.old == 35 or "already exist" in self.reason


def too_large(error: Any) -> bool:
    """Whether an answer did not fit: into a message of gRPC, or into what a server allows."""
    words = error.reason if isinstance(error, Fault) else error.details() or ""
    return "larger than max" in words or "exceed the limit size" in words


class Wire(Protocol):
    """`call` answers with the response to one request; a status that is not success raises Fault."""

    embedded: bool
    version: tuple[int, int] | None
    """Of a server that tells its own."""

    def call(self, name: str, request: Any, seconds: float = CALL_SECONDS) -> Any: ...

    def alone(self) -> AbstractContextManager[object]:
        """Keeps other threads' calls out while several belong together; nothing on a server."""
        ...

    def close(self) -> None: ...


def checked(name: str, response: Any) -> Any:
    """The response, or Fault where its status (or it, being one) says so."""
    status = response if isinstance(response, common_pb2.Status) else response.status
    if status.code or status.error_code:
        raise Fault(name, status)
    return response


class ServerWire:
    """One channel to a server; gRPC itself connects again after a loss."""

    embedded = False

    def __init__(self, address: str, *, token: str, database: str, tls: bool) -> None:
        self._metadata = [("dbname", database)] if database else []
        if token:
            self._metadata.append(("authorization", base64.b64encode(token.encode()).decode()))
        if tls:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), _CHANNEL)
        else:
            self._channel = grpc.insecure_channel(address, _CHANNEL)
        self._stub: Any = milvus_pb2_grpc.MilvusServiceStub(self._channel)
        try:
            words = self.call("GetVersion", milvus_pb2.GetVersionRequest(), _FIRST_CALL_SECONDS).version
            self.version = _check_version(words)
            if database:
                # Asked for a collection, a server says of a database that is not there only that the collection is not.
                self.call("ShowCollections", milvus_pb2.ShowCollectionsRequest())
        except BaseException:
            self.close()
            raise

    def call(self, name: str, request: Any, seconds: float = CALL_SECONDS) -> Any:
        return checked(name, getattr(self._stub, name)(request, timeout=seconds, metadata=self._metadata))

    def alone(self) -> AbstractContextManager[object]:
        return nullcontext()

    def close(self) -> None:
        self._channel.close()


def _check_version(version: str) -> tuple[int, int] | None:
    found = re.match(r"v?(\d+)\.(\d+)\.", version)
    if found is None:
        # Builds of a branch, and the cloud, have other names; they are not old.
        return None
    numbers = int(found[1]), int(found[2])
    if numbers < OLDEST:
        raise ConfigError(
            f"the server is Milvus {version.removeprefix('v')}: {OLDEST[0]}.{OLDEST[1]} or newer is needed",
            setting="sink.url",
            hint="upgrade the server; 2.2 and older have no upsert",
        )
    return numbers


@contextmanager
def mapped(setting: str) -> Iterator[None]:
    """Turns gRPC's errors and Milvus' statuses into ours, `__cause__` kept; `setting` is the line to name.

    Transient: no answer, a lost connection, timeouts, rate limits, a server that starts or stops. Fatal: a
    wrong password or key, missing rights, all else. ConfigError: a database that is not there, no Milvus.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise translate(error, setting) from error
    except Fault as fault:
        raise translate_fault(fault, setting) from fault


_LOGIN_WORDS = re.compile(r"auth check failure|unauthenticated|password|api ?key|invalid token", re.IGNORECASE)
_TLS_WORDS = re.compile(r"ssl|tls|handshake|certificate", re.IGNORECASE)


def translate(error: Any, setting: str) -> SeedbedError:
    """The error of our tree for one of gRPC's."""
    code, words = error.code(), " ".join((error.details() or "no words").split())
    kinds = grpc.StatusCode
    if code == kinds.UNAUTHENTICATED or (code == kinds.PERMISSION_DENIED and _LOGIN_WORDS.search(words)):
        return _wrong_login(words, setting)
    if code == kinds.PERMISSION_DENIED:
        return Fatal(f"Milvus: missing rights: {words}", setting=setting, hint="grant them to the user in the URL")
    if code == kinds.UNIMPLEMENTED or re.search("http1|parsing HTTP/2", words):
        hint = "give the gRPC port, by default 19530; Milvus' HTTP port answers nothing of this"
        return ConfigError(f"what answers there is no Milvus server: {words}", setting=setting, hint=hint)
    if code == kinds.UNAVAILABLE and _TLS_WORDS.search(words):
        hint = (
            "a server without TLS wants a URL without tls=true; a certificate of your own authority is trusted"
            " where the environment's GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names that authority's file"
        )
        return Fatal(f"Milvus: no TLS connection: {words}", setting=setting, hint=hint)
    if code == kinds.UNAVAILABLE:
        hint = "check the host and port in the URL, that the server runs, and whether it wants tls=true"
        return Transient(f"Milvus cannot be reached: {words}", setting=setting, hint=hint)
    if too_large(error):
        hint = "ask for fewer hits, or keep less payload"
        return Fatal(f"Milvus: a message is too large: {words}", setting=setting, hint=hint)
    if code in (kinds.DEADLINE_EXCEEDED, kinds.RESOURCE_EXHAUSTED, kinds.ABORTED, kinds.CANCELLED):
        return Transient(f"Milvus did not answer in time: {words}", setting=setting)
    return Fatal(f"Milvus: {words} ({code.name})", setting=setting)


# The old codes of 2.3 and the new ones: rate limits, memory and disk quotas, not ready, no leader, channels.
_BUSY = frozenset({2, 3, 8, 9, 10, 12, 13, 500, 501, 502, 503, 504, 505, 506, 507})
_BUSY_OLD = frozenset({49, 55, 57})


def translate_fault(fault: Fault, setting: str) -> SeedbedError:
    """The error of our tree for a status of Milvus."""
    words = " ".join(fault.reason.split())
    if fault.not_found and "database" not in words.partition("[")[0]:
        hint = "somebody dropped it meanwhile; `seedbed sync` makes it again"
        return ConfigError(f"Milvus: {words}", setting="sink.collection", hint=hint)
    if "database" in words.lower() and ("not found" in words or "not exist" in words):
        return ConfigError(
            f"Milvus: {words}", setting=setting, hint="create the database first, or leave it out of the URL"
        )
    if fault.code in (1400, 1401, 1402) or (fault.code == 65535 and _LOGIN_WORDS.search(words)):
        return _wrong_login(words, setting)
    if "privilege" in words.lower() or "permission" in words.lower():
        return Fatal(f"Milvus: missing rights: {words}", setting=setting, hint="grant them to the user in the URL")
    if fault.retriable or fault.not_loaded or fault.code in _BUSY or fault.old in _BUSY_OLD:
        return Transient(f"Milvus is busy: {fault.call}: {words}", setting=setting)
    return Fatal(f"Milvus: {fault.call}: {words} (code {fault.code or fault.old})", setting=setting)


def _wrong_login(words: str, setting: str) -> Fatal:
    return Fatal(
        f"Milvus: wrong password or API key: {words}",
        setting=setting,
        hint="check user:password in the URL, or the setting api_key",
    )
