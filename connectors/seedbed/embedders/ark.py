"""`ark:MODEL`: Seed-1.6-Embedding and its successors by the Volcengine Ark API (BytePlus ModelArk abroad).

All parts of one request's `input` become ONE vector, so a request carries one content and throughput comes from many
beside one another. Options of the URL: `endpoint` (another host), `in_flight` (64), `seconds` (60, of one request),
`target` (of what kinds the documents are that queries look for, as `text/image`: later models want to know).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

from seedbed.content import MODALITIES, Content, Image, Kind, Text, Video
from seedbed.embedders.account import Account, LocalKeeper
from seedbed.embedders.ark_models import FAMILIES, Prompting, family_of
from seedbed.embedders.calls import Again, Answer, Calls, Overloaded, RateLimited
from seedbed.embedders.estimate import most_tokens, tokens_of
from seedbed.embedders.options import Options, RemoteSettings
from seedbed.embedders.remote import RemoteEmbedder, account_name
from seedbed.embedders.reply import Reply, headers_of
from seedbed.embedders.wire import body_of, checked, decoded, media_part, no_answer, said, start_of
from seedbed.errors import ConfigError, Fatal, RowError, SeedbedError
from seedbed.identity import Space
from seedbed.media.limits import USUAL, Limits
from seedbed.protocols import Usage

_OVERHEAD = 20
"""Tokens of a request beside its text."""
_PROFILE = 1


def ark(url: str, settings: Mapping[str, Any]) -> RemoteEmbedder:
    """The embedder of an `ark:` URL. Settings: dimensions, instruction, query_instruction, family, api_key (else the
    environment's ARK_API_KEY), rpm, tpm. Raises ConfigError."""
    options = Options.parse(url, ("endpoint", "in_flight", "seconds", "target"))
    found = RemoteSettings.read(settings)
    name = family_of(options.target, found.family)
    family = FAMILIES[name]
    if found.dimensions not in (None, *family.dimensions):
        raise ConfigError(
            f"{name} gives {' or '.join(map(str, family.dimensions))} dimensions, not {found.dimensions}",
            setting="embedder.dimensions",
        )
    key = found.api_key or os.environ.get("ARK_API_KEY")
    endpoint = (options.text("endpoint") or family.endpoint).rstrip("/")
    space = Space(f"ark:{name}", "1", found.dimensions or max(family.dimensions), found.instruction, _PROFILE)
    api = ArkApi(endpoint, options.target, name, space.dimensions, found, options.text("target") or "text")
    account = Account(
        account_name(endpoint, name, key),
        LocalKeeper(),
        family.rpm if found.rpm is None else found.rpm,
        family.tpm if found.tpm is None else found.tpm,
    )
    usage = Usage()
    calls = Calls(
        api,
        headers_of(key),
        account,
        usage,
        in_flight=options.whole("in_flight") or 64,
        seconds=options.seconds("seconds") or 60.0,
    )
    told = {"service": urlsplit(endpoint).netloc, "model": options.target}
    return ArkEmbedder(lambda: space, calls, api, usage, told)


class ArkEmbedder(RemoteEmbedder):
    """As RemoteEmbedder, and protocols.DecodesMedia: pictures are brought to size here."""

    _api: ArkApi

    @property
    def limits(self) -> Limits:
        return self._api.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._api.limits = limits


class ArkApi:
    """As calls.Api."""

    takes: frozenset[str] = frozenset(MODALITIES)

    def __init__(
        self, endpoint: str, model: str, family: str, dimensions: int, settings: RemoteSettings, target: str
    ) -> None:
        self.url = f"{endpoint}/embeddings/multimodal"
        self._model, self._family, self._dimensions = model, family, dimensions
        kinds: tuple[Kind, Kind] = ("document", "query")
        self._prompting = {kind: Prompting.of(FAMILIES[family], settings, kind, target) for kind in kinds}
        self._base64 = True
        self.limits = USUAL

    def groups(self, contents: Sequence[Content]) -> list[list[int]]:
        return [[number] for number in range(len(contents))]

    async def prepared(self, content: Content) -> Content:
        if not content.media:
            return content
        from seedbed.embedders.ark_media import prepared

        return await prepared(content, self.limits)

    def request(self, contents: Sequence[Content], kind: Kind) -> bytes:
        prompting = self._prompting[kind]
        asked: dict[str, Any] = {
            "model": self._model,
            "input": list(self._parts(contents[0], prompting)),
            "dimensions": self._dimensions,
            "encoding_format": "base64" if self._base64 else "float",
        }
        if prompting.instructions is not None:
            asked["instructions"] = prompting.instructions.replace("{}", contents[0].modality.replace("+", " and "))
        return body_of(asked)

    @staticmethod
    def _parts(content: Content, prompting: Prompting) -> Iterator[dict[str, Any]]:
        """In their order; the task stands before the first text."""
        before = True
        for part in content.parts:
            if isinstance(part, Text):
                text = prompting.text(part.text) if before else part.text
                before = False
                yield {"type": "text", "text": text}
            elif isinstance(part, Image | Video):
                yield media_part(part)

    def answer(self, body: bytes, count: int) -> Answer:
        try:
            found = orjson.loads(body)
            data = found["data"]
            made = (data[0] if isinstance(data, list) else data)["embedding"]
            usage = found["usage"]
            tokens = int(usage["total_tokens"])
            images = int((usage.get("prompt_tokens_details") or {}).get("image_tokens") or 0)
            vector = decoded(made)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise no_answer(self.url, body) from error
        self._check_model(found.get("model"))
        return Answer(checked(vector[None, :], self._dimensions), tokens - images, images)

    def _check_model(self, resolved: Any) -> None:
        """An endpoint may lead to another family than its owner believes; vectors of two families do not mix."""
        if resolved in FAMILIES and resolved != self._family:
            raise Fatal(
                f"{self._model} is answered by {resolved}, not by {self._family}",
                setting="embedder.family",
                hint=f"say family = {resolved!r}; a collection of the other family needs a new one",
            )

    def fault(self, reply: Reply) -> SeedbedError:
        code, message, parameter = said(reply.body)
        if reply.status == 400 and parameter == "encoding_format":
            # A service that has no base64 is asked for numbers from here on.
            self._base64 = False
            return Again(f"Ark: {message}")
        return classified(reply.status, code, message or start_of(reply.body), self._model)

    def estimate(self, content: Content, kind: Kind) -> float:
        return tokens_of(content.text) + self._beside(kind) + self._media(content, most=False)

    def most(self, content: Content, kind: Kind) -> tuple[float, float]:
        return most_tokens(content.text) + self._beside(kind) + 2 * _OVERHEAD, self._media(content, most=True)

    @staticmethod
    def _media(content: Content, *, most: bool) -> float:
        if content.modality == "text":
            return 0.0
        from seedbed.embedders import ark_media

        return ark_media.most_tokens(content) if most else ark_media.tokens(content)

    def _beside(self, kind: Kind) -> float:
        prompting = self._prompting[kind]
        return _OVERHEAD + tokens_of(prompting.prefix + (prompting.instructions or ""))


_RATE = ("RateLimitExceeded", "RequestBurstTooFast")
_LOAD = ("InflightBatchsizeExceeded", "ServerOverloaded")
_SPENT = ("SetLimitExceeded", "QuotaExceeded")


def classified(status: int, code: str, message: str, model: str) -> SeedbedError:
    """By the code first: 429 is a rate as well as a spent quota, 400 a row's fault as well as a setting's."""
    words = f"Ark: {message}" + (f" ({code})" if code else "")
    if any(part in code for part in _SPENT):
        return Fatal(words, setting="embedder.api_key", hint="raise the account's quota, or wait for its next period")
    if any(part in code for part in _LOAD):
        return Overloaded(words, setting="embedder.url")
    if any(part in code for part in _RATE) or status == 429:
        return RateLimited(words, setting="embedder.rpm")
    if status == 401:
        return Fatal(words, setting="embedder.api_key", hint="check the key: it is wrong, expired or of another region")
    if status == 403:
        return Fatal(words, setting="embedder.api_key", hint="the account is overdue, or may not use this model")
    if status == 404:
        return Fatal(words, setting="embedder.url", hint=f"activate {model} for this account, or correct its name")
    if status in (400, 413, 422):
        return _fault_of_request(words, code)
    if status == 408 or status >= 500:
        return Again(words, setting="embedder.url")
    return Fatal(f"{words or 'Ark'}: status {status}", setting="embedder.url")


def _fault_of_request(words: str, code: str) -> SeedbedError:
    """Of a request that is refused the content is at fault, unless the code names one of our settings."""
    if code.startswith(("InvalidParameter.model", "MissingParameter.model", "InvalidParameter.dimensions")):
        return Fatal(words, setting="embedder.url")
    if "does not support this api" in words:
        return Fatal(words, setting="embedder.url", hint="name a model of multimodal embeddings")
    return RowError(words)
