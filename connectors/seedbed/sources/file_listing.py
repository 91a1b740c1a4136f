"""Which files stand below a pattern: local folders by the operating system, all else by fsspec.

An error while listing is raised, never swallowed: a folder that could not be read must not look like one whose files
were deleted.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.utils import glob_translate

from seedbed.errors import ConfigError, Fatal, MissingDependency, SeedbedError, Transient

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class File:
    """`path` below the pattern's fixed folder, `name` as its file system knows it; `mtime` in nanoseconds."""

    path: str
    name: str
    size: int
    mtime: int | None
    etag: str | None

    @property
    def fingerprint(self) -> str:
        """What tells that the file has changed; another each time where nothing does. Empty for an empty file."""
        if self.size == 0:
            return ""
        if self.etag:
            return f"etag {self.etag} {self.size}"
        return f"unknown {time.time_ns()}" if self.mtime is None else f"mtime {self.mtime} {self.size}"


class Listing:
    """A pattern. Raises ConfigError where it cannot be read, MissingDependency for a file system not installed."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        try:
            # Not one that an earlier source made: its credentials may be others.
            self.system, path = url_to_fs(pattern, skip_instance_cache=True)
        except ImportError as error:
            hint = "pip install 'seedbed[s3]'" if pattern.startswith("s3") else "pip install the package"
            raise MissingDependency(
                f"{pattern}: its file system is not installed: {error}", setting="source.url", hint=hint
            ) from error
        except ValueError as error:
            raise ConfigError(f"{pattern}: {error}", setting="source.url") from error
        self.local = "file" in _protocols(self.system)
        self._root, self._matches = _split(path)

    def files(self) -> list[File]:
        """In the order of their paths' bytes. All are held at once: 1.2 kB a file at the peak."""
        try:
            found = list(self._local() if self.local else self._remote())
        except SeedbedError:
            raise
        except Exception as error:
            raise mapped(error, self._pattern) from error
        return sorted((file for file in found if self._matches.match(file.name)), key=lambda f: os.fsencode(f.path))

    def _local(self) -> Iterator[File]:
        root = Path(self._root)
        if not root.exists():
            raise self._absent()
        if root.is_file():
            yield _local_file(root.name, root, root.stat())
            return
        folders, real = [root], os.path.realpath(root)
        while folders:
            folder = folders.pop()
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_symlink() and not os.path.realpath(path).startswith(real + os.sep):
                    continue
                elif entry.is_file():
                    yield _local_file(path.relative_to(root).as_posix(), path, entry.stat())

    def _remote(self) -> Iterator[File]:
        # Another client may have written since this process last looked.
        self.system.invalidate_cache()
        found = self.system.find(self._root, detail=True)
        if not found and not self.system.exists(self._root.split("/")[0]):
            raise self._absent()
        for name, info in found.items():
            if name.endswith("/"):
                continue
            path = name.removeprefix(self._root).lstrip("/") or name.rpartition("/")[2]
            etag = info.get("ETag") or info.get("etag")
            yield File(path, name, int(info["size"] or 0), _moment(info), str(etag).strip('"') if etag else None)

    def _absent(self) -> ConfigError:
        return ConfigError(
            f"there is no folder {self._root!r}",
            setting="source.url",
            hint="relative paths are relative to the pipeline file",
        )


def _local_file(path: str, name: Path, found: os.stat_result) -> File:
    return File(path, name.as_posix(), found.st_size if stat.S_ISREG(found.st_mode) else 0, found.st_mtime_ns, None)


def _split(path: str) -> tuple[str, re.Pattern[str]]:
    """The folder before the first wildcard, and the whole as an expression; a plain path means all below it."""
    found = _MAGIC.search(path)
    if found is None:
        root = path.rstrip("/")
        return root, re.compile(re.escape(root) + r"(/.*)?\Z", re.DOTALL)
    root = path[: found.start()].rpartition("/")[0]
    return root, re.compile(glob_translate(path), re.DOTALL)


def _moment(info: dict[str, Any]) -> int | None:
    for name in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, (int, float)):
            return int(value * 1e9)
    return None


def _protocols(system: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def mapped(error: Exception, what: str) -> SeedbedError:
    """The error of our tree for one of a file system's; credentials are in none of their words."""
    kind = type(error).__name__
    if isinstance(error, PermissionError) or "Credential" in kind:
        return Fatal(f"{what} may not be read: {error}", setting="source.url", hint="check the rights and credentials")
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{what} is not there: {error}", setting="source.url", hint="check the bucket and the path")
    return Transient(f"{what} cannot be read: {kind}: {error}", setting="source.url")
