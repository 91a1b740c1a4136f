"""Where a pipeline's media are had from: data URLs, http and https, folders and buckets."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

from tenacity import Retrying

from seedbed.errors import RowError
from seedbed.loop import LoopThread
from seedbed.media.errors import trying
from seedbed.media.fetch import Fetcher, Rules
from seedbed.media.places import Roots

_WEB = ("http://", "https://")
_THREADS = 16


@dataclass(frozen=True, slots=True)
class Whence:
    """`[media]`: what may be read and fetched. Without `revalidate` what lies at a URL never changes."""

    roots: Sequence[str] = ()
    rules: Rules = field(default_factory=Rules)
    revalidate: bool = True


class Library:
    """Used by any number of threads. Errors are values, so that one place's are not another's."""

    def __init__(self, whence: Whence) -> None:
        self._whence = whence
        self._roots = Roots(whence.roots, whence.rules.most_bytes)

    def stamps(self, places: Sequence[str]) -> dict[str, bytes | RowError]:
        """Of each place a text that changes when its bytes may have."""
        return self._each(places, self._stamp_of_url, self._stamp_of_path)

    def load(self, places: Sequence[str]) -> dict[str, bytes | RowError]:
        """The bytes that lie at each place."""
        return self._each(places, self._bytes_of_url, self._roots.read)

    def close(self) -> None:
        if "_fetching" in self.__dict__:
            loop, fetcher = self._fetching
            loop.close(fetcher.close())
        if "_threads" in self.__dict__:
            self._threads.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, "media-files")

    @cached_property
    def _fetching(self) -> tuple[LoopThread, Fetcher]:
        loop = LoopThread("seedbed-media")

        async def made() -> Fetcher:
            return Fetcher(self._whence.rules)

        return loop, loop.run(made()).result()

    async def _stamp_of_url(self, url: str) -> bytes:
        if not self._whence.revalidate:
            return url.encode()
        fetcher = self._fetching[1]
        stamp = await fetcher.stamp(url)
        if stamp is None:
            # Who does not tell is asked for the bytes, each time.
            return b"digest " + hashlib.sha256(await fetcher.get(url)).digest()
        return f"{url} {stamp}".encode()

    def _stamp_of_path(self, place: str) -> bytes:
        return self._roots.stamp(place).encode(errors="surrogateescape")

    async def _bytes_of_url(self, url: str) -> bytes:
        return await self._fetching[1].get(url)

    def _each(
        self,
        places: Sequence[str],
        of_url: Callable[[str], Awaitable[bytes]],
        of_path: Callable[[str], bytes],
    ) -> dict[str, bytes | RowError]:
        wanted = list(dict.fromkeys(places))
        urls = [place for place in wanted if place.lower().startswith(_WEB)]
        web = set(urls)
        paths = [place for place in wanted if place not in web]
        found: dict[str, bytes | RowError] = {}
        if urls:
            fetched = self._fetching[0].run(_all(urls, of_url, self._whence.rules.in_flight))
        if len(paths) == 1 or (paths and all("://" not in path for path in paths)):
            # Threads cost more than a look at a file.
            found |= {path: _caught(of_path, path) for path in paths}
        elif paths:
            found |= dict(zip(paths, self._threads.map(lambda path: _caught(of_path, path), paths), strict=True))
        if urls:
            found |= dict(zip(urls, fetched.result(), strict=True))
        return found


async def _all(urls: Sequence[str], of_url: Callable[[str], Awaitable[bytes]], most: int) -> list[bytes | RowError]:
    gate = asyncio.Semaphore(most)

    async def one(url: str) -> bytes | RowError:
        async with gate:
            try:
                return await of_url(url)
            except RowError as error:
                return error

    return await asyncio.gather(*map(one, urls))


def _caught(of_path: Callable[[str], bytes], path: str) -> bytes | RowError:
    try:
        return Retrying(**trying())(of_path, path)
    except RowError as error:
        return error
