"""`http://host:8000/v1`, `https://…`: any server with OpenAI's `/embeddings`: Seedbed's own, vLLM, TEI, a cloud's.

Options of the URL: `model` (else the first that the server lists), `batch` (64 texts a request), `in_flight` (16),
`seconds` (120, of one request). Seedbed's server tells its space, and puts its own instructions before texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from seedbed.content import Content, Kind, Reference, Text
from seedbed.embedders.account import Account, LocalKeeper
from seedbed.embedders.calls import Again, Answer, Calls, Overloaded, RateLimited
from seedbed.embedders.estimate import most_tokens, tokens_of
from seedbed.embedders.options import Options, RemoteSettings
from seedbed.embedders.remote import RemoteEmbedder, account_name
from seedbed.embedders.reply import Reply, headers_of
from seedbed.embedders.wire import body_of, checked, decoded, media_part, no_answer, said
from seedbed.errors import ConfigError, Fatal, RowError, SeedbedError, Transient
from seedbed.identity import Space
from seedbed.protocols import Usage

_PROBE = Content.of("probe")
_MEDIA_BYTES = 8_000_000
"""Of pictures in one request."""


def http(url: str, settings: Mapping[str, Any]) -> RemoteEmbedder:
    """The embedder of an `http:` URL. Settings: dimensions, instruction, query_instruction, api_key, rpm, tpm."""
    scheme = url.partition(":")[0]
    options = Options.parse(url, ("model", "batch", "in_flight", "seconds"))
    found = RemoteSettings.read(settings)
    base = f"{scheme}:{options.target}".rstrip("/")
    place = urlsplit(base)
    if not place.hostname:
        raise ConfigError(f"{url!r} names no host", setting="embedder.url", hint="write http://host:8000/v1")
    if place.username or place.password:
        raise ConfigError(
            "a login has no place in the embedder's URL", setting="embedder.url", hint='write api_key = "${NAME}"'
        )
    api = OpenAiApi(base, options.text("model"), found, options.whole("batch") or 64)
    usage = Usage()
    account = Account(account_name(base, api.model or "", found.api_key), LocalKeeper(), found.rpm or 0, found.tpm or 0)
    seconds = options.seconds("seconds") or 120.0
    in_flight = options.whole("in_flight") or 16
    calls = Calls(api, headers_of(found.api_key), account, usage, in_flight=in_flight, seconds=seconds)
    return RemoteEmbedder(lambda: api.learn(calls), calls, api, usage, {"service": place.netloc})


class OpenAiApi:
    """As calls.Api."""

    def __init__(self, base: str, model: str | None, settings: RemoteSettings, batch: int) -> None:
        self.url = f"{base}/embeddings"
        self.model = model
        self._base, self._settings, self._batch = base, settings, batch
        self._dimensions = settings.dimensions
        self._seedbed = False
        self.takes: frozenset[str] = frozenset({"text"})
        self._base64 = True

    def learn(self, calls: Calls) -> Space:
        """The space, by asking the server. Raises Transient, Fatal, ConfigError."""
        told = self._readyz(calls)
        if told is not None:
            return self._of_seedbed(*told)
        if self.model is None:
            self.model = self._first_model(calls)
        if self._dimensions is None:
            self._dimensions = calls.submit(_PROBE, "document").result().vectors.shape[1]
        return Space(f"http:{self.model}", "1", self._dimensions, self._settings.instruction)

    def _readyz(self, calls: Calls) -> tuple[Space, frozenset[str]] | None:
        """What Seedbed's own server tells of itself: its space, and the kinds that it takes."""
        place = urlsplit(self._base)
        reply = calls.get(f"{place.scheme}://{place.netloc}/readyz")
        try:
            told = orjson.loads(reply.body)
            if reply.status == 503 and told.get("status") == "loading":
                raise Transient(f"{self._base}: the server loads its model", setting="embedder.url")
            return Space.from_json(orjson.dumps(told["space"]).decode()), frozenset(told.get("takes", ["text"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _of_seedbed(self, space: Space, takes: frozenset[str]) -> Space:
        if self._settings.instruction or self._settings.query_instruction:
            raise ConfigError(
                "a Seedbed server puts its own instructions before texts",
                setting="embedder.instruction",
                hint="give them to `seedbed serve --instruction … --query-instruction …`",
            )
        if self._dimensions not in (None, space.dimensions):
            raise ConfigError(
                f"the server gives {space.dimensions} dimensions, not {self._dimensions}",
                setting="embedder.dimensions",
                hint="give --dimensions to `seedbed serve`",
            )
        self._seedbed, self._dimensions = True, space.dimensions
        self.takes = takes
        return space

    def _first_model(self, calls: Calls) -> str:
        reply = calls.get(f"{self._base}/models")
        if reply.status in (401, 403):
            raise self.fault(reply)
        try:
            return str(orjson.loads(reply.body)["data"][0]["id"])
        except (ValueError, KeyError, TypeError, IndexError):
            raise ConfigError(
                f"{self._base} does not list its models",
                setting="embedder.url",
                hint=f"name one: {self._base}?model=NAME; or check that the address ends in /v1",
            ) from None

    def groups(self, contents: Sequence[Content]) -> list[list[int]]:
        """Texts of about the same length together: what a server pads is paid for. Of media no more than a request's
        body may hold."""
        found, size = list[list[int]](), 0
        for number in sorted(range(len(contents)), key=lambda number: len(contents[number].text)):
            bytes_ = sum(len(part.data) for part in contents[number].media)
            if not found or len(found[-1]) >= self._batch or (found[-1] and size + bytes_ > _MEDIA_BYTES):
                found.append([])
                size = 0
            found[-1].append(number)
            size += bytes_
        return found

    async def prepared(self, content: Content) -> Content:
        if content.media and not self._seedbed:
            raise RowError("this server takes text alone")
        return content

    def request(self, contents: Sequence[Content], kind: Kind) -> bytes:
        prompts = self._settings.prompts(contents, kind)
        mixed = [_parts(content) if content.media else text for content, text in zip(contents, prompts, strict=True)]
        asked: dict[str, Any] = {"input": mixed}
        if self.model is not None:
            asked["model"] = self.model
        if self._base64:
            asked["encoding_format"] = "base64"
        if self._settings.dimensions is not None and not self._seedbed:
            asked["dimensions"] = self._settings.dimensions
        if self._seedbed:
            asked["kind"] = kind
        return body_of(asked)

    def answer(self, body: bytes, count: int) -> Answer:
        try:
            found = orjson.loads(body)
            rows = sorted(found["data"], key=lambda row: row["index"])
            if [row["index"] for row in rows] != list(range(count)):
                raise ValueError("rows are missing")
            vectors = np.stack([decoded(row["embedding"]) for row in rows])
            tokens = int((found.get("usage") or {}).get("total_tokens") or 0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise no_answer(self.url, body) from error
        return Answer(checked(vectors, self._dimensions or vectors.shape[1]), tokens)

    def fault(self, reply: Reply) -> SeedbedError:
        code, message, parameter = said(reply.body)
        words = f"{self.url}: {message or f'status {reply.status}'}"
        if reply.status == 400 and "encoding_format" in (parameter or message):
            self._base64 = False
            return Again(words)
        match reply.status:
            case 401 | 403:
                return Fatal(words, setting="embedder.api_key", hint="check the key")
            case 404:
                return Fatal(words, setting="embedder.url", hint="check the path (often /v1) and the model's name")
            case 429 if code in ("insufficient_quota", "QuotaExceeded", "budget"):
                return Fatal(words, setting="embedder.api_key", hint="its quota or budget is spent")
            case 429:
                return RateLimited(words, setting="embedder.rpm")
            case 503:
                return Overloaded(words, setting="embedder.url")
            case 400 | 413 | 422 if parameter in ("model", "dimensions"):
                return Fatal(words, setting=f"embedder.{'url' if parameter == 'model' else parameter}")
            case 400 | 413 | 422:
                return RowError(message or words)
            case status if status == 408 or status >= 500:
                return Again(words, setting="embedder.url")
        return Fatal(words, setting="embedder.url")

    def estimate(self, content: Content, kind: Kind) -> float:
        """Of text alone: what a picture costs only the server knows."""
        return 2 + sum(map(tokens_of, self._settings.prompts([content], kind)))

    def most(self, content: Content, kind: Kind) -> tuple[float, float]:
        return 8.0 + sum(map(most_tokens, self._settings.prompts([content], kind))), 0.0


def _parts(content: Content) -> list[dict[str, Any]]:
    """An input of Seedbed's server that is more than text: its parts, as Ark's API has them."""
    return [
        {"type": "text", "text": part.text} if isinstance(part, Text) else media_part(part)
        for part in content.parts
        if not isinstance(part, Reference)
    ]
