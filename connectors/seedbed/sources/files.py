"""Files as rows: `files:./docs/**/*.md`, `files:s3://bucket/notes/**` (any fsspec URL; credentials as its file system
finds them). Columns: path (the key), size, mtime, etag, mime, content (as text), bytes (as they are: pictures, video).

A page's `content` and `bytes` are a stand-in that changes when the file's etag, or its time and size, do. So a file
that has not changed is never opened; `fetch` reads those that have.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from seedbed.batch import TIMESTAMP
from seedbed.errors import ConfigError
from seedbed.identity import key_parts
from seedbed.protocols import CanFetch, Page, Selection, Source
from seedbed.sources import paging
from seedbed.sources.file_listing import File, Listing, mapped
from seedbed.sources.settings import unknown

COLUMNS = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("mtime", TIMESTAMP),
        pa.field("etag", pa.string()),
        pa.field("mime", pa.string()),
        pa.field("content", pa.string()),
        pa.field("bytes", pa.binary()),
    ]
)
_PAGE_BYTES = 64 * 1024 * 1024
_MOST_BYTES = 20_000_000


class FilesSource:
    """`settings`: none but key, which is `path`. Raises ConfigError for others, and for a folder that is not there;
    Fatal for missing rights, Transient where the file system does not answer."""

    def __init__(self, url: str, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            fits = (name == "key" and list(value) in ([], ["path"])) or (name, value) == ("changes", "scan")
            if value is not None and not fits:
                raise ConfigError(
                    f"files take no {name}" if name != "key" else "the key of files is their path",
                    setting=f"source.{name}",
                    hint="leave it out; the pattern says which files are meant",
                )
        self._pattern = url.removeprefix("files:")
        self._files = Listing(self._pattern)
        self._listed: dict[str, File] = {}

    @property
    def key_columns(self) -> tuple[str, ...]:
        return ("path",)

    @property
    def key_kinds(self) -> tuple[str, ...]:
        return ("text",)

    def schema(self) -> pa.Schema:
        return COLUMNS

    def pages(self, selection: Selection) -> Iterator[Page]:
        for name in selection.columns:
            if name not in COLUMNS.names:
                raise unknown("column", name, COLUMNS.names, "source")
        if selection.where is not None or selection.watermark:
            raise ConfigError("files take no condition", setting="where", hint="the pattern says which files are meant")
        files, keyless = _readable(self._files.files())
        if selection.keys is not None:
            wanted = {key_parts(key)[0] for key in selection.keys}
            files = [file for file in files if file.path in wanted]
        self._listed = {file.path: file for file in files}
        chunks = _chunks(files, selection, keyless)
        return paging.pages(chunks, selection.within, complete=selection.keys is None)

    def fetch(self, page: Page, rows: Sequence[int]) -> tuple[pa.RecordBatch, dict[int, str | None]]:
        whole = paging.take(page.rows, pa.array(rows, pa.int64()))
        dear = [name for name in _DEAR if name in page.rows.schema.names]
        if not dear:
            return whole, {}
        files = [self._listed[key_parts(page.keys[row])[0]] for row in rows]
        found, missing = self._read(files), dict[int, str | None]()
        for name in dear:
            values = list[Any]()
            for row, file in zip(rows, files, strict=True):
                value, reason = _DEAR[name](found[file.name], file.name)
                values.append(value)
                if value is None:
                    missing[row] = reason
            at = whole.schema.get_field_index(name)
            field = whole.schema.field(at)
            whole = whole.set_column(at, field, pa.array(values, field.type))
        return whole, missing

    def _read(self, files: Sequence[File]) -> dict[str, Any]:
        """Bytes of each, or the error, or the reason why it is not read."""
        found: dict[str, Any] = {
            file.name: f"is larger than {_MOST_BYTES:,} bytes" for file in files if file.size > _MOST_BYTES
        }
        readable = [file.name for file in files if file.size <= _MOST_BYTES]
        if readable:
            # Paths are literal here: a `[` in one is no pattern.
            found |= {name: self._bytes(name) for name in readable} if self._files.local else self._remote(readable)
        return found

    def _bytes(self, name: str) -> bytes | Exception:
        try:
            with open(name, "rb") as file:
                return file.read()
        except OSError as error:
            return error

    def _remote(self, names: list[str]) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._files.system.cat(names, on_error="return")
        except Exception as error:
            raise mapped(error, self._pattern) from error
        return found

    def estimate(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing stays open."""


def _readable(files: Sequence[File]) -> tuple[list[File], list[tuple[str, str]]]:
    """The files whose name is text, and the others with the reason."""
    good, bad = list[File](), list[tuple[str, str]]()
    for file in files:
        try:
            file.path.encode()
            good.append(file)
        except UnicodeEncodeError:
            shown = file.path.encode(errors="surrogateescape").decode(errors="backslashreplace")
            bad.append((shown, f"the name of the file {shown} is no UTF-8"))
    return good, bad


def _chunks(files: Sequence[File], selection: Selection, keyless: list[tuple[str, str]]) -> Iterator[paging.Chunk]:
    """At least one: no files at all still says so of every key."""
    start = 0
    while True:
        end, size = start, 0
        while end < len(files) and end - start < selection.page_rows and (end == start or size < _PAGE_BYTES):
            size += files[end].size
            end += 1
        part = files[start:end]
        keys, positions = paging.encode_keys([pa.array([file.path for file in part], pa.string())])
        yield paging.Chunk(keys, positions, _rows(part, selection.columns), keyless=keyless)
        start, keyless = end, []
        if start >= len(files):
            return


def _rows(files: Sequence[File], columns: Sequence[str]) -> pa.RecordBatch:
    made: dict[str, Any] = {
        "path": [file.path for file in files],
        "size": [file.size for file in files],
        "mtime": [None if file.mtime is None else file.mtime // 1000 for file in files],
        "etag": [file.etag for file in files],
        "mime": [mimetypes.guess_type(file.path)[0] for file in files],
        "content": [file.fingerprint for file in files],
        "bytes": [file.fingerprint.encode() for file in files],
    }
    schema = pa.schema([COLUMNS.field(name) for name in columns])
    return pa.RecordBatch.from_arrays([pa.array(made[f.name], f.type) for f in schema], schema=schema)


def _raw(found: Any, name: str) -> tuple[bytes | None, str | None]:
    """The bytes, or the reason why there are none; neither where the file is gone."""
    if isinstance(found, FileNotFoundError):
        return None, None
    if isinstance(found, PermissionError):
        return None, "may not be read"
    if isinstance(found, Exception):
        raise mapped(found, name) from found
    if isinstance(found, str):
        return None, found
    return found, None


def _text(found: Any, name: str) -> tuple[str | None, str | None]:
    raw, reason = _raw(found, name)
    if raw is None:
        return None, reason
    try:
        return raw.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        kind = mimetypes.guess_type(name)[0] or "of no known kind"
        return None, f"is no UTF-8 text at byte {error.start} ({kind})"


_DEAR: dict[str, Callable[[Any, str], tuple[Any, str | None]]] = {"content": _text, "bytes": _raw}
"""Columns that are dear to read."""

if TYPE_CHECKING:
    _source: type[Source] = FilesSource
    _fetches: type[CanFetch] = FilesSource
