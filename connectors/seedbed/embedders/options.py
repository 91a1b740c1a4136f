"""What every embedder's factory reads: the URL's target and options, and the pipeline's settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self
from urllib.parse import parse_qsl

from seedbed.content import Content, Kind
from seedbed.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Options:
    """`scheme:target?name=value&…`, read by name. Each reader raises ConfigError for what it cannot use."""

    target: str
    values: Mapping[str, str]

    @classmethod
    def parse(cls, url: str, known: Iterable[str]) -> Options:
        target, query = cls.target_of(url), url.partition("?")[2]
        values = dict(parse_qsl(query, keep_blank_values=True))
        names = sorted(known)
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                raise ConfigError(
                    f"{url!r}: no option {name!r} is known",
                    setting="embedder.url",
                    hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}",
                )
        return cls(target, values)

    @staticmethod
    def target_of(url: str) -> str:
        """What stands between the scheme and the options, before anybody knows which options there are."""
        return url.partition(":")[2].partition("?")[0]

    def text(self, name: str) -> str | None:
        return self.values.get(name) or None

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of the choices; the first where the option is not there."""
        value = self.values.get(name, choices[0])
        if value not in choices:
            raise self._wrong(name, f"is not one of {', '.join(choices)}")
        return value

    def flag(self, name: str) -> bool:
        return self.choice(name, ("false", "true")) == "true"

    def whole(self, name: str) -> int | None:
        """A whole number of at least 1."""
        value = self.values.get(name)
        if value is None:
            return None
        if not value.isascii() or not value.isdigit() or int(value) < 1:
            raise self._wrong(name, "is no whole number of at least 1")
        return int(value)

    def seconds(self, name: str) -> float:
        """A finite number of at least 0; 0 where the option is not there."""
        try:
            value = float(self.values.get(name, "0"))
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise self._wrong(name, "is no number of seconds")
        return value

    def _wrong(self, name: str, why: str) -> ConfigError:
        return ConfigError(
            f"option {name}={self.values[name]!r} {why}", setting="embedder.url", hint=f"correct `{name}=` in the URL"
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """The `[embedder]` table without its URL. Instructions are put before the text; where they hold
    `{text}`, the text takes its place."""

    dimensions: int | None = None
    instruction: str = ""
    query_instruction: str = ""

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Self:
        """Raises ConfigError for an unknown setting or a value of the wrong type."""
        known = [field.name for field in fields(cls)]
        for name, value in settings.items():
            if name not in known:
                raise ConfigError(
                    f"no setting {name!r} is known to this embedder",
                    setting=f"embedder.{name}",
                    hint=f"known: {', '.join(known)}",
                )
            if name == "dimensions":
                if value is not None and not _is_whole(value, 1):
                    raise ConfigError(f"{value!r} is no number of dimensions", setting="embedder.dimensions")
            elif name in ("rpm", "tpm"):
                if value is not None and not _is_whole(value, 0):
                    raise ConfigError(f"{value!r} is no number a minute", setting=f"embedder.{name}")
            elif not isinstance(value, str):
                raise ConfigError(f"{name} is no text", setting=f"embedder.{name}")
        return cls(**settings)

    def cut(self, model: str, full: int) -> int:
        """The vectors' length: as asked, else the model's. Raises ConfigError where the model gives fewer."""
        if self.dimensions is not None and self.dimensions > full:
            raise ConfigError(
                f"{self.dimensions} dimensions are asked for, but {model} gives {full}",
                setting="embedder.dimensions",
                hint=f"set `dimensions` to at most {full}, or leave it out",
            )
        return self.dimensions or full

    def prompts(self, contents: Sequence[Content], kind: Kind) -> list[str]:
        """The texts as the model sees them."""
        instruction = self.instruction if kind == "document" else self.query_instruction
        if not instruction:
            return [content.text for content in contents]
        if "{text}" in instruction:
            return [instruction.replace("{text}", content.text) for content in contents]
        return [instruction + content.text for content in contents]


@dataclass(frozen=True, slots=True)
class RemoteSettings(Settings):
    """Of an embedder behind an address. `rpm` and `tpm` are requests and tokens a minute, 0 for no limit; `family` is
    the model that an account's endpoint leads to."""

    family: str | None = None
    api_key: str | None = field(default=None, repr=False)
    rpm: int | None = None
    tpm: int | None = None


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
