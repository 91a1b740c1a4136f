"""What every route asks: vectors of contents, from the shared cache, from what is just being made, or newly made."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from seedbed.content import Content, Image, Kind, Part, Reference, Text, Video
from seedbed.errors import RowError
from seedbed.identity import cache_key
from seedbed.media.library import Library, Whence
from seedbed.protocols import CanCountTokens, CanSubmit, Embedder, Vectors, modalities
from seedbed.server.batching import Batcher
from seedbed.server.dialect import Busy, Invalid, NotReady, Tokens
from seedbed.server.governing import Governor

_BESIDE = 200
"""Bytes that an entry of the cache takes beside its vector, about."""


class SharedCache:
    """The vectors that were asked for last, at most `most` bytes of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0
        self._held: OrderedDict[bytes, Vectors] = OrderedDict()

    def get(self, key: bytes) -> Vectors | None:
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def put(self, key: bytes, vector: Vectors) -> None:
        if not self.most or key in self._held:
            return
        self._held[key] = vector.copy()
        self.bytes += vector.nbytes + _BESIDE
        while self.bytes > self.most:
            _, dropped = self._held.popitem(last=False)
            self.bytes -= dropped.nbytes + _BESIDE


class Service:
    """Used by one event loop. At most `waiting` contents wait at a time for an embedder that takes them singly."""

    def __init__(
        self,
        batcher: Batcher,
        *,
        cache_bytes: int = 0,
        waiting: int = 4096,
        governor: Governor | None = None,
        library: Library | None = None,
    ) -> None:
        self._library = library or Library(Whence())
        self.batcher = batcher
        self._governor = governor or Governor()
        self.cache = SharedCache(cache_bytes)
        self.hits = self.misses = 0
        self._waiting = waiting
        self.in_flight = 0
        self._making: dict[bytes, asyncio.Future[Vectors | None]] = {}

    @property
    def embedder(self) -> Embedder:
        """Raises NotReady as long as the model is being loaded."""
        if not self.batcher.ready.is_set() or self.batcher.embedder is None:
            raise NotReady("the model is being loaded")
        return self.batcher.embedder

    async def embed(self, contents: Sequence[Content], kind: Kind, dimensions: int | None = None) -> Vectors:
        """float32 (n, dimensions). Raises RowError for contents that the model refuses, Busy where too many wait, and
        what the embedder raises."""
        embedder = self.embedder
        space = embedder.space
        if dimensions not in (None, space.dimensions):
            raise Invalid(f"this server gives {space.dimensions} dimensions, not {dimensions}", setting="dimensions")
        try:
            keys = [cache_key(space.digest, kind, content.canonical()) for content in contents]
        except UnicodeEncodeError:
            raise RowError("an input holds a lone surrogate, which is no Unicode character") from None
        found = {key: vector for key in set(keys) if (vector := self.cache.get(key)) is not None}
        making = {key: self._making[key] for key in set(keys) if key not in found and key in self._making}
        known = found.keys() | making.keys()
        missing = {key: content for key, content in zip(keys, contents, strict=True) if key not in known}
        self.hits += len(contents) - len(missing)
        self.misses += len(missing)
        if missing:
            found |= await self._make(embedder, missing, kind)
        for key, future in making.items():
            if (vector := await asyncio.shield(future)) is None:
                # Who asked first was refused, maybe for a content beside this one, or has gone.
                content = contents[keys.index(key)]
                vector = (await self._make(embedder, {key: content}, kind))[key]
            found[key] = vector
        return np.stack([found[key] for key in keys])

    async def _make(self, embedder: Embedder, missing: dict[bytes, Content], kind: Kind) -> dict[bytes, Vectors]:
        made = self._submit(embedder, list(missing.values()), kind)
        loop = asyncio.get_running_loop()
        futures: dict[bytes, asyncio.Future[Vectors | None]] = {key: loop.create_future() for key in missing}
        self._making |= futures
        outcomes: Sequence[Vectors | BaseException | None] = [None] * len(missing)
        try:
            outcomes = await made
        finally:
            for (key, future), outcome in zip(futures.items(), outcomes, strict=True):
                self._making.pop(key, None)
                vector = None if isinstance(outcome, BaseException) else outcome
                future.set_result(vector)
                if vector is not None:
                    self.cache.put(key, vector)
        found: dict[bytes, Vectors] = {}
        for key, outcome in zip(missing, outcomes, strict=True):
            if outcome is None or isinstance(outcome, BaseException):
                raise outcome or RowError("the embedder gave no vector")
            found[key] = outcome
        return found

    def _submit(
        self, embedder: Embedder, contents: list[Content], kind: Kind
    ) -> Awaitable[Sequence[Vectors | BaseException]]:
        """For each content its vector, or why there is none."""
        if not isinstance(embedder, CanSubmit):
            return self._together(self.batcher.submit(contents, kind))
        if self.in_flight + len(contents) > self._waiting:
            raise Busy("too many contents wait", hint="try again in a second")
        self._governor.govern(embedder)
        self.in_flight += len(contents)
        return self._each([embedder.submit(content, kind) for content in contents])

    @staticmethod
    async def _together(made: Future[Vectors]) -> Sequence[Vectors | BaseException]:
        vectors: Vectors = await asyncio.wrap_future(made)
        return list(vectors)

    async def _each(self, made: list[Future[Vectors]]) -> Sequence[Vectors | BaseException]:
        try:
            return await asyncio.gather(*map(asyncio.wrap_future, made), return_exceptions=True)
        finally:
            self.in_flight -= len(made)

    async def whole(self, contents: list[Content]) -> list[Content]:
        """With what lies in the web in place of its addresses. Raises Invalid for kinds that the embedder does not
        take, and for what cannot be fetched."""
        kinds = {part.modality for content in contents for part in content.parts}
        takes = modalities(self.embedder)
        if not kinds <= takes:
            raise Invalid(f"this server's model takes {' and '.join(sorted(takes))} alone", setting="input")
        places = [part.place for content in contents for part in content.parts if isinstance(part, Reference)]
        if not places:
            return contents
        found = await asyncio.to_thread(self._library.load, places)
        return [Content(tuple(_fetched(part, found) for part in content.parts)) for content in contents]

    async def tokens(self, contents: Sequence[Content], kind: Kind) -> Tokens:
        """The model's own, or an estimate where only the service behind it counts; 0 where the embedder cannot."""
        total = await self._counted(contents, kind)
        if not any(content.media for content in contents):
            return Tokens(total)
        texts = [Content(tuple(part for part in content.parts if isinstance(part, Text))) for content in contents]
        return Tokens(total, max(0, total - await self._counted(texts, kind)))

    async def _counted(self, contents: Sequence[Content], kind: Kind) -> int:
        embedder = self.embedder
        if not isinstance(embedder, CanCountTokens):
            return 0
        # Another thread costs more than a few texts.
        small = sum(len(content.text) for content in contents) < 10_000 and not any(one.media for one in contents)
        if isinstance(embedder, CanSubmit) or small:
            return int(embedder.count_tokens(contents, kind).sum())
        return int((await asyncio.to_thread(embedder.count_tokens, contents, kind)).sum())


def _fetched(part: Part, found: Mapping[str, bytes | RowError]) -> Part:
    if not isinstance(part, Reference):
        return part
    data = found[part.place]
    if isinstance(data, RowError):
        raise Invalid(data.message, setting="input")
    return (Image if part.modality == "image" else Video)(data)
