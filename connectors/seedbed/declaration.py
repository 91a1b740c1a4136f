"""A pipeline as it is declared, in TOML or in Python, by the same names. Unknown names are refused."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from seedbed.content import MODALITIES, Modality
from seedbed.errors import ConfigError
from seedbed.protocols import UNNAMED, Metric


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class SourceConfig(_Table, frozen=True, kw_only=True):
    url: str
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
    url: str
    dimensions: int | UnsetType = UNSET
    instruction: str = ""
    query_instruction: str = ""
    family: str | None = None
    api_key: str | None = None
    rpm: int | None = None
    tpm: int | None = None


class SinkConfig(_Table, frozen=True, kw_only=True):
    url: str
    name: str = ""
    collection: str = ""
    payload: list[str] = []
    metric: Metric = "cosine"
    store_text: bool = False
    api_key: str | None = None
    tls: bool | None = None


class LedgerConfig(_Table, frozen=True, kw_only=True):
    url: str = ""


class CacheConfig(_Table, frozen=True, kw_only=True):
    url: str = ""
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
    schedule: str | None = None


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


def read(path: str | Path) -> Declaration:
    """A pipeline file. Raises ConfigError that names the file and the setting."""
    file = Path(path)
    declared = _parse(file)
    try:
        return declare(declared, base=file.resolve().parent)
    except ConfigError as error:
        error.message = f"{file}: {error.message}"
        raise


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no pipeline file {file}", hint="`seedbed init URL TABLE` writes one") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from error


class Headline(Struct, frozen=True):
    """What a scheduler needs of a pipeline file."""

    name: str
    airflow: AirflowConfig


def headline(path: str | Path) -> Headline:
    """Reads no secret and resolves nothing. Raises ConfigError as `read` does, but for unset secrets."""
    declared = _parse(Path(path))
    _refuse_unknown(Declaration, declared, "")
    try:
        return msgspec.convert({"airflow": {}, **declared}, Headline)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None


def declare(declared: Mapping[str, Any], *, base: Path) -> Declaration:
    """The same from a mapping; relative paths are relative to `base`. Raises ConfigError."""
    _refuse_unknown(Declaration, declared, "")
    expanded = _expand(declared, base, "")
    if isinstance(content := expanded.get("content"), dict):
        named = content if _named(content) else {UNNAMED: content}
        expanded["content"] = {name: _ordered(parts) for name, parts in named.items()}
    try:
        made = msgspec.convert(expanded, Declaration)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        setting = where.rstrip("`").lstrip(".").replace("[...]", "") or None
        raise ConfigError(
            message, setting=setting, hint="the pipeline's settings are described in the README"
        ) from None
    return _complete(made, base)


def _ordered(content: Mapping[str, Any]) -> dict[str, Any]:
    return {**content, "parts": [name for name in content if name in MODALITIES]}


def _named(content: Mapping[str, Any]) -> bool:
    """Whether `[content]` holds a table for each of several vectors."""
    return any(isinstance(value, Mapping) for value in content.values())


# --- unknown names ----------------------------------------------------------------------------------


def _refuse_unknown(struct: type[Struct], declared: Mapping[str, Any], where: str) -> None:
    fields = {f.name: f.type for f in msgspec.structs.fields(struct) if f.name != "parts"}
    for name, value in declared.items():
        setting = f"{where}{name}"
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise ConfigError(
                f"unknown setting {setting!r}",
                setting=setting,
                hint=f"did you mean {where}{near[0]}?" if near else f"known here: {', '.join(fields)}",
            )
        if struct is Declaration and name == "content" and isinstance(value, Mapping):
            _refuse_unknown_contents(value)
            continue
        nested = _struct_of(fields[name])
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            if nested and isinstance(item, Mapping):
                index = f"[{number}]" if isinstance(value, list) else ""
                _refuse_unknown(nested, item, f"{setting}{index}.")


def _refuse_unknown_contents(content: Mapping[str, Any]) -> None:
    if not _named(content):
        _refuse_unknown(ContentConfig, content, "content.")
        return
    for name, part in content.items():
        if not isinstance(part, Mapping):
            raise ConfigError(
                f"[content] says {name!r} itself and names vectors too",
                setting=f"content.{name}",
                hint="either one vector of [content], or a table [content.NAME] for each",
            )
        if not _VECTOR_NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no vector's name",
                setting=f"content.{name}",
                hint="a lower-case letter, then letters, digits and `_`, at most 32",
            )
        _refuse_unknown(ContentConfig, part, f"content.{name}.")


def _struct_of(kind: Any) -> type[Struct] | None:
    for candidate in (kind, *get_args(kind)):
        if isinstance(candidate, type) and issubclass(candidate, Struct):
            return candidate
    return None


# --- secrets and paths ------------------------------------------------------------------------------

_VECTOR_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_REFERENCE = re.compile(r"\$\{(file:)?([^}]*)\}")
_T = TypeVar("_T")


def _expand(value: Any, base: Path, where: str) -> Any:
    match value:
        case str():
            return _REFERENCE.sub(lambda found: _secret(found, base, where), value)
        case Mapping():
            return {name: _expand(item, base, f"{where}.{name}".lstrip(".")) for name, item in value.items()}
        case list():
            return [_expand(item, base, f"{where}[{number}]") for number, item in enumerate(value)]
        case _:
            return value


def _secret(found: re.Match[str], base: Path, setting: str) -> str:
    is_file, name = found.groups()
    if not is_file:
        if name in os.environ:
            return os.environ[name]
        raise ConfigError(f"${{{name}}} is not set", setting=setting, hint=f"export {name}=… before the command")
    try:
        return (base / name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"${{file:{name}}} cannot be read: {error.strerror}", setting=setting) from error


_LOCAL = re.compile(r"((?:sqlite|files|[a-z]+\+embedded):)?(?![a-z][a-z0-9+.-]*:)(.+)", re.IGNORECASE | re.DOTALL)


def resolve(url: str, base: Path) -> str:
    """A URL whose path, if it has a relative one, is made absolute: `sqlite:`, `files:`, `…+embedded:`, `local:./…`,
    and plain paths."""
    if url.startswith(("local:./", "local:../")):
        return f"local:{os.path.normpath(base / url.removeprefix('local:'))}"
    found = _LOCAL.fullmatch(url)
    if not found or "://" in url:
        return url
    scheme, path = found.groups()
    return f"{scheme or ''}{os.path.normpath(base / os.path.expanduser(path))}"


def _complete(made: Declaration, base: Path) -> Declaration:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", made.name):
        raise ConfigError(
            f"{made.name!r} is no pipeline name", setting="name", hint="letters, digits, `_`, `-` and `.`, at most 100"
        )
    if not made.sink:
        raise ConfigError("a pipeline needs a sink", setting="sink", hint='[[sink]]\nurl = "postgresql://…"')
    for setting, share in (("max_delete", made.limits.max_delete), ("max_reembed", made.limits.max_reembed)):
        if not 0 <= share <= 1:
            raise ConfigError(
                f"{share} is no share of the rows", setting=f"limits.{setting}", hint="0.2 is one in five"
            )
    if made.limits.money and not made.prices.text:
        raise ConfigError(
            "a budget in money needs prices", setting="limits.money", hint="[prices]\ntext = 0.70  # a million tokens"
        )
    if made.limits.tokens < 0 or made.limits.money < 0:
        raise ConfigError("a budget is at least 0, which is none", setting="limits")
    if made.chunk is not None and UNNAMED not in made.content:
        raise ConfigError(
            "a row with several named vectors cannot be cut into chunks",
            setting="chunk",
            hint="leave out [chunk], or make one vector of [content]",
        )
    for name, content in made.content.items():
        _check_content(content, name, chunked=made.chunk is not None)
    sinks = [_complete_sink(sink, made, base) for sink in made.sink]
    names = [sink.name for sink in sinks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f"two sinks are called {', '.join(sorted(twice))}", setting="sink.name", hint='give each a name = "…"'
        )
    replace = msgspec.structs.replace
    return replace(
        made,
        source=replace(made.source, url=resolve(made.source.url, base)),
        embedder=replace(made.embedder, url=resolve(made.embedder.url, base)),
        sink=sinks,
        media=replace(made.media, roots=[resolve(root, base) for root in made.media.roots]),
        ledger=LedgerConfig(url=resolve(made.ledger.url or f"sqlite:./{made.name}.ledger", base)),
        cache=CacheConfig(url=resolve(made.cache.url or f"./{made.name}.cache", base), max_size=made.cache.max_size),
    )


def _check_content(content: ContentConfig, name: str, *, chunked: bool) -> None:
    setting = f"content.{name}" if name else "content"
    if not content.parts:
        raise ConfigError(
            "a content needs text, image or video", setting=setting, hint='text = "{title}", image = "photo_url"'
        )
    if chunked and content.parts != ("text",):
        raise ConfigError(
            "pictures and video cannot be cut into chunks",
            setting="chunk",
            hint="leave out [chunk], or make the content of text alone",
        )


def _complete_sink(sink: SinkConfig, made: Declaration, base: Path) -> SinkConfig:
    payload = list(sink.payload)
    if made.source.tenant and made.source.tenant not in payload:
        payload.append(made.source.tenant)
    return msgspec.structs.replace(
        sink,
        url=resolve(sink.url, base),
        name=sink.name or sink.url.partition(":")[0].partition("+")[0],
        collection=sink.collection or made.name,
        payload=payload,
    )


def settings(config: Struct, *without: str) -> dict[str, Any]:
    """What a role's factory gets: the table's settings that are set, without `url`."""
    return {
        name: value
        for name, value in msgspec.structs.asdict(config).items()
        if name not in ("url", *without) and value is not UNSET and value is not None
    }
