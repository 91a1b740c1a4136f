"""One HTTP request and its answer, whole or as an error of our tree. Knows nothing of embeddings, and shows no key."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from seedbed.embedders.reply import Reply
from seedbed.errors import Fatal, Transient

MOST_BYTES = 64 * 1024 * 1024
"""Of an answer: 2,048 vectors of 4,096 numbers as base64 are 45 MB."""
CONNECT_SECONDS = 10.0


class Transport:
    """Keep-alive connections to one server. Made and used in one event loop; proxies are those of the environment."""

    def __init__(self, headers: Mapping[str, str], seconds: float) -> None:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        self._seconds = seconds
        self._proxies: dict[str, str | None] = {}
        self._session = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)

    async def post(self, url: str, body: bytes) -> Reply:
        """Raises Transient where no whole answer came, Fatal where the server's certificate is not trusted."""
        return await self._send("POST", url, body)

    async def get(self, url: str) -> Reply:
        return await self._send("GET", url, None)

    async def _send(self, method: str, url: str, body: bytes | None) -> Reply:
        try:
            proxy = self._proxy(url)
            async with self._session.request(method, url, data=body, proxy=proxy, allow_redirects=False) as answer:
                return Reply(answer.status, answer.headers, await _read(answer))
        except aiohttp.ClientConnectorCertificateError as error:
            raise Fatal(
                f"{url}: the server's certificate is not trusted: {error.certificate_error}", setting="embedder.url"
            ) from error
        except aiohttp.ClientConnectorDNSError as error:
            raise Transient(
                f"{url}: the name {error.host} is not known", setting="embedder.url", hint="check the URL and the DNS"
            ) from error
        except TimeoutError as error:
            raise Transient(f"{url}: no whole answer within {self._seconds:g} s", setting="embedder.url") from error
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            words = str(error) or type(error).__name__
            raise Transient(f"{url}: {words}", setting="embedder.url") from error

    def _proxy(self, url: str) -> str | None:
        """Of the environment, looked up once: the library would look into files for each request."""
        place = urlsplit(url)
        if place.netloc not in self._proxies:
            bypassed = proxy_bypass(place.hostname or "")
            self._proxies[place.netloc] = None if bypassed else getproxies().get(place.scheme)
        return self._proxies[place.netloc]

    async def close(self) -> None:
        await self._session.close()


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > MOST_BYTES:
            raise Transient(
                f"{answer.url}: the answer is larger than {MOST_BYTES:,} bytes",
                setting="embedder.url",
                hint="look whether that address is the embedding service's",
            )
    return bytes(body)
