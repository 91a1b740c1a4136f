"""milvus-lite in this process: a folder, opened once for all sinks that share it, and its lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from milvus_lite import MilvusLite
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.exceptions import DataDirLockedError

from seedbed.errors import ConfigError, Transient
from seedbed.sinks.milvus_url import data_path
from seedbed.sinks.milvus_wire import CALL_SECONDS, checked


class _Folder:
    """An open engine. Its collections take one writer at a time, so calls go one by one."""

    def __init__(self, path: str) -> None:
        self.engine = MilvusLite(path)
        self.servicer: Any = MilvusServicer(self.engine)
        self.lock = threading.RLock()
        self.users = 0


_OPEN: dict[str, _Folder] = {}
_OPEN_LOCK = threading.Lock()


class _Context:
    """What the servicer asks of a gRPC call."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_code(self, code: object) -> None:
        """The status in the response says it too."""

    def set_details(self, details: str) -> None:
        """As above."""


class LiteWire:
    """Calls the servicer directly: no port that another user of the machine could connect to, no copies."""

    embedded = True
    version: tuple[int, int] | None = None

    def __init__(self, folder: str) -> None:
        self._path = str(data_path(folder))
        with _OPEN_LOCK:
            if self._path not in _OPEN:
                _OPEN[self._path] = _open(self._path)
            self._folder: _Folder | None = _OPEN[self._path]
            self._folder.users += 1

    def call(self, name: str, request: Any, seconds: float = CALL_SECONDS) -> Any:
        with self.alone() as folder:
            return checked(name, getattr(folder.servicer, name)(request, _Context()))

    @contextmanager
    def alone(self) -> Iterator[_Folder]:
        folder = self._folder
        if folder is None:
            raise Transient("the embedded Milvus was closed meanwhile", setting="sink.url")
        with folder.lock:
            yield folder

    def close(self) -> None:
        with _OPEN_LOCK:
            folder, self._folder = self._folder, None
            if folder is None:
                return
            folder.users -= 1
            if not folder.users:
                with folder.lock:
                    folder.engine.close()
                del _OPEN[self._path]


def _open(path: str) -> _Folder:
    try:
        os.makedirs(path, exist_ok=True)
        return _Folder(path)
    except DataDirLockedError as error:
        holder = _holder(Path(path) / "LOCK")
        raise Transient(
            f"the embedded Milvus in {path} is open in {holder}",
            setting="sink.url",
            hint="it takes one process at a time: wait for that one to end, or run a Milvus server for several",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"the folder {path} cannot be used: {error}",
            setting="sink.url",
            hint="name a folder that this user may make and write",
        ) from error


def _holder(lock: Path) -> str:
    """The process that holds a file's lock, as Linux tells it."""
    try:
        inode = lock.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
                own = words[4] == str(os.getpid())
                return "this process by other means, such as a MilvusClient" if own else f"process {words[4]}"
    except (OSError, IndexError):
        pass
    return "another process"
