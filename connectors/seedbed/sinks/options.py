"""Our own options in a sink's URL, behind its `?`, and the settings that a sink understands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl

from seedbed.errors import ConfigError

_COMMON = ("collection", "name")


def split(url: str, known: Mapping[str, Collection[str]]) -> tuple[str, dict[str, str]]:
    """The URL without its options, and those. `known` says which there are and what each may be (nothing: any
    whole number above zero). Raises ConfigError naming what is known."""
    head, _, query = url.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name not in known:
            raise ConfigError(
                f"{name!r} is no option of {head.partition(':')[0]}:",
                setting="sink.url",
                hint=f"known: {', '.join(known) or 'none'}",
            )
        fits = value in known[name] if known[name] else value.isdigit() and int(value) > 0
        if not fits:
            raise ConfigError(
                f"{name}={value} cannot be",
                setting="sink.url",
                hint=f"{name} is one of {', '.join(known[name])}" if known[name] else f"{name} is a whole number",
            )
    return head, options


def collection_of(settings: Mapping[str, Any]) -> str:
    """The collection's name. Raises ConfigError where there is none."""
    name = settings.get("collection")
    if not name:
        raise ConfigError("a sink needs a collection", setting="sink.collection", hint='collection = "products"')
    return str(name)


def refuse_others(settings: Mapping[str, Any], *known: str, hint: str = "") -> None:
    """Raises ConfigError for a setting that this sink has no use for."""
    for name, value in settings.items():
        if value and name not in (*_COMMON, *known):
            raise ConfigError(f"this sink takes no {name}", setting=f"sink.{name}", hint=hint or "leave it out")
