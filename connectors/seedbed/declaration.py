"""A pipeline as it is declared, in TOML or in Python, by the same names. Unknown names are refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
from msgspec import UNSET, Struct

from seedbed.content import MODALITIES
from seedbed.errors import ConfigError
from seedbed.expansion import expand, resolve
from seedbed.pipeline_file import located, parse, read_text
from seedbed.protocols import UNNAMED
from seedbed.tables import (
    AirflowConfig,
    CacheConfig,
    ChunkConfig,
    ContentConfig,
    Declaration,
    EmbedderConfig,
    LedgerConfig,
    LimitsConfig,
    MediaConfig,
    PricesConfig,
    SinkConfig,
    SourceConfig,
)

__all__ = [
    "AirflowConfig",
    "CacheConfig",
    "ChunkConfig",
    "ContentConfig",
    "Declaration",
    "EmbedderConfig",
    "Headline",
    "LedgerConfig",
    "LimitsConfig",
    "MediaConfig",
    "PricesConfig",
    "SinkConfig",
    "SourceConfig",
    "declare",
    "from_text",
    "headline",
    "read",
    "settings",
]

_Made = TypeVar("_Made")


def read(path: str | Path) -> Declaration:
    """A pipeline file. Raises ConfigError that names the file, the line where it is known (`FILE:LINE: …`) and the
    setting."""
    file = Path(path)
    return from_text(read_text(file), file)


def from_text(text: str, file: Path) -> Declaration:
    """The same of a file that stands somewhere else: what it says, and where it would be."""
    declared = parse(file, text)
    with located(file, text):
        return declare(declared, base=file.resolve().parent)


class Headline(Struct, frozen=True):
    """What a scheduler needs of a pipeline file."""

    name: str
    airflow: AirflowConfig
    changes: str
    """How the source's changes are seen."""


def headline(path: str | Path) -> Headline:
    """Reads no secret, asks for no connection and resolves nothing. Raises ConfigError as `read` does, but for those,
    and for what does not go together."""
    file = Path(path)
    text = read_text(file)
    declared = parse(file, text)
    with located(file, text):
        _refuse_unknown(Declaration, declared, "")
        if isinstance(name := declared.get("name"), str):
            _check_name(name)
        made = _converted(_shaped(declared), Declaration)
    return Headline(made.name, made.airflow, made.source.changes)


def declare(declared: Mapping[str, Any], *, base: Path) -> Declaration:
    """The same from a mapping; relative paths are relative to `base`. Raises ConfigError."""
    _refuse_unknown(Declaration, declared, "")
    return _complete(_connected(_converted(_shaped(expand(declared, base)), Declaration)), base)


def _shaped(declared: Mapping[str, Any]) -> dict[str, Any]:
    """With `[content]` by the vectors' names, each content saying its parts in their order."""
    if not isinstance(content := declared.get("content"), dict):
        return {**declared}
    named = content if _named(content) else {UNNAMED: content}
    return {**declared, "content": {name: _ordered(parts) for name, parts in named.items()}}


def _converted(declared: Mapping[str, Any], kind: type[_Made]) -> _Made:
    try:
        return msgspec.convert(declared, kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        setting = where.rstrip("`").lstrip(".").replace("[...]", "") or None
        raise ConfigError(
            message, setting=setting, hint="the pipeline's settings are described in the README"
        ) from None


def _connected(made: Declaration) -> Declaration:
    """With what Airflow's connections say, where some are named; checked that each part has a URL."""
    replace = msgspec.structs.replace
    return replace(
        made,
        source=_table_connected(made.source, "source", "source"),
        embedder=_table_connected(made.embedder, "embedder", "embedder"),
        sink=[_table_connected(sink, "sink", f"sink[{number}]") for number, sink in enumerate(made.sink)],
        ledger=_table_connected(made.ledger, "ledger", "ledger"),
        cache=_table_connected(made.cache, "cache", "cache"),
    )


_Connected = TypeVar("_Connected", SourceConfig, EmbedderConfig, SinkConfig, LedgerConfig, CacheConfig)


def _table_connected(table: _Connected, role: str, where: str) -> _Connected:
    if table.conn_id is not None:
        from seedbed.airflow import connections

        said = {"url": table.url, **settings(table)}
        table = msgspec.structs.replace(table, **connections.filled(role, table.conn_id, said, where=where))
    if not table.url and role not in ("ledger", "cache"):
        raise ConfigError(
            f"[{role}] names no place", setting=f"{where}.url", hint='url = "…", or conn_id = "…" under Airflow'
        )
    return table


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


# --- what goes with what ----------------------------------------------------------------------------

_VECTOR_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


def _complete(made: Declaration, base: Path) -> Declaration:
    _check_name(made.name)
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
        ledger=replace(made.ledger, url=resolve(made.ledger.url or f"sqlite:./{made.name}.ledger", base)),
        cache=replace(made.cache, url=resolve(made.cache.url or f"./{made.name}.cache", base)),
    )


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise ConfigError(
            f"{name!r} is no pipeline name", setting="name", hint="letters, digits, `_`, `-` and `.`, at most 100"
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
    """What a role's factory gets: the table's settings that are set, without `url` and `conn_id`."""
    return {
        name: value
        for name, value in msgspec.structs.asdict(config).items()
        if name not in ("url", "conn_id", *without) and value is not UNSET and value is not None
    }
