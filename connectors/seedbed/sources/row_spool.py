"""Rows of one COPY in a temporary file, read back in pages: the database is done before the first page is used."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from psycopg.abc import Buffer

from seedbed.errors import Fatal

_PAGE_BYTES = 16 * 1024 * 1024


class RowSpool:
    """Whole rows in, pages of at most `page_rows` rows (and about 16 MiB) out. The file goes with the object.

    Raises Fatal where the disk of the temporary folder is full.
    """

    def __init__(self, page_rows: int) -> None:
        self._page_rows = page_rows
        self._file = tempfile.TemporaryFile(prefix="seedbed-")  # noqa: SIM115
        self._ends: list[int] = []

    def fill(self, rows: Iterable[Buffer]) -> None:
        size = start = held = 0
        with _full_disk_said():
            for row in rows:
                size += self._file.write(row)
                held += 1
                if held == self._page_rows or size - start >= _PAGE_BYTES:
                    self._ends.append(size)
                    start, held = size, 0
            if held:
                self._ends.append(size)
            self._file.flush()

    def pages(self) -> Iterator[bytes]:
        start = 0
        for end in self._ends:
            self._file.seek(start)
            yield self._file.read(end - start)
            start = end

    def close(self) -> None:
        self._file.close()


@contextmanager
def _full_disk_said() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Fatal(
            f"the disk of the temporary folder {tempfile.gettempdir()} is full",
            hint="free space there, or set TMPDIR to a folder with room for the source's rows",
        ) from error
