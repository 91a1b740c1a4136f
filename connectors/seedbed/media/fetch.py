"""Media over http and https: hostile addresses, endless answers and slow servers cost one row."""

from __future__ import annotations

import ssl
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version
from urllib.parse import SplitResult, urljoin, urlsplit

import aiohttp
from tenacity import AsyncRetrying

from seedbed.errors import RowError
from seedbed.media.addresses import PinnedResolver, check, literal
from seedbed.media.errors import Later, Missing, trying

_REDIRECTS = 5
_CONNECT_SECONDS = 10.0
_MOVED = (301, 302, 303, 307, 308)
_GONE = (404, 410)
_NO_HEAD = (400, 403, 405, 501)
"""Answers of servers that know no HEAD; signed URLs are often for GET alone."""


@dataclass(frozen=True, slots=True)
class Rules:
    """`allowed` hosts may have private addresses; an answer has at most `most_bytes` and takes at most `seconds`; a
    `proxy`, where one is named, resolves names itself, so that only it can refuse what they lead to."""

    allowed: Collection[str] = ()
    most_bytes: int = 20_000_000
    seconds: float = 60.0
    proxy: str | None = None
    in_flight: int = 64


class Fetcher:
    """Made and used in one event loop. Raises RowError: Missing, Later, addresses.Forbidden."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        connector = aiohttp.TCPConnector(
            limit=rules.in_flight, limit_per_host=16, resolver=PinnedResolver(rules.allowed), use_dns_cache=False
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=rules.seconds, sock_connect=_CONNECT_SECONDS),
            headers={"User-Agent": f"seedbed/{version('seedbed')}", "Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def get(self, url: str) -> bytes:
        """The bytes that lie there."""
        return await self._patiently("GET", url)

    async def stamp(self, url: str) -> str | None:
        """What tells whether the bytes have changed, without them: None where the server does not tell."""
        try:
            told = await self._patiently("HEAD", url)
        except _NoHead:
            return None
        return told.decode() or None

    async def close(self) -> None:
        await self._session.close()

    async def _patiently(self, method: str, url: str) -> bytes:
        found: bytes = await AsyncRetrying(**trying())(self._follow, method, url)
        return found

    async def _follow(self, method: str, url: str) -> bytes:
        """Each stop of a redirect is checked as the first one is."""
        for _ in range(_REDIRECTS + 1):
            try:
                self._check(urlsplit(url), url)
                async with self._session.request(method, url, allow_redirects=False, proxy=self._rules.proxy) as answer:
                    if answer.status not in _MOVED:
                        return await self._read(method, url, answer)
                    url = urljoin(url, answer.headers.get("Location", ""))
            except RowError:
                raise
            except TimeoutError as error:
                raise Later(f"{url}: no whole answer within {self._rules.seconds:g} s") from error
            except (aiohttp.ClientSSLError, aiohttp.InvalidURL) as error:
                raise RowError(f"{url}: {error}") from error
            except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
                raise _cause(error) or Later(f"{url}: {str(error) or type(error).__name__}") from error
        raise RowError(f"{url}: more than {_REDIRECTS} redirects")

    def _check(self, place: SplitResult, url: str) -> None:
        if place.scheme not in ("http", "https") or not place.hostname:
            raise RowError(f"{url!r} is no address of the web: only http and https are fetched")
        if place.username or place.password:
            raise RowError(f"{place.hostname}: a login has no place in a medium's URL")
        address = literal(place.hostname)
        if address and place.hostname not in self._rules.allowed:
            check(address, place.hostname)

    async def _read(self, method: str, url: str, answer: aiohttp.ClientResponse) -> bytes:
        if answer.status in _GONE:
            raise Missing(f"{url}: there is nothing there (status {answer.status})")
        if method == "HEAD" and answer.status in _NO_HEAD:
            raise _NoHead(url)
        if answer.status in (408, 429) or answer.status >= 500:
            raise Later(f"{url}: status {answer.status}")
        if answer.status != 200:
            raise RowError(f"{url}: status {answer.status}")
        if method == "HEAD":
            return _told(answer).encode()
        most = self._rules.most_bytes
        if (answer.content_length or 0) > most:
            raise self._large(url)
        body = bytearray()
        async for piece in answer.content.iter_any():
            body += piece
            if len(body) > most:
                raise self._large(url)
        return bytes(body)

    def _large(self, url: str) -> RowError:
        return RowError(f"{url}: larger than {self._rules.most_bytes:,} bytes", setting="media.max_bytes")


class _NoHead(RowError):
    pass


def _told(answer: aiohttp.ClientResponse) -> str:
    etag, changed = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    length = answer.headers.get("Content-Length", "")
    if etag:
        return f"etag {etag} {length}"
    return f"changed {changed} {length}" if changed else ""


def _cause(error: BaseException) -> RowError | None:
    """A refusal of ours that the library has wrapped."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RowError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
