"""Works' media brought here, a bounded number of bytes at a time and a stage ahead of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from seedbed.cache import Cache
from seedbed.content import Content, Image, Part, Reference, Video
from seedbed.errors import RowError
from seedbed.identity import cache_key
from seedbed.media.errors import Missing
from seedbed.work import MOST_BYTES, VECTOR, Work, media_bytes

Load = Callable[[Sequence[str]], Mapping[str, bytes | RowError]]
"""library.Library.load."""

_TOGETHER = 64
"""Media that are asked for at once."""
_MOST_ROWS = 512
"""A batch waits before the model, one is in it, and one is being loaded."""


class Loading:
    """`missing_fails` by the contents' order: whether a row whose medium has gone is refused, or goes without."""

    def __init__(self, load: Load, cache: Cache | None, space: bytes, missing_fails: Sequence[bool]) -> None:
        self._load = load
        self._cache = cache
        self._space = space
        self._missing_fails = missing_fails

    def each(self, works: Iterable[Work]) -> Iterator[Work]:
        """The same rows in smaller works, each with its media in place of references to them; what was seen before and
        is in the cache is not loaded again."""
        for work in works:
            known = self.recognised(work)
            start = 0
            while start < len(known):
                end = self._fill(known, start)
                yield known.take(range(start, end))
                start = end

    def recognised(self, work: Work) -> Work:
        """References to what was seen before become the digest that it had then."""
        wanted = [ref for row in _wanted(work) for content in work.contents[row] for ref in _references(content)]
        if self._cache is None or not wanted:
            return work
        digests = self._cache.digests([ref.stamp for ref in wanted])
        if not digests:
            return work
        whole = work.take(range(len(work)))
        for row in _wanted(work):
            named = tuple(_exchanged(content, digests) for content in work.contents[row])
            keys = [_key(self._space, content) for content in named if not content.empty]
            found = self._cache.get([key for key in keys if key is not None])
            # A digest alone is enough where its vector is there; else the bytes are needed after all.
            whole.contents[row] = tuple(
                new if (key := _key(self._space, new)) is not None and key in found else old
                for new, old in zip(named, work.contents[row], strict=True)
            )
        return whole

    def _fill(self, work: Work, start: int) -> int:
        """Loads rows from `start` on, until it is enough; where it ended."""
        held, end, wanted = 0, start, set(_wanted(work))
        while end < len(work) and held < MOST_BYTES and end - start < _MOST_ROWS:
            upto, places = end, dict[str, None]()
            while upto < len(work) and len(places) < _TOGETHER and upto - start < _MOST_ROWS:
                if upto in wanted:
                    places.update((ref.place, None) for one in work.contents[upto] for ref in _references(one))
                upto += 1
            loaded = self._load(list(places)) if places else {}
            self._remember(work, range(end, upto), loaded)
            for row in range(end, upto):
                if row in wanted:
                    self._place(work, row, loaded)
                held += media_bytes(work.contents[row])
            end = upto
        return end

    def _remember(self, work: Work, rows: range, loaded: Mapping[str, bytes | RowError]) -> None:
        if self._cache is None or not loaded:
            return
        found = {place: hashlib.sha256(data).digest() for place, data in loaded.items() if isinstance(data, bytes)}
        stamps = {
            ref.stamp: found[ref.place]
            for row in rows
            for content in work.contents[row]
            for ref in _references(content)
            if ref.place in found
        }
        self._cache.remember(stamps)

    def _place(self, work: Work, row: int, loaded: Mapping[str, bytes | RowError]) -> None:
        made = list[Content]()
        for content, fails in zip(work.contents[row], self._missing_fails, strict=True):
            parts = list[Part]()
            for part in content.parts:
                data = loaded.get(part.place) if isinstance(part, Reference) else None
                if not isinstance(part, Reference):
                    parts.append(part)
                elif isinstance(data, bytes):
                    parts.append(_made(part, data))
                elif not isinstance(data, Missing) or fails:
                    work.failed[row] = data.message if data else f"{part.place} was not read"
            made.append(Content(tuple(parts)))
        work.contents[row] = tuple(made)
        if row not in work.failed and all(content.empty for content in made):
            work.failed[row] = "its media have gone meanwhile"


def _wanted(work: Work) -> list[int]:
    return [row for row in range(len(work)) if any(need.what[row] == VECTOR for need in work.needs)]


def _references(content: Content) -> list[Reference]:
    return [part for part in content.parts if isinstance(part, Reference)]


def _made(reference: Reference, data: bytes, digest: bytes = b"") -> Image | Video:
    return (Image if reference.modality == "image" else Video)(data, digest)


def _exchanged(content: Content, digests: Mapping[bytes, bytes]) -> Content:
    return Content(
        tuple(
            _made(part, b"", digests[part.stamp]) if isinstance(part, Reference) and part.stamp in digests else part
            for part in content.parts
        )
    )


def _key(space: bytes, content: Content) -> bytes | None:
    """None while something of it is not known."""
    return None if _references(content) else cache_key(space, "document", content.canonical())
