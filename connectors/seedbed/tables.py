"""What the tables of a pipeline file say, by the same names."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from seedbed.content import Modality
from seedbed.duration import parse_duration
from seedbed.errors import ConfigError
from seedbed.protocols import Metric

_LOGIN = re.compile(r"((?<=://)[^:/?#]*:).*(?=@)|((?<=[?&])password=)[^&]*")


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    def __repr__(self) -> str:
        """Without passwords and keys."""
        said = msgspec.structs.asdict(self).items()
        return f"{type(self).__name__}({', '.join(f'{name}={_shown(name, value)}' for name, value in said)})"


def _shown(name: str, value: Any) -> str:
    if name == "api_key" and value:
        return "'***'"
    if name in ("url", "proxy") and isinstance(value, str):
        return repr(_LOGIN.sub(lambda found: f"{found[1] or found[2]}***", value))
    return repr(value)


class SourceConfig(_Table, frozen=True, kw_only=True):
    url: str = ""
    conn_id: str | None = None
    """A connection of Airflow, in place of a URL with a login; here as in the other tables."""
    table: str | None = None
    query: str | None = None
    where: str | None = None
    key: list[str] = []
    changes: Literal["scan", "watermark", "queue"] = "scan"
    watermark: str | None = None
    lag: str | None = None
    deleted: str | None = None
    tenant: str | None = None


class ContentConfig(_Table, frozen=True, kw_only=True):
    text: str | None = None
    image: str | list[str] | None = None
    video: str | list[str] | None = None
    empty: Literal["skip", "fail"] = "skip"
    missing_part: Literal["skip", "fail"] = "skip"
    parts: tuple[Modality, ...] = ("text",)
    """Which of text, image and video are there, in the order in which they were declared; not itself declared."""


class ChunkConfig(_Table, frozen=True, kw_only=True):
    tokens: int
    overlap: int = 0


class EmbedderConfig(_Table, frozen=True, kw_only=True):
    url: str = ""
    conn_id: str | None = None
    dimensions: int | UnsetType = UNSET
    instruction: str = ""
    query_instruction: str = ""
    family: str | None = None
    api_key: str | None = None
    rpm: int | None = None
    tpm: int | None = None


class SinkConfig(_Table, frozen=True, kw_only=True):
    url: str = ""
    conn_id: str | None = None
    name: str = ""
    collection: str = ""
    payload: list[str] = []
    metric: Metric = "cosine"
    store_text: bool = False
    api_key: str | None = None
    tls: bool | None = None


class LedgerConfig(_Table, frozen=True, kw_only=True):
    url: str = ""
    conn_id: str | None = None


class CacheConfig(_Table, frozen=True, kw_only=True):
    url: str = ""
    conn_id: str | None = None
    max_size: str = "2GB"


class LimitsConfig(_Table, frozen=True, kw_only=True):
    max_delete: float = 0.2
    max_reembed: float = 0.2
    tokens: int = 0
    money: float = 0.0


class PricesConfig(_Table, frozen=True, kw_only=True):
    text: float = 0.0
    image: float = 0.0
    currency: str = "CNY"


class MediaConfig(_Table, frozen=True, kw_only=True):
    roots: list[str] = []
    allow_hosts: list[str] = []
    max_bytes: str = "20MB"
    max_pixels: int = 64_000_000
    max_seconds: float = 14_400.0
    timeout: float = 60.0
    revalidate: bool = True
    proxy: str | None = None


class AirflowConfig(_Table, frozen=True, kw_only=True):
    """How a pipeline is scheduled. Making one raises ConfigError for what cannot be."""

    schedule: str | None = None
    retries: int = 2
    retry_delay: str = "5m"
    pool: str | None = None
    queue: str | None = None
    owner: str | None = None
    tags: list[str] = []
    deadline: str | None = None
    shards: int = 8
    """How many parts a run is divided into."""
    parallel: int | None = None
    """The most of one run's shards at a time; None for as many as Airflow has slots."""

    def __post_init__(self) -> None:
        _check_airflow(self)

    @property
    def retry_wait(self) -> timedelta:
        return parse_duration(self.retry_delay, "airflow.retry_delay")

    @property
    def deadline_after(self) -> timedelta | None:
        return None if self.deadline is None else parse_duration(self.deadline, "airflow.deadline")


MOST_SHARDS = 256
_LONGEST_TAG = 100
"""Airflow's own limit."""


def _check_airflow(said: AirflowConfig) -> None:
    _ = said.retry_wait
    if said.deadline_after == timedelta(0):
        raise ConfigError("a deadline leaves some time", setting="airflow.deadline", hint='deadline = "2h"')
    if said.retries < 0:
        raise ConfigError(
            f"{said.retries} retries cannot be", setting="airflow.retries", hint="0 for none: a run that fails stays so"
        )
    if not 1 <= said.shards <= MOST_SHARDS:
        raise ConfigError(
            f"{said.shards} shards cannot be", setting="airflow.shards", hint=f"at least 1, at most {MOST_SHARDS}"
        )
    if said.parallel is not None and said.parallel < 1:
        raise ConfigError(
            f"{said.parallel} shards at a time are too few",
            setting="airflow.parallel",
            hint="at least 1; without it, as many as Airflow has slots",
        )
    for name in ("schedule", "pool", "queue", "owner"):
        if getattr(said, name) == "":
            raise ConfigError(f"{name} is empty", setting=f"airflow.{name}", hint="leave it out")
    for tag in said.tags:
        if not 1 <= len(tag) <= _LONGEST_TAG:
            raise ConfigError(f"{tag!r} is no tag", setting="airflow.tags", hint=f"of 1 to {_LONGEST_TAG} letters each")


class Declaration(_Table, frozen=True, kw_only=True):
    """A whole pipeline file, checked, with its defaults filled in and its paths absolute."""

    name: str
    source: SourceConfig
    content: dict[str, ContentConfig]
    """By the vector's name; protocols.UNNAMED where `[content]` itself says what the one vector is made from."""
    embedder: EmbedderConfig
    sink: list[SinkConfig]
    chunk: ChunkConfig | None = None
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    prices: PricesConfig = field(default_factory=PricesConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    airflow: AirflowConfig = field(default_factory=AirflowConfig)

    @property
    def has_media(self) -> bool:
        return any(content.parts != ("text",) for content in self.content.values())
