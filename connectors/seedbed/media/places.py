"""Media in folders and buckets: only below the roots that a pipeline names, after links are resolved."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

from seedbed.errors import ConfigError, Fatal, RowError
from seedbed.media.errors import Later, Missing


class Roots:
    """`[media] roots`: folders, and URLs of any file system that fsspec knows. Raises RowError, and ConfigError for a
    folder that is not there."""

    def __init__(self, roots: Sequence[str], most_bytes: int) -> None:
        self._most = most_bytes
        self._folders = [_folder(root) for root in roots if "://" not in root]
        self._buckets = [root.rstrip("/") + "/" for root in roots if "://" in root]

    def stamp(self, place: str) -> str:
        """Changes when the bytes may have: an etag, or time and size."""
        if _is_path(place):
            with self._opened(place) as file:
                found = os.fstat(file.fileno())
                return f"file {os.readlink(f'/proc/self/fd/{file.fileno()}')} {found.st_mtime_ns} {found.st_size}"
        info = self._remote(place, "info")
        told = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
        return f"{place} {told} {info.get('size')}"

    def read(self, place: str) -> bytes:
        if _is_path(place):
            with self._opened(place) as file:
                data: bytes = file.read(self._most + 1)
        else:
            size = int(self._remote(place, "info").get("size") or 0)
            data = self._remote(place, "cat_file") if size <= self._most else b"\0" * (self._most + 1)
        if len(data) > self._most:
            raise RowError(f"{place}: larger than {self._most:,} bytes", setting="media.max_bytes")
        return data

    def _opened(self, place: str) -> Any:
        """A regular file that lies below a root once it is open: a link that is changed meanwhile changes nothing."""
        path = unquote(urlsplit(place).path) if place.startswith("file://") else os.path.expanduser(place)
        if "\0" in path:
            raise RowError(f"{place!r} is no path")
        if not self._folders:
            raise self._outside(place)
        candidates = [path] if os.path.isabs(path) else [os.path.join(folder, path) for folder in self._folders]
        real = next((found for one in candidates if self._below(found := os.path.realpath(one))), None)
        if real is None:
            raise self._outside(place)
        try:
            # Not waiting: a pipe would never open.
            handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"{place}: there is no such file") from None
        except OSError as error:
            raise RowError(f"{place}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise RowError(f"{place} is no regular file")
        file = os.fdopen(handle, "rb")
        if not self._below(os.path.realpath(os.readlink(f"/proc/self/fd/{handle}"))):
            file.close()
            raise self._outside(place)
        return file

    def _below(self, real: str) -> bool:
        return any(real.startswith(folder.rstrip("/") + "/") for folder in self._folders)

    def _remote(self, place: str, verb: str) -> Any:
        parts = place.split("/")
        if ".." in parts or not any(place.startswith(root) for root in self._buckets):
            raise self._outside(place)
        system, path = _system(f"{place.partition('://')[0]}://"), place
        try:
            return getattr(system, verb)(system._strip_protocol(path))
        except FileNotFoundError:
            raise Missing(f"{place}: there is nothing there") from None
        except PermissionError as error:
            raise RowError(f"{place}: may not be read: {error}") from error
        except Exception as error:
            if "Credential" in type(error).__name__:
                raise Fatal(f"{place}: {error}", setting="media.roots", hint="check the credentials") from error
            raise Later(f"{place}: {type(error).__name__}: {error}") from error

    def _outside(self, place: str) -> RowError:
        known = ", ".join([*self._folders, *self._buckets])
        return RowError(
            f"{place!r} does not lie below any of [media] roots",
            setting="media.roots",
            hint=f"they are: {known}"
            if known
            else 'name the folders that media may be read from: roots = ["./photos"]',
        )


def _folder(root: str) -> str:
    """Were it not there, every picture would be missing, and rows would go without."""
    real = os.path.realpath(root)
    if not os.path.isdir(real):
        raise ConfigError(f"there is no folder {root}", setting="media.roots", hint="correct the path, or make it")
    return real


def _is_path(place: str) -> bool:
    return "://" not in place or place.startswith("file://")


@lru_cache(8)
def _system(protocol: str) -> Any:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(protocol, skip_instance_cache=True, use_listings_cache=False)[0]
    except (ImportError, ValueError) as error:
        raise RowError(f"{protocol}: its file system is not installed: {error}") from error
