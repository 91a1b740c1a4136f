"""`milvus://[user:password@]host[:port][/database]?…` and `milvus+embedded:DIR?…`, read once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from seedbed.errors import ConfigError
from seedbed.sinks.milvus_index import CLOUD_DEFAULT, KINDS, REFUSED
from seedbed.sinks.options import collection_of

EMBEDDED = "milvus+embedded:"
CONSISTENCY = {"strong": 0, "session": 1, "bounded": 2, "eventually": 3}
"""Milvus' names and numbers of how fresh a search must be; what the sink itself reads is always strong."""

_OPTIONS = ("index", "vectors", "consistency", "tls")
_PORT, _CLOUD_PORT = 19530, 443
_CLOUD = (".zillizcloud.com", ".zilliz.com.cn")
_FORM = "milvus://user:password@host:19530/database; escape special characters of a password as %40"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_NAME = 255 - len("__v9999")


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect, and how a collection is made and searched. `index` and `vectors` are None where
    the URL does not say: an existing collection is then taken as it is."""

    folder: str | None
    address: str
    database: str
    token: str
    tls: bool
    index: str | None
    vectors: str | None
    consistency: int
    cloud: bool


def read_target(url: str, settings: Mapping[str, Any]) -> Target:
    """Raises ConfigError for a URL or setting that cannot be used; no message holds the password."""
    head, mark, query = url.partition("?")
    options = _options(query if mark else "")
    choices = {
        "index": _choice(options, "index", KINDS, REFUSED),
        "vectors": _choice(options, "vectors", ("float32", "float16"), {}),
        "consistency": CONSISTENCY[_choice(options, "consistency", tuple(CONSISTENCY), {}) or "strong"],
    }
    if head.startswith(EMBEDDED):
        return _embedded(head.removeprefix(EMBEDDED), settings, options, choices)
    return _server(head, settings, options, choices)


def collection_name(settings: Mapping[str, Any]) -> str:
    """The setting `collection`. Raises ConfigError where it is missing or Milvus has no such names."""
    name = collection_of(settings)
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a collection of Milvus",
            setting="sink.collection",
            hint="Milvus takes letters a-z, digits and _, and no digit first: my_products",
        )
    if len(name) > _LONGEST_NAME:
        raise ConfigError(f"the collection name is longer than {_LONGEST_NAME} letters", setting="sink.collection")
    return name


def data_path(folder: str) -> Path:
    """Where the embedded engine's data lie; `MilvusClient("FOLDER/milvus.db")` opens them too, as it wants the
    ending."""
    if not folder:
        raise ConfigError("the URL names no folder", setting="sink.url", hint="milvus+embedded:./vectors")
    return Path(folder).expanduser().resolve() / "milvus.db"


def _options(query: str) -> dict[str, str]:
    found = dict(parse_qsl(query, keep_blank_values=True))
    unknown = [name for name in found if name not in _OPTIONS]
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is no option of a Milvus URL", setting="sink.url", hint=f"known: {', '.join(_OPTIONS)}"
        )
    return found


def _choice(options: Mapping[str, str], name: str, known: tuple[str, ...], refused: Mapping[str, str]) -> str | None:
    wanted = options.get(name)
    if wanted is None:
        return None
    for choice in known:
        if wanted.lower() == choice.lower():
            return choice
    reason = refused.get(wanted.upper())
    raise ConfigError(
        f"{name}={wanted} cannot be used" + (f": {reason}" if reason else ""),
        setting="sink.url",
        hint=f"{name} is one of {', '.join(known)}",
    )


def _embedded(
    folder: str, settings: Mapping[str, Any], options: Mapping[str, str], choices: Mapping[str, Any]
) -> Target:
    for name in ("api_key", "tls"):
        if settings.get(name) or name in options:
            raise ConfigError(
                f"{name} is for servers: the embedded Milvus is a folder", setting=f"sink.{name}", hint="leave it out"
            )
    if choices["vectors"] == "float16":
        raise ConfigError(
            "the embedded Milvus has no float16 vectors",
            setting="sink.url",
            hint="leave vectors=float16 out, or use a Milvus server of 2.4 or newer",
        )
    if choices["index"] == CLOUD_DEFAULT:
        raise ConfigError(
            f"index={CLOUD_DEFAULT} is a server's own choice, the embedded Milvus makes none",
            setting="sink.url",
            hint="leave it out: the embedded Milvus builds HNSW",
        )
    return Target(folder=folder, address="", database="", token="", tls=False, cloud=False, **choices)


def _server(head: str, settings: Mapping[str, Any], options: Mapping[str, str], choices: Mapping[str, Any]) -> Target:
    try:
        parts = urlsplit(head)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    database = unquote(parts.path.strip("/")) if host else ""
    if not host or parts.fragment or "/" in database:
        raise ConfigError("the Milvus URL cannot be read", setting="sink.url", hint=f"write {_FORM}")
    cloud = host.endswith(_CLOUD)
    tls = cloud or _flag(settings.get("tls"), "sink.tls") or _flag(options.get("tls"), "sink.url")
    login = ":".join(unquote(part) for part in (parts.username, parts.password) if part)
    if login and settings.get("api_key"):
        raise ConfigError(
            "the URL has a user and the sink an api_key", setting="sink.api_key", hint="leave one of them out"
        )
    place = f"[{host}]" if ":" in host else host
    return Target(
        folder=None,
        address=f"{place}:{port or (_CLOUD_PORT if cloud else _PORT)}",
        database=database,
        token=str(settings.get("api_key") or login),
        tls=tls,
        cloud=cloud,
        **choices,
    )


def _flag(value: object, setting: str) -> bool:
    known = {None: False, False: False, True: True, "false": False, "true": True}
    if isinstance(value, (str, bool, type(None))) and value in known:
        return known[value]
    raise ConfigError(f"tls is true or false, not {value!r}", setting=setting)
