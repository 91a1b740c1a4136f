"""Which files a path names, and what DuckDB reads them with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

import duckdb
import fsspec
from fsspec.core import url_to_fs

from seedbed.errors import ConfigError, MissingDependency

Format = Literal["parquet", "csv", "json"]

_ENDINGS: dict[str, tuple[Format, str]] = {
    ".parquet": ("parquet", ""),
    ".pq": ("parquet", ""),
    ".csv": ("csv", ","),
    ".tsv": ("csv", "\t"),
    ".jsonl": ("json", ""),
    ".ndjson": ("json", ""),
}
_COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one source: their format and, for CSV, their separator. `paths` are what DuckDB opens."""

    url: str
    format: Format
    separator: str
    paths: tuple[str, ...]
    stamp: tuple[object, ...]
    """Sizes and change times: differs when a file has changed, as far as its file system tells."""


def find(url: str, connection: duckdb.DuckDBPyConnection) -> Files:
    """The files of a path, a glob or an fsspec URL. Raises ConfigError where there are none or the format is unknown,
    MissingDependency where the URL's file system is not installed."""
    format_, separator = _format(url)
    local = url.startswith("file:") or "://" not in url
    try:
        system, path = url_to_fs(unquote(urlsplit(url).path) if url.startswith("file:") else url)
    except ImportError as error:
        raise MissingDependency(
            f"{url}: its file system is not installed: {error}", setting="source.url", hint="pip install the package"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{url}: {error}", setting="source.url") from error
    found = sorted(system.glob(path)) if any(sign in path for sign in "*?[") else [path] * system.exists(path)
    infos = [info for info in map(system.info, found) if info["type"] == "file"]
    if not infos:
        raise ConfigError(
            f"there is no file {url}", setting="source.url", hint="relative paths are relative to the pipeline file"
        )
    if not local and not connection.filesystem_is_registered(_protocol(system)):
        connection.register_filesystem(system)
    prefix = "" if local else f"{_protocol(system)}://"
    stamp = tuple(_stamp(info) for info in infos)
    return Files(url, format_, separator, tuple(prefix + info["name"] for info in infos), stamp)


def _format(url: str) -> tuple[Format, str]:
    path = url.lower()
    for ending in _COMPRESSED:
        path = path.removesuffix(ending)
    for ending, found in _ENDINGS.items():
        if path.endswith(ending):
            return found
    raise ConfigError(
        f"{url!r} is no source: neither a known scheme nor a known kind of file",
        setting="source.url",
        hint=f"a file ends in {', '.join(_ENDINGS)}, text files also in {' or '.join(_COMPRESSED)}",
    )


def _protocol(system: fsspec.AbstractFileSystem) -> str:
    return system.protocol if isinstance(system.protocol, str) else str(system.protocol[0])


def _stamp(info: dict[str, object]) -> tuple[object, ...]:
    return tuple(info.get(name) for name in ("name", "size", "mtime", "ino", "etag", "ETag", "LastModified"))
